"""Random numbers that depend only on where in the run they are drawn: a resumed run draws the same."""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch

SAMPLE, STEP, ORDER, INIT, CHECK = "sample", "step", "order", "init", "check"
RANDAUGMENT, ERASE, MIX, NOISE = "randaugment", "erase", "mix", "noise"


def seed_of(purpose: str, *counters: int) -> int:
    """A 63-bit seed for a purpose and its counters; nearby counters give unrelated seeds."""
    words = np.random.SeedSequence([zlib.crc32(purpose.encode()), *counters]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def reseed(purpose: str, *counters: int) -> None:
    """Sets the generators that timm and PyTorch draw from: Python's, NumPy's, and PyTorch's on the CPU and
    the current device.
    """
    seed = seed_of(purpose, *counters)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed takes 0.4 ms where CUDA has not been used yet
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def permutation(length: int, *counters: int) -> list[int]:
    """The order of `length` samples in an epoch."""
    generator = torch.Generator().manual_seed(seed_of(ORDER, *counters))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order
