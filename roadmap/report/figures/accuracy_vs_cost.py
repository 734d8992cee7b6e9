"""Accuracy against cost: parameters, multiply-adds, time or memory, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from roadmap.report.ablation import Ablation, AblationRow, align
from roadmap.report.columns import COLUMNS
from roadmap.report.figures.label_placement import FAR, Box, Segment, place
from roadmap.report.figures.legend import Entry, add_legend
from roadmap.report.figures.panels import seed_count
from roadmap.report.figures.style import (
    DARK,
    DOUBLE_COLUMN,
    GRAY,
    GREEN,
    ORANGE,
    SERIES,
    FontSizes,
    SeriesStyle,
    font_sizes,
    style,
    wrapped,
)
from roadmap.report.stats import ROUNDING, summarize
from roadmap.steps_file import Reference

CostPoint = tuple[float, float]  # cost and accuracy

BUBBLE = 1.1  # the area of the largest bubble, in small font sizes squared
SMALLEST = 0.4  # the smallest side of a bubble, in small font sizes
# the ratio of largest to smallest cost from which on the axis is logarithmic, and has decades only
LOG_FROM, DECADES_FROM = 4.0, 50.0
TICKS = 6  # on the axis of costs, at most
STAR_SIZE = 1.1  # of the small font size
LABEL = 5  # the z-order of labels
FRONT: Any = {"color": GREEN, "linewidth": 0.8}
STAR: Any = {
    "marker": "*",
    "color": ORANGE,
    "markeredgecolor": DARK,
    "markeredgewidth": 0.5,
    "linestyle": "none",
}
REFERENCE: Any = {"color": DARK, "linestyle": ":", "linewidth": 1.0}
DOT: Any = {"linestyle": "none", "marker": "o", "markersize": 4.5}
DIAMOND = "D"  # of references
DIAMOND_SHARE = 0.5  # of the square around it


@dataclass(frozen=True)
class Cost:
    """A column of the table as a cost; `spreads` where it is measured in each run and the mean is shown."""

    key: str
    label: str
    more_is_better: bool = False
    spreads: bool = False

    def of(self, row: AblationRow) -> float | None:
        """None where it was not measured."""
        value = COLUMNS[self.key].value(row)
        return None if value is None else float(value)

    def std(self, row: AblationRow) -> float | None:
        """The sample standard deviation over the runs."""
        values = [self.of(replace(row, runs=(run,))) for run in row.runs] if self.spreads else []
        found = summarize([value for value in values if value is not None])
        return found.std if found else None


COSTS = {
    cost.key: cost
    for cost in (
        Cost("gmacs", "GMACs per image"),
        Cost("params", "parameters (M)"),
        Cost(
            "images_per_s", "images/s in training, all processes together", more_is_better=True, spreads=True
        ),
        Cost("device_hours", "device-hours of a run", spreads=True),
        Cost("peak_memory_mb", "peak memory of a GPU (MiB), the largest of any run"),
    )
}


@dataclass(frozen=True)
class Bubble:
    """A row in the plot: its number in the legend, its place, the reach of its error bars, and its bubble.

    `bubble` is the quantity that its area shows; `side` is that of the square around it, in points.
    """

    row: AblationRow
    number: str
    style: SeriesStyle
    x: float
    y: float
    x_std: float
    y_std: float
    bubble: float
    side: float

    @property
    def has_spread(self) -> bool:
        return self.row.top1 is not None and self.row.top1.std is not None


@dataclass(frozen=True)
class CostPlot:
    """The content of a plot: the rows of each ablation that have an accuracy and the cost."""

    ablations: Sequence[Ablation]
    cost: Cost
    size: FontSizes

    @cached_property
    def bubbles(self) -> list[list[Bubble]]:
        """Those of each ablation; the same step has the same number."""
        found: list[list[Bubble]] = [[] for _ in self.ablations]
        largest = max(
            (self._quantity(row) for ablation in self.ablations for row in ablation.rows), default=1.0
        )
        for number, same in enumerate(align(self.ablations), 1):
            for index, row in enumerate(same.rows):
                if row is None or row.top1 is None or (x := self.cost.of(row)) is None:
                    continue
                bubble, stds = self._quantity(row), (self.cost.std(row) or 0.0, row.top1.std or 0.0)
                series = SERIES[index % len(SERIES)]
                if row.is_reference:
                    series = replace(series, marker=DIAMOND, share=DIAMOND_SHARE)
                side = self.size.small * max(SMALLEST, math.sqrt(BUBBLE * bubble / largest / series.share))
                found[index].append(Bubble(row, str(number), series, x, row.top1.mean, *stds, bubble, side))
        return found

    @property
    def all_bubbles(self) -> list[Bubble]:
        return [bubble for bubbles in self.bubbles for bubble in bubbles]

    @property
    def unit(self) -> str:
        """The unit of the bubbles' areas."""
        return "GMACs" if self.cost.key == "params" else "M parameters"

    def _quantity(self, row: AblationRow) -> float:
        if row.cost is None:  # of a reference without results
            return 0.0
        return row.cost.gmacs if self.cost.key == "params" else row.cost.params / 1e6

    @property
    def references(self) -> list[Reference]:
        return list(dict.fromkeys(found for ablation in self.ablations if (found := ablation.reference)))

    @property
    def stars(self) -> list[tuple[Reference, float]]:
        """The references whose cost is known, with it."""
        if self.cost.key != "gmacs":
            return []
        return [(found, found.gmacs) for found in self.references if found.gmacs is not None]


