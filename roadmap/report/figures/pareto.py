"""The Pareto front: what no other beats in accuracy and cost at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from roadmap.report.stats import ROUNDING

Point = tuple[float, float]


def pareto(points: Sequence[Point], *, more_is_better: bool) -> list[int]:
    """The indices of the points (cost, accuracy) on the front, from the best cost to the best accuracy.

    A point is on it if no other is at least as good in both and better in one. So points with the same
    figures are on it together or not at all, and of those with the same accuracy, up to rounding, only the
    cheapest are. `more_is_better` is said of the cost.
    """
    sign = -1 if more_is_better else 1
    order = sorted(range(len(points)), key=lambda index: (sign * points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        cost, accuracy = points[index]
        last, best = points[front[-1]] if front else (cost, -math.inf)
        if accuracy - best >= ROUNDING or (cost == last and abs(accuracy - best) < ROUNDING):
            front.append(index)
    return front


def stairs(
    points: Sequence[Point], front: Sequence[int], low: Point, high: Point, *, more_is_better: bool
) -> list[Point]:
    """The corners of the line below which everything is beaten by the front, or reached by it, between two
    corners of the axes.

    At each cost it is as high as the best accuracy that is to be had at that cost or a better one.
    """
    corners: list[Point] = []
    below, (worst, _) = low[1], low if more_is_better else high
    for x, y in (points[index] for index in front):
        corners += [(x, below), (x, y)]
        below = y
    return [*corners, (worst, below)]
