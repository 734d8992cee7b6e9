"""What a depthwise convolution takes with PyTorch's algorithms and with ours, with gradients and without:
`python -m tests.benchmark_depthwise`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blocks import depthwise
from blocks.depthwise import DepthwiseConv2d
from roadmap.bench.interleave import interleave, ratio_of, seconds_each, spread_of
from roadmap.training.device import keep_memory


class Shape(NamedTuple):
    """A batch of `batch` maps of `channels` and `size` x `size` positions, and the convolution that it is
    given.
    """

    batch: int
    channels: int
    size: int
    kernel: int = 7
    stride: int = 1
    dilation: int = 1


IMAGENET = [(96, 56), (192, 28), (384, 14), (768, 7)]
DIGITS = [(12, 16), (24, 8), (48, 4), (96, 2)]


def shapes() -> Iterator[Shape]:
    """The depthwise convolutions of the roadmap's steps, on ImageNet and on digits."""
    for batch, stages in ((16, IMAGENET), (64, DIGITS)):
        for kernel in (3, 5, 7, 9, 11):
            yield from (Shape(batch, channels, size, kernel) for channels, size in stages)
        for kernel in (3, 5, 7, 9, 11):
            yield from (Shape(batch, channels, size, kernel, stride=2) for channels, size in stages[:-1])
        for kernel in (3, 7):
            yield from (
                Shape(batch, channels, size, kernel) for channels, size in ((4 * c, s) for c, s in stages[1:])
            )
        yield from (Shape(batch, channels // 4, size, dilation=3) for channels, size in stages)
    yield from (Shape(128, channels, size) for channels, size in IMAGENET[1:])
    yield from (Shape(64, channels, size, 3) for channels, size in ((8, 16), (16, 8), (32, 4), (64, 2)))


def convolution(kind: type[nn.Conv2d], shape: Shape) -> nn.Conv2d:
    pad = shape.kernel // 2 * shape.dilation
    conv = kind(
        shape.channels, shape.channels, shape.kernel, shape.stride, pad, shape.dilation, shape.channels
    )
    return conv.to(memory_format=torch.channels_last).train()


def step(conv: nn.Conv2d, shape: Shape, dtype: torch.dtype) -> Callable[[], None]:
    """One forward pass, and in training a backward pass."""
    conv = conv.to(dtype)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    grad: Tensor = torch.randn_like(conv(x))

    def run() -> None:
        torch.autograd.grad(conv(x), [x, *conv.parameters()], grad)

    @torch.inference_mode()
    def infer() -> None:
        conv(x)

    return run if conv.training else infer


def row(shape: Shape, dtype: torch.dtype, seconds: float, train: bool) -> str:
    """Medians, and the median of the rounds' ratios with their IQR."""
    convs = [convolution(kind, shape).train(train) for kind in (nn.Conv2d, DepthwiseConv2d)]
    runs = [step(conv, shape, dtype) for conv in convs]
    for run in runs:
        run()
    measurements = [partial(seconds_each, run, torch.device("cpu"), 1) for run in runs]
    plain, fast = interleave(dict(zip(("plain", "fast"), measurements, strict=True)), seconds).values()
    ratio = ratio_of(fast, plain)
    cells = [f"{value:4d}" for value in shape] + [
        f"{1e3 * spread_of(taken).median:8.2f}" for taken in (plain, fast)
    ]
    ratios = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), n = {ratio.n}"
    return f"{str(dtype).removeprefix('torch.'):>8} {' '.join(cells)}   {ratios}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each shape and type")
    parser.add_argument("--inference", action="store_true", help="without gradients, dilated ones only")
    parser.add_argument(
        "--everywhere", action="store_true", help="ours even where the rules leave a convolution to PyTorch"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    if options.everywhere:
        depthwise.custom_backward_is_faster = depthwise.dilated_is_faster = lambda *_: True
    print("   dtype    N    C    H    k    s    d    plain     fast   fast / plain (IQR)")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes():
            if not options.inference or shape.dilation > 1:
                print(row(shape, dtype, options.seconds, not options.inference), flush=True)


if __name__ == "__main__":
    main()
