"""What neither PyTorch nor timm has: a module over parts of the channels, a GELU for channels last, and
blocks that are recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Split(nn.Module):
    """cat(branch(part) for each part of x); `sizes` are the parts' channels."""

    def __init__(self, branches: Iterable[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.sizes = list(sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.sizes, dim=1)
        # by index, for TorchScript and torch.fx read neither a strict zip nor a split without a known length
        return torch.cat([branch(parts[index]) for index, branch in enumerate(self.branches)], dim=1)


class GELU(nn.Module):
    """x times the share of a normal distribution below x; x is (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


def gelu(x: Tensor) -> Tensor:
    """GELU of x, (N, C, H, W); of channels last in the way that is fastest on CPUs."""
    positions = x.permute(0, 2, 3, 1)
    # oneDNN, up to four times as fast as ATen, is asked for contiguous tensors alone
    return functional.gelu(positions).permute(0, 3, 1, 2) if positions.is_contiguous() else functional.gelu(x)


torch.fx.wrap("gelu")


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), whose intermediate results are computed again on the way back instead of kept."""
    result: Tensor
    # a compiled graph writes to a buffer once however often it computes the value
    if torch.compiler.is_compiling():
        result = checkpoint(block, x, use_reentrant=False)
    else:
        result = checkpoint(
            block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), spared_buffers(block))
        )
    return result


@contextmanager
def spared_buffers(block: nn.Module) -> Iterator[None]:
    """Leaves the buffers of `block` as they are, for running statistics must not count a batch twice."""
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
