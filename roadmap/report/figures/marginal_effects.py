"""What each change is worth, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roadmap.report.figures.style import (
    BLUE,
    DARK,
    DOUBLE_COLUMN,
    GREEN,
    ORANGE,
    PALE,
    style,
    type_of,
    wrapped,
)
from roadmap.report.marginal import ALONE, IN_PLACE, LAST, Worth
from roadmap.report.stats import Difference
from roadmap.terminal import count

# color, marker, place in the row
MARKS = {ALONE: (ORANGE, "o", -0.26), IN_PLACE: (BLUE, "s", 0.0), LAST: (GREEN, "D", 0.26)}
# how many times further from zero than nine in ten of the others a difference must lie to be written instead
# of drawn
FAR = 4.0
TITLES = 0.34  # of the width that the changes' titles may take


def worth_points(worths: Sequence[Worth], title: str, width: float = DOUBLE_COLUMN) -> Figure:
    """A row a change, with its worth alone, in place and last; error bars of the 95 % interval, filled marks
    where it excludes zero.

    A difference that would leave no room for the others is an arrow at the border with its value. `width` is
    in inches.
    """
    size = type_of(width)
    titles = [wrapped(worth.title, TITLES * width, size.text) for worth in worths]
    row = (
        max([4.5 * 0.8 * size.small, *(1.25 * size.text * (words.count("\n") + 1) + 6 for words in titles)])
        / 72
    )
    with style(width):
        figure = Figure(figsize=(width, 1.2 + row * len(worths)), layout="constrained")
        figure.set_label(title)
        axes: Axes = figure.subplots()
        axes.axvline(0, color=DARK, linewidth=0.8)
        for border in range(1, len(worths)):
            axes.axhline(border - 0.5, color=PALE, linewidth=0.6, zorder=0.5)
        limit = _limit(worths)
        for reading in MARKS:
            for height, difference in _draw(axes, worths, reading, limit):
                _point_out(axes, height, difference, size.small)
        axes.set_yticks(range(len(worths)), titles)
        axes.set_ylim(len(worths) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        figure.supxlabel(wrapped(_unit(worths), width - 0.2, size.text), fontsize=size.text)
        figure.suptitle(wrapped(title, width - 0.1, size.title), x=0.01, ha="left", fontsize=size.title)
        handles = [
            Line2D([], [], color=color, marker=marker, markersize=4.5, linewidth=1, label=reading)
            for reading, (color, marker, _) in MARKS.items()
        ]
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            frameon=False,
            borderaxespad=0,
            columnspacing=1.2,
        )
        return figure


def _limit(worths: Sequence[Worth]) -> float:
    """How far from zero a difference may lie to be drawn."""
    sizes = sorted(
        abs(difference.value)
        for worth in worths
        for difference in worth.of.values()
        if difference is not None
    )
    return FAR * sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0


def _draw(axes: Axes, worths: Sequence[Worth], reading: str, limit: float) -> list[tuple[float, Difference]]:
    """Draws a reading's differences up to `limit`; returns the others with their heights."""
    color, marker, shift = MARKS[reading]
    points = [
        (row + shift, difference)
        for row, worth in enumerate(worths)
        if (difference := worth.of[reading]) is not None
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


def _point_out(axes: Axes, height: float, difference: Difference, points: float) -> None:
    """An arrow at the border that a difference lies beyond, with its value."""
    side, x, arrow = ("right", 0.995, "▶") if difference.value > 0 else ("left", 0.005, "◀")
    words = f"{difference} {arrow}" if side == "right" else f"{arrow} {difference}"
    axes.text(
        x,
        height,
        words,
        transform=axes.get_yaxis_transform(),
        ha=side,
        va="center",
        color=DARK,
        fontsize=points,
    )


def _unit(worths: Sequence[Worth]) -> str:
    """What the horizontal axis shows, with n."""
    seeds = sorted({n for worth in worths for n in worth.n.values() if n}) or [0]
    runs = count(seeds[-1], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    bars = (
        "bars: 95 % interval, filled: it excludes zero; "
        if any(found and found.margin for worth in worths for found in worth.of.values())
        else ""
    )
    return f"change of top-1 accuracy (percentage points), {bars}n = {runs}"
