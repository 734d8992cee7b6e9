"""Measurements taken by turns, so that what else a machine does meets all of them alike, and what they say
together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 5  # turns, however long they take


@dataclass(frozen=True)
class Spread:
    """The median of `n` values, and the quartiles `low` and `high` between which the middle half of them
    lies.
    """

    median: float
    low: float
    high: float
    n: int


def spread_of(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    low, median, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75]).tolist()
    return Spread(median, low, high, len(values))


def ratio_of(these: Sequence[float], those: Sequence[float]) -> Spread:
    """Of these values over those of the same turn; ValueError unless there are as many of both."""
    return spread_of([one / other for one, other in zip(these, those, strict=True)])


def take_turns(
    subjects: Mapping[str, Callable[[], float]], seconds: float, least: int = LEAST
) -> dict[str, list[float]]:
    """What each subject's measurement returns, once a turn, until `seconds` and at least `least` turns are
    over.

    Each turn begins with another subject, so that none always comes after the same one.
    """
    names = list(subjects)
    found: dict[str, list[float]] = {name: [] for name in names}
    start, turn = time.perf_counter(), 0
    while turn < least or time.perf_counter() - start < seconds:
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(subjects[name]())
        turn += 1
    return found
