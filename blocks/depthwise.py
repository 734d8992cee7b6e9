"""Depthwise convolutions fast on CPUs, where oneDNN is slow for dilated ones and for some gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]  # documented, though not in its __all__
from torch.nn import functional
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

# Shapes and types alone select the algorithm, so that a run can be repeated bit by bit. `python -m
# tests.benchmark_depthwise` prints the measurements behind the rules. In oneDNN the weight gradient is fast
# only for kernels of 3 pixels, the input gradient is slow for strides in bf16, and dilations are slow.
ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
LARGE_MAP = 65536  # values of an image's map from which one call per image is faster than copies of the batch
SMALL_MAP = 4096  # values of an image's map from which copying it pays
SMALL_WORK = 600_000  # multiply-adds from which the extra calls of a custom gradient pay


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with an odd square kernel, padded so as to keep the size before the stride.

    On a CPU its output if dilated, and in training its gradients, are computed faster, the same to rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        if is_scripting():
            output: Tensor = self._conv_forward(input, self.weight, self.bias)
        else:
            output = depthwise_conv2d(
                input, self.weight, self.bias, self.stride[0], self.dilation[0], self.training
            )
        return output


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int, training: bool = True
) -> Tensor:
    """A fast conv2d of x, (N, C, H, W), and `weight`, (C, 1, k, k), with padding `k // 2 * dilation`.

    Unless `training`, gradients are PyTorch's own.
    """
    return (
        conv2d_reference(x, weight, bias, stride, dilation)
        if is_scripting()
        else _chosen(x, weight, bias, stride, dilation, training)
    )


def _chosen(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int, training: bool
) -> Tensor:
    geometry = _computed_in(x), x.shape, weight.shape[-1], stride, dilation
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    faster = custom_backward_is_faster if learns else dilated_is_faster
    if (training or not learns) and faster(*geometry) and may_replace_conv2d(x):
        # autocast casts the arguments of conv2d, but not those of a custom function
        cast = [None if tensor is None else tensor.to(_computed_in(tensor)) for tensor in (x, weight, bias)]
        output: Tensor = Depthwise.apply(*cast, stride, dilation) if learns else dilated(*cast, dilation)
        return output
    return conv2d_reference(x, weight, bias, stride, dilation)


def _computed_in(tensor: Tensor) -> torch.dtype:
    """The type that conv2d computes in."""
    fixed = tensor.dtype == torch.float64 or not torch.is_autocast_enabled("cpu")
    return tensor.dtype if fixed else torch.get_autocast_dtype("cpu")


torch.fx.wrap("depthwise_conv2d")


def may_replace_conv2d(x: Tensor) -> bool:
    """Whether oneDNN will compute, and the caller does not need conv2d itself."""
    on_cpu = x.device.type == "cpu" and ONEDNN
    traced = is_tracing() or torch.compiler.is_exporting()  # type: ignore[no-untyped-call]
    # torch.compile does not support a function that defines forward-mode derivatives
    forward = forward_ad._current_level >= 0
    return on_cpu and x.dim() == 4 and len(x) > 0 and not traced and not forward


def custom_backward_is_faster(
    dtype: torch.dtype, shape: torch.Size, kernel: int, stride: int, dilation: int
) -> bool:
    """Whether forward and backward are faster with `Depthwise` than with oneDNN; `shape` is (N, C, H, W)."""
    if dtype == torch.bfloat16:
        return max(kernel // 2, stride, dilation) > 1 or min(shape[2:]) <= 2
    if dtype == torch.float32:
        enough = (
            shape.numel() * kernel**2 >= SMALL_WORK
            if stride == 1
            else kernel > 5 or shape[1:].numel() >= SMALL_MAP
        )
        return dilation > 1 or (kernel > 3 and enough)
    return False


def dilated_is_faster(dtype: torch.dtype, shape: torch.Size, kernel: int, stride: int, dilation: int) -> bool:
    """Whether the output alone is faster with `dilated` than with oneDNN; `shape` is (N, C, H, W)."""
    applies = stride == 1 and dilation > 1 and dtype in (torch.float32, torch.bfloat16)
    # It takes 0.15 to 0.43 of oneDNN's time from SMALL_MAP on, and 0.02 to 0.11 without weights that see only
    # padding, with one and with two threads. Otherwise it is conv2d, and 1.06 of it.
    return applies and (min(shape[2:]) <= kernel // 2 * dilation or shape[1:].numel() >= SMALL_MAP)


def conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    """PyTorch's conv2d."""
    return functional.conv2d(
        x, weight, bias, stride, weight.shape[-1] // 2 * dilation, dilation, weight.shape[0]
    )


