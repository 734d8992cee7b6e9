"""The legend of a figure: marks and their meanings, in columns below the panels or beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from roadmap.report.figures.style import font_sizes, text_inches, wrapped

MOST_COLUMNS = 5
# inches to which labels are broken, tried in this order
CAPS = tuple(round(3.0 - 0.15 * step, 2) for step in range(15))
# the mark, the gap behind it, and the gap behind the label, in font sizes
MARK, AFTER, BETWEEN = 2.0, 0.5, 1.2
Entry = tuple[Artist, str]


def add_legend(
    figure: Figure, entries: Sequence[Entry], note: str = "", *, beside: float | None = None
) -> None:
    """Adds a legend under `note`: below the panels, or in one column right of them, `beside` inches wide.

    The figure grows by the height that the legend needs.
    """
    if not entries:
        return
    width, height = map(float, figure.get_size_inches())
    size = font_sizes(width).small
    labels = [label for _, label in entries]
    if beside is None:
        columns, broken = _columns(labels, width - 0.15, size)
    else:
        columns, broken = 1, [wrapped(label, beside - _margins(1, size), size) for label in labels]
    legend = figure.legend(
        [mark for mark, _ in entries],
        broken,
        loc="outside lower left" if beside is None else "outside right upper",
        ncols=columns,
        title=wrapped(note, (beside or width) - 0.2, size) or None,
        alignment="left",
        fontsize=size,
        title_fontsize=size,
        frameon=False,
        handlelength=MARK,
        handletextpad=AFTER,
        columnspacing=BETWEEN,
        labelspacing=0.25,
        borderpad=0.2,
        borderaxespad=0.2,
    )
    needed = legend.get_window_extent().height / figure.dpi + 0.05
    figure.set_size_inches(width, height + needed if beside is None else max(height, needed))


def _margins(columns: int, size: float) -> float:
    """Inches of some columns that labels do not have."""
    return columns * (MARK + AFTER + BETWEEN) * size / 72


def _columns(labels: Sequence[str], width: float, size: float) -> tuple[int, list[str]]:
    """The number of columns and the broken labels with which the legend is lowest."""
    found: list[tuple[int, int, list[str]]] = []
    for columns in range(1, min(MOST_COLUMNS, len(labels)) + 1):
        room = width - _margins(columns, size)
        for cap in CAPS:
            broken = [wrapped(label, cap, size) for label in labels]
            parts = [list(part) for part in np.array_split(broken, columns)]
            if sum(max(_inches(label, size) for label in part) for part in parts) <= room or (
                (columns, cap) == (1, CAPS[-1])
            ):
                lines = max(sum(label.count("\n") + 1 for label in part) for part in parts)
                found.append((lines, columns, broken))
                break
    _, columns, broken = min(found)
    return columns, broken


def _inches(label: str, size: float) -> float:
    return max(text_inches(line, size) for line in label.split("\n"))
