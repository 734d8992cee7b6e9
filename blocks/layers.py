"""Every kind of layer: its name, its cost, and how it is built, which alone imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Op:
    """One layer of a plan, fully decided: `c_in` and `c_out` are channels, `kernel` and `stride` pixels.

    `within` is a layer inside this one; `inplace` is whether an activation may overwrite its input.
    """

    name: str
    kind: str
    c_in: int
    c_out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    bias: bool = False
    value: float = 0.0
    within: Op | None = None
    inplace: bool = True

    def out_size(self, size: int) -> int:
        """Height (= width) of the output for an input of height `size`."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


class Layer:
    """A kind of layer, by default one without parameters; `role` is where a spec may use it.

    `passes_input` is whether the output may be the input, or a view of it.
    """

    role: str = ""
    passes_input: bool = False

    def label(self, op: Op, width: int) -> str:
        """The layer's word in a block's sentence; `width` is the stage width in channels."""
        return op.kind

    def params(self, op: Op) -> int:
        """Number of learnable parameters."""
        return 0

    def macs_per_position(self, op: Op) -> int:
        """Multiply-adds for each output position; zero for what neither convolves nor multiplies matrices."""
        return 0

    def macs(self, op: Op, size: int) -> int:
        """Multiply-adds for an input of height `size`."""
        return self.macs_per_position(op) * op.out_size(size) ** 2

    def build(self, op: Op) -> nn.Module:
        """A new module for `op`, (N, c_in, H, W) -> (N, c_out, H', W')."""
        raise NotImplementedError(f"{type(self).__name__}.build")


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution; depthwise ones have one group per channel."""

    role: str = ""
    word: str = "conv"
    depthwise: bool = False
    dilation: int = 1

    def label(self, op: Op, width: int) -> str:
        return f"{self.word}{op.kernel}"

    def params(self, op: Op) -> int:
        return self.macs_per_position(op) + op.c_out * op.bias

    def macs_per_position(self, op: Op) -> int:
        return op.c_out * (1 if self.depthwise else op.c_in) * op.kernel**2

    def build(self, op: Op) -> nn.Module:
        from torch import nn

        from blocks.depthwise import DepthwiseConv2d

        return (DepthwiseConv2d if self.depthwise else nn.Conv2d)(
            op.c_in,
            op.c_out,
            op.kernel,
            stride=op.stride,
            padding=op.padding * self.dilation,
            dilation=self.dilation,
            groups=op.c_in if self.depthwise else 1,
            bias=op.bias,
        )


class Pointwise(Conv):
    """A 1x1 convolution, named by its output channels in units of the stage width."""

    def label(self, op: Op, width: int) -> str:
        return f"pw({Fraction(op.c_out, width)}w)"


DEPTHWISE = Conv(role="spatial", word="dw", depthwise=True)
DILATED = Conv(depthwise=True, dilation=3)


class MultiScale(Layer):
    """Depthwise convolutions on 1/4, 1/2 and 1/4 of the channels: 3x3, k x k, and k x k with dilation 3."""

    role = "spatial"

    def branches(self, op: Op) -> list[tuple[Conv, Op]]:
        """The three convolutions, each with the channels that it works on."""
        quarter = op.c_in // 4
        scales = [
            (DEPTHWISE, quarter, 3),
            (DEPTHWISE, op.c_in - 2 * quarter, op.kernel),
            (DILATED, quarter, op.kernel),
        ]
        return [
            (conv, Op(op.name, op.kind, channels, channels, kernel, op.stride, kernel // 2, op.bias))
            for conv, channels, kernel in scales
        ]

    def label(self, op: Op, width: int) -> str:
        return f"ms(3,{op.kernel},{op.kernel}d3)"

    def params(self, op: Op) -> int:
        return sum(conv.params(part) for conv, part in self.branches(op))

    def macs_per_position(self, op: Op) -> int:
        return sum(conv.macs_per_position(part) for conv, part in self.branches(op))

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import SplitChannels

        parts = self.branches(op)
        return SplitChannels([conv.build(part) for conv, part in parts], [part.c_in for _, part in parts])


class Inception(Layer):
    """Depthwise convolutions of 3 x 3, 1 x k and k x 1 on an eighth of the channels each; the rest stay.

    Source: arXiv 2303.16900.
    """

    role = "spatial"

    def branches(self, op: Op) -> list[tuple[int, int, int]]:
        """The height and width of each kernel, and the channels that it works on, at least one."""
        part = max(op.c_in // 8, 1)
        return [(3, 3, part), (1, op.kernel, part), (op.kernel, 1, part)]

    def label(self, op: Op, width: int) -> str:
        return f"inc(3,1x{op.kernel},{op.kernel}x1)"

    def params(self, op: Op) -> int:
        return sum((rows * columns + op.bias) * channels for rows, columns, channels in self.branches(op))

    def macs_per_position(self, op: Op) -> int:
        return sum(rows * columns * channels for rows, columns, channels in self.branches(op))

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import SplitChannels, Subsample, band

        kernels = self.branches(op)
        kept = op.c_in - sum(channels for _, _, channels in kernels)
        branches = [band(channels, rows, columns, op.stride, op.bias) for rows, columns, channels in kernels]
        return SplitChannels(
            [Subsample(op.stride), *branches], [kept, *(channels for _, _, channels in kernels)]
        )


class Decomposed(Layer):
    """The sum of two depthwise convolutions, of 5 x k and k x 5; a smaller k is both sides.

    Source: arXiv 2207.03620.
    """

    role = "spatial"

    def short(self, op: Op) -> int:
        """The short side of both kernels."""
        return min(op.kernel, 5)

    def label(self, op: Op, width: int) -> str:
        return f"dec({self.short(op)}x{op.kernel},{op.kernel}x{self.short(op)})"

    def params(self, op: Op) -> int:
        return self.macs_per_position(op) + op.c_out * op.bias

    def macs_per_position(self, op: Op) -> int:
        return 2 * op.c_out * self.short(op) * op.kernel

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import DecomposedConv2d

        return DecomposedConv2d(op.c_in, self.short(op), op.kernel, op.stride, op.bias)


class Pooling(Layer):
    """The mean of the k x k values around each position, minus the value there. Source: arXiv 2111.11418."""

    role = "spatial"

    def label(self, op: Op, width: int) -> str:
        return f"pool{op.kernel}"

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import PoolingMixer

        return PoolingMixer(op.kernel, op.stride)


class Identity(Layer):
    """No mixing of positions; a stride keeps every other one. Source: arXiv 2210.13452."""

    role = "spatial"
    passes_input = True

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import Subsample

        return Subsample(op.stride)


class WindowAttention(Layer):
    """Multi-head self-attention in windows of k x k positions, with a bias by relative position.

    A map smaller than a window is one window; a larger one is padded with zeros to whole windows. A stride
    keeps every other position of the result. Source: arXiv 2103.14030.
    """

    role = "spatial"

    def heads(self, channels: int) -> int:
        """As many heads as split the channels into equal parts of at least 32; one below 64 channels."""
        return next(heads for heads in range(max(channels // 32, 1), 0, -1) if channels % heads == 0)

    def label(self, op: Op, width: int) -> str:
        return f"attn{op.kernel}"

    def params(self, op: Op) -> int:
        table = self.heads(op.c_in) * (2 * op.kernel - 1) ** 2
        return 4 * op.c_in**2 + 4 * op.c_in * op.bias + table

    def macs(self, op: Op, size: int) -> int:
        window = max(min(op.kernel, size), 1)
        padded = -(-size // window) * window
        attended = padded**2 * (3 * op.c_in**2 + 2 * op.c_in * window**2)
        return attended + op.out_size(size) ** 2 * op.c_in**2

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import WindowAttention2d

        return WindowAttention2d(op.c_in, self.heads(op.c_in), op.kernel, op.stride, op.bias)


class Linear(Layer):
    """The classifier, (N, c_in) -> (N, c_out)."""

    def params(self, op: Op) -> int:
        return op.c_in * op.c_out + op.c_out * op.bias

    def macs_per_position(self, op: Op) -> int:
        return op.c_in * op.c_out

    def build(self, op: Op) -> nn.Module:
        from torch import nn

        return nn.Linear(op.c_in, op.c_out, bias=op.bias)


class Norm(Layer):
    """A normalization with a learnable scale and shift per channel."""

    role = "norm"

    def params(self, op: Op) -> int:
        return 2 * op.c_in


class BatchNorm(Norm):
    """Over the batch and all positions, for each channel."""

    def build(self, op: Op) -> nn.Module:
        from torch import nn

        return nn.BatchNorm2d(op.c_in)


class LayerNorm(Norm):
    """Over the channels at each position."""

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import LayerNorm2d

        layer: nn.Module = LayerNorm2d(op.c_in, eps=1e-6)
        return layer


class RmsNorm(Norm):
    """Over the channels at each position, without centering and without a shift. Source: arXiv 1910.07467."""

    def params(self, op: Op) -> int:
        return op.c_in

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import RmsNorm2d

        return RmsNorm2d(op.c_in, eps=1e-6)


class Activation(Layer):
    """An activation by timm's name for it."""

    role = "act"

    def build(self, op: Op) -> nn.Module:
        from timm.layers import create_act_layer

        # in place, where the layer before it needs its input for the backward pass, not its output
        layer: nn.Module = create_act_layer(op.kind, inplace=op.inplace)
        return layer


