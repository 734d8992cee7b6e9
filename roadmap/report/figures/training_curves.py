"""Accuracy and loss against the epoch, a line a step with the band of its seeds."""

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
from roadmap.report.curves import Curve, Values, curves_of
from roadmap.report.figures.panels import add_key, numbers, paired, seeds, spread
from roadmap.report.figures.style import DARK, DOUBLE_COLUMN, style, type_of
from roadmap.report.rows import Ablation

COLOURS = mpl.colormaps["viridis"]
BRIGHTEST = 0.88  # of the color map; what is above is too pale for a line on white
DASHES: tuple[Any, ...] = ((0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))  # of side branches, in turn
WARM_UP = 1 / 3  # the share of the epochs that may lie below the axis, where all lines rise steeply
FEW = 12  # epochs up to which each is marked
# of the epochs' span, left and right of it: lines end near the numbers beside the axes
BEFORE, BEHIND = 0.05, 0.02
# of an epoch left of a single one, so that it lies at the right, too, and no tick at an epoch that never was
ALONE = 0.9
LEADER = "#B8B8B8"  # of the lines to the numbers: light, for they are no curves
HEIGHT = 2.4  # inches of a panel, at least
AROUND = 0.85  # inches of it that are not the axes

QUANTITIES: dict[str, Callable[[Curve], Values]] = {
    "validation top-1 (%)": lambda curve: curve.top1,
    "training loss": lambda curve: curve.train_loss,
}
Look = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A step's quantity against the epoch: the mean as far as all seeds reached, their range, each seed.

    `lone` are the parts of seeds that are in no mean: of runs that diverged, and of those ahead of others.
    """

    number: int
    epoch: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    lone: tuple[tuple[bool, tuple[int, ...], tuple[float, ...]], ...]


def training_curves(ablations: Sequence[Ablation], width: float = DOUBLE_COLUMN) -> Figure | None:
    """Validation top-1 and training loss against the epoch; None where no run has logged an epoch.

    A line is the mean over the seeds that did not diverge, as far as all of them reached, its band their
    range. Thin lines are single seeds: those ahead of the others, and those that diverged, which end in a
    cross. `width` is in inches.
    """
    found = [(ablation, curves) for ablation in ablations if (curves := curves_of(ablation))]
    if not found:
        return None
    shown = [ablation for ablation, _ in found]
    known, looks, gap = numbers(shown), _looks(shown), 1.08 * type_of(width).small
    most = max(len({curve.step for curve in curves}) for _, curves in found)
    with style(width):
        figure, pairs = paired(shown, width, max(HEIGHT, most * gap / 72 + AROUND))
        drawn: list[tuple[Axes, list[Line]]] = []
        for (ablation, curves), pair, of in zip(found, pairs, known.of, strict=True):
            for axes, (name, quantity) in zip(pair, QUANTITIES.items(), strict=True):
                lines = _lines(ablation, curves, quantity, of)
                _draw(axes, lines, looks)
                axes.set(xlabel="epoch", ylabel=name)
                drawn.append((axes, lines))
        _add_key(figure, known.titles, [line for _, lines in drawn for line in lines], looks)
        labels = [[_number(axes, line) for line in lines] for axes, lines in drawn]
        figure.draw_without_rendering()
        for (axes, _), beside in zip(drawn, labels, strict=True):
            _spread(axes, beside, gap)
        return figure


def _lines(
    ablation: Ablation, curves: Sequence[Curve], quantity: Callable[[Curve], Values], of: Mapping[str, int]
) -> list[Line]:
    """A line a step that has any value."""
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
) -> Line:
    shared = sorted(set.intersection(*map(set, whole))) if whole else []
    columns = [[values[epoch] for values in whole] for epoch in shared]
    last = shared[-1] if shared else 0
    ahead = [
        (False, {epoch: value for epoch, value in values.items() if epoch >= last})
        for values in whole
        if max(values) > last
    ]
    return Line(
        number,
        tuple(shared),
        tuple(math.fsum(values) / len(values) for values in columns),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
        len(whole),
        tuple((lost, tuple(values), tuple(values.values())) for lost, values in [*ahead, *lone]),
    )


def _looks(ablations: Sequence[Ablation]) -> dict[int, Look]:
    """Color by place on the path, alike in all panels; side branches have their siblings', and dashes."""
    looks: dict[int, Look] = {}
    for ablation, of in zip(ablations, numbers(ablations).of, strict=True):
        trunk, dashes = ablation.roadmap.trunk, 0
        for row in ablation.rows:
            share = _place(ablation.roadmap, row.step) / max(1, len(trunk) - 1)
            look = {"color": to_hex(COLOURS(BRIGHTEST * min(1.0, share))), "linestyle": "-"}
            if row.is_side_branch:
                look["linestyle"] = DASHES[dashes % len(DASHES)]
                dashes += 1
            looks.setdefault(of[row.step], look)
    return looks


