"""Means, spreads and differences with their uncertainty."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 1000
# percentage points below which accuracies are equal: far above rounding, and one image of a million is 1e-4
ROUNDING = 1e-9


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
    """A difference of two means.

    `margin` is the half width of the 95 % interval and `p` the two-sided p-value of no difference. `needed`
    is the number of seeds on either side that would resolve this difference at this spread with 80 %
    probability, or with more where several are tested together; `MOST_SEEDS + 1` stands for more. All three
    are None where the spread is unknown.
    """

    value: float
    margin: float | None
    p: float | None = None
    needed: int | None = None

    @property
    def resolved(self) -> bool | None:
        """Whether the interval excludes zero; None where there is no interval."""
        return None if self.margin is None else abs(self.value) > self.margin

    def __str__(self) -> str:
        value = f"{round(self.value, 2) + 0.0:+.2f}"  # not -0.00
        return value if self.margin is None else f"{value} ± {self.margin:.2f}"


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over `n` pairs and its 95 % interval, None below 4 pairs or if all ranks agree."""

    value: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.value:+.2f}{interval}"


@dataclass(frozen=True)
class SignAgreement:
    """How many of `n` pairs of differences have the same sign; `expected` if the signs were unrelated."""

    same: int
    n: int
    expected: float

    def __str__(self) -> str:
        return f"{self.same} of {self.n} ({self.expected:.1f} by chance)"


def summarize(values: Sequence[float]) -> Summary | None:
    """The mean and spread of some runs; None if there are none.

    Values that differ by rounding alone have no spread.
    """
    if not values:
        return None
    if len(values) == 1:
        return Summary(values[0], None, 1)
    if max(values) - min(values) < ROUNDING:
        # a mean that is rounded would differ from its own values
        return Summary(min(values), 0.0, len(values))
    mean = math.fsum(values) / len(values)
    return Summary(
        mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values)
    )


def difference(child: Mapping[int, float], parent: Mapping[int, float], tests: int = 1) -> Difference | None:
    """Child minus parent, from accuracies by seed: in pairs where both ran the same seeds, else by Welch.

    The seeds alone decide which, never the accuracies; docs/statistics.md has the reasons. The seeds needed
    are those for one of `tests` differences whose p-values are adjusted together; the interval and p are its
    own.
    """
    if child and child.keys() == parent.keys() and len(child) > 1:
        pairs = summarize([child[seed] - parent[seed] for seed in sorted(child)])
        assert pairs is not None
        return _tested(
            pairs.mean, pairs.std or 0.0, lambda n: n - 1, pairs.n - 1, _standard_error(pairs), tests
        )
    one, other = summarize(list(child.values())), summarize(list(parent.values()))
    return welch(one, other, tests) if one and other else None


def welch(child: Summary, parent: Summary, tests: int = 1) -> Difference:
    """Child minus parent, from summaries of independent runs (Welch 1947); `tests` as in `difference`."""
    value = child.mean - parent.mean
    if child.std is None or parent.std is None:
        return Difference(value, None)
    one, other = _standard_error(child) ** 2, _standard_error(parent) ** 2
    if max(child.std, parent.std) < ROUNDING:
        return Difference(value, None)  # identical runs have no known spread
    freedom = (one + other) ** 2 / (one**2 / (child.n - 1) + other**2 / (parent.n - 1))
    first, second = child.std**2, parent.std**2
    share = (first + second) ** 2 / (first**2 + second**2)  # of equal numbers of seeds on both sides
    return _tested(
        value, math.sqrt(first + second), lambda n: share * (n - 1), freedom, math.sqrt(one + other), tests
    )


def z_score(ours: Summary, theirs: Summary) -> float | None:
    """Our mean minus theirs in standard errors of that difference; None where a spread is unknown or zero.

    It is Welch's t, whose 95 % bound is not 1.96 but 2.78 for three runs on both sides.
    """
    if ours.std is None or theirs.std is None:
        return None
    if max(ours.std, theirs.std) < ROUNDING:
        return None
    return (ours.mean - theirs.mean) / math.hypot(_standard_error(ours), _standard_error(theirs))


def same_sign(one: float, other: float) -> bool:
    """Whether two differences in percentage points have the same sign; rounding errors have none."""
    return min(abs(one), abs(other)) >= ROUNDING and (one > 0) == (other > 0)


def sign_agreement(ours: Sequence[float], theirs: Sequence[float]) -> SignAgreement | None:
    """How many pairs of differences have the same sign; None without any.

    The number by chance is that of Cohen (1960), for as many gains and losses as there are on either side.
    """
    if not ours:
        return None
    same, n = sum(map(same_sign, ours, theirs)), len(ours)
    by_sign = [[sum(same_sign(value, sign) for value in side) for side in (ours, theirs)] for sign in (1, -1)]
    return SignAgreement(same, n, sum(one * other for one, other in by_sign) / n)


def sampling_margin(top1: float, images: int) -> float:
    """Half the 95 % interval of a top-1 in % on a sample of `images`, in points, of Wilson (1927).

    It is of the images, not of the seeds. A mean over seeds varies no more than this, for the variance
    over images of the probability that an image is right is at most p (1 - p).
    """
    from scipy import stats

    z, p = float(stats.norm.ppf((1 + CONFIDENCE) / 2)), top1 / 100
    inner = p * (1 - p) / images + z**2 / (4 * images**2)
    return 100 * z * math.sqrt(inner) / (1 + z**2 / images)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for the family-wise error rate (Holm 1979)."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> Correlation | None:
    """Spearman's rank correlation, with the interval of Bonett and Wright (2000) for independent pairs.

    None for fewer than three pairs or where one side is constant.
    """
    from scipy import stats

    n, one, other = len(ours), _levels(ours), _levels(theirs)
    if n < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    value = float(stats.spearmanr(one, other).statistic)
    if n < 4 or abs(value) > 1 - 1e-9:
        return Correlation(value, None, None, n)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + value**2 / 2) / (n - 3))
    return Correlation(value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half), n)


def _tested(
    value: float, spread: float, freedom_of: Callable[[int], float], freedom: float, error: float, tests: int
) -> Difference:
    """A difference with the standard error `error`, which n seeds reduce to `spread / sqrt(n)`."""
    from scipy import stats

    if spread < ROUNDING:
        return Difference(value, None)  # identical differences have no known spread
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Difference(value, margin, p, _needed(abs(value) / spread, freedom_of, tests))


def _needed(effect: float, freedom_of: Callable[[int], float], tests: int) -> int:
    """The fewest seeds that resolve a difference of `effect` spreads with probability `POWER`."""
    from scipy import stats

    # Holm's method resolves all below this one, whatever the other p-values are
    level = (1 - CONFIDENCE) / tests

    def resolves(n: int) -> bool:
        freedom = freedom_of(n)
        return bool(stats.nct.sf(stats.t.isf(level / 2, freedom), freedom, effect * math.sqrt(n)) >= POWER)

    return 2 + bisect_left(range(2, MOST_SEEDS + 1), True, key=resolves)


def _levels(values: Sequence[float]) -> list[int]:
    """The values' order as integers, in which values that differ by rounding alone are equal."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    levels, level = [0] * len(values), 0
    for before, after in pairwise(order):
        level += values[after] - values[before] >= ROUNDING
        levels[after] = level
    return levels


def _standard_error(summary: Summary) -> float:
    return (summary.std or 0.0) / math.sqrt(summary.n)
