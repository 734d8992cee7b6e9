"""The evaluation loop and its metrics, and means that stay on the device until they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.errors import config_error
from roadmap.training.device import autocast
from roadmap.training.distributed import Distributed


@dataclass(frozen=True)
class EvalMetrics:
    """Mean cross-entropy over `images`, and top-1 and top-5 accuracy in %; `unreadable` images
    count nowhere else.
    """

    loss: float
    top1: float
    top5: float
    images: int
    unreadable: int


@torch.inference_mode()
def evaluate(
    networks: Sequence[nn.Module],
    batches: Iterable[Batch],
    config: RunConfig,
    device: torch.device,
    world: Distributed,
    *,
    outputs: Sequence[int] | None = None,
    per_class: Sequence[Tensor] | None = None,
) -> list[EvalMetrics]:
    """The metrics of each network on the batches of all processes together, which are read once; a label of
    -1 marks an image that could not be read.

    `outputs` are those that stand for the labels, None all as they are. For each network, `per_class` has a
    tensor (C, 3), to which the number of each class's images, of those it ranks first, and of those among the
    first five are added. ConfigError if no image could be read.
    """
    for network in networks:
        world.sync_buffers(network)
        network.eval()
    columns = slice(None) if outputs is None else torch.tensor(outputs, device=device)
    sums = torch.zeros(len(networks), 5, device=device, dtype=accumulator_dtype(device))
    for images, labels, *_ in batches:
        for index, network in enumerate(networks):
            with autocast(config, device):
                logits = network(images).float()[:, columns]
            loss = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
            hits = torch.stack([labels.ge(0), ranked[:, 0], ranked.any(1)], dim=1).long()
            found = (loss, *hits.sum(0), labels.lt(0).sum())
            sums[index] += torch.stack([value.to(sums.dtype) for value in found])
            if per_class is not None:
                per_class[index].index_add_(0, labels.clamp(min=0), hits)
    return [_metrics(row, config) for row in world.sum(sums).tolist()]


def _metrics(sums: Sequence[float], config: RunConfig) -> EvalMetrics:
    loss, images, first, five, unreadable = sums
    if not images:
        raise config_error(f"dataset '{config.data.dataset}'", "has no validation image that can be read")
    percent = 100 / images
    return EvalMetrics(
        loss * percent / 100, first * percent, five * percent, round(images), round(unreadable)
    )


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """The most precise floating point type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64


class Mean:
    """A running mean over iterations that stays on the device until it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device, dtype=accumulator_dtype(device))
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
        """Resumes from a checkpoint."""
        self.total.copy_(state["total"])
        self.count = state["count"]
