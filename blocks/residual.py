"""The modules that a plan is built into: layers in a row, and the residual block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from timm.layers import DropPath
from torch import Tensor, nn

from blocks.layers import LAYERS, Op
from blocks.plan import BODY, SHORTCUT, SUM


def build_layers(ops: Iterable[Op]) -> nn.Sequential:
    """The layers in a row, each under the last part of its name; an empty row is an identity."""
    return nn.Sequential(OrderedDict((op.name.split(".")[-1], LAYERS[op.kind].build(op)) for op in ops))


class Residual(nn.Module):
    """after(shortcut(x) + drop_path(body(x))); x is (N, C, H, W), `drop_path` the rate of dropping the body per sample."""

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
