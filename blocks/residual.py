"""A plan as modules: sequences of layers, the residual block, and the stage of blocks at one resolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
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
    """after(shortcut(x) + drop_path(gamma * body(x))); x is (N, C, H, W).

    `drop_path` is the rate at which the body is dropped, per sample. The factors of layer scale and of drop
    path are multiplied with each other, so that scaling, dropping and adding take one operation.
    """

    __constants__ = ("scales", "drops")

    def __init__(self, plan: Sequence[Op], drop_path: float) -> None:
        super().__init__()
        paths = {path: [op for op in plan if op.name.split(".")[0] == path] for path in (BODY, SHORTCUT, SUM)}
        self.body: Any = build_layers(paths[BODY])
        self.shortcut = build_layers(paths[SHORTCUT])
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.after = build_layers(paths[SUM])
        self.scales = any(op.kind == "layer_scale" for op in paths[BODY])
        self.drops = drop_path > 0

    def forward(self, x: Tensor) -> Tensor:
        shortcut, body = self.shortcut(x), self.body(x)
        if self.scales:
            scale = self.body.gamma.gamma.view(1, -1, 1, 1)  # then (N, C, 1, 1)
            if self.drops and self.training:
                scale = self.drop_path(scale.expand(body.shape[0], -1, -1, -1))
            total = torch.addcmul(shortcut, body, scale)
        elif self.drops and self.training:
            total = torch.addcmul(shortcut, body, self.drop_path(body.new_ones(body.shape[0], 1, 1, 1)))
        else:
            total = shortcut + body
        result: Tensor = self.after(total)
        return result


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
