"""What PyTorch and timm lack: a module per part of the channels, a GELU for channels last, recomputation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class SplitChannels(nn.Module):
    """The concatenated outputs of one branch per part of the channels; `sizes` are the parts' channels."""

    def __init__(self, branches: Iterable[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.sizes = list(sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.sizes, dim=1)
        # TorchScript and torch.fx support neither a strict zip nor a split of unknown length
        return torch.cat([branch(parts[index]) for index, branch in enumerate(self.branches)], dim=1)


class GELU(nn.Module):
    """x times the standard normal distribution function of x; x is (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


def gelu(x: Tensor) -> Tensor:
    """GELU of x, (N, C, H, W), fast on CPUs for channels last."""
    positions = x.permute(0, 2, 3, 1)
    # PyTorch uses oneDNN, up to four times as fast as ATen, for contiguous tensors only
    return functional.gelu(positions).permute(0, 3, 1, 2) if positions.is_contiguous() else functional.gelu(x)


torch.fx.wrap("gelu")


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), whose activations are computed again in the backward pass instead of saved."""
    result: Tensor
    # a compiled graph updates a buffer once, however often it computes the value
    if torch.compiler.is_compiling():
        result = checkpoint(block, x, use_reentrant=False)
    else:
        result = checkpoint(
            block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_buffers(block))
        )
    return result


@contextmanager
def frozen_buffers(block: nn.Module) -> Iterator[None]:
    """Keeps the buffers of `block` unchanged, so that running statistics count a batch once."""
    buffers = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
