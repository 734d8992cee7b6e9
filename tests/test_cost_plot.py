"""Accuracy against cost: labels that cover nothing, and points, arrows and a front that are where the table
says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from roadmap.report.ablation import AblationRow
from roadmap.report.figures.accuracy_vs_cost import COSTS
from roadmap.report.figures.style import DOUBLE_COLUMN
from tests.helpers.ablations_to_plot import (
    DRAWN,
    NOTHING,
    SIDE_BRANCHES,
    SOME,
    Drawing,
    draw,
    error_bars,
    make,
)
from tests.helpers.rendered_text import SLACK, outside, overlap

every_scatter = pytest.mark.parametrize(
    ("kind", "name", "width"), [case for case in DRAWN if case[0] != "bars"]
)


def crosses(start: Any, end: Any, box: Bbox) -> bool:
    """Whether a line in pixels runs through a box."""
    at = np.asarray(start) + np.linspace(0, 1, 600)[:, None] * (np.asarray(end) - np.asarray(start))
    inner = box.padded(-SLACK)
    return bool(((at > [inner.x0, inner.y0]) & (at < [inner.x1, inner.y1])).all(axis=1).any())


@every_scatter
def test_labels_cover_no_point_no_arrow_and_no_error_bar(kind: str, name: str, width: float) -> None:
    drawing = draw(kind, name, width)
    area = drawing.axes.get_window_extent().padded(2)
    covered = [
        text.get_text() for text, box in drawing.labels for marker in markers(drawing) if overlap(box, marker)
    ]
    lines = [drawing.pixels([arrow.xyann, arrow.xy]) for arrow in arrows(drawing)]
    lines += [drawing.pixels(span) for span in error_bars(drawing.axes)]
    crossed = [
        text.get_text() for text, box in drawing.labels for start, end in lines if crosses(start, end, box)
    ]
    assert (covered, crossed, outside(drawing.labels, area)) == ([], [], [])


def markers(drawing: Drawing) -> list[Bbox]:
    """The pixels of every point, and of the references' stars."""
    squares = [(drawing.pixels(offset(found)), found.get_sizes()[0] ** 0.5) for found in drawing.bubbles]
    stars = [line for line in drawing.axes.lines if line.get_marker() == "*"]
    squares += [(drawing.pixels(line.get_xydata())[0], line.get_markersize()) for line in stars]
    halves = [(at, side / 2 * drawing.figure.dpi / 72) for at, side in squares]
    return [Bbox.from_extents(x - half, y - half, x + half, y + half) for (x, y), half in halves]


def offset(bubble: PathCollection) -> tuple[float, float]:
    """Where a point lies."""
    ((x, y),) = np.asarray(bubble.get_offsets())
    return float(x), float(y)


def arrows(drawing: Drawing) -> list[Annotation]:
    return [
        text for text in drawing.axes.texts if isinstance(text, Annotation) and text.arrow_patch is not None
    ]


@every_scatter
def test_every_row_with_the_cost_is_a_numbered_point_of_the_key(kind: str, name: str, width: float) -> None:
    drawing = draw(kind, name, width)
    rows = [
        row
        for ablation in drawing.ablations
        for row in ablation.rows
        if row.top1 and COSTS[kind].of(row) is not None
    ]
    expected = sorted((COSTS[kind].of(row), row.top1.mean) for row in rows if row.top1)
    assert sorted(offset(found) for found in drawing.bubbles) == expected
    numbers = [text.get_text() for text, _ in drawing.labels if text.get_text().isdigit()]
    assert len(numbers) == len(rows)
    (legend,) = drawing.figure.legends
    assert set(numbers) <= {text.get_text().split()[0] for text in legend.get_texts()}
    if len(drawing.ablations) == 1:
        key = " ".join(drawing.words).replace("\n", " ")
        assert all(row.title in key for row in drawing.ablations[0].rows)
        assert numbers == [
            str(place) for place, row in enumerate(drawing.ablations[0].rows, 1) if row in rows
        ]


