"""Every seed's accuracy, a row a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from roadmap.report.aligned import aligned
from roadmap.report.figures.panels import LEADING, add_key
from roadmap.report.figures.style import (
    DARK,
    DOUBLE_COLUMN,
    GREY,
    LOOKS,
    PALE,
    VERMILION,
    Type,
    style,
    type_of,
    wrapped,
)
from roadmap.report.rows import Ablation, AblationRow
from roadmap.report.stats import CONFIDENCE, Summary

BESIDE = 3.0  # inches that a panel needs; where there is less, panels stand below each other
TITLES, TITLES_BESIDE = 0.365, 0.25  # of the width that the steps' titles may take
LANES = 0.5  # of a row's height, in which its seeds lie from top to bottom
LONGEST = 0.4  # of the range of all seeds, which an interval may reach beyond them before it is cut
LOST = 0.12  # of the axis, left of all seeds, for those that diverged
MOST_CROSSES = 3
CROSS: Any = {
    "marker": "x",
    "linestyle": "none",
    "color": VERMILION,
    "markersize": 4.5,
    "markeredgewidth": 1.2,
}
JOINED = "the same seed"
THIN: Any = {"color": GREY, "linewidth": 0.5, "alpha": 0.7}
MOST_JOINED = 5  # seeds up to which their dots are joined with their parents'


def seed_strip(ablations: Sequence[Ablation], width: float = DOUBLE_COLUMN) -> Figure | None:
    """A dot a seed, a row a step, with the mean and its 95 % interval; None where no run has finished.

    A row's seeds lie below each other in their order. Few are joined with the same seeds of the parent.
    Crosses at the left border are the seeds that diverged, with their number if they are many. `width` is in
    inches.
    """
    shown = [ablation for ablation in ablations if any(row.results for row in ablation.rows)]
    if not shown:
        return None
    beside = width >= BESIDE * len(shown)
    panels = [aligned(shown)] if beside else [aligned([ablation]) for ablation in shown]
    size, labels = type_of(width), width * (TITLES if len(shown) == 1 or not beside else TITLES_BESIDE)
    titles = [[wrapped(row.title, labels, size.text) for row in panel] for panel in panels]
    lines = max(title.count("\n") + 1 for panel in titles for title in panel)
    inches = [len(panel) * max(2.0, LEADING * lines + 0.5) * size.text / 72 for panel in panels]
    with style(width):
        heads = [
            wrapped(ablation.title, (width - labels) / (len(shown) if beside else 1), size.title).count("\n")
            for ablation in shown
        ]
        more = (max(heads) if beside else sum(heads)) * LEADING * size.title / 72
        figure = Figure(figsize=(width, sum(inches) + 0.75 * len(panels) + more), layout="constrained")
        figure.set_label("; ".join(ablation.title for ablation in shown))
        shape = (1, len(shown)) if beside else (len(shown), 1)
        grid = figure.subplots(*shape, squeeze=False, height_ratios=inches)
        for index, (ablation, axes) in enumerate(zip(shown, grid.flat, strict=True)):
            rows = [row.rows[index] for row in panels[0]] if beside else list(ablation.rows)
            names = titles[0 if beside else index] if index == 0 or not beside else [""] * len(rows)
            axes.set_yticks(range(len(rows)), names)
            _panel(
                axes,
                ablation.title,
                rows,
                LOOKS[index % len(LOOKS)].color,
                (width - labels) / shape[1],
                size,
            )
        _legend(figure, shown)
        return figure


def mean_margin(summary: Summary) -> float | None:
    """Half the 95 % interval of a mean (t); None for a single run."""
    from scipy import stats

    if summary.std is None:
        return None
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, summary.n - 1)) * summary.std / math.sqrt(summary.n)


def _panel(
    axes: Axes, title: str, rows: Sequence[AblationRow | None], color: str, room: float, size: Type
) -> None:
    """One ablation, in a place `room` inches wide for the dots and the numbers beside them."""
    low, high = _limits(rows)
    start = LOST if any(row and row.diverged for row in rows) else 0.0
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    places = _lanes(rows)
    _join(axes, rows, places)
    for height, row in enumerate(rows):
        if row is not None:
            _row(axes, height, row, places, color)
        if row is not None and not row.results:
            words: dict[str, Any] = {
                "transform": axes.get_yaxis_transform(),
                "va": "center",
                "color": DARK,
                "style": "italic",
            }
            axes.text(start + 0.01, height, "no run has finished", **words)
    if start:
        axes.axvline(low + start * (high - low), color=PALE, linewidth=0.8)
    ticks = MaxNLocator(max(2, int(16 * room / size.text)), steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low + start * (high - low) <= tick <= min(high, 100.0)])
    axes.set_xlabel(wrapped("top-1 accuracy (%) of each seed", 0.8 * room, size.text))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    points = size.title if room >= BESIDE else size.text
    axes.set_title(wrapped(title, room, points), loc="left", fontsize=points, pad=size.small + 9)
    _counts(axes, rows, size.small)


def _lanes(rows: Sequence[AblationRow | None]) -> dict[int, float]:
    """How far below its row's middle each seed lies, the same in all rows."""
    known = sorted({seed for row in rows if row for seed in row.seeds})
    return {seed: LANES * ((place + 0.5) / len(known) - 0.5) for place, seed in enumerate(known)}


