"""A recipe's optimizer and learning rate schedule, made by timm."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from blocks.model import Network
from roadmap.config import RecipeSpec

STEM, HEAD = (-1, 0), (1_000_000, 0)  # their positions, in the numbering of stages
POSITIONS = {"stem": STEM, "head_norm": HEAD, "head": HEAD}
BLOCKS_PER_GROUP = 3


def build_optimizer(recipe: RecipeSpec, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; without weight decay of biases and norms unless the recipe asks for it.

    They are PyTorch's fused ones, except SGD in fp16: where the very first iteration overflows, as it does
    with the loss scaler, PyTorch 2.15's fused SGD continues from uninitialized momentum.
    """
    options: dict[str, dict[str, Any]] = {
        "sgd": {"opt": "momentum", "momentum": recipe.momentum},
        "adamw": {"opt": "adamw", "betas": recipe.betas, "eps": recipe.eps},
    }
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model if recipe.layer_decay == 1 else decayed_groups(recipe, model),
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        filter_bias_and_bn=not recipe.decay_norm_and_bias,
        fused=not (recipe.optimizer == "sgd" and recipe.precision == "fp16"),
        **options[recipe.optimizer],
    )
    return optimizer


def layer_groups(model: nn.Module, by: Literal["layer", "stage"]) -> dict[str, int]:
    """The group of each parameter of a network, by its name: 0 is the stem, the last one the head.

    The groups of timm's networks are timm's own, coarse for stages. Those of ours follow ConvNeXt.

    Between them a group is a stage, or by `layer` up to three blocks of a stage in a row; the layers that
    lead into a stage belong to its first group. For stages of 3, 3, 27 and 3 blocks, they are the groups of
    the original ConvNeXt's fine-tuning.
    """
    if not isinstance(model, Network):
        matcher: Any = model.group_matcher
        numbers: dict[str, int] = group_parameters(model, matcher(coarse=by == "stage"), reverse=True)
        return numbers
    positions = {name: _position(name, by) for name, _ in model.named_parameters()}
    groups = {position: group for group, position in enumerate(sorted(set(positions.values())))}
    return {name: groups[position] for name, position in positions.items()}


def _position(name: str, by: str) -> tuple[int, int]:
    """The stage of a parameter and its part of that stage."""
    inside = re.match(r"stages\.(\d+)\.(?:downsample|blocks\.(\d+))\.", name)
    if inside is None:
        return POSITIONS[name.partition(".")[0]]
    return int(inside[1]), int(inside[2] or 0) // BLOCKS_PER_GROUP if by == "layer" else 0


def decayed_groups(recipe: RecipeSpec, model: nn.Module) -> list[dict[str, Any]]:
    """The groups of a network by a recipe, for `recipe.layer_decay` below 1."""
    return scaled_groups(
        model.named_parameters(),
        layer_groups(model, recipe.layer_decay_by),
        layer_decay=recipe.layer_decay,
        weight_decay=recipe.weight_decay,
        decay_norm_and_bias=recipe.decay_norm_and_bias,
        exempt=getattr(model, "no_weight_decay", set)(),
    )


def scaled_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    numbers: Mapping[str, int],
    *,
    layer_decay: float,
    weight_decay: float,
    decay_norm_and_bias: bool = False,
    exempt: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Parameters in groups that share learning rate and weight decay, where `numbers` has the group of each
    name as in `layer_groups`; timm's schedules multiply the rate by `lr_scale`. `exempt` are names of
    parameters without weight decay beside those of norms and biases.

    The head's, whose scale is 1, come first, because the first group's learning rate is the one
    that is reported.
    """
    last = max(numbers.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            # timm's rule
            is_matrix = parameter.ndim > 1 and not name.endswith(".bias")
            decays = decay_norm_and_bias or (is_matrix and name not in exempt)
            groups.setdefault((last - numbers[name], decays), []).append(parameter)
    return [
        {
            "params": groups[below, decays],
            "weight_decay": weight_decay * decays,
            "lr_scale": layer_decay**below,
        }
        for below, decays in sorted(groups)
    ]


def build_schedule(
    recipe: RecipeSpec, optimizer: torch.optim.Optimizer, iterations_per_epoch: int
) -> Scheduler:
    """The learning rate as a function of the iteration: linear warm-up from 0, then cosine or steps, set
    by `step_update`.
    """
    schedule: Scheduler
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.schedule,
        num_epochs=recipe.epochs - recipe.warmup_epochs if recipe.schedule == "cosine" else recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=0.0,
        # the cosine spans what the warm-up leaves; steps count from the start
        warmup_prefix=recipe.schedule == "cosine",
        min_lr=recipe.min_lr,
        decay_epochs=recipe.step_epochs,
        decay_rate=recipe.gamma,
        step_on_epochs=False,
        updates_per_epoch=iterations_per_epoch,
    )
    return schedule
