"""The training curves of an ablation's runs, from their metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roadmap.files import read_json_lines
from roadmap.records import RunDir
from roadmap.report.ablation import Ablation

MOST_RUNS = 200
Series = tuple[float | None, ...]


@dataclass(frozen=True)
class Curve:
    """A run's metrics after each epoch; accuracies are in percent, None is not finite or not measured.

    `step` is the row's, which may have runs of another step with the same configuration.
    """

    step: str
    seed: int
    epoch: tuple[int, ...]
    train_loss: Series
    val_loss: Series
    top1: Series
    ema_top1: Series


def curves_of(ablation: Ablation, most: int = MOST_RUNS) -> list[Curve]:
    """The curves of all runs that have logged an epoch, in the order of the rows and by seed.

    Empty above `most` runs, since reading thousands of logs takes minutes. Truncated and foreign lines are
    skipped; of two records of an epoch the later one counts.
    """
    if sum(len(row.runs) for row in ablation.rows) > most:
        return []
    runs = [
        (row.step, run.run) for row in ablation.rows for run in sorted(row.runs, key=lambda run: run.run.seed)
    ]
    return [curve for step, run in runs if (curve := _read(step, run)).epoch]


def _read(step: str, run: RunDir) -> Curve:
    found = {record["epoch"]: record for record in read_json_lines(run.metrics) if _is_epoch(record)}
    records = [found[epoch] for epoch in sorted(found)]
    train_loss, val_loss, top1, ema_top1 = (
        tuple(_number(record.get(name)) for record in records)
        for name in ("train_loss", "val_loss", "top1", "ema_top1")
    )
    return Curve(step, run.seed, tuple(sorted(found)), train_loss, val_loss, top1, ema_top1)


def _is_epoch(record: Mapping[str, Any]) -> bool:
    epoch = record.get("epoch")
    return record.get("kind") == "epoch" and type(epoch) is int and epoch > 0


def _number(value: Any) -> float | None:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or abs(value) > 1e300
        or not math.isfinite(value)
    ):
        return None
    return float(value)