def accuracy_vs(
    ablations: Sequence[Ablation], x: str = "gmacs", width: float = DOUBLE_COLUMN
) -> Figure | None:
    """Accuracy against one of `COSTS`: arrows from parent to child, error bars of one standard deviation.

    Numbers refer to the steps in the legend; side branches are hollow, and references are hollow diamonds.
    The area of a bubble is the number of parameters, or GMACs where parameters are the cost. `width` is in
    inches. None if no row has both an accuracy and this cost; rows that lack one are skipped.
    """
    plot = CostPlot(ablations, COSTS[x], font_sizes(width))
    if not plot.all_bubbles:
        return None
    titles = [ablation.title for ablation in ablations]
    beside = 0.33 * width if width >= 0.75 * DOUBLE_COLUMN else None
    with style(width):
        room = width - 0.7 - (beside or 0.0)
        title = wrapped(titles[0], room, plot.size.title) if len(titles) == 1 else ""
        height = 0.95 * room + 0.6 + 1.3 * plot.size.title / 72 * (title.count("\n") + 1)
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.set_label(f"{'; '.join(titles)}: accuracy and {plot.cost.label}")
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontsize=plot.size.title)
        lines = _draw(axes, plot)
        add_legend(figure, _legend(plot), _note(plot), beside=beside)
        figure.draw_without_rendering()  # the layout, which labels need
        _place_labels(figure, axes, plot, lines)
        return figure


def _draw(axes: Axes, plot: CostPlot) -> list[Segment]:
    """Draws all but the labels; returns the lines, which labels avoid, in the units of the axes."""
    _scale(axes, plot)
    lines = [*_arrows(axes, plot), *_front(axes, plot)]
    for bubble in plot.all_bubbles:
        _draw_bubble(axes, bubble)
    return [*lines, *_references(axes, plot), *_error_bars(plot)]


def _scale(axes: Axes, plot: CostPlot) -> None:
    """Limits around everything, and the axes' labels; a cost of a wide range has a logarithmic axis."""
    bubbles = plot.all_bubbles
    ends = [bubble.x + sign * bubble.x_std for bubble in bubbles for sign in (-1, 1)]
    tops = [bubble.y + sign * bubble.y_std for bubble in bubbles for sign in (-1, 1)]
    tops += [found.top1 for found in plot.references]
    ends += [gmacs for _, gmacs in plot.stars]
    low, high = min(ends), max(ends)
    if low > 0 and high / low > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < DECADES_FROM else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10]))
    axes.update_datalim([(low, min(tops)), (high, max(tops))])
    axes.margins(0.12)
    axes.autoscale_view()
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    bottom, top = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= min(top, 100.0)])
    axes.set_xlabel(plot.cost.label)
    bars = "mean ± std, " if any(bubble.has_spread for bubble in bubbles) else ""
    sizes = seed_count(bubble.row.top1.n for bubble in bubbles if bubble.row.top1)
    axes.set_ylabel(f"top-1 accuracy (%), {bars}{sizes}")