class Depthwise(torch.autograd.Function):
    """conv2d with one group per channel, and its gradients by `input_gradient` and `weight_gradient`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
        """conv2d."""
        if stride == 1 and dilation > 1:
            output: Tensor = dilated(x, weight, bias, dilation)
            return output
        return conv2d_reference(x, weight, bias, stride, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves what conv2d would save."""
        x, weight, _, ctx.stride, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias, themselves differentiable."""
        x, weight = ctx.saved_tensors
        if not (grad.is_contiguous() or grad.is_contiguous(memory_format=torch.channels_last)):
            # the gradient of a mean is expanded, and shares its memory
            grad = grad.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        return (
            input_gradient(grad, x, weight, ctx.stride, ctx.dilation) if for_x else None,
            weight_gradient(grad, x, weight, ctx.stride, ctx.dilation) if for_weight else None,
            grad.sum((0, 2, 3)) if for_bias else None,
            None,
            None,
        )


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """The gradient of x: the output's gradient, dilated by the stride, convolved with the mirrored kernel."""
    if stride > 1 and x.dtype != torch.bfloat16:
        return _aten(grad, x, weight, stride, dilation, of_x=True)
    if stride > 1:
        spread = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    mirrored = weight.flip(2, 3)
    if dilation > 1 and torch.is_grad_enabled():
        second: Tensor = Depthwise.apply(grad, mirrored, None, 1, dilation)
        return second
    return same_size(grad, mirrored, None, dilation)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """The gradient of the weight, (C, 1, k, k): oneDNN's for small kernels, else x convolved with `grad`."""
    kernel, size = weight.shape[-1], x.shape[-2:]
    if kernel <= 3 and dilation == 1 and min(size) > 2:
        return _aten(grad, x, weight, stride, dilation, of_x=False)
    reach = [min(kernel // 2, (length - 1) // dilation) for length in size]
    # one call per image would make a compiled graph grow with the batch
    large = x[0].numel() >= LARGE_MAP and not torch.compiler.is_compiling()
    correlate = correlate_images if large else correlate_batch
    padding = [taps * dilation for taps in reach]
    if any(pad > stride * (length - 1) for pad, length in zip(padding, grad.shape[-2:], strict=True)):
        # oneDNN is slow if the padding is wider than the kernel, which here is a small map
        x, padding = functional.pad(x, (padding[1], padding[1], padding[0], padding[0])), [0, 0]
    seen = correlate(grad, x, stride, dilation, padding)
    seen = seen[:, : 2 * reach[0] + 1, : 2 * reach[1] + 1]
    rows, columns = (kernel // 2 - taps for taps in reach)
    # as the weight lies in memory
    return functional.pad(seen, (columns, columns, rows, rows)).contiguous().unsqueeze(3).permute(0, 3, 1, 2)


def _aten(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, of_x: bool) -> Tensor:
    """PyTorch's gradient of x, or else of the weight."""
    pad, groups = weight.shape[-1] // 2 * dilation, weight.shape[0]
    sizes = [stride] * 2, [pad] * 2, [dilation] * 2
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *sizes, False, [0, 0], groups, [of_x, not of_x, False]
    )
    result: Tensor = gradients[0 if of_x else 1]
    return result


def correlate_images(grad: Tensor, x: Tensor, stride: int, dilation: int, padding: list[int]) -> Tensor:
    """The sum over images, one at a time, of x convolved with `grad` as its kernel: (C, k, k), or larger."""
    channels = x.shape[1]
    parts = [
        functional.conv2d(
            x[image : image + 1], grad[image].unsqueeze(1), None, dilation, padding, stride, channels
        )
        for image in range(len(x))
    ]
    return torch.cat(parts).sum(0)


def correlate_batch(grad: Tensor, x: Tensor, stride: int, dilation: int, padding: list[int]) -> Tensor:
    """The same as `correlate_images`, with all images as the channels of one."""
    images, channels = x.shape[:2]
    if stride == dilation == 1:
        x, grad = (tensor.reshape(1, images * channels, *tensor.shape[2:]) for tensor in (x, grad))
    else:  # oneDNN wants channels last for strides
        x, grad = (
            tensor.permute(2, 3, 0, 1).flatten(2).unsqueeze(0).permute(0, 3, 1, 2) for tensor in (x, grad)
        )
    parts = functional.conv2d(x, grad.transpose(0, 1), None, dilation, padding, stride, images * channels)
    return parts.view(images, channels, *parts.shape[2:]).sum(0)


def same_size(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """conv2d with stride 1, without the weights that see only padding; a dilated one of a large map becomes
    many that are not dilated.
    """
    kernel, size = weight.shape[-1], x.shape[-2:]
    rows, columns = (max(kernel // 2 - (length - 1) // dilation, 0) for length in size)
    if rows or columns:
        weight = weight[:, :, rows : kernel - rows, columns : kernel - columns]
    elif dilation > 1 and x[0].numel() >= SMALL_MAP:
        return batch_to_space(same_size(space_to_batch(x, dilation), weight, bias, 1), dilation, x.shape)
    padding = [length // 2 * dilation for length in weight.shape[-2:]]
    return functional.conv2d(x, weight, bias, 1, padding, dilation, weight.shape[0])


def space_to_batch(x: Tensor, step: int) -> Tensor:
    """Every `step`-th row and column as separate images.

    (N, C, H, W) -> (step * step * N, C, ceil(H / step), ceil(W / step)).
    """
    images, channels, height, width = x.shape
    rows, columns = -(-height // step), -(-width // step)
    padded = functional.pad(x, (0, columns * step - width, 0, rows * step - height)).permute(0, 2, 3, 1)
    parts = padded.reshape(images, rows, step, columns, step, channels).permute(2, 4, 0, 1, 3, 5)
    return parts.reshape(step * step * images, rows, columns, channels).permute(0, 3, 1, 2)


def batch_to_space(parts: Tensor, step: int, shape: torch.Size) -> Tensor:
    """The inverse of `space_to_batch` for an x of `shape`."""
    images, channels, height, width = shape
    rows, columns = parts.shape[2:]
    joined = (
        parts.permute(0, 2, 3, 1)
        .reshape(step, step, images, rows, columns, channels)
        .permute(2, 3, 0, 4, 1, 5)
    )
    x = joined.reshape(images, rows * step, columns * step, channels)[:, :height, :width]
    return x.contiguous().permute(0, 3, 1, 2)  # vmap does not support channels_last


@torch.library.custom_op("convnext_roadmap::depthwise_dilated", mutates_args=())
def dilated(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """`same_size` as an operator, so that a count of FLOPs is that of the dilated convolution."""
    return same_size(x, weight, bias, dilation).contiguous(memory_format=torch.channels_last)


@dilated.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@register_flop_formula(torch.ops.convnext_roadmap.depthwise_dilated)
def _flops(x: Any, weight: Any, bias: Any, dilation: int, *, out_shape: Any, **_: Any) -> int:
    """The operations of the dilated convolution."""
    return conv_flop_count(x, weight, out_shape, transposed=False)
