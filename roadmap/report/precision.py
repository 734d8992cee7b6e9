"""Stein's two-stage procedure: the seeds that bring differences to ± a given width, and their intervals.

The spread over a first stage of fixed size decides how many pairs of runs a difference takes in all; the
interval then uses this spread and its degrees of freedom, and so covers with exactly 95 % (Stein 1945, The
Annals of Mathematical Statistics 16, 243-258). docs/seeds.md explains why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from roadmap.report.stats import CONFIDENCE, Difference, summarize

MOST_RATIO = 1e6  # of half widths; its square, the pairs, is still exact
BISECTIONS = 40


@dataclass(frozen=True)
class Precision:
    """Differences are to be known to ± `width` points, from the spread over seeds 0 to `first` - 1."""

    width: float
    first: int

    def needed(self, spread: float, width: float | None = None) -> int:
        """The pairs that a difference takes whose standard deviation over the first stage is `spread`, to be
        known to ± `width`, by default the one asked for.
        """
        ratio = _quantile(self.first - 1) * spread / (width or self.width)
        return max(self.first, math.ceil(min(ratio, MOST_RATIO) ** 2))

    def margin(self, spread: float, pairs: int) -> float:
        """The half width of the 95 % interval of a mean over `pairs`."""
        return _quantile(self.first - 1) * spread / math.sqrt(pairs)

    def spread(self, child: Mapping[int, float], parent: Mapping[int, float]) -> float | None:
        """The standard deviation of the differences by seed over the first stage.

        None where one of its accuracies is missing, and where all differences are the same to rounding.
        """
        if not all(seed in child and seed in parent for seed in range(self.first)):
            return None
        found = summarize([child[seed] - parent[seed] for seed in range(self.first)])
        return found.std or None if found else None


@cache
def _quantile(freedom: int) -> float:
    from scipy import special  # stats takes longer to import

    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class TwoStage:
    """A difference by the two-stage procedure, of which `pairs` of the `needed` pairs are finished.

    `needed` is None, and `delta` without an interval, where the first stage does not give a spread.
    """

    delta: Difference
    pairs: int
    needed: int | None

    @property
    def reached(self) -> bool:
        """Whether the interval has the half width that was asked for, or a smaller one."""
        return self.needed is not None and self.pairs >= self.needed


def two_stage(
    child: Mapping[int, float], parent: Mapping[int, float], precision: Precision
) -> TwoStage | None:
    """Child minus parent, from accuracies by seed; None where one of them has no run.

    The seeds from the needed number on are not used: a seed that was added after seeing the difference
    cannot change it.
    """
    if not child or not parent:
        return None
    both = sorted(child.keys() & parent.keys())
    if (spread := precision.spread(child, parent)) is None:
        value = fmean(child.values()) - fmean(parent.values())
        return TwoStage(Difference(value, None), sum(seed < precision.first for seed in both), None)
    from scipy import special

    needed, freedom = precision.needed(spread), precision.first - 1
    pairs = [child[seed] - parent[seed] for seed in both if seed < needed]
    value, error = fmean(pairs), spread / math.sqrt(len(pairs))
    p = float(2 * special.stdtr(freedom, -abs(value) / error))
    return TwoStage(Difference(value, precision.margin(spread, len(pairs)), p), len(pairs), needed)


@dataclass(frozen=True)
class Contrast:
    """A step against its parent, and the standard deviation of their differences over the first stage."""

    step: str
    parent: str
    spread: float


@dataclass(frozen=True)
class Allocation:
    """The seeds of each step in both stages; `width` is the half width that all differences can have, unless
    their number of seeds is limited.
    """

    precision: Precision
    seeds: Mapping[str, int]
    width: float

    def pairs(self, contrast: Contrast) -> int:
        """The pairs that a difference will be estimated from."""
        needed = self.precision.needed(contrast.spread)
        return min(needed, self.seeds[contrast.step], self.seeds[contrast.parent])

    def margin(self, contrast: Contrast) -> float:
        """The half width that its interval will have."""
        return self.precision.margin(contrast.spread, self.pairs(contrast))

    def reaches(self, contrast: Contrast) -> bool:
        """Whether this is the half width that was asked for, or less."""
        return self.pairs(contrast) == self.precision.needed(contrast.spread)

    def second_stage(self, hours: Mapping[str, float]) -> float:
        """The cost of the runs after the first stage, given a run's `hours` for each step."""
        return _cost(self.seeds, self.precision.first, hours)


def allocate(
    contrasts: Iterable[Contrast],
    hours: Mapping[str, float],
    precision: Precision,
    max_seeds: int | None = None,
    budget: float | None = None,
) -> Allocation:
    """The seeds of each step in `hours`, which has what a run of it costs: the most that a contrast takes.

    No step has more than `max_seeds`. Where the second stage costs more than `budget`, all differences get
    the smallest common half width that the budget allows; those that need less than it keep what they need.
    """
    contrasts = tuple(contrasts)

    def seeds(width: float) -> dict[str, int]:
        found = dict.fromkeys(hours, precision.first)
        for one in contrasts:
            needed = precision.needed(one.spread, width)
            for step in (one.step, one.parent):
                found[step] = max(found[step], needed if max_seeds is None else min(needed, max_seeds))
        return found

    def fits(width: float) -> bool:
        return budget is None or _cost(seeds(width), precision.first, hours) <= budget

    low = high = precision.width
    if not fits(high):
        # at this width the first stage is enough; the factor is for rounding
        high = 1.001 * max(precision.margin(one.spread, precision.first) for one in contrasts)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
    return Allocation(precision, seeds(high), high)


def _cost(seeds: Mapping[str, int], first: int, hours: Mapping[str, float]) -> float:
    return math.fsum((number - first) * hours[step] for step, number in seeds.items())
