"""Measured values against the paper's: the accuracies of the steps, and the differences to their parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from roadmap.report.ablation import Ablation
from roadmap.report.figures.label_placement import Box, Segment, place
from roadmap.report.figures.legend import Entry, add_legend
from roadmap.report.figures.panels import WIDE, number_steps, paired_panels, seed_count
from roadmap.report.figures.style import BLUE, DARK, DOUBLE_COLUMN, GRAY, font_sizes, style, wrapped

FEWEST = 3  # steps that a comparison needs
HEIGHT, HIGH = 2.9, 2.2  # inches of a panel, and of the label of its vertical axis
MARGIN = 0.08  # of the range of the points, around them
LONGEST = 0.6  # of that range, which an error bar may reach beyond the points before it is cut
INTERVAL = "95\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}interval"
NEAR = 14.0  # points of an error bar next to its point that the numbers avoid
LEGEND_NOTE = "Hollow: a side branch. Dashed: measured and published are equal."
LABEL = (0.66, 1.15)  # a digit's width and a number's height, in font sizes


@dataclass(frozen=True)
class ComparedStep:
    """A step's value in the paper (x) and here (y), with the half lengths of its error bars, or 0."""

    number: int
    is_side_branch: bool
    x: float
    y: float
    x_error: float
    y_error: float


def measured_vs_paper(ablations: Sequence[Ablation], width: float = DOUBLE_COLUMN) -> Figure | None:
    """Measured against published top-1, and the same for Δ to the parent; None for fewer than three steps.

    Error bars of accuracies are one standard deviation, those of Δ the 95 % interval; long ones are cut at
    the border. Accuracies on other data than the paper's have their own scale; on the same data, and for Δ,
    a line marks equal values. Correlations are of the path. `width` is in inches.
    """
    shown = [
        ablation
        for ablation in ablations
        if ablation.source == "measured" and len(_accuracies(ablation, {})) >= FEWEST
    ]
    if not shown:
        return None
    known = number_steps(shown)
    with style(width):
        figure, pairs = paired_panels(shown, width, HEIGHT)
        panels: list[tuple[Axes, list[ComparedStep]]] = []
        for ablation, (first, second), of in zip(shown, pairs, known.of, strict=True):
            accuracies, changes = _accuracies(ablation, of), _changes(ablation, of)
            _draw_accuracies(first, ablation, accuracies, width)
            _draw_changes(second, ablation, changes, width)
            _raise_title(first, [first, second] if width >= WIDE else [first], width)
            panels += [(first, accuracies), (second, changes)]
        points = [point for _, found in panels for point in found]
        add_legend(figure, _legend(known.titles, points), LEGEND_NOTE)
        figure.draw_without_rendering()
        for axes, found in panels:
            _label(axes, found, font_sizes(width).small)
        return figure


def _accuracies(ablation: Ablation, of: Mapping[str, int]) -> list[ComparedStep]:
    return [
        ComparedStep(
            of.get(row.step, 0),
            row.is_side_branch,
            row.paper.mean,
            row.top1.mean,
            row.paper.std or 0.0,
            row.top1.std or 0.0,
        )
        for row in ablation.rows
        if row.top1 and row.paper and not row.is_reference
    ]


def _changes(ablation: Ablation, of: Mapping[str, int]) -> list[ComparedStep]:
    return [
        ComparedStep(
            of[row.step], row.is_side_branch, row.paper_delta.value, row.delta.value,
            row.paper_delta.margin or 0.0, row.delta.margin or 0.0,
        )
        for row in ablation.rows
        if row.delta and row.paper_delta
    ]  # fmt: skip


def _draw_accuracies(axes: Axes, ablation: Ablation, points: Sequence[ComparedStep], width: float) -> None:
    rows = [
        (row.top1, row.paper, row.gap)
        for row in ablation.rows
        if row.top1 and row.paper and not row.is_reference
    ]
    same_task = all(gap is not None for _, _, gap in rows)
    x, y = (
        _limits([(point.x, point.x_error) for point in points]),
        _limits([(point.y, point.y_error) for point in points]),
    )
    if same_task:
        x = y = (min(x[0], y[0]), max(x[1], y[1]))
    _draw(axes, points, x, y)
    if same_task:
        _diagonal(axes)
    room, size = _room(width), font_sizes(width).text
    ours, theirs = seed_count(top1.n for top1, _, _ in rows), seed_count(paper.n for _, paper, _ in rows)
    axes.set_xlabel(wrapped(f"paper's top-1 (%), mean ± std, {_together(theirs)}", room, size))
    axes.set_ylabel(wrapped(f"measured top-1 (%), mean ± std, {_together(ours)}", HIGH, size))
    if ablation.agreement and (found := ablation.agreement.top1):
        _head(axes, f"Spearman's ρ = {found}, {_together(f'n = {found.n} steps')} of the path", width)


