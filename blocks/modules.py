"""What PyTorch and timm lack: a module per part of the channels, GELU and layer norm for how images lie in
memory, layer scale as a part of the residual sum, recomputation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]  # documented, though not in its __all__
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


class LayerNorm2d(TimmLayerNorm2d):  # type: ignore[misc]
    """timm's layer norm over the channels of x, (N, C, H, W), which keeps half precision on a GPU.

    The kernel computes in float32 in any case. Autocast would have it read a copy in float32 and write
    float32, which takes 1.7 times as long on an H100 (`doctor --bench`).
    """

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class LayerScale2d(nn.Module):
    """A learnable factor for each of the channels, which starts at `value`; `Residual` applies it in its sum.

    Alone, it returns x as it is.
    """

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the channels of x, (N, C, H, W)."""
    positions = x.permute(0, 2, 3, 1)
    if x.is_cuda and x.dtype != torch.float32 and not is_scripting():
        with torch.autocast("cuda", enabled=False):
            kept = functional.layer_norm(positions, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
        return kept.permute(0, 3, 1, 2)
    return functional.layer_norm(positions, weight.shape, weight, bias, eps).permute(0, 3, 1, 2)


torch.fx.wrap("gelu")
torch.fx.wrap("layer_norm")


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
