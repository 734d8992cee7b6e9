"""What each change is worth, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from roadmap.report.stats import Difference
from roadmap.report.style import BLUE, DARK, GREEN, ORANGE, PALE, style
from roadmap.report.worth import ALONE, IN_PLACE, LAST, Worth
from roadmap.terminal import count

MARKS = {ALONE: (ORANGE, "o", -0.24), IN_PLACE: (BLUE, "s", 0.0), LAST: (GREEN, "D", 0.24)}  # colour, marker, place in the row
FAR = 4.0  # how many times further from zero than nine in ten of the others a difference must lie to be written instead of drawn


def worth_points(worths: Sequence[Worth], title: str) -> Figure:
    """A row a change, with its worth alone, in place and last; error bars of the 95 % interval.

    A difference that would leave no room for the others is an arrow at the border with its value.
    """
    with style():
        figure = Figure(figsize=(7.0, 1.1 + 0.36 * len(worths)), layout="constrained")
        axes: Axes = figure.subplots()
        axes.axvline(0, color=DARK, linewidth=0.8)
        for row in range(1, len(worths)):
            axes.axhline(row - 0.5, color=PALE, linewidth=0.6, zorder=0.5)
        limit = _limit(worths)
        for reading in MARKS:
            for height, difference in _draw(axes, worths, reading, limit):
                _point_out(axes, height, difference)
        axes.set_yticks(range(len(worths)), [worth.title for worth in worths])
        axes.set_ylim(len(worths) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(_unit(worths))
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=8, borderaxespad=0, handletextpad=0.2)
        return figure


def _limit(worths: Sequence[Worth]) -> float:
    """How far from zero a difference may lie to be drawn."""
    sizes = sorted(abs(difference.value) for worth in worths for difference in worth.of.values() if difference is not None)
    return FAR * sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0


def _draw(axes: Axes, worths: Sequence[Worth], reading: str, limit: float) -> list[tuple[float, Difference]]:
    """Draws a reading's differences up to `limit`; returns the others with their heights."""
    colour, marker, shift = MARKS[reading]
    points = [(row + shift, difference) for row, worth in enumerate(worths) if (difference := worth.of[reading]) is not None]
    near = [(height, difference) for height, difference in points if abs(difference.value) <= limit]
    axes.errorbar(
        [difference.value for _, difference in near],
        [height for height, _ in near],
        xerr=[difference.margin or 0.0 for _, difference in near],
        fmt=marker, color=colour, markersize=4.5, linewidth=1, label=reading,
    )  # fmt: skip
    return [point for point in points if point not in near]


def _point_out(axes: Axes, height: float, difference: Difference) -> None:
    """An arrow at the border that a difference lies beyond, with its value."""
    side, x, arrow = ("right", 0.995, "▶") if difference.value > 0 else ("left", 0.005, "◀")
    words = f"{difference} {arrow}" if side == "right" else f"{arrow} {difference}"
    axes.text(x, height, words, transform=axes.get_yaxis_transform(), ha=side, va="center", color=DARK, fontsize=7)


def _unit(worths: Sequence[Worth]) -> str:
    """What the horizontal axis shows, with n."""
    seeds = sorted({n for worth in worths for n in worth.n.values() if n}) or [0]
    runs = count(seeds[-1], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    bars = "bars: 95 % interval, " if any(found and found.margin for worth in worths for found in worth.of.values()) else ""
    return f"change of top-1 accuracy (percentage points), {bars}n = {runs}"
