"""Accuracy and loss by epoch, with a line per step and the band of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from roadmap.deltas import Roadmap
from roadmap.report.ablation import Ablation
from roadmap.report.curves import Curve, Series, curves_of
from roadmap.report.figures.legend import Entry, add_legend
from roadmap.report.figures.panels import number_steps, paired_panels, seed_count
from roadmap.report.figures.style import DARK, DOUBLE_COLUMN, GRAY, font_sizes, style

COLORS = mpl.colormaps["viridis"]
BRIGHTEST = 0.88  # of the color map, whose end is too pale for a line on white
DASHES: tuple[Any, ...] = ((0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))  # of side branches, cycled
WARM_UP = 1 / 3  # the part of the epochs that may be below the axis, where all lines rise steeply
FEW = 12  # epochs up to which each is marked
# margins of the epochs' span: lines end near the numbers beside the axes
BEFORE, BEHIND = 0.05, 0.02
# left margin of a single epoch, so that it is at the right, without a tick at another epoch
ALONE = 0.9
LEADER = "#B8B8B8"  # of the lines to the numbers: lighter than any curve
HEIGHT = 2.4  # the least inches of a panel
AROUND = 0.85  # inches of a panel outside the axes

QUANTITIES: dict[str, Callable[[Curve], Series]] = {
    "validation top-1 (%)": lambda curve: curve.top1,
    "training loss": lambda curve: curve.train_loss,
}
LineStyle = Mapping[str, Any]


@dataclass(frozen=True)
class StepCurve:
    """A step's quantity by epoch: the mean and range of all seeds, up to the last epoch that all have.

    `lone` are seeds, or parts of them, that are in no mean: of runs that diverged, or are ahead of others.
    """

    number: int
    epoch: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    lone: tuple[tuple[bool, tuple[int, ...], tuple[float, ...]], ...]


def training_curves(ablations: Sequence[Ablation], width: float = DOUBLE_COLUMN) -> Figure | None:
    """Validation top-1 and training loss by epoch; None where no run has logged an epoch.

    A line is the mean over the seeds that did not diverge, up to the last epoch that all have, and its band
    is their range. Thin lines are seeds that are ahead of others, or that diverged, which end in a cross.
    `width` is in inches.
    """
    found = [(ablation, curves) for ablation in ablations if (curves := curves_of(ablation))]
    if not found:
        return None
    shown = [ablation for ablation, _ in found]
    known, styles, gap = number_steps(shown), _styles(shown), 1.08 * font_sizes(width).small
    most = max(len({curve.step for curve in curves}) for _, curves in found)
    with style(width):
        figure, pairs = paired_panels(shown, width, max(HEIGHT, most * gap / 72 + AROUND))
        drawn: list[tuple[Axes, list[StepCurve]]] = []
        for (ablation, curves), pair, of in zip(found, pairs, known.of, strict=True):
            for axes, (name, quantity) in zip(pair, QUANTITIES.items(), strict=True):
                lines = _lines(ablation, curves, quantity, of)
                _draw(axes, lines, styles)
                axes.set(xlabel="epoch", ylabel=name)
                drawn.append((axes, lines))
        all_lines = [line for _, lines in drawn for line in lines]
        add_legend(figure, _legend(known.titles, all_lines, styles), _note(all_lines))
        labels = [[_number(axes, line) for line in lines] for axes, lines in drawn]
        figure.draw_without_rendering()
        for (axes, _), beside in zip(drawn, labels, strict=True):
            _spread_numbers(axes, beside, gap)
        return figure


def _lines(
    ablation: Ablation, curves: Sequence[Curve], quantity: Callable[[Curve], Series], of: Mapping[str, int]
) -> list[StepCurve]:
    """A line for each step that has any value."""
    lines = []
    for row in ablation.rows:
        lost = {result.seed for result in row.results if result.status == "diverged"}
        whole: list[dict[int, float]] = []
        lone: list[tuple[bool, dict[int, float]]] = []
        for curve in (curve for curve in curves if curve.step == row.step):
            values = {
                epoch: value
                for epoch, value in zip(curve.epoch, quantity(curve), strict=True)
                if value is not None
            }
            if values and curve.seed in lost:
                lone.append((True, values))
            elif values:
                whole.append(values)
        if whole or lone:
            lines.append(_line(of[row.step], whole, lone))
    return lines


def _line(
    number: int, whole: Sequence[dict[int, float]], lone: Sequence[tuple[bool, dict[int, float]]]
) -> StepCurve:
    shared = sorted(set.intersection(*map(set, whole))) if whole else []
    columns = [[values[epoch] for values in whole] for epoch in shared]
    last = shared[-1] if shared else 0
    ahead = [
        (False, {epoch: value for epoch, value in values.items() if epoch >= last})
        for values in whole
        if max(values) > last
    ]
    return StepCurve(
        number,
        tuple(shared),
        tuple(math.fsum(values) / len(values) for values in columns),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
        len(whole),
        tuple((lost, tuple(values), tuple(values.values())) for lost, values in [*ahead, *lone]),
    )


def _styles(ablations: Sequence[Ablation]) -> dict[int, LineStyle]:
    """Colors by place on the path, the same in all panels; side branches are dashed in a sibling's color, and
    references in gray.
    """
    styles: dict[int, LineStyle] = {}
    for ablation, of in zip(ablations, number_steps(ablations).of, strict=True):
        trunk, dashes = ablation.roadmap.trunk, 0
        for row in ablation.rows:
            share = _place(ablation.roadmap, row.step) / max(1, len(trunk) - 1)
            line = {"color": to_hex(COLORS(BRIGHTEST * min(1.0, share))), "linestyle": "-"}
            if row.is_reference:
                line["color"] = GRAY
            if row.is_beside_path:
                line["linestyle"] = DASHES[dashes % len(DASHES)]
                dashes += 1
            styles.setdefault(of[row.step], line)
    return styles


def _place(roadmap: Roadmap, step: str) -> int:
    """The number of steps between the root and this one."""
    if step in roadmap.trunk:
        return roadmap.trunk.index(step)
    parent = roadmap.delta(step).parent
    return 1 + _place(roadmap, parent) if parent else 0


def _draw(axes: Axes, lines: Sequence[StepCurve], styles: Mapping[int, LineStyle]) -> None:
    few = max((len(line.epoch) for line in lines), default=0) <= FEW
    low, high = _limits(lines)
    for line in lines:
        line_style = styles[line.number]
        if line.n > 1 and line.epoch:
            axes.fill_between(
                line.epoch, line.low, line.high, color=line_style["color"], alpha=0.13, linewidth=0
            )
        if line.epoch:
            axes.plot(
                line.epoch,
                line.mean,
                linewidth=1.2,
                marker="o" if few else "",
                markersize=2.2,
                label=str(line.number),
                **line_style,
            )
        for lost, epoch, values in line.lone:
            axes.plot(epoch, values, linewidth=0.6, **line_style)
            if lost:  # its last value is often far outside
                end = min(max(values[-1], low), high)
                axes.plot(
                    epoch[-1],
                    end,
                    marker="x",
                    markersize=4,
                    markeredgewidth=1,
                    color=line_style["color"],
                    clip_on=False,
                    zorder=4,
                )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set(xlim=_span(lines), ylim=(low, high))


def _span(lines: Sequence[StepCurve]) -> tuple[float, float]:
    """Limits around the epochs of all lines."""
    epochs = [
        epoch
        for line in lines
        for part in (line.epoch, *(lone for _, lone, _ in line.lone))
        for epoch in part
    ]
    last = max(epochs, default=1)
    first = min([last - ALONE, *epochs])
    return first - BEFORE * (last - first), last + BEHIND * (last - first)


def _limits(lines: Sequence[StepCurve]) -> tuple[float, float]:
    """Limits around means, bands and seeds ahead, without the first epochs, to separate the lines' ends."""
    last = max((line.epoch[-1] for line in lines if line.epoch), default=0)
    late = [
        [index for index, epoch in enumerate(line.epoch) if epoch > WARM_UP * last] or range(len(line.epoch))
        for line in lines
    ]
    ends = [
        side[index]
        for line, places in zip(lines, late, strict=True)
        for side in (line.low, line.high)
        for index in places
    ]
    ends += [value for line in lines for lost, _, values in line.lone if not lost for value in values[1:]]
    ends = ends or [value for line in lines for _, _, values in line.lone for value in values]
    margin = 0.05 * (max(ends) - min(ends)) or 0.5 if ends else 0.5
    return min(ends, default=0.0) - margin, max(ends, default=1.0) + margin


