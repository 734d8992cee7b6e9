"""A recipe's optimizer and learning rate schedule, made by timm."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from roadmap.recipe import Recipe


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; weight decay leaves biases and norms alone unless the recipe says otherwise."""
    options: dict[str, dict[str, Any]] = {
        "sgd": {"opt": "momentum", "momentum": recipe.momentum},
        "adamw": {"opt": "adamw", "betas": recipe.betas, "eps": recipe.eps},
    }
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        lr=recipe.lr * recipe.lr_scale,
        weight_decay=recipe.weight_decay,
        filter_bias_and_bn=not recipe.decay_norm_and_bias,
        fused=True,
        **options[recipe.optimizer],
    )
    return optimizer


def build_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, iterations_per_epoch: int) -> Scheduler:
    """The learning rate as a function of the iteration: linear warm-up from 0, then cosine or steps, set by `step_update`."""
    schedule: Scheduler
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.schedule,
        num_epochs=recipe.epochs - recipe.warmup_epochs if recipe.schedule == "cosine" else recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=0.0,
        warmup_prefix=recipe.schedule == "cosine",  # the cosine spans what the warm-up leaves; steps count from the start
        min_lr=recipe.min_lr,
        decay_epochs=recipe.step_epochs,
        decay_rate=recipe.gamma,
        step_on_epochs=False,
        updates_per_epoch=iterations_per_epoch,
    )
    return schedule
