"""Figures that can be read: no text covers another or leaves the figure, and what is drawn is what the table says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from roadmap.report.ablation import measured, published
from roadmap.report.labels import Box, Line, place
from roadmap.report.plots import accuracy_vs_gmacs, roadmap_bars
from roadmap.report.rows import Ablation
from roadmap.report.stats import Summary
from roadmap.report.style import save
from roadmap.steps import load_roadmap
from tests.reports import finished

ROADMAP = load_roadmap()
SIDE_BRANCHES = {"kernel_5", "kernel_9", "kernel_11"}
MARKER = 3.4  # half a marker of 5 points at 100 dots an inch, in pixels
SLACK = 0.5  # pixels by which two texts may touch

Tops = Mapping[str, Summary]


def ours(tops: Tops, planned: int = 3, diverged: Sequence[str] = ()) -> Ablation:
    """What the table of these means would hold."""
    empty = measured(ROADMAP, "digits_noisy", {}, [])
    lost = {step: (finished(step, 0, "0" * 8, None),) for step in diverged}
    rows = [replace(row, top1=tops.get(row.step), planned=planned, runs=lost.get(row.step, ())) for row in empty.rows]
    return replace(empty, rows=tuple(rows))


def some(n: int = 3, std: float | None = 0.4) -> Tops:
    """Means that rise along the roadmap, as ours do, with gaps."""
    return {step: Summary(80 + 0.71 * index - 2.3 * (index % 4 == 0), std, n) for index, step in enumerate(ROADMAP.steps) if index % 5 != 2}


def equal(mean: float, std: float | None = 0.0, n: int = 3) -> Tops:
    return dict.fromkeys(ROADMAP.steps, Summary(mean, std, n))


def other(how: str) -> Ablation:
    """An ablation with its long titles, some of it finished."""
    empty = measured(load_roadmap(ablation=how), "digits_noisy", {}, [])
    rows = [replace(row, top1=Summary(80 + index, 0.4, 3) if index % 3 else None, planned=3) for index, row in enumerate(empty.rows)]
    return replace(empty, rows=tuple(rows))


ABLATIONS: dict[str, Callable[[], Ablation]] = {
    "published": lambda: published(ROADMAP),
    "three seeds, some rows missing": lambda: ours(some(), diverged=["stage_ratio"]),
    "two seeds of three": lambda: ours(some(n=2)),
    "one seed of ten, no spread": lambda: ours(some(n=1, std=None), planned=10),
    "wide spread": lambda: ours(some(std=6.0)),
    "only the highest is unfinished": lambda: ours({**equal(88.0), "kernel_9": Summary(95.0, 0.2, 2)}),
    "all equal": lambda: ours(equal(91.5)),
    "all at 100 %": lambda: ours(equal(100.0)),
    "all at chance": lambda: ours(equal(0.1, None, 1)),
    "far apart": lambda: ours({step: Summary(10 + 5 * index, 0.3, 3) for index, step in enumerate(ROADMAP.steps)}),
    "one row": lambda: ours({"gelu": Summary(91.5, 0.4, 3)}),
    "one row of one seed": lambda: ours({"kernel_9": Summary(91.5, None, 1)}),
    "two rows at one point": lambda: ours({"gelu": Summary(91.5, 0.4, 3), "kernel_7": Summary(91.5, 0.4, 3)}),
    "none": lambda: ours({}, planned=0, diverged=["gelu"]),
    "leave one out": lambda: other("leave-one-out:separate_downsampling"),
    "one at a time": lambda: other("one-at-a-time"),
    "a random order": lambda: other("order:3"),
}
FIGURES = {"bars": roadmap_bars, "scatter": accuracy_vs_gmacs}


@dataclass(frozen=True)
class Drawing:
    """A figure as it was drawn, with the texts that came onto the paper."""

    figure: Figure
    ablation: Ablation
    texts: tuple[tuple[Text, Bbox], ...]

    @property
    def axes(self) -> Axes:
        return self.figure.axes[0]

    @property
    def numbers(self) -> list[tuple[Text, Bbox]]:
        """The labels of the points."""
        return [(text, box) for text, box in self.texts if text.get_zorder() == 5]


@cache
def draw(kind: str, name: str) -> Drawing:
    """Draws a figure as it is saved."""
    ablation = ABLATIONS[name]()
    figure = FIGURES[kind](ablation, ROADMAP.reference if name == "published" else None)
    canvas: Any = FigureCanvasAgg(figure)
    drawn: list[Text] = []
    original = Text.draw

    def record(self: Text, *words: Any, **named: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        original(self, *words, **named)

    with pytest.MonkeyPatch.context() as patch:
        canvas.draw()  # the layout
        patch.setattr(Text, "draw", record)
        canvas.draw()
    renderer = canvas.get_renderer()
    return Drawing(figure, ablation, tuple((text, Text.get_window_extent(text, renderer)) for text in dict.fromkeys(drawn)))


def overlap(one: Bbox, other: Bbox) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(width > SLACK and height > SLACK)


every_figure = pytest.mark.parametrize("kind", FIGURES)
every_ablation = pytest.mark.parametrize("name", ABLATIONS)


@every_figure
@every_ablation
def test_no_two_texts_overlap(kind: str, name: str) -> None:
    texts = draw(kind, name).texts
    assert len(texts) > len(ROADMAP.steps)
    found = [(one.get_text(), other.get_text()) for (one, box), (other, its) in combinations(texts, 2) if overlap(box, its)]
    assert found == []


@every_figure
@every_ablation
def test_no_text_leaves_the_figure(kind: str, name: str) -> None:
    drawing = draw(kind, name)
    page = drawing.figure.bbox
    outside = [
        text.get_text()
        for text, box in drawing.texts
        if box.x0 < page.x0 - SLACK or box.x1 > page.x1 + SLACK or box.y0 < page.y0 - SLACK or box.y1 > page.y1 + SLACK
    ]
    assert outside == []


def markers(drawing: Drawing) -> Iterator[Bbox]:
    """The pixels of every point, and of the reference's star."""
    points = [(row.cost.gmacs, row.top1.mean, MARKER) for row in drawing.ablation.rows if row.top1]
    star = ROADMAP.reference
    if star and star.gmacs is not None and drawing.ablation.source == "paper":
        points.append((star.gmacs, star.top1, 2 * MARKER))
    for gmacs, top1, half in points:
        x, y = drawing.axes.transData.transform((gmacs, top1))
        yield Bbox.from_extents(x - half, y - half, x + half, y + half)


