"""Accuracy against what it costs: the drawing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from roadmap.report.figures.cost_marks import Mark, Scene
from roadmap.report.figures.label_placement import FAR, Box, Line, place
from roadmap.report.figures.pareto import pareto, stairs
from roadmap.report.figures.style import DARK, GREEN, GREY, ORANGE

# the largest cost over the smallest from which on the axis is logarithmic, and shows decades only
LOG_FROM, DECADES_FROM = 4.0, 50.0
TICKS = 6  # on the axis of costs, at most
STAR_SIZE = 1.1  # of the small font size
LABEL = 5  # the height in the stack of what is drawn
FRONT: Any = {"color": GREEN, "linewidth": 0.8}
STAR: Any = {
    "marker": "*",
    "color": ORANGE,
    "markeredgecolor": DARK,
    "markeredgewidth": 0.5,
    "linestyle": "none",
}
REFERENCE: Any = {"color": DARK, "linestyle": ":", "linewidth": 1.0}


def draw(figure: Figure, axes: Axes, scene: Scene) -> None:
    """Everything inside the axes."""
    _scale(axes, scene)
    lines = [*_arrows(axes, scene), *_front(axes, scene)]
    for mark in scene.all_marks:
        _draw(axes, mark)
    lines += [*_references(axes, scene), *_error_bars(axes, scene)]
    _label(figure, axes, scene, lines)


def _scale(axes: Axes, scene: Scene) -> None:
    """Limits around everything, and the axes' labels; a cost that spans much is on a logarithmic axis."""
    marks = scene.all_marks
    ends = [(mark.x - mark.x_std, mark.x + mark.x_std) for mark in marks]
    tops = [mark.y + sign * mark.y_std for mark in marks for sign in (-1, 1)]
    tops += [found.top1 for found in scene.references]
    ends += [(gmacs, gmacs) for _, gmacs in scene.stars]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
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
    axes.set_yticks(
        [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= min(axes.get_ylim()[1], 100.0)]
    )
    seeds = sorted({mark.row.top1.n for mark in marks if mark.row.top1})
    axes.set_xlabel(scene.cost.label)
    bars = "mean ± std, " if any(mark.row.top1 and mark.row.top1.std is not None for mark in marks) else ""
    axes.set_ylabel(
        f"top-1 accuracy (%), {bars}n = {seeds[0] if len(seeds) == 1 else f'{seeds[0]} to {seeds[-1]}'}"
    )


def _arrows(axes: Axes, scene: Scene) -> list[Line]:
    """An arrow to each step from its parent; in pixels, what they take."""
    lines: list[Line] = []
    for marks in scene.marks:
        by_step = {mark.row.step: mark for mark in marks}
        for mark in marks:
            if parent := by_step.get(mark.row.parent or ""):
                look = {
                    "arrowstyle": "-|>,head_length=0.3,head_width=0.14",
                    "color": GREY if mark.row.is_side_branch else mark.look.color,
                    "linewidth": 0.8,
                    "alpha": 0.65,
                    "shrinkA": parent.side / 2,
                    "shrinkB": mark.side / 2,
                }
                axes.annotate("", xy=(mark.x, mark.y), xytext=(parent.x, parent.y), arrowprops=look, zorder=2)
                lines.append(_pixels(axes, (parent.x, parent.y), (mark.x, mark.y)))
    return lines


def _front(axes: Axes, scene: Scene) -> list[Line]:
    """The Pareto front of all ablations together, from border to border."""
    points = [(mark.x, mark.y) for mark in scene.all_marks]
    more = scene.cost.more_is_better
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    corners = stairs(
        points, pareto(points, more_is_better=more), (left, low), (right, high), more_is_better=more
    )
    axes.plot([x for x, _ in corners], [y for _, y in corners], zorder=1.5, **FRONT)
    return [_pixels(axes, one, other) for one, other in pairwise(corners)]


