"""Every kind of layer: its name, its cost, and how it is built, which alone imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Op:
    """One layer of a plan, fully decided: `c_in` and `c_out` are channels, `kernel` and `stride` pixels."""

    name: str
    kind: str
    c_in: int
    c_out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    bias: bool = False
    value: float = 0.0

    def out_size(self, size: int) -> int:
        """Height (= width) of the output for an input of height `size`."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


class Layer:
    """A kind of layer, by default one without parameters; `role` is where a spec may use it."""

    role: str = ""

    def label(self, op: Op, width: int) -> str:
        """The layer's word in a block's sentence; `width` is the stage width in channels."""
        return op.kind

    def params(self, op: Op) -> int:
        """Number of learnable parameters."""
        return 0

    def macs_per_position(self, op: Op) -> int:
        """Multiply-adds for each output position; zero for all but convolutions and linear layers."""
        return 0

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
        return f"pw({op.c_out // width}w)"


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


class Activation(Layer):
    """An activation by timm's name for it."""

    role = "act"

    def build(self, op: Op) -> nn.Module:
        from timm.layers import create_act_layer

        # in place, because the layer before it needs its input for the backward pass, not its output
        layer: nn.Module = create_act_layer(op.kind, inplace=True)
        return layer


class Gelu(Activation):
    """GELU with the error function, not its approximation by tanh."""

    def build(self, op: Op) -> nn.Module:
        from blocks.modules import GELU

        return GELU()


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
    "bn": BatchNorm(),
    "ln": LayerNorm(),
    "relu": Activation(),
    "gelu": Gelu(),
    "silu": Activation(),
    "hard_swish": Activation(),
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
