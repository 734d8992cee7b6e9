"""What an evaluation finds, and sums and means that stay on the device until they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class EvalMetrics:
    """An evaluation of `images`: mean cross-entropy, and the share in % whose label is the first, or among
    the first five.
    """

    loss: float
    top1: float
    top5: float
    images: int

    @classmethod
    def of(cls, sums: Tensor) -> EvalMetrics:
        """The scores that sums of `batch_metrics` amount to; nan where there is no image."""
        loss, first, five, images = sums.tolist()
        share = 100 / images if images else math.nan
        return cls(loss * share / 100, first * share, five * share, round(images))


def batch_metrics(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over a batch: cross-entropy, labels ranked first, among the first five, and images; a label of -1
    is none.
    """
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
    loss = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    sums = [loss, ranked[:, 0].sum(), ranked.sum(), labels.ge(0).sum()]
    return torch.stack([value.to(accumulator_dtype(logits.device)) for value in sums])


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """The most exact floating point numbers of a device."""
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
        """Goes on from a checkpoint."""
        self.total.copy_(state["total"])
        self.count = state["count"]
