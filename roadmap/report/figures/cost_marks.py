"""What is drawn of a row in a plot of accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from roadmap.report.aligned import aligned
from roadmap.report.columns import COLUMNS
from roadmap.report.figures.style import LOOKS, Look, Type
from roadmap.report.rows import Ablation, AblationRow
from roadmap.report.stats import summarize
from roadmap.steps_file import Reference

BUBBLE = 1.1  # the area of the largest bubble, in small font sizes squared
SMALLEST = 0.4  # the side of a bubble that would be too small to see, in small font sizes


@dataclass(frozen=True)
class Cost:
    """What a row costs, as a column of the table has it; `spreads` where it is measured anew in each run and
    the mean is shown.
    """

    key: str
    label: str
    more_is_better: bool = False
    spreads: bool = False

    def of(self, row: AblationRow) -> float | None:
        """None where it was not measured."""
        value = COLUMNS[self.key].value(row)
        return None if value is None else float(value)

    def std(self, row: AblationRow) -> float | None:
        """The sample standard deviation over the runs."""
        values = [self.of(replace(row, runs=(run,))) for run in row.runs] if self.spreads else []
        found = summarize([value for value in values if value is not None])
        return found.std if found else None


COSTS = {
    cost.key: cost
    for cost in (
        Cost("gmacs", "GMACs an image"),
        Cost("params", "parameters (M)"),
        Cost(
            "images_per_s", "images/s in training, all processes together", more_is_better=True, spreads=True
        ),
        Cost("device_hours", "device-hours of a run", spreads=True),
        Cost("peak_memory_mb", "peak memory of a GPU (MiB), the largest of any run"),
    )
}


@dataclass(frozen=True)
class Mark:
    """A row in the plot: its number in the key, where it lies, how far its error bars reach, and its bubble.

    `bubble` is what its area shows, parameters or GMACs; `side` is that of the square around it, in points.
    """

    row: AblationRow
    number: str
    look: Look
    x: float
    y: float
    x_std: float
    y_std: float
    bubble: float
    side: float


@dataclass(frozen=True)
class Scene:
    """All that a plot shows: the rows of each ablation that have an accuracy and the cost."""

    ablations: Sequence[Ablation]
    cost: Cost
    size: Type

    @cached_property
    def marks(self) -> list[list[Mark]]:
        """Those of each ablation; the same step has the same number."""
        found: list[list[Mark]] = [[] for _ in self.ablations]
        largest = max(
            (self._bubble(row) for ablation in self.ablations for row in ablation.rows), default=1.0
        )
        for number, same in enumerate(aligned(self.ablations), 1):
            for index, row in enumerate(same.rows):
                if row is None or row.top1 is None or (x := self.cost.of(row)) is None:
                    continue
                bubble, spread = self._bubble(row), (self.cost.std(row) or 0.0, row.top1.std or 0.0)
                look = LOOKS[index % len(LOOKS)]
                side = self.size.small * max(SMALLEST, math.sqrt(BUBBLE * bubble / largest / look.share))
                found[index].append(Mark(row, str(number), look, x, row.top1.mean, *spread, bubble, side))
        return found

    @property
    def all_marks(self) -> list[Mark]:
        """Those of all ablations."""
        return [mark for marks in self.marks for mark in marks]

    @property
    def bubble_unit(self) -> str:
        """What the bubbles show."""
        return "GMACs" if self.cost.key == "params" else "M parameters"

    def _bubble(self, row: AblationRow) -> float:
        return row.cost.gmacs if self.cost.key == "params" else row.cost.params / 1e6

    @property
    def references(self) -> list[Reference]:
        """What the ablations are compared with, each once."""
        return list(dict.fromkeys(found for ablation in self.ablations if (found := ablation.reference)))

    @property
    def stars(self) -> list[tuple[Reference, float]]:
        """Those of the references that have a place among the costs, and which."""
        return [
            (found, found.gmacs)
            for found in self.references
            if self.cost.key == "gmacs" and found.gmacs is not None
        ]
