"""The panels of figures: one per ablation with a row per step, or a pair per ablation; numbers of steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from roadmap.report.ablation import Ablation, AblationRow, align
from roadmap.report.figures.style import DARK, SERIES, FontSizes, font_sizes, wrapped
from roadmap.terminal import count

WIDE = 5.0  # inches from which on the two panels of a pair are side by side
BESIDE = 3.0  # inches that a panel of rows needs; where there is less, panels are below each other
TITLES, TITLES_BESIDE = 0.365, 0.25  # of the width that the steps' titles may take
LEADING = 1.25  # the distance of two lines in font sizes


@dataclass(frozen=True)
class RowPanel:
    """An ablation with its rows from top to bottom, None for a step that only another panel has.

    `room` is the width in inches for marks and the texts beside them.
    """

    axes: Axes
    ablation: Ablation
    rows: Sequence[AblationRow | None]
    color: str
    room: float
    size: FontSizes


def row_panels(ablations: Sequence[Ablation], width: float) -> tuple[Figure, list[RowPanel]]:
    """A figure with a panel per ablation: side by side with common rows, or below each other if narrow."""
    beside = width >= BESIDE * len(ablations)
    tables = [align(ablations)] if beside else [align([ablation]) for ablation in ablations]
    size, labels = font_sizes(width), width * (TITLES if len(tables) == len(ablations) else TITLES_BESIDE)
    titles = [[wrapped(row.title, labels, size.text) for row in table] for table in tables]
    height = row_height([title for table in titles for title in table], size)
    shape = (1, len(ablations)) if beside else (len(ablations), 1)
    room = (width - labels - 0.15) / shape[1]
    lines = [wrapped(ablation.title, room, _title_size(room, size)).count("\n") for ablation in ablations]
    more = (max(lines) if beside else sum(lines)) * LEADING * size.title / 72
    inches = [len(table) * height for table in tables]
    figure = Figure(figsize=(width, sum(inches) + 0.75 * len(tables) + more), layout="constrained")
    figure.set_label("; ".join(ablation.title for ablation in ablations))
    grid = figure.subplots(*shape, squeeze=False, height_ratios=inches)
    panels = []
    for index, (ablation, axes) in enumerate(zip(ablations, grid.flat, strict=True)):
        table, names = (tables[0], titles[0]) if beside else (tables[index], titles[index])
        rows = [row.rows[index if beside else 0] for row in table]
        axes.set_yticks(range(len(rows)), names if index == 0 or not beside else [""] * len(rows))
        panels.append(RowPanel(axes, ablation, rows, SERIES[index % len(SERIES)].color, room, size))
    return figure, panels


def row_height(titles: Iterable[str], size: FontSizes) -> float:
    """Inches of a row that has room for the titles."""
    lines = max(title.count("\n") + 1 for title in titles)
    return max(2.0, LEADING * lines + 0.5) * size.text / 72


def frame_rows(panel: RowPanel, low: float, high: float, label: str, first: float | None = None) -> None:
    """Limits, title and labels of a panel from `low` to `high`; ticks begin at `first`."""
    axes, room, size = panel.axes, panel.room, panel.size
    axes.set_xlim(low, high)
    axes.set_ylim(len(panel.rows) - 0.4, -0.6)
    ticks = MaxNLocator(max(2, int(16 * room / size.text)), steps=[1, 2, 5, 10]).tick_values(low, high)
    first = low if first is None else first
    axes.set_xticks([tick for tick in ticks if first <= tick <= min(high, 100.0)])
    axes.set_xlabel(wrapped(label, 0.9 * room, size.text))
    hide_row_lines(axes)
    points = _title_size(room, size)
    title = wrapped(panel.ablation.title, room, points)
    axes.set_title(title, loc="left", fontsize=points, pad=size.small + 9)


def hide_row_lines(axes: Axes) -> None:
    """Removes grid lines and ticks of rows."""
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _title_size(room: float, size: FontSizes) -> float:
    return size.title if room >= BESIDE else size.text


def add_row_texts(panel: RowPanel, columns: Mapping[str, Sequence[str]]) -> None:
    """Columns of text right of the axes, by their heads, with a text for each row."""
    offset, points, axes = 0.0, panel.size.small, panel.axes
    style: Any = {"textcoords": "offset points", "ha": "right", "color": DARK}
    for head, texts in columns.items():
        offset += points * (0.8 + 0.66 * max(len(head), *map(len, texts)))
        axes.annotate(head, (1, 1), (offset, 3), xycoords="axes fraction", va="bottom", **style)
        for height, text in enumerate(texts):
            at: Any = {"xycoords": axes.get_yaxis_transform()}
            axes.annotate(text, (1, height), (offset, 0), va="center", **at, **style)


def paired_panels(
    ablations: Sequence[Ablation], width: float, height: float
) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A figure with two panels per ablation, each `height` inches high; below each other if narrow."""
    across = 2 if width >= WIDE else 1
    down = 2 * len(ablations) // across
    size = font_sizes(width).title
    titles = [wrapped(ablation.title, width - 0.9, size) for ablation in ablations]
    more = sum(title.count("\n") for title in titles) * LEADING * size / 72
    figure = Figure(figsize=(width, height * down + more), layout="constrained")
    figure.set_label("; ".join(ablation.title for ablation in ablations))
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    pairs = list(zip(panels[::2], panels[1::2], strict=True))
    for title, (first, _) in zip(titles, pairs, strict=True):
        first.set_title(title, loc="left", fontsize=size)
    return figure, pairs


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of the steps in a figure: their rows in the table, or in several tables row by row.

    `titles` are in the order of the numbers, from 1; `of` holds the numbers of each ablation's steps.
    """

    titles: Sequence[str]
    of: Sequence[Mapping[str, int]]


def number_steps(ablations: Sequence[Ablation]) -> StepNumbers:
    """The same step has the same number in all ablations."""
    rows = align(ablations)
    of: list[dict[str, int]] = [{} for _ in ablations]
    for number, same in enumerate(rows, 1):
        for numbers, row in zip(of, same.rows, strict=True):
            if row is not None:
                numbers[row.step] = number
    return StepNumbers([row.title for row in rows], of)


def seed_count(sizes: Iterable[int]) -> str:
    """'n = 3 seeds', 'n = 1 to 3 seeds'."""
    found = sorted(set(sizes)) or [0]
    return f"n = {count(found[0], 'seed')}" if len(found) == 1 else f"n = {found[0]} to {found[-1]} seeds"
