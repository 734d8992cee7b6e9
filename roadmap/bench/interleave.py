"""Interleaved measurements, which other work on the machine affects alike, and their statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from roadmap.errors import config_error
from roadmap.training.device import synchronize

LEAST = 5  # rounds, however long they take
SHORTEST = 0.3  # seconds of a measurement, far above the resolution of clocks and queues
WARM_UP = 3  # iterations on a GPU


@dataclass(frozen=True)
class Spread:
    """The median of `n` values, and the quartiles `low` and `high`, the ends of the interquartile range."""

    median: float
    low: float
    high: float
    n: int


def spread_of(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    low, median, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75]).tolist()
    return Spread(median, low, high, len(values))


def ratio_of(these: Sequence[float], those: Sequence[float]) -> Spread:
    """These values over those of the same round; ValueError unless both have as many."""
    return spread_of([one / other for one, other in zip(these, those, strict=True)])


def interleave(
    subjects: Mapping[str, Callable[[], float]], seconds: float, least: int = LEAST
) -> dict[str, list[float]]:
    """The results of each subject's measurement, one per round, for `seconds` and at least `least` rounds.

    Each round begins with another subject, so that none always follows the same one.
    """
    names = list(subjects)
    found: dict[str, list[float]] = {name: [] for name in names}
    start, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - start < seconds:
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(subjects[name]())
        rounds += 1
    return found


def timed(run: Callable[[], object], device: torch.device, shortest: float = SHORTEST) -> Callable[[], float]:
    """Warms up `run` and returns a measurement of it, in seconds per iteration, over `shortest` seconds."""
    with batch_errors():
        seconds_each(run, device, WARM_UP if device.type == "cuda" else 1)
    iterations = max(1, math.ceil(shortest / seconds_each(run, device, 1)))
    return lambda: seconds_each(run, device, iterations)


def seconds_each(run: Callable[[], object], device: torch.device, iterations: int) -> float:
    """The mean time of an iteration, with all work that it has queued on the device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(iterations):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / iterations


@contextmanager
def batch_errors() -> Iterator[None]:
    """Raises a ConfigError where a network rejects its first batch."""
    try:
        yield
    except ValueError as error:
        raise config_error("--batch", f"the network rejects it: {error}") from error
