"""Every seed's accuracy, with a row per step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roadmap.report.ablation import Ablation, AblationRow
from roadmap.report.figures.legend import Entry, add_legend
from roadmap.report.figures.panels import RowPanel, add_row_texts, frame_rows, row_panels
from roadmap.report.figures.style import DARK, DOUBLE_COLUMN, GRAY, PALE, SERIES, VERMILION, style
from roadmap.report.stats import CONFIDENCE, Summary

LANES = 0.5  # the part of a row's height for its seeds
LONGEST = 0.4  # of the range of all seeds, which an interval may reach beyond them before it is cut
DIVERGED = 0.12  # the part of the axis, left of all seeds, for those that diverged
MOST_CROSSES = 3
CROSS: Any = {
    "marker": "x",
    "linestyle": "none",
    "color": VERMILION,
    "markersize": 4.5,
    "markeredgewidth": 1.2,
}
MEAN: Any = {"linestyle": "none", "marker": "|", "markersize": 9, "markeredgewidth": 1.3, "color": DARK}
JOINED = "the same seed"
THIN: Any = {"color": GRAY, "linewidth": 0.5, "alpha": 0.7}
MOST_JOINED = 5  # seeds up to which their dots are joined with their parents'


def seed_strip(ablations: Sequence[Ablation], width: float = DOUBLE_COLUMN) -> Figure | None:
    """A dot per seed and a row per step, with the mean and its 95 % interval; None where no run has finished.

    The seeds of a row are in order from top to bottom. If there are few, lines join the same seeds of parent
    and child. Crosses at the left border are seeds that diverged. `width` is in inches.
    """
    shown = [ablation for ablation in ablations if any(row.results for row in ablation.rows)]
    if not shown:
        return None
    with style(width):
        figure, panels = row_panels(shown, width)
        for panel in panels:
            _draw_seeds(panel)
        add_legend(figure, _legend(figure, shown))
        return figure


def mean_margin(summary: Summary) -> float | None:
    """Half the 95 % interval of a mean (t); None for a single run."""
    from scipy import stats

    if summary.std is None:
        return None
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, summary.n - 1)) * summary.std / math.sqrt(summary.n)


def _draw_seeds(panel: RowPanel) -> None:
    axes, rows = panel.axes, panel.rows
    low, high = _limits(rows)
    start = DIVERGED if any(row and row.diverged for row in rows) else 0.0
    lanes = _lanes(rows)
    frame_rows(panel, low, high, "top-1 accuracy (%) of each seed", low + start * (high - low))
    _join(axes, rows, lanes)
    for height, row in enumerate(rows):
        if row is not None:
            _draw_row(axes, height, row, lanes, panel.color)
        if row is not None and not row.results:
            text: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "color": DARK}
            axes.text(start + 0.01, height, "no run has finished", style="italic", **text)
    if start:
        axes.axvline(low + start * (high - low), color=PALE, linewidth=0.8)
    add_row_texts(panel, {"n": ["" if row is None else _count(row) for row in rows]})


def _lanes(rows: Sequence[AblationRow | None]) -> dict[int, float]:
    """Each seed's distance below the middle of its row, the same in all rows."""
    known = sorted({seed for row in rows if row for seed in row.seeds})
    return {seed: LANES * ((place + 0.5) / len(known) - 0.5) for place, seed in enumerate(known)}


def _draw_row(axes: Axes, height: int, row: AblationRow, lanes: Mapping[int, float], color: str) -> None:
    dots: dict[str, Any] = {
        "marker": "D" if row.is_reference else "o",
        "markersize": 3.6 if len(lanes) <= 2 * MOST_JOINED else 2.4,
        "markeredgewidth": 0.8,
        "linestyle": "none",
        "color": color,
        "markerfacecolor": "white" if row.is_beside_path else color,
    }
    at = [height + lanes[seed] for seed in row.seeds]
    axes.plot(list(row.seeds.values()), at, zorder=3, label=row.step, **dots)
    if row.top1:
        axes.plot(row.top1.mean, height, zorder=4, **MEAN)
        if (margin := mean_margin(row.top1)) is not None:
            axes.errorbar(row.top1.mean, height, xerr=margin, color=DARK, linewidth=0.9, capsize=2, zorder=2)
    _draw_diverged(axes, height, row.diverged)


def _draw_diverged(axes: Axes, height: int, number: int) -> None:
    """A cross for each seed that diverged, or their number behind one cross."""
    drawn = number if number <= MOST_CROSSES else 1
    x = [DIVERGED * (place + 0.5) / MOST_CROSSES for place in range(drawn)]
    across = axes.get_yaxis_transform()
    axes.plot(x, [height] * drawn, transform=across, zorder=4, **CROSS)
    if drawn < number:
        axes.text(DIVERGED / MOST_CROSSES, height, str(number), transform=across, va="center", color=DARK)


def _join(axes: Axes, rows: Sequence[AblationRow | None], lanes: Mapping[int, float]) -> None:
    """Joins the same seed of parent and child, which the differences pair; not for many seeds or children."""
    known = {row.step: (height, row) for height, row in enumerate(rows) if row and not row.is_side_branch}
    children = Counter(row.parent for _, row in known.values())
    if len(lanes) > MOST_JOINED:
        return
    for height, row in known.values():
        above, parent = known.get(row.parent or "", (0, None))
        if parent is None or children[parent.step] > 1:
            continue
        for seed in sorted(row.seeds.keys() & parent.seeds.keys()):
            x, y = (parent.seeds[seed], row.seeds[seed]), (above + lanes[seed], height + lanes[seed])
            axes.plot(x, y, zorder=1, label=JOINED, **THIN)


def _count(row: AblationRow) -> str:
    finished = len(row.seeds)
    return f"{finished}/{row.planned}" if finished < row.planned else str(finished)


def _limits(rows: Sequence[AblationRow | None]) -> tuple[float, float]:
    """Limits around all seeds, the intervals of their means if they leave room, and diverged seeds."""
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
    strip = DIVERGED / (1 - DIVERGED) * (high - low) if any(row and row.diverged for row in rows) else 0.0
    return low - strip, high


def _legend(figure: Figure, ablations: Sequence[Ablation]) -> list[Entry]:
    rows = [row for ablation in ablations for row in ablation.rows]
    color = SERIES[0].color if len(ablations) == 1 else DARK
    dot: Any = {"linestyle": "none", "marker": "o", "markersize": 3.6, "color": color}
    joined = any(line.get_label() == JOINED for axes in figure.axes for line in axes.lines)
    entries: list[tuple[bool, Entry]] = [
        (any(row.seeds for row in rows), (Line2D([], [], **dot), "a seed")),
        (
            any(row.is_side_branch and row.seeds for row in rows),
            (Line2D([], [], markerfacecolor="white", **dot), "of a side branch"),
        ),
        (
            any(row.is_reference and row.seeds for row in rows),
            (Line2D([], [], markerfacecolor="white", **dot | {"marker": "D"}), "of a reference"),
        ),
        (any(row.top1 for row in rows), (Line2D([], [], **MEAN), "mean")),
        (
            any(row.top1 and row.top1.std is not None for row in rows),
            (Line2D([], [], color=DARK, linewidth=0.9), "95 % interval of the mean (t)"),
        ),
        (joined, (Line2D([], [], **THIN), JOINED)),
        (any(row.diverged for row in rows), (Line2D([], [], **CROSS), "diverged")),
    ]
    return [entry for is_drawn, entry in entries if is_drawn]
