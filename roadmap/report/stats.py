"""Means, spreads and differences that say how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A mean over `n` runs; `std` is the sample standard deviation (ddof 1), unknown for a single run."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class Difference:
    """A difference of two means; `margin` is the half width of its 95 % interval, unknown where n leaves no spread."""

    value: float
    margin: float | None

    @property
    def resolved(self) -> bool | None:
        """Whether the interval excludes zero; None where there is no interval."""
        return None if self.margin is None else abs(self.value) > self.margin

    def __str__(self) -> str:
        value = f"{round(self.value, 2) + 0.0:+.2f}"  # -0.00 would say what the digits do not
        return value if self.margin is None else f"{value} ± {self.margin:.2f}"


def summarize(values: Sequence[float]) -> Summary | None:
    """The mean and spread of some runs; None if there are none."""
    if not values:
        return None
    if len(values) == 1:
        return Summary(values[0], None, 1)
    if min(values) == max(values):
        return Summary(values[0], 0.0, len(values))  # a mean that is rounded would differ from its own values
    mean = math.fsum(values) / len(values)
    return Summary(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def difference(child: Mapping[int, float], parent: Mapping[int, float]) -> Difference | None:
    """Child minus parent, from accuracies by seed: in pairs where both ran the same seeds, else by Welch."""
    if child and child.keys() == parent.keys() and len(child) > 1:
        pairs = summarize([child[seed] - parent[seed] for seed in sorted(child)])
        assert pairs is not None
        return Difference(pairs.mean, _margin(_standard_error(pairs), pairs.n - 1) if pairs.std else None)
    one, other = summarize(list(child.values())), summarize(list(parent.values()))
    return welch(one, other) if one and other else None


def welch(child: Summary, parent: Summary) -> Difference:
    """Child minus parent, from summaries of independent runs with spreads of their own (Welch 1947)."""
    value = child.mean - parent.mean
    if child.std is None or parent.std is None:
        return Difference(value, None)
    one, other = _standard_error(child) ** 2, _standard_error(parent) ** 2
    if one + other == 0:
        return Difference(value, None)  # runs that agree to the last image say nothing of how they spread
    freedom = (one + other) ** 2 / (one**2 / (child.n - 1) + other**2 / (parent.n - 1))
    return Difference(value, _margin(math.sqrt(one + other), freedom))


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs or where one side is constant."""
    from scipy import stats

    if len(ours) < 3 or len(set(ours)) == 1 or len(set(theirs)) == 1:
        return None
    return float(stats.spearmanr(ours, theirs).statistic)


def _standard_error(summary: Summary) -> float:
    return (summary.std or 0.0) / math.sqrt(summary.n)


def _margin(standard_error: float, freedom: float) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * standard_error