def _arrows(axes: Axes, plot: CostPlot) -> list[Segment]:
    """An arrow to each step from its parent."""
    lines: list[Segment] = []
    for bubbles in plot.bubbles:
        by_step = {bubble.row.step: bubble for bubble in bubbles}
        for child in bubbles:
            if parent := by_step.get(child.row.parent or ""):
                arrow = {
                    "arrowstyle": "-|>,head_length=0.3,head_width=0.14",
                    "color": GRAY if child.row.is_side_branch else child.style.color,
                    "linewidth": 0.8,
                    "alpha": 0.65,
                    "shrinkA": parent.side / 2,
                    "shrinkB": child.side / 2,
                }
                start, end = (parent.x, parent.y), (child.x, child.y)
                axes.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=2)
                lines.append((start, end))
    return lines


def _front(axes: Axes, plot: CostPlot) -> list[Segment]:
    """The Pareto front of all ablations together, from border to border."""
    points = [(bubble.x, bubble.y) for bubble in plot.all_bubbles]
    more = plot.cost.more_is_better
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    corners = stairs(
        points, pareto(points, more_is_better=more), (left, low), (right, high), more_is_better=more
    )
    axes.plot([x for x, _ in corners], [y for _, y in corners], zorder=1.5, **FRONT)
    return list(pairwise(corners))


def _draw_bubble(axes: Axes, bubble: Bubble) -> None:
    color = bubble.style.color
    axes.errorbar(
        bubble.x, bubble.y, xerr=bubble.x_std or None, yerr=bubble.y_std if bubble.has_spread else None,
        fmt="none", ecolor=color, capsize=1.5, linewidth=0.8, capthick=0.8, zorder=2.5,
    )  # fmt: skip
    # an edge that separates it from those below
    face, edge = ("white", color) if bubble.row.is_beside_path else (color, "white")
    marker: Any = {"marker": bubble.style.marker, "facecolor": face, "edgecolor": edge, "linewidth": 0.4}
    axes.scatter([bubble.x], [bubble.y], s=bubble.side**2, zorder=3, **marker)


def _references(axes: Axes, plot: CostPlot) -> list[Segment]:
    """A star where a reference's cost is known, else a line at its accuracy."""
    lines: list[Segment] = []
    left, right = axes.get_xlim()
    for found in plot.references:
        if found not in dict(plot.stars):
            axes.axhline(found.top1, zorder=1.4, **REFERENCE)
            lines.append(((left, found.top1), (right, found.top1)))
    for found, gmacs in plot.stars:
        axes.plot(gmacs, found.top1, markersize=STAR_SIZE * plot.size.small, zorder=4, **STAR)
    return lines


def _error_bars(plot: CostPlot) -> list[Segment]:
    lines: list[Segment] = []
    for bubble in plot.all_bubbles:
        if bubble.x_std:
            lines.append(((bubble.x - bubble.x_std, bubble.y), (bubble.x + bubble.x_std, bubble.y)))
        if bubble.y_std:
            lines.append(((bubble.x, bubble.y - bubble.y_std), (bubble.x, bubble.y + bubble.y_std)))
    return lines


