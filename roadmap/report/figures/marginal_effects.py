"""The marginal effect of each change, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roadmap.report.figures.legend import Entry, add_legend
from roadmap.report.figures.panels import hide_row_lines, seed_count
from roadmap.report.figures.style import (
    BLUE,
    DARK,
    DOUBLE_COLUMN,
    GREEN,
    ORANGE,
    PALE,
    font_sizes,
    style,
    wrapped,
)
from roadmap.report.marginal import ALONE, IN_PLACE, LAST, NAMES, MarginalEffect
from roadmap.report.stats import Difference

# color, marker, place in the row
MARKS = {ALONE: (ORANGE, "o", -0.26), IN_PLACE: (BLUE, "s", 0.0), LAST: (GREEN, "D", 0.26)}
# a difference this many times further from zero than nine in ten of the others is written instead of drawn
FAR = 4.0
TITLES = 0.34  # of the width that the changes' titles may take


def effects_figure(effects: Sequence[MarginalEffect], title: str, width: float = DOUBLE_COLUMN) -> Figure:
    """A row per change with its three effects; error bars are 95 % intervals, filled marks exclude zero.

    A difference too large for the axis is an arrow at the border with its value. `width` is in inches.
    """
    size = font_sizes(width)
    titles = [wrapped(effect.title, TITLES * width, size.text) for effect in effects]
    lines = max(words.count("\n") + 1 for words in titles)
    row = max(4.5 * 0.8 * size.small, 1.25 * size.text * lines + 6) / 72
    with style(width):
        figure = Figure(figsize=(width, 0.9 + row * len(effects)), layout="constrained")
        figure.set_label(title)
        axes: Axes = figure.subplots()
        axes.axvline(0, color=DARK, linewidth=0.8)
        for border in range(1, len(effects)):
            axes.axhline(border - 0.5, color=PALE, linewidth=0.6, zorder=0.5)
        limit = _limit(effects)
        for reading in MARKS:
            for height, difference in _draw(axes, effects, reading, limit):
                _annotate(axes, height, difference, size.small)
        axes.set_yticks(range(len(effects)), titles)
        axes.set_ylim(len(effects) - 0.5, -0.5)
        hide_row_lines(axes)
        axes.set_xlabel(wrapped(_unit(effects), (0.9 - TITLES) * width, size.text))
        figure.suptitle(wrapped(title, width - 0.1, size.title), x=0.01, ha="left", fontsize=size.title)
        entries: list[Entry] = [
            (Line2D([], [], color=color, marker=marker, markersize=4.5, linewidth=1), NAMES[reading])
            for reading, (color, marker, _) in MARKS.items()
        ]
        add_legend(figure, entries)
        return figure


def _limit(effects: Sequence[MarginalEffect]) -> float:
    """The largest distance from zero at which a difference is drawn."""
    found = chain.from_iterable(effect.of.values() for effect in effects)
    sizes = sorted(abs(difference.value) for difference in found if difference)
    return FAR * sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0


def _draw(
    axes: Axes, effects: Sequence[MarginalEffect], reading: str, limit: float
) -> list[tuple[float, Difference]]:
    """Draws a reading's differences up to `limit`; returns the others with their heights."""
    color, marker, shift = MARKS[reading]
    points = [
        (row + shift, difference)
        for row, effect in enumerate(effects)
        if (difference := effect.of[reading]) is not None
    ]
    near = [(height, difference) for height, difference in points if abs(difference.value) <= limit]
    values, heights = [difference.value for _, difference in near], [height for height, _ in near]
    margins = [difference.margin or 0.0 for _, difference in near]
    axes.errorbar(values, heights, xerr=margins, fmt="none", ecolor=color, linewidth=1)
    faces = [color if difference.resolved else "white" for _, difference in near]
    axes.scatter(
        values, heights, s=18, marker=marker, facecolors=faces, edgecolors=color, linewidths=1, zorder=3
    )
    return [point for point in points if point not in near]


def _annotate(axes: Axes, height: float, difference: Difference, points: float) -> None:
    """An arrow at the border with the value of a difference beyond it."""
    side, x, text = (
        ("right", 0.995, f"{difference} ▶") if difference.value > 0 else ("left", 0.005, f"◀ {difference}")
    )
    across = axes.get_yaxis_transform()
    axes.text(x, height, text, transform=across, ha=side, va="center", color=DARK, fontsize=points)


def _unit(effects: Sequence[MarginalEffect]) -> str:
    """The label of the horizontal axis, with n."""
    sizes = seed_count(n for effect in effects for n in effect.n.values() if n)
    has_margin = any(found and found.margin for effect in effects for found in effect.of.values())
    bars = "bars: 95 % interval, filled: it excludes zero; " if has_margin else ""
    return f"change of top-1 accuracy (percentage points), {bars}{sizes}"