def _place(roadmap: Roadmap, step: str) -> int:
    """How many steps lie before this one on the way from the root."""
    if step in roadmap.trunk:
        return roadmap.trunk.index(step)
    parent = roadmap.tree[step].parent
    return 1 + _place(roadmap, parent) if parent else 0


def _draw(axes: Axes, lines: Sequence[Line], looks: Mapping[int, Look]) -> None:
    few = max((len(line.epoch) for line in lines), default=0) <= FEW
    low, high = _limits(lines)
    for line in lines:
        look = looks[line.number]
        if line.n > 1 and line.epoch:
            axes.fill_between(line.epoch, line.low, line.high, color=look["color"], alpha=0.13, linewidth=0)
        if line.epoch:
            axes.plot(
                line.epoch,
                line.mean,
                linewidth=1.2,
                marker="o" if few else "",
                markersize=2.2,
                label=str(line.number),
                **look,
            )
        for lost, epoch, values in line.lone:
            axes.plot(epoch, values, linewidth=0.6, **look)
            if lost:  # what it ends with lies far out, as a rule
                end = min(max(values[-1], low), high)
                axes.plot(
                    epoch[-1],
                    end,
                    marker="x",
                    markersize=4,
                    markeredgewidth=1,
                    color=look["color"],
                    clip_on=False,
                    zorder=4,
                )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set(xlim=_span(lines), ylim=(low, high))


def _span(lines: Sequence[Line]) -> tuple[float, float]:
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


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    """Limits that hold all means, bands and seeds that are ahead, but not the first epochs, so that the
    lines' ends can be told apart.
    """
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


def _number(axes: Axes, line: Line) -> Annotation:
    """The step's number right of the axes, with a thin line from the border at the height of its own line's
    end.

    `_spread` finds the number's height.
    """
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


def _spread(axes: Axes, labels: Sequence[Annotation], gap: float) -> None:
    """Puts each number beside its line's end, or as near as the others leave room."""
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    wanted = [
        float(axes.transAxes.inverted().transform(axes.transData.transform(label.xy))[1]) * height
        for label in labels
    ]
    for label, place in zip(labels, spread(wanted, gap, 0, height - gap / 2), strict=True):
        label.xyann = (1.0, place / height)


def _add_key(figure: Figure, titles: Sequence[str], lines: Sequence[Line], looks: Mapping[int, Look]) -> None:
    """Which line is which step, and what lines and bands are, with n."""
    present = sorted({line.number for line in lines})
    entries = [
        (Line2D([], [], linewidth=1.4, **looks[number]), f"{number} {titles[number - 1]}")
        for number in present
    ]
    sizes = [line.n for line in lines if line.n]
    note = (
        "Lines: mean over the seeds; bands: lowest to highest"
        if max(sizes, default=0) > 1
        else "Lines: one seed each"
    )
    note += f" ({seeds(sizes)})." if sizes else "."
    if any(not lost for line in lines for lost, _, _ in line.lone):
        note += " Thin: a seed ahead of others that are still training."
    if any(lost for line in lines for lost, _, _ in line.lone):
        note += " Thin, ending in a cross: a seed that diverged."
    add_key(figure, entries, note)
