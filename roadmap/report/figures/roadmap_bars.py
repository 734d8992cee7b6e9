"""The roadmap as bars, in the manner of the paper's Figure 2: one ablation, or two regimes side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from roadmap.report.ablation import Ablation, AblationRow
from roadmap.report.columns import COLUMNS
from roadmap.report.figures.legend import Entry, add_legend
from roadmap.report.figures.panels import RowPanel, add_row_texts, frame_rows, row_panels
from roadmap.report.figures.style import DARK, DOUBLE_COLUMN, style

Dash: TypeAlias = Literal[":", "--", "-."] | tuple[float, Sequence[float]]

ROOMY = 4.0  # inches that a panel needs for the spread as text
DASHES: tuple[Dash, ...] = (":", "--", "-.", (0, (1, 3)))  # of the references' lines
REFERENCE: Any = {"color": DARK, "linewidth": 1.2}
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
SIDE_BRANCH: Any = {"facecolor": "white", "hatch": "////"}
MEASURED_REFERENCE: Any = {"facecolor": "white", "hatch": "...."}


def roadmap_bars(ablations: Sequence[Ablation], width: float = DOUBLE_COLUMN) -> Figure:
    """A bar per step from top to bottom, with an error bar of one standard deviation; side branches hatched,
    and references dotted.

    Mean, n and GMACs are right of the bars. Each ablation's reference is a line. `width` is in inches.
    """
    references = dict.fromkeys(
        (found.title, found.top1) for ablation in ablations if (found := ablation.reference)
    )
    dashes = dict(zip(references, cycle(DASHES), strict=False))
    with style(width):
        figure, panels = row_panels(ablations, width)
        for panel in panels:
            _draw_bars(panel)
            if reference := panel.ablation.reference:
                dash = dashes[reference.title, reference.top1]
                panel.axes.axvline(reference.top1, linestyle=dash, **REFERENCE)
        add_legend(figure, _legend(ablations, dashes))
        return figure


def _draw_bars(panel: RowPanel) -> None:
    low, high = _limits(panel.ablation)
    for height, row in enumerate(panel.rows):
        if row is not None:
            _draw_bar(panel.axes, height, row, low, panel.color)
    frame_rows(panel, low, high, f"top-1 accuracy (%), axis from {low:g}")
    has_spread = panel.room >= ROOMY
    columns = {
        "top-1 (%)": [_mean(row, has_spread=has_spread) for row in panel.rows],
        "n": ["" if row is None else COLUMNS["n"].text(row) for row in panel.rows],
        "GMACs": ["" if row is None else COLUMNS["gmacs"].text(row) for row in panel.rows],
    }
    add_row_texts(panel, columns)


def _draw_bar(axes: Axes, height: int, row: AblationRow, low: float, color: str) -> None:
    if row.top1 is None:
        words = "diverged" if row.diverged else "no run has finished"
        text: Any = {"va": "center", "color": DARK, "style": "italic", "bbox": PAPER, "zorder": 4}
        axes.annotate(words, (low, height), (4, 0), textcoords="offset points", **text)
        return
    bar: Any = {"facecolor": color}
    if row.is_beside_path:
        bar = SIDE_BRANCH if row.is_side_branch else MEASURED_REFERENCE
    axes.barh(height, row.top1.mean - low, left=low, height=0.72, linewidth=0.8, edgecolor=color, **bar)
    if row.top1.std is not None:
        axes.errorbar(row.top1.mean, height, xerr=row.top1.std, color=DARK, capsize=2, linewidth=1)


def _mean(row: AblationRow | None, *, has_spread: bool) -> str:
    if row is None or row.top1 is None:
        return ""
    return str(row.top1) if has_spread else f"{row.top1.mean:.2f}"


def _limits(ablation: Ablation) -> tuple[float, float]:
    """From a whole percent below all bars to a little above all error bars and the reference."""
    tops = [row.top1 for row in ablation.rows if row.top1]
    ends = [top1.mean + sign * (top1.std or 0.0) for top1 in tops for sign in (-1, 1)]
    ends += [ablation.reference.top1] if ablation.reference else []
    if not ends:
        return 0.0, 100.0
    low = max(0.0, float(int(min(ends) - 0.15 * (max(ends) - min(ends)) - 0.5)))
    return low, max(ends) + 0.04 * (max(ends) - low)


def _legend(ablations: Sequence[Ablation], dashes: Mapping[tuple[str, float], Dash]) -> list[Entry]:
    rows = [row for ablation in ablations for row in ablation.rows if row.top1]
    entries: list[Entry] = [
        (Line2D([], [], linestyle=dash, **REFERENCE), f"{title} {top1:.2f}")
        for (title, top1), dash in dashes.items()
    ]
    if any(row.is_side_branch for row in rows):
        entries.append((Patch(**SIDE_BRANCH, edgecolor=DARK), "side branch"))
    if any(row.is_reference for row in rows):
        entries.append((Patch(**MEASURED_REFERENCE, edgecolor=DARK), "reference, a model of timm"))
    if any(row.top1 and row.top1.std is not None for row in rows):
        error_bar = Line2D([], [], color=DARK, marker="|", markersize=5, linewidth=1)
        entries.append((error_bar, "mean ± std over n seeds"))
    return entries
