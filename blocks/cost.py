"""Parameters and multiply-adds of a network, counted on its plan by arithmetic; no module is built."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from blocks.layers import LAYERS, Op
from blocks.plan import SHORTCUT, plan_model
from blocks.spec import ModelSpec


@dataclass(frozen=True)
class Complexity:
    """`params`: learnable parameters; `macs`: multiply-adds of convolutions, linear layers and attention per
    image.
    """

    params: int
    macs: int

    def __add__(self, other: Complexity) -> Complexity:
        return Complexity(self.params + other.params, self.macs + other.macs)

    @property
    def gmacs(self) -> float:
        """Multiply-adds in 10**9, the unit that the paper prints as FLOPs."""
        return self.macs / 1e9


def _count(ops: Iterable[Op], size: int) -> tuple[Complexity, int]:
    """The cost of a sequence of layers on an input of height `size`, and the height of its output."""
    params, macs = 0, 0
    for op in ops:
        layer = LAYERS[op.kind]
        params += layer.params(op)
        macs += layer.macs(op, size)
        size = op.out_size(size)
    return Complexity(params, macs), size


@lru_cache(maxsize=4096)  # a roadmap needs each network in all profiles, and for each seed
def complexity(spec: ModelSpec, image_size: int = 224) -> Complexity:
    """The cost of `spec` for square images of `image_size` pixels; ValueError if its strides need more."""
    plan = plan_model(spec)
    total, size = _count(plan.stem, image_size)
    for downsample, blocks in zip(plan.downsamples, plan.stages, strict=True):
        cost, size = _count(downsample, size)
        total += cost
        for block, equal in groupby(blocks):  # all but a stage's first block are equal
            shortcut, _ = _count((op for op in block if op.name.startswith(SHORTCUT)), size)
            body, size = _count((op for op in block if not op.name.startswith(SHORTCUT)), size)
            times = len(list(equal))
            total += Complexity(times * (body.params + shortcut.params), times * (body.macs + shortcut.macs))
            if size < 1:
                raise ValueError(f"an image of {image_size} pixels is too small for this network")
    head, _ = _count((*plan.head_norm, plan.classifier), 1)
    return total + head


def training_macs(spec: ModelSpec, image_size: int = 224) -> int:
    """Multiply-adds of a forward and backward pass for one image; ValueError as in `complexity`.

    Each layer computes the gradients of its input and of its weights, and each costs as much as its output.
    Images need no gradient, so the first convolution has one less. PyTorch's flop_counter counts the backward
    pass of a grouped convolution as that of a dense one, far too much where it is depthwise.
    """
    first, _ = _count(plan_model(spec).stem[:1], image_size)
    return 3 * complexity(spec, image_size).macs - first.macs