@every_ablation
def test_numbers_do_not_cover_markers(name: str) -> None:
    drawing = draw("scatter", name)
    covered = [text.get_text() for text, box in drawing.numbers for marker in markers(drawing) if overlap(box, marker)]
    assert covered == []


@every_ablation
def test_every_finished_step_has_its_number_of_the_key(name: str) -> None:
    drawing = draw("scatter", name)
    expected = [str(number) for number, row in enumerate(drawing.ablation.rows, 1) if row.top1]
    assert [text.get_text() for text, _ in drawing.numbers] == expected
    words = {text.get_text() for text, _ in drawing.texts}
    assert {row.title if row.top1 else f"{row.title} (no result)" for row in drawing.ablation.rows} <= words


@every_ablation
def test_numbers_stay_on_the_axes(name: str) -> None:
    drawing = draw("scatter", name)
    area = drawing.axes.get_window_extent()
    outside = [
        text.get_text() for text, box in drawing.numbers if not area.padded(2).containsx(box.x0) or not area.padded(2).containsx(box.x1)
    ]
    outside += [
        text.get_text() for text, box in drawing.numbers if not area.padded(2).containsy(box.y0) or not area.padded(2).containsy(box.y1)
    ]
    assert outside == []


@pytest.mark.parametrize("name", ["published", "three seeds, some rows missing", "one row of one seed", "none"])
def test_hatches_mark_exactly_the_side_branches(name: str) -> None:
    drawing = draw("bars", name)
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in drawing.axes.patches if isinstance(bar, Rectangle)}
    rows = drawing.ablation.rows
    assert set(bars) == {index for index, row in enumerate(rows) if row.top1}
    assert {rows[index].step for index, bar in bars.items() if bar.get_hatch()} == {row.step for row in rows if row.top1} & SIDE_BRANCHES


@pytest.mark.parametrize("name", ["published", "three seeds, some rows missing", "one row of one seed", "none"])
def test_hollow_points_are_exactly_the_side_branches(name: str) -> None:
    drawing = draw("scatter", name)
    points = [line for line in drawing.axes.lines if line.get_marker() == "o"]
    hollow = {tuple(np.asarray(line.get_xydata())[0]) for line in points if to_hex(line.get_markerfacecolor()) == "#ffffff"}
    assert hollow == {(row.cost.gmacs, row.top1.mean) for row in drawing.ablation.rows if row.top1 and row.step in SIDE_BRANCHES}


@every_figure
@pytest.mark.parametrize("name", ["published", "three seeds, some rows missing", "one seed of ten, no spread", "one row of one seed"])
def test_error_bars_are_one_standard_deviation_where_it_is_known(kind: str, name: str) -> None:
    drawing = draw(kind, name)
    bars = [bar for group in drawing.axes.containers if isinstance(group, ErrorbarContainer) for bar in group.lines[2]]
    spans = [bar.get_segments()[0][:, 0 if kind == "bars" else 1] for bar in bars]
    known = [row.top1 for row in drawing.ablation.rows if row.top1 and row.top1.std is not None]
    assert len(spans) == len(known)
    for span, top1 in zip(spans, known, strict=True):
        assert list(span) == pytest.approx([top1.mean - (top1.std or 0), top1.mean + (top1.std or 0)])


