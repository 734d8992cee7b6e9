"""The ablation as figures: bars in the manner of the paper's Figure 2, and accuracy against cost."""

from __future__ import annotations

from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from roadmap.report.labels import Box, place
from roadmap.report.rows import Ablation, Row
from roadmap.report.stats import Summary
from roadmap.report.style import BLUE, DARK, GREY, ORANGE, style
from roadmap.tree import Reference

LONG_TITLE = 55  # characters that fit above the axes
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}


def roadmap_bars(ablation: Ablation, reference: Reference | None) -> Figure:
    """A bar a step from top to bottom, error bars of one standard deviation, GMACs beside; side branches are hatched.

    `reference` adds a dotted line at a published accuracy.
    """
    rows = ablation.rows
    with style():
        figure = Figure(figsize=(7.0, 0.9 + 0.27 * len(rows)), layout="constrained")
        axes: Axes = figure.subplots()
        low, high = _limits(rows, reference)
        for height, row in enumerate(rows):
            _bar(axes, height, row, low, high)
        axes.set_yticks(range(len(rows)), [row.title for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(low, high)
        axes.set_xlabel(f"top-1 accuracy (%), axis from {low:g}; bars: mean ± std over n seeds")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_title(ablation.title, loc=_side(ablation.title), fontsize=9, pad=18 if reference else 6)
        axes.text(1.01, 1.005, "GMACs", transform=axes.transAxes, ha="left", va="bottom", color=DARK)
        if reference:
            axes.axvline(reference.top1, color=ORANGE, linestyle=":", linewidth=1.5)
            axes.text(reference.top1, -0.65, f"{reference.title} {reference.top1:.2f}", color=DARK, ha="center", va="bottom", fontsize=7)
        return figure


def _side(title: str) -> Literal["left", "right"]:
    """Where a title is aligned with the axes; a long one ends with them and reaches over the labels on their left."""
    return "left" if len(title) <= LONG_TITLE else "right"


def _bar(axes: Axes, height: int, row: Row, low: float, high: float) -> None:
    axes.text(1.01, height, _gmacs(row), transform=axes.get_yaxis_transform(), ha="left", va="center", color=DARK)
    if row.top1 is None:
        words = "diverged" if row.diverged else "no run has finished"
        axes.text(low, height, f"  {words}", va="center", color=DARK, style="italic", bbox=PAPER, zorder=4)
        return
    look: dict[str, Any] = (
        {"color": "white", "edgecolor": BLUE, "hatch": "////"} if row.is_side_branch else {"color": BLUE, "edgecolor": BLUE}
    )
    axes.barh(height, row.top1.mean - low, left=low, height=0.72, linewidth=0.8, **look)
    if row.top1.std is not None:
        axes.errorbar(row.top1.mean, height, xerr=row.top1.std, color=DARK, capsize=2, linewidth=1)
    edge = row.top1.mean + (row.top1.std or 0.0)
    axes.text(edge + 0.008 * (high - low), height, _value(row), va="center", ha="left", color=DARK, bbox=PAPER, zorder=4)


def _value(row: Row) -> str:
    assert row.top1 is not None
    return f"{row.top1.mean:.2f} (n = {row.top1.n}{f'/{row.planned}' if row.top1.n < row.planned else ''})"


def _gmacs(row: Row) -> str:
    return f"{row.cost.gmacs:.2f}" if row.cost.gmacs >= 1 else f"{row.cost.gmacs:.4f}"


def _limits(rows: tuple[Row, ...], reference: Reference | None) -> tuple[float, float]:
    """Whole-percent limits with room for the values right of the bars."""
    ends = [end for row in rows if row.top1 for end in _ends(row.top1)] + ([reference.top1] if reference else [])
    if not ends:
        return 0.0, 100.0
    low = max(0.0, float(int(min(ends) - 0.15 * (max(ends) - min(ends)) - 0.5)))
    return low, max(ends) + 0.3 * (max(ends) - low)


def _ends(summary: Summary) -> tuple[float, float]:
    return summary.mean - (summary.std or 0.0), summary.mean + (summary.std or 0.0)


def accuracy_vs_gmacs(ablation: Ablation, reference: Reference | None) -> Figure:
    """Accuracy against GMACs: arrows lead from parent to child, side branches are hollow, numbers name the steps in the key."""
    with style():
        figure = Figure(figsize=(7.0, 4.6), layout="constrained")
        axes: Axes = figure.subplots()
        finished = {row.step: row for row in ablation.rows if row.top1 is not None}
        for row in finished.values():
            _arrow(axes, row, finished.get(row.parent or ""))
            _point(axes, row)
        if reference and reference.gmacs is not None:
            axes.plot(reference.gmacs, reference.top1, marker="*", markersize=11, color=ORANGE, linestyle="none", zorder=4)
        axes.margins(0.1)
        axes.set_xlabel("GMACs an image (convolutions and linear layers)")
        axes.set_ylabel("top-1 accuracy (%), mean ± std over n seeds")
        axes.set_title(ablation.title, loc="left", fontsize=9)
        _key(axes, ablation, reference)
        figure.draw_without_rendering()
        _numbers(axes, ablation, finished, reference)
        return figure


def _numbers(axes: Axes, ablation: Ablation, finished: dict[str, Row], reference: Reference | None) -> None:
    """Each point's number beside it; a thin line leads to those that had to move away."""
    texts = [str(number) for number, row in enumerate(ablation.rows, 1) if row.step in finished]
    points = [_box(axes, row.cost.gmacs, row.top1) for row in finished.values() if row.top1]
    obstacles = list(points)
    if reference and reference.gmacs is not None:
        obstacles.append(_box(axes, reference.gmacs, Summary(reference.top1, None, 1)))
    centres = {row.step: (point.x, point.y) for row, point in zip(finished.values(), points, strict=True)}
    lines = [(centres[row.parent], centres[row.step]) for row in finished.values() if row.parent in centres]
    area = axes.get_window_extent()
    frame = Box(area.x0 + area.width / 2, area.y0 + area.height / 2, area.width, area.height)
    placed = place(points, [(7.0 * len(text) + 2, 11.0) for text in texts], lines, frame, obstacles)
    for text, box, point in zip(texts, placed, points, strict=True):
        at, tip = axes.transData.inverted().transform([(box.x, box.y), (point.x, point.y)])
        lead = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 4, "shrinkB": 3}
        far = abs(box.x - point.x) > 12 + box.width / 2 or abs(box.y - point.y) > 6 + (point.height + box.height) / 2
        axes.annotate(
            text, xy=tip, xytext=at, ha="center", va="center_baseline", fontsize=7, fontweight="bold", color=DARK, zorder=5,
            arrowprops=lead if far else None,
        )  # fmt: skip


def _box(axes: Axes, x: float, top1: Summary) -> Box:
    """The pixels that a point and its error bar take."""
    (left, low), (_, high) = axes.transData.transform([(x, end) for end in _ends(top1)])
    return Box(left, (low + high) / 2, 9.0, high - low + 9.0)


def _key(axes: Axes, ablation: Ablation, reference: Reference | None) -> None:
    """What the numbers mean, right of the axes from top to bottom."""
    lines = [(str(number), row.title if row.top1 else f"{row.title} (no result)") for number, row in enumerate(ablation.rows, 1)]
    lines += [("★", f"{reference.title} (published)")] if reference and reference.gmacs is not None else []
    for index, (mark, words) in enumerate(lines):
        height = 1 - index / len(lines)
        axes.text(1.05, height, mark, transform=axes.transAxes, ha="right", va="top", fontsize=7, fontweight="bold", color=DARK)
        axes.text(1.06, height, words, transform=axes.transAxes, ha="left", va="top", fontsize=7, color=DARK)


def _arrow(axes: Axes, row: Row, parent: Row | None) -> None:
    if parent is None or parent.top1 is None or row.top1 is None:
        return
    look = {"arrowstyle": "-|>", "color": GREY if row.is_side_branch else BLUE, "linewidth": 0.9, "alpha": 0.65, "shrinkA": 4, "shrinkB": 4}
    start, end = (parent.cost.gmacs, parent.top1.mean), (row.cost.gmacs, row.top1.mean)
    axes.annotate("", xy=end, xytext=start, arrowprops=look, zorder=2)


def _point(axes: Axes, row: Row) -> None:
    assert row.top1 is not None
    axes.errorbar(
        row.cost.gmacs, row.top1.mean, yerr=row.top1.std, fmt="o", markersize=5, capsize=2, linewidth=1, color=BLUE,
        markerfacecolor="white" if row.is_side_branch else BLUE, zorder=3,
    )  # fmt: skip
