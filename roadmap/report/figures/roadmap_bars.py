"""The roadmap as bars, in the manner of the paper's Figure 2: one ablation, or two regimes side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, TypeAlias

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from roadmap.report.aligned import aligned
from roadmap.report.columns import COLUMNS, gmacs
from roadmap.report.figures.style import DARK, DOUBLE_COLUMN, LOOKS, Type, style, type_of, wrapped
from roadmap.report.rows import Ablation, AblationRow

Dash: TypeAlias = Literal[":", "--", "-."] | tuple[float, Sequence[float]]

BESIDE = 3.0  # inches that a panel needs; where there is less, panels stand below each other
ROOMY = 4.0  # inches that a panel needs for the spread in figures, too
TITLES, TITLES_BESIDE = 0.34, 0.25  # of the width that the steps' titles may take
DASHES: tuple[Dash, ...] = (":", "--", "-.", (0, (1, 3)))  # of the references' lines
REFERENCE: Any = {"color": DARK, "linewidth": 1.2}
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
SIDE_BRANCH: Any = {"facecolor": "white", "hatch": "////"}


def roadmap_bars(ablations: Sequence[Ablation], width: float = DOUBLE_COLUMN) -> Figure:
    """A bar a step from top to bottom, its error bar one standard deviation; mean, n and GMACs beside, side
    branches hatched.

    Ablations share the steps' titles and have a panel each, with their own reference as a line; `width` is in
    inches.
    """
    beside = width >= BESIDE * len(ablations)
    panels = [aligned(ablations)] if beside else [aligned([ablation]) for ablation in ablations]
    size, labels = type_of(width), width * (TITLES if len(ablations) == 1 or not beside else TITLES_BESIDE)
    titles = [[wrapped(row.title, labels, size.text) for row in panel] for panel in panels]
    lines = max(title.count("\n") + 1 for panel in titles for title in panel)
    inches = [len(panel) * max(1.9, 1.25 * lines + 0.4) * size.text / 72 for panel in panels]
    references = dict.fromkeys(
        (found.title, found.top1) for ablation in ablations if (found := ablation.reference)
    )
    dashes = dict(zip(references, cycle(DASHES), strict=False))
    with style(width):
        figure = Figure(figsize=(width, sum(inches) + 0.75 * len(panels) + 0.3), layout="constrained")
        figure.set_label("; ".join(ablation.title for ablation in ablations))
        shape = (1, len(ablations)) if beside else (len(ablations), 1)
        grid = figure.subplots(*shape, squeeze=False, height_ratios=inches)
        for index, (ablation, axes) in enumerate(zip(ablations, grid.flat, strict=True)):
            rows = [row.rows[index] for row in panels[0]] if beside else list(ablation.rows)
            shown = titles[0 if beside else index] if index == 0 or not beside else [""] * len(rows)
            axes.set_yticks(range(len(rows)), shown)
            _panel(
                axes,
                ablation,
                rows,
                LOOKS[index % len(LOOKS)].color,
                (width - labels - 0.15) / shape[1],
                size,
            )
            if ablation.reference:
                axes.axvline(
                    ablation.reference.top1,
                    linestyle=dashes[ablation.reference.title, ablation.reference.top1],
                    **REFERENCE,
                )
        _legend(figure, ablations, width, size, dashes)
        return figure


def _panel(
    axes: Axes, ablation: Ablation, rows: Sequence[AblationRow | None], color: str, room: float, size: Type
) -> None:
    """One ablation, in a place `room` inches wide for the bars and the figures beside them."""
    low, high = _limits(ablation)
    for height, row in enumerate(rows):
        if row is not None:
            _bar(axes, height, row, low, color)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(low, high)
    ticks = MaxNLocator(max(2, int(18 * room / size.text)), steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= min(high, 100.0)])
    axes.set_xlabel(wrapped(f"top-1 accuracy (%), axis from {low:g}", 0.9 * room, size.text))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    points = size.title if room >= BESIDE else size.text
    axes.set_title(wrapped(ablation.title, room, points), loc="left", fontsize=points, pad=size.small + 9)
    _figures(axes, rows, size.small, has_spread=room >= ROOMY)


def _bar(axes: Axes, height: int, row: AblationRow, low: float, color: str) -> None:
    look: dict[str, Any]
    if row.top1 is None:
        words = "diverged" if row.diverged else "no run has finished"
        look = {
            "textcoords": "offset points",
            "va": "center",
            "color": DARK,
            "style": "italic",
            "bbox": PAPER,
            "zorder": 4,
        }
        axes.annotate(words, (low, height), (4, 0), **look)
        return
    look = SIDE_BRANCH if row.is_side_branch else {"facecolor": color}
    axes.barh(height, row.top1.mean - low, left=low, height=0.72, linewidth=0.8, edgecolor=color, **look)
    if row.top1.std is not None:
        axes.errorbar(row.top1.mean, height, xerr=row.top1.std, color=DARK, capsize=2, linewidth=1)


def _figures(axes: Axes, rows: Sequence[AblationRow | None], points: float, *, has_spread: bool) -> None:
    """Columns right of the axes: the mean, n and GMACs of each row."""
    columns = {
        "top-1 (%)": [_mean(row, has_spread=has_spread) for row in rows],
        "n": ["" if row is None else COLUMNS["n"].text(row) for row in rows],
        "GMACs": ["" if row is None else gmacs(row.cost.gmacs) for row in rows],
    }
    offset = 0.0
    for head, texts in columns.items():
        offset += points * (0.8 + 0.66 * max(len(head), *map(len, texts)))
        look: Any = {"textcoords": "offset points", "ha": "right", "color": DARK}
        axes.annotate(head, (1, 1), (offset, 3), xycoords="axes fraction", va="bottom", **look)
        for height, text in enumerate(texts):
            axes.annotate(
                text, (1, height), (offset, 0), xycoords=axes.get_yaxis_transform(), va="center", **look
            )


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


def _legend(
    figure: Figure,
    ablations: Sequence[Ablation],
    width: float,
    size: Type,
    dashes: Mapping[tuple[str, float], Dash],
) -> None:
    """What bars and lines mean, below all panels."""
    rows = [row for ablation in ablations for row in ablation.rows if row.top1]
    handles: list[Artist] = [
        Line2D([], [], linestyle=dash, label=f"{title} {top1:.2f}", **REFERENCE)
        for (title, top1), dash in dashes.items()
    ]
    handles += (
        [Patch(**SIDE_BRANCH, edgecolor=DARK, label="side branch")]
        if any(row.is_side_branch for row in rows)
        else []
    )
    if any(row.top1 and row.top1.std is not None for row in rows):
        handles.append(
            Line2D([], [], color=DARK, marker="|", markersize=5, linewidth=1, label="mean ± std over n seeds")
        )
    widest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, int(width / ((0.6 * widest + 5) * size.small / 72)))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower left", ncols=columns, frameon=False, borderaxespad=0.2
        )
