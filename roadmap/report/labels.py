"""Places for the labels of a scatter plot, so that none covers another, or a point. Pixels; pure geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ANGLES = [math.radians(degrees) for degrees in (45, 135, 0, 180, 315, 225, 90, 270, 22, 158, 338, 202, 68, 112, 292, 248)]
STEPS = 14
COVERED, CROSSED = 1000.0, 30.0  # what it costs, in pixels of distance, to lie on a label or a point, and on a line


@dataclass(frozen=True)
class Box:
    """A rectangle around (x, y)."""

    x: float
    y: float
    width: float
    height: float

    def covers(self, other: Box) -> bool:
        """Whether the two share any area."""
        return abs(self.x - other.x) * 2 < self.width + other.width and abs(self.y - other.y) * 2 < self.height + other.height


Line = tuple[tuple[float, float], tuple[float, float]]


def place(
    points: Sequence[Box], sizes: Sequence[tuple[float, float]], lines: Sequence[Line], frame: Box, obstacles: Sequence[Box]
) -> list[Box]:
    """A box of each size near its point, inside `frame`: off `obstacles` and earlier labels, and off `lines` where it can be."""
    dots = [Box(*at, 0, 0) for line in lines for at in _along(line)]
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):

        def cost(box: Box, point: Box = point) -> float:
            covered = sum(box.covers(other) for other in [*obstacles, *placed])
            outside = abs(box.x - frame.x) * 2 + box.width > frame.width or abs(box.y - frame.y) * 2 + box.height > frame.height
            crossed = any(box.covers(dot) for dot in dots)
            return math.hypot(box.x - point.x, box.y - point.y) + COVERED * (covered + outside) + CROSSED * crossed

        placed.append(min(_around(point, size), key=cost))
    return placed


def _around(point: Box, size: tuple[float, float]) -> Iterator[Box]:
    """Boxes on ever wider rings around a point."""
    width, height = size
    for step in range(STEPS):
        radius = 2.0 + 0.6 * step * height
        for angle in ANGLES:
            x = point.x + math.cos(angle) * (radius + (point.width + width) / 2)
            y = point.y + math.sin(angle) * (radius + (point.height + height) / 2)
            yield Box(x, y, width, height)


def _along(line: Line, pixels: float = 4.0) -> Iterator[tuple[float, float]]:
    """Points on a line, a few pixels apart."""
    (x0, y0), (x1, y1) = line
    count = max(1, int(math.hypot(x1 - x0, y1 - y0) / pixels))
    for index in range(count + 1):
        yield x0 + (x1 - x0) * index / count, y0 + (y1 - y0) * index / count
