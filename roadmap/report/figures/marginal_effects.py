"""The marginal effect of each change, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
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
    PURPLE,
    font_sizes,
    style,
    wrapped,
)
from roadmap.report.marginal import ALONE, AVERAGE, IN_PLACE, LAST, NAMES, MarginalEffect, readings_of
from roadmap.report.stats import Difference
from roadmap.terminal import count

# color and marker
MARKS = {ALONE: (ORANGE, "o"), IN_PLACE: (BLUE, "s"), LAST: (GREEN, "D"), AVERAGE: (PURPLE, "^")}
SPREAD = 0.52  # of a row's height, from its first mark to its last
# a difference this many times further from zero than nine in ten of the others is written instead of drawn
FAR = 4.0
TITLES = 0.34  # of the width that the changes' titles may take


def effects_figure(effects: Sequence[MarginalEffect], title: str, width: float = DOUBLE_COLUMN) -> Figure:
    """A row per change with its effects; error bars are 95 % intervals, filled marks are resolved.

    A difference too large for the axis is an arrow at the border with its value. `width` is in inches.
    """
    size = font_sizes(width)
    titles = [wrapped(effect.title, TITLES * width, size.text) for effect in effects]
    lines = max(words.count("\n") + 1 for words in titles)
    readings = readings_of(effects)
    row = max(1.5 * len(readings) * 0.8 * size.small, 1.25 * size.text * lines + 6) / 72
    with style(width):
        figure = Figure(figsize=(width, 0.9 + row * len(effects)), layout="constrained")
        figure.set_label(title)
        axes: Axes = figure.subplots()
        axes.axvline(0, color=DARK, linewidth=0.8)
        for border in range(1, len(effects)):
            axes.axhline(border - 0.5, color=PALE, linewidth=0.6, zorder=0.5)
        limit = _limit(effects)
        for reading, shift in zip(readings, np.linspace(-SPREAD / 2, SPREAD / 2, len(readings)), strict=True):
            for height, difference in _draw(axes, effects, reading, float(shift), limit):
                _annotate(axes, height, difference, size.small)
        axes.set_yticks(range(len(effects)), titles)
        axes.set_ylim(len(effects) - 0.5, -0.5)
        hide_row_lines(axes)
        axes.set_xlabel(wrapped(_unit(effects), (0.9 - TITLES) * width, size.text))
        figure.suptitle(wrapped(title, width - 0.1, size.title), x=0.01, ha="left", fontsize=size.title)
        entries: list[Entry] = [
            (Line2D([], [], color=color, marker=marker, markersize=4.5, linewidth=1), NAMES[reading])
            for reading, (color, marker) in MARKS.items()
            if reading in readings
        ]
        add_legend(figure, entries)
        return figure


def _limit(effects: Sequence[MarginalEffect]) -> float:
    """The largest distance from zero at which a difference is drawn."""
    found = chain.from_iterable(effect.of.values() for effect in effects)
    sizes = sorted(abs(difference.value) for difference in found if difference)
    return FAR * sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0


def _draw(
    axes: Axes, effects: Sequence[MarginalEffect], reading: str, shift: float, limit: float
) -> list[tuple[float, Difference]]:
    """Draws a reading's differences up to `limit`, `shift` below the rows' middles; returns the others with
    their heights.
    """
    color, marker = MARKS[reading]
    points = [
        (row + shift, difference, effect.resolved(reading))
        for row, effect in enumerate(effects)
        if (difference := effect.of.get(reading)) is not None
    ]
    near = [point for point in points if abs(point[1].value) <= limit]
    values, heights = [difference.value for _, difference, _ in near], [height for height, _, _ in near]
    margins = [difference.margin or 0.0 for _, difference, _ in near]
    axes.errorbar(values, heights, xerr=margins, fmt="none", ecolor=color, linewidth=1)
    faces = [color if resolved else "white" for _, _, resolved in near]
    axes.scatter(
        values, heights, s=18, marker=marker, facecolors=faces, edgecolors=color, linewidths=1, zorder=3
    )
    return [(height, difference) for height, difference, _ in points if abs(difference.value) > limit]


def _annotate(axes: Axes, height: float, difference: Difference, points: float) -> None:
    """An arrow at the border with the value of a difference beyond it."""
    side, x, text = (
        ("right", 0.995, f"{difference} ▶") if difference.value > 0 else ("left", 0.005, f"◀ {difference}")
    )
    across = axes.get_yaxis_transform()
    axes.text(x, height, text, transform=across, ha=side, va="center", color=DARK, fontsize=points)


def _unit(effects: Sequence[MarginalEffect]) -> str:
    """The label of the horizontal axis, with n."""
    seeds = [n for effect in effects for reading, n in effect.n.items() if n and reading != AVERAGE]
    networks = max(effect.n.get(AVERAGE, 0) for effect in effects)
    sizes = [seed_count(seeds)] if seeds or not networks else []
    sizes += [f"average over {count(networks, 'network')}"] if networks else []
    has_margin = any(found and found.margin for effect in effects for found in effect.of.values())
    filled = "p < .05 after Holm" if any(effect.p_holm for effect in effects) else "it excludes zero"
    bars = f"bars: 95 % interval, filled: {filled}; " if has_margin else ""
    return f"change of top-1 accuracy (percentage points), {bars}{', '.join(sizes)}"
