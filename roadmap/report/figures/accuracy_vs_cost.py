"""Accuracy against what it costs: parameters, multiply-adds, time or memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from roadmap.report.aligned import aligned
from roadmap.report.figures.cost_drawing import FRONT, REFERENCE, STAR, draw
from roadmap.report.figures.cost_marks import COSTS, Scene
from roadmap.report.figures.legend import Legend, LegendEntry
from roadmap.report.figures.style import DOUBLE_COLUMN, GREY, LOOKS, style, type_of, wrapped
from roadmap.report.rows import Ablation

__all__ = ["COSTS", "accuracy_vs"]

DOT: Any = {"linestyle": "none", "marker": "o", "markersize": 5, "color": GREY}


def accuracy_vs(
    ablations: Sequence[Ablation], x: str = "gmacs", width: float = DOUBLE_COLUMN
) -> Figure | None:
    """Accuracy against one of `COSTS`: arrows from parent to child, error bars of one standard deviation, and
    the Pareto front.

    Numbers name the steps in the key, side branches are hollow. The area of a bubble is the number of
    parameters, or GMACs where those are the cost. `width` is in inches. None if no row has both an accuracy
    and this cost; rows that lack one are left out.
    """
    scene = Scene(ablations, COSTS[x], type_of(width))
    if not scene.all_marks:
        return None
    with style(width):
        figure, axes, key_axes, key = _page(scene, width)
        figure.set_label(
            f"{'; '.join(ablation.title for ablation in ablations)}: accuracy and {scene.cost.label}"
        )
        draw(figure, axes, scene)
        key.draw(key_axes)
        return figure


def _page(scene: Scene, width: float) -> tuple[Figure, Axes, Axes, Legend]:
    """Axes for the plot and the key: beside each other, or below where there is no room. All in inches."""
    beside, size = width >= 0.75 * DOUBLE_COLUMN, scene.size
    left, right, bottom = 0.6, 0.18, 0.42
    title = wrapped(scene.ablations[0].title, width - 0.1, size.title) if len(scene.ablations) == 1 else ""
    top = 0.12 + 1.3 * size.title / 72 * (title.count("\n") + 1 if title else 0)
    key = Legend(
        _entries(scene), 1 if beside else 2, 0.33 * width if beside else 0.5 * width - 0.02, size.small
    )
    wide = width - left - right - (key.inches + 0.1 if beside else 0.0)
    high = max(0.95 * wide, key.height - bottom) if beside else 0.95 * wide
    height = top + high + bottom + (0.0 if beside else key.height + 0.12)
    figure = Figure(figsize=(width, height))
    figure.text(0.05 / width, 1 - 0.05 / height, title, ha="left", va="top", fontsize=size.title)

    def place(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, y / height, wide / width, high / height))

    axes = place(left, height - top - high, wide, high)
    corner = (width - key.inches, height - top - key.height) if beside else (0.02, 0.06)
    return figure, axes, place(*corner, key.columns * key.inches, key.height), key


def _entries(scene: Scene) -> list[LegendEntry]:
    """What numbers, colors, bubbles and lines mean."""
    drawn, entries = {mark.number for mark in scene.all_marks}, []
    for number, same in enumerate(aligned(scene.ablations), 1):
        why = (
            ""
            if str(number) in drawn
            else " (not measured)"
            if any(row and row.top1 for row in same.rows)
            else " (no result)"
        )
        entries.append(LegendEntry(str(number), f"{same.title}{why}"))
    if len(scene.ablations) > 1:
        for look, ablation in zip(LOOKS, scene.ablations, strict=False):
            entries.append(LegendEntry({**DOT, "marker": look.marker, "color": look.color}, ablation.title))
    if any(mark.row.is_side_branch for mark in scene.all_marks):
        entries.append(LegendEntry({**DOT, "markerfacecolor": "white"}, "side branch"))
    by_size = sorted(scene.all_marks, key=lambda mark: mark.bubble)
    ends = {mark.bubble: mark for mark in (by_size[0], by_size[-1])}.values()
    for mark in ends:
        dot = {**DOT, "marker": mark.look.marker, "markersize": mark.side, "markeredgewidth": 0}
        entries.append(LegendEntry(dot, f"{mark.bubble:.3g} {scene.bubble_unit}"))
    entries.append(LegendEntry(FRONT, "Pareto front"))
    starred = [found for found, _ in scene.stars]
    entries += [LegendEntry({**STAR, "markersize": 8}, f"{found.title} (published)") for found in starred]
    return entries + [
        LegendEntry(REFERENCE, f"{found.title} {found.top1:.2f}")
        for found in scene.references
        if found not in starred
    ]