class Gelu(Activation):
    """GELU with the error function, not its approximation by tanh."""

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import GELU

        return GELU()


class Gate(Layer):
    """The product of the first half of the channels, through the activation `op.within`, and the second.

    Source: arXiv 2002.05202.
    """

    def label(self, op: Op, width: int) -> str:
        return "gate" if op.within is None else f"gate({LAYERS[op.within.kind].label(op.within, width)})"

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import GatedProduct

        return GatedProduct(None if op.within is None else LAYERS[op.within.kind].build(op.within))


class GlobalResponseNorm(Layer):
    """A factor per channel that grows with the channel's norm over all positions, relative to the mean norm
    of all channels. Source: arXiv 2301.00808.
    """

    def params(self, op: Op) -> int:
        return 2 * op.c_in

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import GlobalResponseNorm2d

        return GlobalResponseNorm2d(op.c_in, eps=1e-6)


class SqueezeExcite(Layer):
    """A factor per channel by two linear layers on the mean over all positions. Source: arXiv 1709.01507."""

    def hidden(self, op: Op) -> int:
        """Channels between the two layers: the fraction `op.value`, at least one."""
        return max(round(op.c_in * op.value), 1)

    def label(self, op: Op, width: int) -> str:
        return f"se({Fraction(op.value).limit_denominator(1000)})"

    def params(self, op: Op) -> int:
        return self.macs(op, 1) + self.hidden(op) + op.c_in

    def macs(self, op: Op, size: int) -> int:
        return 2 * op.c_in * self.hidden(op)

    def build(self, op: Op) -> nn.Module:
        from timm.layers import SEModule

        layer: nn.Module = SEModule(op.c_in, rd_channels=self.hidden(op))
        return layer