def _draw(axes: Axes, mark: Mark) -> None:
    color = mark.look.color
    axes.errorbar(
        mark.x, mark.y, xerr=mark.x_std or None,
        yerr=None if mark.row.top1 is None or mark.row.top1.std is None else mark.y_std,
        fmt="none", ecolor=color, capsize=1.5, linewidth=0.8, capthick=0.8, zorder=2.5,
    )  # fmt: skip
    # an edge that parts it from those below
    face, edge = ("white", color) if mark.row.is_side_branch else (color, "white")
    look: Any = {"marker": mark.look.marker, "facecolor": face, "edgecolor": edge, "linewidth": 0.4}
    axes.scatter([mark.x], [mark.y], s=mark.side**2, zorder=3, **look)


def _references(axes: Axes, scene: Scene) -> list[Line]:
    """A star where a reference's cost is known, else a line at its accuracy."""
    lines = []
    for found in scene.references:
        if found not in dict(scene.stars):
            axes.axhline(found.top1, zorder=1.4, **REFERENCE)
            left, right = axes.get_xlim()
            lines.append(_pixels(axes, (left, found.top1), (right, found.top1)))
    for found, gmacs in scene.stars:
        axes.plot(gmacs, found.top1, markersize=STAR_SIZE * scene.size.small, zorder=4, **STAR)
    return lines


def _label(figure: Figure, axes: Axes, scene: Scene, lines: Sequence[Line]) -> None:
    """Each mark's number and each star's name beside it, where it covers nothing; a thin line leads to those
    that had to move away.
    """
    look: Any = {
        "ha": "center",
        "va": "center",
        "fontsize": scene.size.small,
        "fontweight": "bold",
        "zorder": LABEL,
    }
    several = len(scene.ablations) > 1
    texts = [
        axes.text(mark.x, mark.y, mark.number, color=mark.look.color if several else DARK, **look)
        for mark in scene.all_marks
    ]
    texts += [axes.text(gmacs, found.top1, found.title, color=DARK, **look) for found, gmacs in scene.stars]
    canvas: Any = FigureCanvasAgg(figure)
    extents = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    points = [_box(axes, mark.x, mark.y, mark.side * figure.dpi / 72) for mark in scene.all_marks]
    points += [
        _box(axes, gmacs, found.top1, STAR_SIZE * scene.size.small * figure.dpi / 72)
        for found, gmacs in scene.stars
    ]
    area = axes.get_window_extent()
    frame = Box(area.x0 + area.width / 2, area.y0 + area.height / 2, area.width, area.height)
    placed = place(
        points, [(extent.width + 2, extent.height + 1) for extent in extents], lines, frame, points
    )
    for text, box, point in zip(texts, placed, points, strict=True):
        start, tip, at = axes.transData.inverted().transform(
            [box.border(point), (point.x, point.y), (box.x, box.y)]
        )
        text.set_position(at)
        if box.gap(point) > FAR:
            axes.plot([start[0], tip[0]], [start[1], tip[1]], color=GREY, linewidth=0.5, zorder=2.4)


def _error_bars(axes: Axes, scene: Scene) -> list[Line]:
    """In pixels."""
    ends = [
        ((mark.x - mark.x_std, mark.y), (mark.x + mark.x_std, mark.y))
        for mark in scene.all_marks
        if mark.x_std
    ]
    ends += [
        ((mark.x, mark.y - mark.y_std), (mark.x, mark.y + mark.y_std))
        for mark in scene.all_marks
        if mark.y_std
    ]
    return [_pixels(axes, *pair) for pair in ends]


def _pixels(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> Line:
    (x0, y0), (x1, y1) = axes.transData.transform([start, end])
    return (float(x0), float(y0)), (float(x1), float(y1))


def _box(axes: Axes, x: float, y: float, pixels: float) -> Box:
    """What a marker takes."""
    at = axes.transData.transform((x, y))
    return Box(float(at[0]), float(at[1]), pixels + 1, pixels + 1)
