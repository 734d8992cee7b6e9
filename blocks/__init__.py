"""Composable residual networks: orthogonal axes in, an ordered plan out. Only `build_model` imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blocks.cost import Complexity, complexity
from blocks.layers import LAYERS, Op
from blocks.plan import ModelPlan, describe, plan_block, plan_model
from blocks.spec import BlockSpec, ModelSpec

if TYPE_CHECKING:
    from blocks.model import Network

__all__ = [
    "LAYERS",
    "BlockSpec",
    "Complexity",
    "ModelPlan",
    "ModelSpec",
    "Op",
    "build_model",
    "complexity",
    "describe",
    "plan_block",
    "plan_model",
]


def build_model(spec: ModelSpec) -> Network:
    """A freshly initialized network for `spec`: (N, in_chans, H, W) -> logits (N, num_classes)."""
    from blocks.model import build_model as build

    return build(spec)
