"""The most arithmetic that the device does in a second, seen on the two operations networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional


class Probe(NamedTuple):
    """An operation of `flop` floating point operations; a multiply-add counts as two."""

    run: Callable[[], object]
    flop: float


def matmul(device: torch.device, dtype: torch.dtype) -> Probe:
    """A product of two square matrices, 4096 x 4096 on a GPU and 2048 x 2048 elsewhere."""
    size = 4096 if device.type == "cuda" else 2048
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return Probe(lambda: one @ other, 2.0 * size**3)


def convolution(device: torch.device, dtype: torch.dtype) -> Probe:
    """A dense 3x3 convolution of 256 channels at 28x28, channels_last; 256 images on a GPU, 16 elsewhere."""
    images, channels, size = 256 if device.type == "cuda" else 16, 256, 28
    x = torch.randn(images, channels, size, size, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )

    @torch.inference_mode()
    def run() -> object:
        return functional.conv2d(x, weight, padding=1)

    return Probe(run, 2.0 * images * size**2 * channels**2 * 9)
