"""The ablation: one row a step, with its spread, its difference to its parent, and the paper's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from blocks import Complexity
from roadmap.deltas import Roadmap
from roadmap.records import Result, Status
from roadmap.report.stats import CONFIDENCE, Correlation, Difference, Summary, summarize
from roadmap.steps_file import Reference


@dataclass(frozen=True)
class AblationRow:
    """A step in the ablation: its runs, of one configuration and one a seed, or for a publication none, and
    what they say.

    `top1` is percent of the last epoch, `delta` against the parent, `p_holm` its p-value adjusted for all
    steps if that was asked for. `planned` counts the runs there should be. `gap` is the mean less the paper's
    in percentage points and `gap_z` the same in standard errors, both None on other data than the paper's.
    `mixed` names what its runs, or they and its parent's, do not have in common: code, versions or hardware.
    """

    step: str
    hash: str
    title: str
    change: str
    parent: str | None
    is_side_branch: bool
    planned: int
    cost: Complexity
    top1: Summary | None
    delta: Difference | None
    paper: Summary | None
    paper_delta: Difference | None
    paper_gmacs: float | None
    gmacs_note: str | None
    runs: tuple[Status, ...] = ()
    ema: Summary | None = None
    gap: float | None = None
    gap_z: float | None = None
    p_holm: float | None = None
    mixed: tuple[str, ...] = ()

    @cached_property
    def results(self) -> list[Result]:
        """The finished runs' results, by seed; those that diverged among them."""
        found = [run.result for run in self.runs if run.result is not None]
        return sorted(found, key=lambda result: result.seed)

    @property
    def seeds(self) -> dict[int, float]:
        """Top-1 in % by seed, of the runs that have one."""
        return accuracies(self.results)

    @property
    def diverged(self) -> int:
        """How many runs did."""
        return sum(result.status == "diverged" for result in self.results)

    @property
    def states(self) -> dict[str, int]:
        """How many runs are in which state; those that were never made count as pending."""
        found = Counter[str](run.state for run in self.runs)
        found["pending"] += max(0, self.planned - len(self.runs)) if self.runs or not self.top1 else 0
        return {state: number for state, number in found.items() if number}

    @property
    def resolved(self) -> bool | None:
        """Whether the difference to the parent is resolved, for all steps together if the p-values were
        adjusted.
        """
        if self.p_holm is not None:
            return self.p_holm < 1 - CONFIDENCE
        return self.delta.resolved if self.delta else None

    @property
    def images_per_s(self) -> float | None:
        """Of all processes together, mean over the runs."""
        return self._mean([result.images_per_s for result in self.results])

    @property
    def device_hours(self) -> float | None:
        """A run's hours of training times its processes, each of which drives one GPU or shares the CPU; mean
        over the runs.
        """
        return self._mean(
            [
                result.train_seconds * result.processes / 3600
                for result in self.results
                if result.status == "done"
            ]
        )

    @property
    def peak_memory_mb(self) -> float | None:
        """The largest of any run; None where no run measured it."""
        return max(
            (result.peak_memory_mb for result in self.results if result.peak_memory_mb is not None),
            default=None,
        )

    def same(self, field: str) -> Any:
        """What all results have in a field, or all their values, sorted, as text; None without results."""
        values = {getattr(result, field) for result in self.results}
        return values.pop() if len(values) == 1 else "; ".join(sorted(map(str, values))) or None

    @staticmethod
    def _mean(values: Sequence[float]) -> float | None:
        found = summarize(values)
        return found.mean if found else None


@dataclass(frozen=True)
class Ablation:
    """The rows of a roadmap, a title, and the sentences that belong under its table; `source` is `paper` or
    `measured`.

    `roadmap`, `profile` and `overrides` say what was run. `reference` is drawn as a line, `agreement` is the
    rank correlation of the path's top-1 with the paper's.
    """

    title: str
    rows: tuple[AblationRow, ...]
    source: str
    notes: list[str]
    roadmap: Roadmap
    profile: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    agreement: Correlation | None = None

    def row(self, step: str) -> AblationRow:
        """The row of a step."""
        return next(row for row in self.rows if row.step == step)


def accuracies(results: Sequence[Result]) -> dict[int, float]:
    """Top-1 in % by seed, of the results that have one."""
    return {result.seed: result.top1 for result in results if result.top1 is not None}
