"""A plan as modules: sequences of layers, the residual block, and the stage of blocks at one resolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from timm.layers import DropPath
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]  # documented, though not in its __all__

from blocks.layers import LAYERS, Op
from blocks.modules import recomputed
from blocks.plan import BODY, SHORTCUT, SUM


def build_layers(ops: Iterable[Op]) -> nn.Sequential:
    """A sequence of layers, each under the last part of its name; an empty one is an identity."""
    return nn.Sequential(OrderedDict((op.name.split(".")[-1], LAYERS[op.kind].build(op)) for op in ops))


class Residual(nn.Module):
    """after(shortcut(x) + drop_path(body(x))); x is (N, C, H, W).

    `drop_path` is the rate at which the body is dropped, per sample.
    """

    def __init__(self, plan: Sequence[Op], drop_path: float) -> None:
        super().__init__()
        paths = {path: [op for op in plan if op.name.split(".")[0] == path] for path in (BODY, SHORTCUT, SUM)}
        self.body = build_layers(paths[BODY])
        self.shortcut = build_layers(paths[SHORTCUT])
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.after = build_layers(paths[SUM])

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.after(self.shortcut(x) + self.drop_path(self.body(x)))
        return total


class Stage(nn.Module):
    """blocks(downsample(x)); `drop_paths` are the blocks' rates.

    `grad_checkpointing` trades time for memory in training.
    """

    def __init__(
        self, downsample: Sequence[Op], blocks: Sequence[Sequence[Op]], drop_paths: Iterable[float]
    ) -> None:
        super().__init__()
        # built first, so that the blocks draw their weights first, as in all runs so far
        residuals = nn.Sequential(
            *(Residual(block, rate) for block, rate in zip(blocks, drop_paths, strict=True))
        )
        self.downsample = build_layers(downsample)
        self.blocks = residuals
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not is_scripting():
            for block in self.blocks:
                x = recomputed(block, x)
        else:
            x = self.blocks(x)
        return x