def _row(axes: Axes, height: int, row: AblationRow, places: Mapping[int, float], color: str) -> None:
    at = [height + places[seed] for seed in row.seeds]
    look: dict[str, Any] = {
        "markersize": 3.6 if len(places) <= 2 * MOST_JOINED else 2.4,
        "markeredgewidth": 0.8,
        "linestyle": "none",
    }
    look["markerfacecolor"] = "white" if row.is_side_branch else color
    axes.plot(list(row.seeds.values()), at, marker="o", color=color, zorder=3, label=row.step, **look)
    if row.top1:
        axes.plot(row.top1.mean, height, marker="|", markersize=9, markeredgewidth=1.3, color=DARK, zorder=4)
        if (margin := mean_margin(row.top1)) is not None:
            axes.errorbar(row.top1.mean, height, xerr=margin, color=DARK, linewidth=0.9, capsize=2, zorder=2)
    _crosses(axes, height, row.diverged)


def _crosses(axes: Axes, height: int, lost: int) -> None:
    """Those that diverged, at the left border: a cross each, or their number behind one."""
    drawn = lost if lost <= MOST_CROSSES else 1
    x = [LOST * (place + 0.5) / MOST_CROSSES for place in range(drawn)]
    axes.plot(
        x,
        [height] * drawn,
        "x",
        transform=axes.get_yaxis_transform(),
        color=VERMILION,
        markersize=4.5,
        markeredgewidth=1.2,
        zorder=4,
    )
    if drawn < lost:
        axes.text(
            LOST * 1.0 / MOST_CROSSES,
            height,
            str(lost),
            transform=axes.get_yaxis_transform(),
            va="center",
            color=DARK,
        )


def _join(axes: Axes, rows: Sequence[AblationRow | None], places: Mapping[int, float]) -> None:
    """The same seed from parent to child, which the differences pair; not where one step is the parent of
    all, nor for many seeds.
    """
    known = {row.step: (height, row) for height, row in enumerate(rows) if row and not row.is_side_branch}
    children = Counter(row.parent for _, row in known.values())
    if len(places) > MOST_JOINED:
        return
    for height, row in known.values():
        above, parent = known.get(row.parent or "", (0, None))
        if parent is None or children[parent.step] > 1:
            continue
        for seed in sorted(row.seeds.keys() & parent.seeds.keys()):
            x, y = (parent.seeds[seed], row.seeds[seed]), (above + places[seed], height + places[seed])
            axes.plot(x, y, zorder=1, label=JOINED, **THIN)


def _counts(axes: Axes, rows: Sequence[AblationRow | None], points: float) -> None:
    """A column right of the axes: how many seeds there are, of how many there should be where some are
    missing.
    """
    texts = ["" if row is None else _count(row) for row in rows]
    offset = points * (0.8 + 0.66 * max(1, *map(len, texts)))
    axes.annotate(
        "n",
        (1, 1),
        (offset, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=DARK,
    )
    for height, text in enumerate(texts):
        axes.annotate(
            text,
            (1, height),
            (offset, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="center",
            color=DARK,
        )


def _count(row: AblationRow) -> str:
    finished = len(row.seeds)
    return f"{finished}/{row.planned}" if finished < row.planned else str(finished)


def _limits(rows: Sequence[AblationRow | None]) -> tuple[float, float]:
    """Limits that hold all seeds, the intervals of their means unless those would leave no room, and a strip
    for those that diverged.
    """
    seeds = [value for row in rows if row for value in row.seeds.values()]
    if not seeds:
        return 0.0, 100.0
    means = [(row.top1.mean, mean_margin(row.top1) or 0.0) for row in rows if row and row.top1]
    low, high = min(seeds), max(seeds)
    reach = LONGEST * (high - low) or 0.5
    low = max(low - reach, min(low, *(mean - margin for mean, margin in means)))
    high = min(high + reach, max(high, *(mean + margin for mean, margin in means)))
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    return low - (
        LOST / (1 - LOST) * (high - low) if any(row and row.diverged for row in rows) else 0.0
    ), high


def _legend(figure: Figure, ablations: Sequence[Ablation]) -> None:
    rows = [row for ablation in ablations for row in ablation.rows]
    color = LOOKS[0].color if len(ablations) == 1 else DARK
    entries: list[tuple[Artist, str]] = []
    if any(row.seeds for row in rows):
        entries.append((Line2D([], [], linestyle="none", marker="o", markersize=3.6, color=color), "a seed"))
    if any(row.is_side_branch and row.seeds for row in rows):
        hollow = Line2D(
            [], [], linestyle="none", marker="o", markersize=3.6, color=color, markerfacecolor="white"
        )
        entries.append((hollow, "of a side branch"))
    if any(row.top1 for row in rows):
        entries.append(
            (
                Line2D([], [], linestyle="none", marker="|", markersize=9, markeredgewidth=1.3, color=DARK),
                "mean",
            )
        )
    if any(row.top1 and row.top1.std is not None for row in rows):
        entries.append((Line2D([], [], color=DARK, linewidth=0.9), "95 % interval of the mean (t)"))
    if any(line.get_label() == JOINED for axes in figure.axes for line in axes.lines):
        entries.append((Line2D([], [], **THIN), JOINED))
    if any(row.diverged for row in rows):
        entries.append((Line2D([], [], **CROSS), "diverged"))
    add_key(figure, entries)