def _draw_changes(axes: Axes, ablation: Ablation, points: Sequence[ComparedStep], width: float) -> None:
    x, y = (
        _limits([(point.x, point.x_error) for point in points]),
        _limits([(point.y, point.y_error) for point in points]),
    )
    for line in (axes.axhline, axes.axvline):
        line(0, color=DARK, linewidth=0.7, zorder=1, label="zero")
    _draw(axes, points, (min(x[0], 0.0), max(x[1], 0.0)), (min(y[0], 0.0), max(y[1], 0.0)))
    _diagonal(axes)
    size = font_sizes(width).text
    axes.set_xlabel(wrapped(f"paper's Δ top-1 to the parent (points), {INTERVAL}", _room(width), size))
    axes.set_ylabel(wrapped(f"measured Δ top-1 to the parent (points), {INTERVAL}", HIGH, size))
    if ablation.agreement and (signs := ablation.agreement.signs):
        rank = f"ρ = {found}, " if (found := ablation.agreement.delta) else ""
        _head(axes, f"{rank}same sign in {signs.same} of {_together(f'{signs.n} steps')}", width)


def _together(words: str) -> str:
    """Words that are not broken into lines."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def _room(width: float) -> float:
    """Inches for the label of a panel's horizontal axis."""
    return (width / 2 if width >= WIDE else width) - 0.75


def _head(axes: Axes, words: str, width: float) -> None:
    """A sentence right above the axes, below their title."""
    text = wrapped(words, _room(width), font_sizes(width).small)
    axes.annotate(
        text, (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", va="bottom", color=DARK
    )


def _raise_title(axes: Axes, below: Sequence[Axes], width: float) -> None:
    """Moves a title above the sentences of the panels that it may reach over."""
    sizes = font_sizes(width)
    lines = max((text.get_text().count("\n") + 1 for each in below for text in each.texts), default=0)
    if lines and (title := axes.get_title(loc="left")):
        axes.set_title(title, loc="left", fontsize=sizes.title, pad=6 + 1.25 * sizes.small * lines)


def _limits(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Limits around all points, and around their error bars if these leave room for the points."""
    low, high = (
        min((value for value, _ in values), default=0.0),
        max((value for value, _ in values), default=1.0),
    )
    reach = LONGEST * (high - low) or max((error for _, error in values), default=0.0) or 0.5
    low, high = (
        max(low - reach, min((value - error for value, error in values), default=low)),
        min(high + reach, max((value + error for value, error in values), default=high)),
    )
    margin = MARGIN * (high - low) or 0.5
    return low - margin, high + margin


def _draw(axes: Axes, points: Sequence[ComparedStep], x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set(xlim=x, ylim=y)
    for point in points:
        errors: Any = {"xerr": point.x_error or None, "yerr": point.y_error or None}
        face = "white" if point.is_side_branch else BLUE
        axes.errorbar(
            point.x, point.y, **errors, fmt="o", markersize=4, color=BLUE, ecolor=GRAY, elinewidth=0.8,
            markerfacecolor=face, zorder=3,
        )  # fmt: skip


def _diagonal(axes: Axes) -> None:
    ends = axes.get_xlim()
    axes.plot(
        ends,
        ends,
        color=DARK,
        linestyle="--",
        linewidth=0.9,
        zorder=1,
        scalex=False,
        scaley=False,
        label="y = x",
    )


def _label(axes: Axes, points: Sequence[ComparedStep], size: float) -> None:
    """Each point's number near it; a thin line leads to distant ones."""
    pixels = axes.figure.dpi / 72
    area = axes.get_window_extent()
    frame = Box(area.x0 + area.width / 2, area.y0 + area.height / 2, area.width - 2, area.height - 2)
    marks, bars = [], _lines(axes)
    for point in points:
        at = axes.transData.transform((point.x, point.y))
        reach = axes.transData.transform((point.x + point.x_error, point.y + point.y_error)) - at
        (x, y), (right, up) = map(float, at), (min(float(length), NEAR * pixels) for length in reach)
        marks.append(Box(x, y, 5 * pixels, 5 * pixels))
        bars += [((x - right, y), (x + right, y)), ((x, y - up), (x, y + up))]
    texts = [str(point.number) for point in points]
    sizes = [(LABEL[0] * size * pixels * len(text) + 1, LABEL[1] * size * pixels) for text in texts]
    for text, box, mark in zip(texts, place(marks, sizes, bars, frame, marks), marks, strict=True):
        at, tip = axes.transData.inverted().transform([(box.x, box.y), (mark.x, mark.y)])
        lead = {"arrowstyle": "-", "color": DARK, "linewidth": 0.45, "shrinkA": 0, "shrinkB": 1.5}
        axes.annotate(
            text, xy=tip, xytext=at, ha="center", va="center_baseline", color=DARK, zorder=5,
            annotation_clip=False, arrowprops=lead if box.gap(mark) > 0.5 * size * pixels else None,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip


def _lines(axes: Axes) -> list[Segment]:
    """The lines at zero and of equality, in pixels."""
    found = []
    for line in axes.lines:
        if line.get_label() in ("zero", "y = x"):
            start, end = line.get_transform().transform(line.get_xydata())
            found.append(((float(start[0]), float(start[1])), (float(end[0]), float(end[1]))))
    return found


def _legend(titles: Sequence[str], points: Sequence[ComparedStep]) -> list[Entry]:
    """The meaning of the numbers."""
    of = {point.number: point for point in points}
    entries: list[Entry] = []
    for number in sorted(of):
        face = "white" if of[number].is_side_branch else BLUE
        mark = Line2D([], [], linestyle="none", marker="o", markersize=4, color=BLUE, markerfacecolor=face)
        entries.append((mark, f"{number} {titles[number - 1]}"))
    return entries
