"""One network in training: what happens in an iteration, in an evaluation, and what a checkpoint must hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional

from blocks.model import build_model
from roadmap.data import Loader
from roadmap.optim import build_optimizer, build_schedule
from roadmap.randomness import INIT, STEP, reseed
from roadmap.recipe import RunConfig


@dataclass(frozen=True)
class Scores:
    """An evaluation: mean cross-entropy, and the share of images in % whose label is the first, or among the first five."""

    loss: float
    top1: float
    top5: float


class Mean:
    """A running mean over iterations that stays on the device until it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Counts one more value, without waiting for it."""
        self.total += value
        self.count += 1

    def take(self) -> float:
        """The mean since the last call; waits for the device."""
        mean = float(self.total) / self.count if self.count else math.nan
        self.total.zero_()
        self.count = 0
        return mean

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"total": self.total.clone(), "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.total.copy_(state["total"])
        self.count = state["count"]


class Engine:
    """A network, its optimizer, schedule and moving average; `iteration` counts the optimizer's steps."""

    def __init__(self, config: RunConfig, device: torch.device, iterations_per_epoch: int) -> None:
        recipe = config.recipe
        self.config, self.device, self.iteration = config, device, 0
        reseed(INIT, config.seed)
        self.model: nn.Module = build_model(config.model).to(device).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(recipe, self.model)
        self.schedule = build_schedule(recipe, self.optimizer, iterations_per_epoch)
        self.ema = ModelEmaV3(self.model, decay=recipe.ema) if recipe.ema is not None else None
        self.erase = RandomErasing(recipe.random_erasing, mode=recipe.erase_mode, device=device) if recipe.random_erasing else None
        self.mix = self._mixup() if recipe.mixes else None

    def _mixup(self) -> Mixup:
        recipe = self.config.recipe
        return Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            label_smoothing=recipe.label_smoothing,
            num_classes=self.config.model.num_classes,
        )

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One iteration on a batch; returns its loss on the device."""
        recipe = self.config.recipe
        reseed(STEP, self.config.seed, self.iteration)
        self.schedule.step_update(self.iteration)
        self.model.train()
        if self.erase is not None:
            images = self.erase(images)
        smoothing = recipe.label_smoothing
        if self.mix is not None:
            images, labels = self.mix(images, labels)
            smoothing = 0.0  # the mixed labels are smoothed already
        with self._autocast():
            loss = functional.cross_entropy(self.model(images), labels, label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.optimizer.step()
        self.iteration += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.iteration)
        return loss.detach()

    def lr(self) -> float:
        """The learning rate of the last iteration."""
        return float(self.optimizer.param_groups[0]["lr"])

    def evaluate(self, loader: Loader) -> Scores:
        """The scores of the network as it is now."""
        return self._evaluate(self.model, loader)

    def evaluate_ema(self, loader: Loader) -> Scores | None:
        """The scores of the moving average, or None where there is none."""
        return self._evaluate(self.ema.module, loader) if self.ema is not None else None

    @torch.inference_mode()
    def _evaluate(self, model: nn.Module, loader: Loader) -> Scores:
        model.eval()
        totals = torch.zeros(3, device=self.device)
        for images, labels in loader.epoch():
            with self._autocast():
                logits = model(images).float()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            totals += torch.stack([loss, ranked[:, 0].sum().float(), ranked.sum().float()])
        loss, first, five = (totals / loader.images).tolist()
        return Scores(loss, 100 * first, 100 * five)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.recipe.precision == "bf16")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; random numbers depend on `iteration` alone, so none of their state is here."""
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
