"""What figures are made of: places for labels, the Pareto front, rows beside each other, lines of text."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.transforms import Bbox

from roadmap.report.ablation import align, measured, published
from roadmap.report.figures.accuracy_vs_cost import CostPoint, pareto, stairs
from roadmap.report.figures.label_placement import Box, Segment, place
from roadmap.report.figures.style import DOUBLE_COLUMN, SINGLE_COLUMN, font_sizes, wrapped
from roadmap.steps import load_roadmap

FRAME = Box(500, 500, 1000, 1000)
INNER = st.integers(200, 800).map(float)
POINT = st.builds(Box, INNER, INNER, st.just(9.0), st.integers(9, 40).map(float))
SIZE = st.sampled_from([(8.0, 10.0), (13.0, 10.0), (18.0, 10.0)])
LABELS = st.lists(st.tuples(POINT, SIZE), min_size=1, max_size=6)
LINES = st.lists(st.tuples(st.tuples(INNER, INNER), st.tuples(INNER, INNER)), max_size=4)
BOX = st.builds(Box, *[st.integers(0, 50).map(float)] * 2, *[st.integers(1, 30).map(float)] * 2)
POINTS = st.lists(
    st.tuples(st.integers(1, 6).map(float), st.integers(0, 6).map(float)), min_size=1, max_size=12
)


def along(line: Segment, steps: int = 400) -> list[tuple[float, float]]:
    (x0, y0), (x1, y1) = line
    return [(x0 + (x1 - x0) * index / steps, y0 + (y1 - y0) * index / steps) for index in range(steps + 1)]


def inside(box: Box, at: tuple[float, float]) -> bool:
    return abs(at[0] - box.x) < box.width / 2 and abs(at[1] - box.y) < box.height / 2


@settings(deadline=None, max_examples=40)
@given(LABELS, LINES)
def test_labels_cover_nothing_where_there_is_room(
    labels: list[tuple[Box, tuple[float, float]]], lines: list[Segment]
) -> None:
    points, sizes = [point for point, _ in labels], [size for _, size in labels]
    placed = place(points, sizes, lines, FRAME, points)
    assert [(box.width, box.height) for box in placed] == sizes
    assert not [pair for pair in combinations(placed, 2) if pair[0].covers(pair[1])]
    assert not [(box, point) for box in placed for point in points if box.covers(point)]
    assert not [(box, line) for box in placed for line in lines if any(inside(box, at) for at in along(line))]
    assert place(points, sizes, lines, FRAME, points) == placed


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([0.0, 1.0, 500.0, 999.0, 1000.0]), st.sampled_from([0.0, 1.0, 500.0, 999.0, 1000.0]), SIZE
)
def test_labels_stay_in_the_frame(x: float, y: float, size: tuple[float, float]) -> None:
    (box,) = place([Box(x, y, 9, 9)], [size], [], FRAME, [])
    assert 0 <= box.x - box.width / 2 < box.x + box.width / 2 <= 1000
    assert 0 <= box.y - box.height / 2 < box.y + box.height / 2 <= 1000


@settings(deadline=None, max_examples=40)
@given(INNER, INNER, SIZE)
def test_a_label_alone_lies_at_its_point(x: float, y: float, size: tuple[float, float]) -> None:
    point = Box(x, y, 9, 9)
    (box,) = place([point], [size], [], FRAME, [point])
    assert box.gap(point) <= 2.5
    assert not box.covers(point)


def test_a_label_leaves_the_line_of_its_point() -> None:
    point, size = Box(500, 500, 9, 9), (13.0, 10.0)
    (free,) = place([point], [size], [], FRAME, [point])
    (moved,) = place([point], [size], [((500, 500), (free.x, free.y))], FRAME, [point])
    assert not moved.covers(Box(free.x, free.y, 0, 0))


def test_without_any_room_a_label_covers_as_little_as_it_can() -> None:
    frame, point = Box(10, 10, 20, 20), Box(10, 10, 20, 20)
    (box,) = place([point], [(10.0, 10.0)], [((0, 4), (20, 4))], frame, [point])
    assert not box.crossed_by(((0, 4), (20, 4)))


@given(BOX, BOX)
def test_boxes_cover_each_other_where_they_share_area(one: Box, other: Box) -> None:
    mine, theirs = (
        Bbox.from_bounds(box.x - box.width / 2, box.y - box.height / 2, box.width, box.height)
        for box in (one, other)
    )
    shared = Bbox.intersection(mine, theirs)
    overlap = bool(shared is not None and shared.width > 0 and shared.height > 0)
    assert one.covers(other) is other.covers(one) is overlap
    assert (one.gap(other) == 0) is (shared is not None)


@settings(max_examples=300)
@given(BOX, *[st.integers(-10, 60).map(float)] * 4)
def test_a_box_is_crossed_by_the_lines_that_have_points_in_it(
    box: Box, x0: float, y0: float, x1: float, y1: float
) -> None:
    line = ((x0, y0), (x1, y1))
    if any(inside(box, at) for at in along(line)):
        assert box.crossed_by(line)
    wider = Box(box.x, box.y, box.width + 0.5, box.height + 0.5)
    if not any(inside(wider, at) for at in along(line)):
        assert not box.crossed_by(line)


@given(BOX, BOX)
def test_a_line_to_another_box_leaves_at_the_border(box: Box, other: Box) -> None:
    x, y = box.border(other)
    at_border = max(2 * abs(x - box.x) / box.width, 2 * abs(y - box.y) / box.height)
    assert at_border <= 1 + 1e-9
    if not inside(box, (other.x, other.y)):
        assert at_border > 1 - 1e-9


def beats(one: CostPoint, other: CostPoint, *, more_is_better: bool) -> bool:
    """Whether one is at least as good in both, and better in one."""
    cost = one[0] - other[0] if more_is_better else other[0] - one[0]
    return cost >= 0 and one[1] >= other[1] and one != other


@given(POINTS, st.booleans())
def test_the_front_is_what_no_other_beats(points: list[CostPoint], more: bool) -> None:
    front = pareto(points, more_is_better=more)
    assert sorted(front) == [
        index
        for index, point in enumerate(points)
        if not any(beats(other, point, more_is_better=more) for other in points)
    ]
    assert [points[index][1] for index in front] == sorted(points[index][1] for index in front)


def test_rounding_is_no_better_accuracy() -> None:
    better = math.nextafter(84.5, 85)
    assert pareto([(1.0, 84.5), (2.0, better), (1.0, better)], more_is_better=False) == [2, 0]


@given(POINTS, st.booleans(), st.integers(0, 6))
def test_the_stairs_are_the_best_accuracy_at_a_cost(points: list[CostPoint], more: bool, cost: int) -> None:
    corners = stairs(
        points, pareto(points, more_is_better=more), (0.0, -1.0), (7.0, 7.0), more_is_better=more
    )
    at = cost + 0.5  # between the points
    spans = [
        (one, other) for one, other in pairwise(corners) if min(one[0], other[0]) < at < max(one[0], other[0])
    ]
    reached = [y for x, y in points if (x > at if more else x < at)]
    assert [one[1] for one, _ in spans] == ([max(reached)] if reached else [])
    assert all(one[0] == other[0] or one[1] == other[1] for one, other in pairwise(corners))
    assert (corners[0][1], corners[-1][0]) == (-1.0, 0.0 if more else 7.0)


def test_two_regimes_share_the_rows_of_the_same_steps() -> None:
    tiny, base = (published(load_roadmap(name=name)) for name in ("convnext_t", "convnext_b"))
    rows = align([tiny, base])
    assert [tuple(row and row.step for row in both.rows) for both in rows] == [
        (one.step, other.step) for one, other in zip(tiny.rows, base.rows, strict=True)
    ]
    assert [rows[index].title for index in (0, 1, 2, -1)] == [
        "ResNet-50 / ResNet-200",
        "enhanced recipe",
        "stage ratio / stage ratio and increase width",
        "separate downsampling (ConvNeXt-T / ConvNeXt-B)",
    ]


def test_steps_that_only_one_has_keep_their_place() -> None:
    short = published(load_roadmap())
    long = measured(load_roadmap(), "digits_noisy", {}, [])
    steps = [row.step for row in long.rows]
    for one, other, missing in ((short, long, 0), (long, short, 1)):
        rows = align([one, other])
        assert [next(row for row in both.rows if row).step for both in rows] == steps
        lone = [both for both in rows if both.rows[missing] is None]
        assert [next(row for row in both.rows if row).step for both in lone] == [
            "no_downsampling_norms",
            "multiscale_depthwise",
        ]


def test_lines_of_text_lose_no_word() -> None:
    words = "separate downsampling (ConvNeXt-T) without its multi-scale depthwise conv"
    assert wrapped(words, 10, 8) == words
    narrow = wrapped(words, 1.2, 8)
    assert narrow.split() == words.split()
    assert max(map(len, narrow.split("\n"))) <= 1.2 * 72 / (0.5 * 8)


def test_no_font_is_too_small_to_read() -> None:
    assert font_sizes(DOUBLE_COLUMN).small >= 7
    assert font_sizes(SINGLE_COLUMN).small >= 6


def test_a_label_is_not_nearer_to_another_point_if_it_can() -> None:
    points, size = [Box(x, 500, 9, 9) for x in (470.0, 485.0, 500.0)], (13.0, 10.0)
    placed = place(points, [size] * 3, [((490, 507), (490, 530)), ((480, 480), (520, 480))], FRAME, points)
    for box, point in zip(placed, points, strict=True):
        assert box.gap(point) == min(box.gap(other) for other in points)
