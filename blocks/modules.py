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


def band(channels: int, rows: int, columns: int, stride: int, bias: bool) -> nn.Conv2d:
    """A depthwise convolution whose kernel has odd sides, padded so as to keep the size before the stride."""
    padding = (rows // 2, columns // 2)
    return nn.Conv2d(channels, channels, (rows, columns), stride, padding, groups=channels, bias=bias)


class DecomposedConv2d(nn.Module):
    """The sum of two depthwise convolutions of x, (N, C, H, W), with kernels of `short` x `long` and
    `long` x `short`; only the first has a bias.
    """

    def __init__(self, channels: int, short: int, long: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.wide = band(channels, short, long, stride, bias)
        self.tall = band(channels, long, short, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.wide(x) + self.tall(x)
        return total


class Subsample(nn.Module):
    """Every `stride`-th row and column of x, (N, C, H, W), from the first one on; for stride 1 x itself."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]


class PoolingMixer(nn.Module):
    """The mean of the `kernel` x `kernel` values around each `stride`-th position, minus the value there.

    x is (N, C, H, W); values outside of it do not count.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)
        self.center = Subsample(stride)

    def forward(self, x: Tensor) -> Tensor:
        difference: Tensor = self.pool(x) - self.center(x)
        return difference


class PositionBias(nn.Module):
    """What attention adds for each head and each offset between two positions of a window.

    `bias` is (heads, 2 k - 1, 2 k - 1): its name keeps it from weight decay. It starts as Swin's, a truncated
    normal of .02.
    """

    def __init__(self, heads: int, kernel: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(heads, 2 * kernel - 1, 2 * kernel - 1))
        nn.init.trunc_normal_(self.bias, std=0.02)


class WindowAttention2d(nn.Module):
    """Multi-head self-attention of x, (N, C, H, W), in windows of `kernel` x `kernel` positions without
    overlap; the result has every `stride`-th row and column.

    A map smaller than a window is one window. A larger one is padded with zeros at the bottom and at the
    right, which positions attend to, as in Swin.
    """

    def __init__(self, channels: int, heads: int, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.position = PositionBias(heads, kernel)
        self.kept = Subsample(stride)
        self.proj = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(pad_to_windows(x, self.kernel))
        attended = crop_like(attend_in_windows(qkv, self.position.bias, self.kernel), x)
        mixed: Tensor = self.proj(self.kept(attended))
        return mixed


def pad_to_windows(x: Tensor, kernel: int) -> Tensor:
    """x, (N, C, H, W), with zeros at the bottom and at the right up to a multiple of `kernel`, where it is
    larger than that.
    """
    height, width = x.shape[2], x.shape[3]
    below = -height % kernel if height > kernel else 0
    beside = -width % kernel if width > kernel else 0
    return functional.pad(x, (0, beside, 0, below)) if below or beside else x


def crop_like(x: Tensor, other: Tensor) -> Tensor:
    """The first rows and columns of x, as many as those of `other`."""
    return x[:, :, : other.shape[2], : other.shape[3]]


def attend_in_windows(qkv: Tensor, position: Tensor, kernel: int) -> Tensor:
    """Attention in each window: (N, 3 C, H, W), query, key and value, -> (N, C, H, W).

    H and W are multiples of `kernel`, or smaller; `position` is the bias of `PositionBias`.
    """
    heads, height, width = position.shape[0], qkv.shape[2], qkv.shape[3]
    rows, columns = min(kernel, height), min(kernel, width)
    down, across = height // rows, width // columns
    split = qkv.permute(0, 2, 3, 1).reshape(
        -1, down, rows, across, columns, 3, heads, qkv.shape[1] // 3 // heads
    )
    # (3, N, windows down, windows across, heads, positions, channels of a head)
    parts = split.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)
    bias = position_matrix(position, rows, columns).to(qkv.dtype)
    query, key, value = [part.flatten(0, 2) for part in parts.unbind(0)]
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    windows = attended.reshape(-1, down, across, heads, rows, columns, attended.shape[-1])
    joined = windows.permute(0, 3, 6, 1, 4, 2, 5)
    return joined.reshape(-1, qkv.shape[1] // 3, height, width)


def position_matrix(position: Tensor, rows: int, columns: int) -> Tensor:
    """The biases of each pair of positions in a window, by query and key: (heads, rows * columns, same)."""
    below, beside = position.shape[1] // 2 + 1 - rows, position.shape[2] // 2 + 1 - columns
    near = position[:, below : below + 2 * rows - 1, beside : beside + 2 * columns - 1]
    # query i and key j are at index i + (n - 1 - j) of 2 n - 1 offsets
    pairs = near.unfold(1, rows, 1).unfold(2, columns, 1).flip(3, 4)
    return pairs.reshape(position.shape[0], rows * columns, rows * columns)


class GatedProduct(nn.Module):
    """act(first half of the channels) * second half: (N, 2 C, H, W) -> (N, C, H, W)."""

    def __init__(self, act: nn.Module | None) -> None:
        super().__init__()
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.chunk(x, 2, dim=1)
        product: Tensor = self.act(first) * second
        return product


class GlobalResponseNorm2d(nn.Module):
    """x + weight * n * x + bias, where n is a channel's norm over all positions by the mean of all channels'.

    x is (N, C, H, W). Weight and bias start at zero, so that the layer starts as an identity.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return global_response_norm(x, self.weight, self.bias, self.eps)


def global_response_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The result of `GlobalResponseNorm2d`; norms are computed in float32 and the sum in the type of x."""
    norms = torch.linalg.vector_norm(
        x, dim=(2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, weight.dtype)
    )
    factors = 1 + weight.view(1, -1, 1, 1) * norms / (norms.mean(1, keepdim=True) + eps)
    return torch.addcmul(bias.view(1, -1, 1, 1).to(x.dtype), x, factors.to(x.dtype))


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


class RmsNorm2d(nn.Module):
    """x by the root mean square of the channels at each position, times a weight per channel.

    x is (N, C, H, W); half precision is kept, as by `LayerNorm2d`.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


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


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the channels of x, (N, C, H, W)."""
    positions = x.permute(0, 2, 3, 1)
    if x.is_cuda and x.dtype != torch.float32 and not is_scripting():
        with torch.autocast("cuda", enabled=False):
            kept = functional.rms_norm(positions, weight.shape, weight.to(x.dtype), eps)
        return kept.permute(0, 3, 1, 2)
    return functional.rms_norm(positions, weight.shape, weight, eps).permute(0, 3, 1, 2)


# their arguments are tensors whose shapes decide
for name in (
    "gelu",
    "layer_norm",
    "rms_norm",
    "global_response_norm",
    "pad_to_windows",
    "crop_like",
    "attend_in_windows",
):
    torch.fx.wrap(name)


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