def _number(axes: Axes, line: StepCurve) -> Annotation:
    """The step's number right of the axes, with a thin line at the height of its curve's end."""
    end = line.mean[-1] if line.epoch else line.lone[0][2][-1]
    low, high = axes.get_ylim()
    beside: Any = offset_copy(axes.transAxes, axes.get_figure(root=True), x=9, y=0, units="points")
    lead = {
        "arrowstyle": "-",
        "color": LEADER,
        "linewidth": 0.5,
        "shrinkA": 0,
        "shrinkB": 0,
        "relpos": (0, 0.5),
    }
    return axes.annotate(
        str(line.number), xy=(1.0, min(max(end, low), high)), xycoords=axes.get_yaxis_transform(),
        xytext=(1.0, 0.5), textcoords=beside, ha="left", va="center", color=DARK, arrowprops=lead,
        annotation_clip=False,
    )  # fmt: skip


def _spread_numbers(axes: Axes, labels: Sequence[Annotation], gap: float) -> None:
    """Moves each number to its curve's end, or as near as the others leave room."""
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    wanted = [
        float(axes.transAxes.inverted().transform(axes.transData.transform(label.xy))[1]) * height
        for label in labels
    ]
    for label, place in zip(labels, spread(wanted, gap, 0, height - gap / 2), strict=True):
        label.xyann = (1.0, place / height)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, in order and `gap` apart, between `low` and `high` if they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [0.0] * len(wanted)
    groups: list[tuple[float, int]] = []  # of places that touch: the lowest wanted start, how many
    for index in order:
        start, members = min(max(wanted[index], low), high), 1
        while groups and groups[-1][0] + groups[-1][1] * gap > start:
            before, more = groups.pop()
            # the mean of the starts that all of the group want
            start = (before * more + (start - more * gap) * members) / (more + members)
            members += more
            start = max(low, min(start, high - (members - 1) * gap))
        groups.append((start, members))
    at = [start + place * gap for start, members in groups for place in range(members)]
    for index, place in zip(order, at, strict=True):
        places[index] = place
    return places


def _legend(
    titles: Sequence[str], lines: Sequence[StepCurve], styles: Mapping[int, LineStyle]
) -> list[Entry]:
    """The step of each line."""
    return [
        (Line2D([], [], linewidth=1.4, **styles[number]), f"{number} {titles[number - 1]}")
        for number in sorted({line.number for line in lines})
    ]


def _note(lines: Sequence[StepCurve]) -> str:
    """The meaning of lines and bands, with n."""
    sizes = [line.n for line in lines if line.n]
    note = (
        "Lines: mean over the seeds; bands: lowest to highest"
        if max(sizes, default=0) > 1
        else "Lines: one seed each"
    )
    note += f" ({seed_count(sizes)})." if sizes else "."
    if any(not lost for line in lines for lost, _, _ in line.lone):
        note += " Thin: a seed ahead of others that are still training."
    if any(lost for line in lines for lost, _, _ in line.lone):
        note += " Thin, ending in a cross: a seed that diverged."
    return note