@pytest.mark.parametrize(("kind", "name"), sorted(NOTHING))
def test_there_is_no_figure_without_measurements(kind: str, name: str) -> None:
    assert make(kind, name, DOUBLE_COLUMN) is None


@pytest.mark.parametrize("kind", COSTS)
def test_arrows_lead_from_parents_to_children(kind: str) -> None:
    drawing = draw(kind, "three seeds, some rows missing")
    found: dict[str, Any] = {
        row.step: (COSTS[kind].of(row), row.top1.mean) for row in drawing.ablations[0].rows if row.top1
    }
    known = {step: point for step, point in found.items() if point[0] is not None}
    expected = [
        (known[row.parent], known[row.step])
        for row in drawing.ablations[0].rows
        if row.parent in known and row.step in known
    ]
    assert len(expected) >= 5
    assert [(arrow.xyann, arrow.xy) for arrow in arrows(drawing)] == expected


@pytest.mark.parametrize("kind", COSTS)
def test_the_front_passes_through_the_points_that_no_other_beats(kind: str) -> None:
    drawing = draw(kind, "three seeds, some rows missing")
    sign = -1 if kind == "images_per_s" else 1
    points = [offset(found) for found in drawing.bubbles]
    best = {
        one
        for one in points
        if not any(sign * x <= sign * one[0] and y >= one[1] and (x, y) != one for x, y in points)
    }
    (front,) = [line for line in drawing.axes.lines if to_hex(line.get_color()) == "#009e73"]
    on_it = {tuple(map(float, corner)) for corner in np.asarray(front.get_xydata())}
    assert {point for point in points if point in on_it} == best


@pytest.mark.parametrize(
    ("kind", "of"), [("gmacs", lambda row: row.cost.params), ("params", lambda row: row.cost.gmacs)]
)
def test_the_area_of_a_bubble_is_the_other_cost(kind: str, of: Callable[[AblationRow], float]) -> None:
    drawing = draw(kind, "both regimes")
    rows = [row for ablation in drawing.ablations for row in ablation.rows]
    # of its square: circles, squares
    share = [np.pi / 4 if index < len(drawing.ablations[0].rows) else 1.0 for index in range(len(rows))]
    per_unit = [
        found.get_sizes()[0] * part / of(row)
        for found, part, row in zip(drawing.bubbles, share, rows, strict=True)
    ]
    assert per_unit == pytest.approx([per_unit[0]] * len(rows))


def test_no_bubble_is_too_small_to_be_seen() -> None:
    sizes = [float(found.get_sizes()[0]) for found in draw("gmacs", "ours and the paper's").bubbles]
    assert min(sizes) ** 0.5 > 2.5  # points; in proportion, it would be a tenth of the largest


def test_a_measured_cost_has_its_own_error_bar() -> None:
    drawing = draw("images_per_s", "three seeds, some rows missing")
    across = [span for span in error_bars(drawing.axes) if span[0][1] == span[1][1]]
    rows = [row for row in drawing.ablations[0].rows if row.top1 and row.images_per_s is not None]
    stds = [float(np.std([result.images_per_s for result in row.results], ddof=1)) for row in rows]
    assert [(span[1][0] - span[0][0]) / 2 for span in across] == pytest.approx([std for std in stds if std])
    assert len(across) > 5


@pytest.mark.parametrize("name", SOME)
def test_hollow_points_mark_exactly_the_side_branches(name: str) -> None:
    drawing = draw("gmacs", name)
    hollow = [offset(point) for point in drawing.bubbles if np.all(np.asarray(point.get_facecolor()) == 1)]
    rows = [row for ablation in drawing.ablations for row in ablation.rows]
    assert hollow == [
        (row.cost.gmacs, row.top1.mean) for row in rows if row.cost and row.top1 and row.step in SIDE_BRANCHES
    ]