class MaxPool(Layer):
    """The largest of the k x k values around each position."""

    def build(self, op: Op) -> nn.Module:
        from torch import nn

        return nn.MaxPool2d(op.kernel, stride=op.stride, padding=op.padding)


class LayerScale(Layer):
    """A learnable factor per channel that starts at `op.value`."""

    def label(self, op: Op, width: int) -> str:
        return ""

    def params(self, op: Op) -> int:
        return op.c_in

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import LayerScale2d

        return LayerScale2d(op.c_in, op.value)


LAYERS: dict[str, Layer] = {
    "pointwise": Pointwise(),
    "conv": Conv(role="spatial"),
    "depthwise": DEPTHWISE,
    "multiscale": MultiScale(),
    "inception": Inception(),
    "decomposed": Decomposed(),
    "pooling": Pooling(),
    "identity": Identity(),
    "window_attention": WindowAttention(),
    "bn": BatchNorm(),
    "ln": LayerNorm(),
    "rms": RmsNorm(),
    "relu": Activation(),
    "relu6": Activation(),
    "gelu": Gelu(),
    "silu": Activation(),
    "hard_swish": Activation(),
    "gate": Gate(),
    "grn": GlobalResponseNorm(),
    "squeeze_excite": SqueezeExcite(),
    "max_pool": MaxPool(),
    "layer_scale": LayerScale(),
    "linear": Linear(),
}


def kinds(role: str) -> tuple[str, ...]:
    """The kinds with this role: 'spatial', 'norm' or 'act'."""
    return tuple(kind for kind, layer in LAYERS.items() if layer.role == role)


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about an unknown name: "; did you mean 'relu'?", or '' where no name is near.

    The suggestion is the known name after `prefix`.
    """
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{prefix}{near[0]}'?" if near else ""


def one_of(what: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is one of `known`; otherwise a ValueError that names the nearest and lists them all."""
    known = tuple(known)
    if value in known:
        return value
    raise ValueError(f"unknown {what} '{value}', not one of {', '.join(known)}{did_you_mean(value, known)}")
