"""Places for the labels of a scatter plot in pixels, so that none covers another, a point or a line."""

# Not adjustText, which left numbers on points and arrows of these plots: here a label takes the nearest free
# place.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Segment: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

FAR = 6.0  # the gap between a label and its point from which on a line leads from one to the other
NEAR = 4.0  # the gap up to which a label appears to belong to a point
GRID = 2.5  # pixels between the places that are tried
AT_ONCE = 400  # places that are compared together
# penalties in pixels of distance: for covering anything, for a leading line across a label or a point, and
# for a label that appears to belong to another point
COVERED, CROSSING, AMBIGUOUS = 1e4, 40.0, 25.0


@dataclass(frozen=True)
class Box:
    """A rectangle around (x, y)."""

    x: float
    y: float
    width: float
    height: float

    def covers(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            abs(self.x - other.x) * 2 < self.width + other.width
            and abs(self.y - other.y) * 2 < self.height + other.height
        )

    def gap(self, other: Box) -> float:
        """The distance between the two, 0 where they touch."""
        return float(_gaps(_corners([self]), _corners([other]))[0, 0])

    def border(self, toward: Box) -> tuple[float, float]:
        """The point at which a line to the center of another rectangle leaves this one."""
        across, up = toward.x - self.x, toward.y - self.y
        share = 1 / max(2 * abs(across) / self.width, 2 * abs(up) / self.height, 1.0)
        return self.x + share * across, self.y + share * up

    def crossed_by(self, line: Segment) -> bool:
        """Whether a line crosses the rectangle."""
        return bool(_crossed(_corners([self]), np.array([[*line[0], *line[1]]]))[0, 0])


def place(
    points: Sequence[Box],
    sizes: Sequence[tuple[float, float]],
    lines: Sequence[Segment],
    frame: Box,
    obstacles: Sequence[Box],
) -> list[Box]:
    """A box of each size near its point inside `frame`, clear of `obstacles`, `lines` and other labels.

    Where there is no room, a label covers as few of them as possible.
    """
    segments = np.array([[*start, *end] for start, end in lines], dtype=np.float64).reshape(-1, 4)
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        box = _best(_places(frame, size, point), size, point, _corners(obstacles), _corners(placed), segments)
        placed.append(box)
        if box.gap(point) > FAR:
            segments = np.vstack([segments, [box.x, box.y, point.x, point.y]])
    return placed


def _best(
    places: Array,
    size: tuple[float, float],
    point: Box,
    points: Array,
    labels: Array,
    segments: Array,
) -> Box:
    """The place with the lowest penalty: the nearest one that covers nothing, if there is one."""
    half, middle = np.array(size) / 2, np.array([point.x, point.y])
    boxes = np.hstack([places - half, places + half])
    gaps = _gaps(boxes, _corners([point]))[:, 0]
    distance = gaps + 0.2 * np.hypot(*(places - middle).T)
    order = np.argsort(distance, kind="stable")
    best, lowest = 0, np.inf
    for some in np.array_split(order, max(1, len(order) // AT_ONCE)):
        if lowest <= distance[some[0]]:
            break  # the rest are further away
        cost = distance[some] + _penalty(boxes[some], gaps[some], middle, points, labels, segments)
        if cost.min() < lowest:
            best, lowest = int(some[np.argmin(cost)]), float(cost.min())
    return Box(float(places[best, 0]), float(places[best, 1]), *size)


def _penalty(
    boxes: Array, gaps: Array, middle: Array, points: Array, labels: Array, segments: Array
) -> Array:
    """The penalty of each box for the label of the point around `middle`, without its distance."""
    ends = np.vstack([boxes[:, :2], boxes[:, 2:], middle])
    # obstacles outside of it affect no box
    hull = np.hstack([ends.min(axis=0), ends.max(axis=0)])[None]
    taken = np.vstack([points, labels])
    taken, segments = taken[~_apart(hull, taken)[0]], segments[_crossed(hull, segments)[0]]
    covered = (~_apart(boxes, taken)).sum(axis=1) + _crossed(boxes, segments).sum(axis=1)
    leads = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, np.broadcast_to(middle, (len(boxes), 2))])
    crossings = np.where(gaps > FAR, _crossed(taken, leads).sum(axis=0), 0)
    others = points[np.abs((points[:, :2] + points[:, 2:]) / 2 - middle).max(axis=1) > 1]
    closer = (_gaps(boxes, others) < np.minimum(gaps + 1, NEAR)[:, None]).any(axis=1)
    found: Array = COVERED * covered + CROSSING * crossings + AMBIGUOUS * closer
    return found


def _places(frame: Box, size: tuple[float, float], point: Box) -> Array:
    """A grid of centers around a point that keep a label inside the frame."""
    axes = []
    for middle, extent, center, length in (
        (frame.x, frame.width, point.x, size[0]),
        (frame.y, frame.height, point.y, size[1]),
    ):
        room = max(0.0, (extent - length) / 2)
        steps = center + np.arange(-int(extent / GRID), int(extent / GRID) + 1) * GRID
        axes.append(np.unique(np.clip(steps, middle - room, middle + room)))
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)


def _corners(boxes: Sequence[Box]) -> Array:
    """(boxes, 4): left, bottom, right, top."""
    sides = [
        [box.x - box.width / 2, box.y - box.height / 2, box.x + box.width / 2, box.y + box.height / 2]
        for box in boxes
    ]
    return np.array(sides, dtype=np.float64).reshape(-1, 4)


def _gaps(boxes: Array, others: Array) -> Array:
    """(boxes, others): the distances."""
    (x0, y0, x1, y1), (left, bottom, right, top) = boxes.T[:, :, None], others.T[:, None, :]
    across, up = np.maximum(left - x1, x0 - right), np.maximum(bottom - y1, y0 - top)
    found: Array = np.hypot(np.maximum(across, 0), np.maximum(up, 0))
    return found


def _apart(boxes: Array, others: Array) -> NDArray[np.bool_]:
    """(boxes, others): whether two do not overlap."""
    (x0, y0, x1, y1), (left, bottom, right, top) = boxes.T[:, :, None], others.T[:, None, :]
    found: NDArray[np.bool_] = (x0 >= right) | (x1 <= left) | (y0 >= top) | (y1 <= bottom)
    return found


def _crossed(boxes: Array, segments: Array) -> NDArray[np.bool_]:
    """(boxes, segments): whether the segment crosses the box (Liang and Barsky's clipping)."""
    start, along = segments[None, :, :2], segments[None, :, 2:] - segments[None, :, :2]
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    low, high = (boxes[:, None, :2] - start) / along, (boxes[:, None, 2:] - start) / along
    first, last = np.minimum(low, high), np.maximum(low, high)
    enters, leaves = np.maximum(first[..., 0], first[..., 1]), np.minimum(last[..., 0], last[..., 1])
    found: NDArray[np.bool_] = (leaves > np.maximum(enters, 0)) & (enters < 1)
    return found
