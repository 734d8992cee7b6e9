"""Throughput as bars: training and inference of each step side by side, timm's networks as marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from roadmap.bench.results import Measurement
from roadmap.bench.tables import TITLES, MeasurementGroup, StepMeasurements, peak_percentage, speed, usual
from roadmap.report.columns import NONE
from roadmap.report.figures.legend import Entry, add_legend
from roadmap.report.figures.panels import hide_row_lines, row_height
from roadmap.report.figures.style import (
    BLUE,
    DARK,
    DOUBLE_COLUMN,
    VERMILION,
    FontSizes,
    font_sizes,
    style,
    wrapped,
)
from roadmap.report.render import GLUE

MODES = ("train", "inference")
LABELS = 0.24  # of the width, for the steps' titles
DEFAULTS: Any = {
    "linestyle": "none",
    "marker": "D",
    "markersize": 4.5,
    "color": VERMILION,
    "markerfacecolor": "white",
}
SAME: Any = DEFAULTS | {"markerfacecolor": VERMILION, "markeredgecolor": "white", "markeredgewidth": 0.6}
Line = tuple[str, int, int]


def throughput_figure(group: MeasurementGroup, width: float = DOUBLE_COLUMN) -> Figure | None:
    """A bar per step with its interquartile range; None where neither training nor inference was measured.

    `width` is in inches.
    """
    panels = {mode: _placed(group.entries[mode]) for mode in MODES if group.entries.get(mode)}
    if not panels:
        return None
    size, room = font_sizes(width), (1 - LABELS) * width / len(panels)
    labels = _labels(group, panels.values())
    shown = [wrapped(label, LABELS * width - 0.1, size.text) for label in labels.values()]
    height = len(shown) * row_height(shown, size)
    title = wrapped(_title(group), width - 0.1, size.title)
    with style(width):
        figure = Figure(
            figsize=(width, height + 0.6 + 1.3 * size.title / 72 * (title.count("\n") + 1)),
            layout="constrained",
        )
        figure.set_label(f"{group.title}: throughput")
        figure.suptitle(title, x=0.05 / width, ha="left")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for index, (axes, (mode, entries)) in enumerate(zip(grid, panels.items(), strict=True)):
            axes.set_yticks(range(len(shown)), [""] * len(shown) if index else shown)
            axes.set_title(TITLES[mode], loc="left", fontsize=size.text)
            axes.set_ylim(len(shown) - 0.4, -0.6)
            _panel(
                axes,
                {list(labels).index(place): entry for place, entry in entries.items()},
                group,
                room,
                size,
            )
        add_legend(figure, _legend([entry for entries in panels.values() for entry in entries.values()]))
        return figure


def _placed(entries: Sequence[StepMeasurements]) -> dict[Line, StepMeasurements]:
    """Entries by step, image size, and a count of those with other batches."""
    found: dict[Line, StepMeasurements] = {}
    for entry in entries:
        same = entry.ours.step, entry.ours.image_size
        found[*same, sum(place[:2] == same for place in found)] = entry
    return found


def _labels(group: MeasurementGroup, panels: Iterable[dict[Line, StepMeasurements]]) -> dict[Line, str]:
    """The text of each line in the order of the path, with the image size where it is not the usual one."""
    found = {place: entry for panel in panels for place, entry in panel.items()}
    order = {step: number for number, step in enumerate(dict.fromkeys(row.step for row in group.rows))}
    size, labels = usual(group.rows, _size), {}
    for place in sorted(found, key=lambda place: (order[place[0]], place[1:])):
        title, pixels = found[place].title, f"{place[1]} px"
        labels[place] = title if place[1] == size or pixels in title else f"{title}, {pixels}"
    return labels


def _size(row: Measurement) -> int:
    return row.image_size


def _batch(row: Measurement) -> int:
    return row.batch


def _title(group: MeasurementGroup) -> str:
    """The device and the settings of the measurement."""
    rows = [row for row in group.rows if row.mode in MODES]
    words = [" and ".join(dict.fromkeys(row.hardware for row in rows))]
    if rows[0].threads is not None:
        words.append(f"{rows[0].threads} thread{'' if rows[0].threads == 1 else 's'}")
    size = usual(rows, _size)
    others = "" if all(row.image_size == size for row in rows) else f"{GLUE}unless{GLUE}noted"
    words += [group.precision, f"batch {usual(rows, _batch)}", f"{size}{GLUE}px{others}"]
    fewest, most = min(row.n for row in rows), max(row.n for row in rows)
    words.append((f"n = {fewest}" if fewest == most else f"n = {fewest} to {most}").replace(" ", GLUE))
    return f"{group.heading}: {', '.join(words)}"


def _panel(
    axes: Axes, entries: dict[int, StepMeasurements], group: MeasurementGroup, room: float, size: FontSizes
) -> None:
    """One mode with its entries by line, `room` inches wide."""
    batch, limit = usual(group.rows, _batch), 0.0
    for height, entry in entries.items():
        row = entry.ours
        axes.barh(height, row.images_per_s, height=0.7, color=BLUE)
        axes.errorbar(row.images_per_s, height, xerr=_around(row), color=DARK, capsize=2, linewidth=1)
        for rival, marker in ((entry.beside, SAME), (entry.defaults, DEFAULTS)):
            if rival is not None:
                axes.errorbar(rival.images_per_s, height, xerr=_around(rival), elinewidth=1, **marker)
        words = (
            speed(row.images_per_s)
            if peak_percentage(row) == NONE
            else f"{speed(row.images_per_s)} · {peak_percentage(row)}"
        )
        words += f", batch {row.batch}" if row.batch != batch else ""
        text = min(0.6, (0.6 * len(words) * size.small / 72 + 0.1) / (room - 0.2))  # of the panel's width
        limit = max(limit, _end(entry) / (1 - text))
        axes.annotate(
            words,
            (_end(entry), height),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=DARK,
            fontsize=size.small,
        )
    axes.set_xlim(0, limit)
    axes.xaxis.set_major_locator(MaxNLocator(max(2, int(14 * room / size.text)), steps=[1, 2, 5, 10]))
    axes.set_xlabel("images/s")
    hide_row_lines(axes)


def _around(row: Measurement) -> list[list[float]]:
    """The arms of an error bar; a median of few rounds may be at an end."""
    low, high = row.throughput
    return [[max(0.0, row.images_per_s - low)], [max(0.0, high - row.images_per_s)]]


def _end(entry: StepMeasurements) -> float:
    """The right end of an entry's marks."""
    rows: list[Measurement | None] = [entry.ours, entry.beside, entry.defaults]
    return max(row.throughput[1] for row in rows if row is not None)


def _legend(entries: Sequence[StepMeasurements]) -> list[Entry]:
    median = Line2D([], [], color=DARK, marker="|", markersize=5, linewidth=1)
    found: list[Entry] = [
        (Patch(color=BLUE), "ours: images/s · % of peak FLOP/s"),
        (median, "interquartile range of n rounds"),
    ]
    if any(entry.beside for entry in entries):
        found.append((Line2D([], [], **SAME), "timm, the same format"))
    if any(entry.defaults for entry in entries):
        found.append((Line2D([], [], **DEFAULTS), "timm's defaults"))
    return found