@pytest.mark.parametrize("name", ["published", "three seeds, some rows missing", "wide spread", "all at 100 %", "all at chance"])
def test_bars_end_at_the_mean_and_the_axis_says_where_it_begins(name: str) -> None:
    drawing = draw("bars", name)
    low, high = drawing.axes.get_xlim()
    ends = [bar.get_x() + bar.get_width() for bar in drawing.axes.patches if isinstance(bar, Rectangle)]
    tops = [row.top1.mean for row in drawing.ablation.rows if row.top1]
    assert ends == pytest.approx(tops)
    assert all(low < top < high for top in tops)
    assert f"axis from {low:g};" in drawing.axes.get_xlabel()


def test_missing_rows_say_why() -> None:
    words = [text.get_text().strip() for text, _ in draw("bars", "three seeds, some rows missing").texts]
    missing = [row for row in draw("bars", "three seeds, some rows missing").ablation.rows if not row.top1]
    assert words.count("no run has finished") + words.count("diverged") == len(missing)
    assert words.count("diverged") == 1


@pytest.mark.parametrize(("name", "label"), [("published", "76.13 (n = 1)"), ("two seeds of three", "77.70 (n = 2/3)")])
def test_values_carry_n(name: str, label: str) -> None:
    drawing = draw("bars", name)
    values = [text.get_text() for text, _ in drawing.texts if "(n = " in text.get_text()]
    assert len(values) == sum(row.top1 is not None for row in drawing.ablation.rows)
    assert label in values


def test_the_reference_is_drawn_only_where_there_is_one() -> None:
    for kind, words in (("bars", "Swin-T 81.30"), ("scatter", "Swin-T (published)")):
        assert words in [text.get_text() for text, _ in draw(kind, "published").texts]
        assert not any("Swin" in text.get_text() for text, _ in draw(kind, "all equal").texts)


@every_figure
def test_the_same_table_gives_the_same_files(kind: str, tmp_path: Any) -> None:
    written = [save(FIGURES[kind](ABLATIONS["published"](), ROADMAP.reference), tmp_path / name) for name in ("one", "other")]
    assert [[path.suffix for path in paths] for paths in written] == [[".png", ".svg"]] * 2
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()


FRAME = Box(500, 500, 1000, 1000)
INNER = st.integers(200, 800).map(float)
POINT = st.builds(Box, INNER, INNER, st.just(9.0), st.integers(9, 40).map(float))
SIZE = st.sampled_from([(8.0, 10.0), (13.0, 10.0), (18.0, 10.0)])
LABELS = st.lists(st.tuples(POINT, SIZE), min_size=1, max_size=6)
LINES = st.lists(st.tuples(st.tuples(INNER, INNER), st.tuples(INNER, INNER)), max_size=4)


@settings(deadline=None, max_examples=40)
@given(LABELS, LINES)
def test_labels_cover_nothing_where_there_is_room(labels: list[tuple[Box, tuple[float, float]]], lines: list[Line]) -> None:
    points, sizes = [point for point, _ in labels], [size for _, size in labels]
    placed = place(points, sizes, lines, FRAME, points)
    assert [(box.width, box.height) for box in placed] == sizes
    assert not [pair for pair in combinations(placed, 2) if pair[0].covers(pair[1])]
    assert not [(box, point) for box in placed for point in points if box.covers(point)]
    assert place(points, sizes, lines, FRAME, points) == placed


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([0.0, 1.0, 500.0, 999.0, 1000.0]), st.sampled_from([0.0, 1.0, 500.0, 999.0, 1000.0]), SIZE)
def test_labels_stay_in_the_frame(x: float, y: float, size: tuple[float, float]) -> None:
    (box,) = place([Box(x, y, 9, 9)], [size], [], FRAME, [])
    assert 0 <= box.x - box.width / 2 < box.x + box.width / 2 <= 1000
    assert 0 <= box.y - box.height / 2 < box.y + box.height / 2 <= 1000


def test_a_label_leaves_the_line_of_its_point_if_it_can() -> None:
    point, size = Box(500, 500, 9, 9), (13.0, 10.0)
    (free,) = place([point], [size], [], FRAME, [point])
    (moved,) = place([point], [size], [((500, 500), (free.x, free.y))], FRAME, [point])
    assert not moved.covers(Box(free.x, free.y, 0, 0))


BOX = st.builds(Box, *[st.integers(0, 50).map(float)] * 2, *[st.integers(1, 30).map(float)] * 2)


@given(BOX, BOX)
def test_boxes_cover_each_other_where_they_share_area(one: Box, other: Box) -> None:
    mine, theirs = (Bbox.from_bounds(box.x - box.width / 2, box.y - box.height / 2, box.width, box.height) for box in (one, other))
    shared = Bbox.intersection(mine, theirs)
    assert one.covers(other) is other.covers(one) is bool(shared is not None and shared.width > 0 and shared.height > 0)
