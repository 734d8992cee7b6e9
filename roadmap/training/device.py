"""The device that a run computes on, and how PyTorch uses it: threads, precision, memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from roadmap.config import RunConfig
from roadmap.errors import config_error
from roadmap.provenance import cpu

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(config: RunConfig, local_rank: int = 0) -> torch.device:
    """The device that the configuration names, the `local_rank`-th of its kind; `auto` is CUDA
    where there is one.
    """
    name = config.system.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    ):
        raise config_error(
            "system.device", f"'{name}' is unavailable on this machine; 'auto' takes what there is"
        )
    if config.system.sync_bn and name != "cuda":
        raise config_error(
            "system.sync_bn",
            f"needs CUDA, the only device of PyTorch's synchronized BN; this run is on {name}",
        )
    return (
        torch.device(name, local_rank % torch.cuda.device_count()) if name == "cuda" else torch.device(name)
    )


def set_up(config: RunConfig, device: torch.device) -> None:
    """PyTorch's threads, and whether it may choose its algorithms by their speed."""
    system = config.system
    if system.threads is not None:
        torch.set_num_threads(system.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.reset_peak_memory_stats(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    else:
        keep_memory()
    torch.use_deterministic_algorithms(system.deterministic)
    torch.backends.cudnn.benchmark = not system.deterministic


def keep_memory() -> None:
    """Has glibc keep freed memory in the process, where returning it would mean a page fault for each page
    when it is needed again.

    At 224 px that took about a seventh of a training step of ConvNeXt-T on a CPU. Peak memory stays the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The recipe's precision."""
    dtype = PRECISIONS[config.recipe.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def hardware(device: torch.device, count: int = 1) -> str:
    """What a result was computed on: the GPU or processor, and how many processes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()
    return (
        name if count == 1 else f"{count} x {name}" if device.type == "cuda" else f"{name}, {count} processes"
    )


class OutOfMemory(RuntimeError):
    """The device cannot hold a micro-batch; the message suggests what to try."""


@contextmanager
def oom_hint(what: str, suggestions: list[str]) -> Iterator[None]:
    """OutOfMemory with `suggestions`, where the device has no memory for `what` at a time."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        advice = f"try {', or '.join(suggestions)}" if suggestions else "the network needs a larger device"
        raise OutOfMemory(f"out of memory with {what} at a time; {advice}") from error


def oom_suggestions(config: RunConfig, micro: int) -> list[str]:
    """Settings that take less memory than `micro` images at a time do."""
    recipe, system, half = config.recipe, config.system, micro // 2
    suggestions = [] if system.grad_checkpointing else ["--set system.grad_checkpointing=true"]
    if micro % (4 if recipe.mixes else 2) == 0:
        # BN would see fewer images at once, which makes it another recipe
        bn = config.model.block.norm.kind == "bn"
        value = f"recipe.local_batch={recipe.group // 2}" if bn else f"system.micro_batch={half}"
        suggestions.append(f"--set {value}, {half} images at a time")
    return suggestions


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory of tensors on a GPU so far, in MiB; None on other devices, where PyTorch does not count."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