def _place_labels(figure: Figure, axes: Axes, plot: CostPlot, lines: Sequence[Segment]) -> None:
    """The numbers and the names of stars, where they cover nothing; a thin line leads to distant ones."""
    text: Any = {
        "ha": "center",
        "va": "center",
        "fontsize": plot.size.small,
        "fontweight": "bold",
        "zorder": LABEL,
    }
    several = len(plot.ablations) > 1
    texts = [
        axes.text(bubble.x, bubble.y, bubble.number, color=bubble.style.color if several else DARK, **text)
        for bubble in plot.all_bubbles
    ]
    texts += [axes.text(gmacs, found.top1, found.title, color=DARK, **text) for found, gmacs in plot.stars]
    canvas: Any = FigureCanvasAgg(figure)
    extents = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    to_pixels, dots = axes.transData.transform, figure.dpi / 72

    def box(x: float, y: float, side: float) -> Box:
        at = to_pixels((x, y))
        return Box(float(at[0]), float(at[1]), side * dots + 1, side * dots + 1)

    points = [box(bubble.x, bubble.y, bubble.side) for bubble in plot.all_bubbles]
    points += [box(gmacs, found.top1, STAR_SIZE * plot.size.small) for found, gmacs in plot.stars]
    area = axes.get_window_extent()
    frame = Box(area.x0 + area.width / 2, area.y0 + area.height / 2, area.width, area.height)
    sizes = [(extent.width + 2, extent.height + 1) for extent in extents]
    segments = [to_pixels(line).tolist() for line in lines]
    to_data = axes.transData.inverted().transform
    for label, placed, point in zip(
        texts, place(points, sizes, segments, frame, points), points, strict=True
    ):
        start, tip, at = to_data([placed.border(point), (point.x, point.y), (placed.x, placed.y)])
        label.set_position(at)
        if placed.gap(point) > FAR:
            axes.plot([start[0], tip[0]], [start[1], tip[1]], color=GRAY, linewidth=0.5, zorder=2.4)


def _note(plot: CostPlot) -> str:
    rows = [bubble.row for bubble in plot.all_bubbles]
    notes = ["Hollow: a side branch."] if any(row.is_side_branch for row in rows) else []
    notes += ["Diamond: a reference, a model of timm."] if any(row.is_reference for row in rows) else []
    return " ".join(notes)


def _legend(plot: CostPlot) -> list[Entry]:
    """The meaning of numbers, colors, bubbles and lines."""
    drawn = {bubble.number for bubble in plot.all_bubbles}
    several = len(plot.ablations) > 1
    color = GRAY if several else SERIES[0].color
    entries: list[Entry] = []
    for number, same in enumerate(align(plot.ablations), 1):
        rows = [row for row in same.rows if row]
        missing = "not measured" if any(row.top1 for row in rows) else "no result"
        why = "" if str(number) in drawn else f" ({missing})"
        hollow = any(row.is_beside_path for row in rows)
        shape = DOT | ({"marker": DIAMOND} if any(row.is_reference for row in rows) else {})
        mark = Line2D([], [], color=color, markerfacecolor="white" if hollow else color, **shape)
        entries.append((mark, f"{number} {same.title}{why}"))
    if several:
        for series, ablation in zip(SERIES, plot.ablations, strict=False):
            dot = DOT | {"marker": series.marker, "color": series.color}
            entries.append((Line2D([], [], **dot), ablation.title))
    by_size = sorted(plot.all_bubbles, key=lambda bubble: bubble.bubble)
    for bubble in {end.bubble: end for end in (by_size[0], by_size[-1])}.values():
        dot = DOT | {"marker": bubble.style.marker, "markersize": bubble.side, "color": GRAY}
        entries.append((Line2D([], [], markeredgewidth=0, **dot), f"{bubble.bubble:.3g} {plot.unit}"))
    entries.append((Line2D([], [], **FRONT), "Pareto front"))
    stars = [found for found, _ in plot.stars]
    entries += [(Line2D([], [], markersize=8, **STAR), f"{found.title} (published)") for found in stars]
    return entries + [
        (Line2D([], [], **REFERENCE), f"{found.title} {found.top1:.2f}")
        for found in plot.references
        if found not in stars
    ]


def pareto(points: Sequence[CostPoint], *, more_is_better: bool) -> list[int]:
    """The indices of the points on the Pareto front, from the best cost to the best accuracy.

    A point is on it if no other is at least as good in both and better in one, so that equal points are on it
    together or not at all. Of points with the same accuracy, up to rounding, only the cheapest are on it.
    `more_is_better` refers to the cost.
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
    points: Sequence[CostPoint],
    front: Sequence[int],
    low: CostPoint,
    high: CostPoint,
    *,
    more_is_better: bool,
) -> list[CostPoint]:
    """The corners of the front's line between two corners of the axes.

    At each cost, its height is the best accuracy at that cost or a better one.
    """
    corners: list[CostPoint] = []
    below, (worst, _) = low[1], low if more_is_better else high
    for x, y in (points[index] for index in front):
        corners += [(x, below), (x, y)]
        below = y
    return [*corners, (worst, below)]
