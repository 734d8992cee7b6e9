"""Ablations of all shapes, and their figures as they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from roadmap.report.ablation import Ablation, measured, published
from roadmap.report.figures.accuracy_vs_cost import COSTS, accuracy_vs
from roadmap.report.figures.roadmap_bars import roadmap_bars
from roadmap.report.figures.style import DOUBLE_COLUMN, SINGLE_COLUMN
from roadmap.report.stats import Summary
from roadmap.steps import load_roadmap
from roadmap.steps_file import Reference
from tests.helpers.rendered_text import Texts, texts_of
from tests.helpers.reports import finished

ROADMAP, BASE, FAMILY = (load_roadmap(name=name) for name in ("convnext_t", "convnext_b", "family"))
SIDE_BRANCHES = {"kernel_5", "kernel_9", "kernel_11"}
REGRESSION = Reference(title="logistic regression on the pixels", top1=90.32)

Tops = Mapping[str, Summary]


def ours(
    tops: Tops, planned: int = 3, diverged: Sequence[str] = (), reference: Reference | None = None
) -> Ablation:
    """What the table of these means would hold;
    the first row's and every seventh's costs were not measured.
    """
    empty = measured(ROADMAP, "digits_noisy", {}, [])
    lost = {step: (finished(step, 0, "0" * 8, None),) for step in diverged}
    rows = []
    for index, row in enumerate(empty.rows):
        top1 = tops.get(row.step)
        mean, n = (top1.mean, top1.n) if top1 and index % 7 else (0.0, 0)
        runs = tuple(
            finished(
                row.step, seed, "0" * 8, mean, images_per_s=700.0 - 15 * index + 9 * ((index + 3 * seed) % 4),
                train_seconds=3000.0 + 90 * index + 60 * seed * (index % 3),
                peak_memory_mb=900.0 + 31 * (5 * index % 7),
            )
            for seed in range(n)
        )  # fmt: skip
        rows.append(replace(row, top1=top1, planned=planned, runs=lost.get(row.step, runs)))
    return replace(empty, rows=tuple(rows), reference=reference)


def some(n: int = 3, std: float | None = 0.4) -> Tops:
    """Means that rise along the roadmap, as ours do, with gaps."""
    return {
        step: Summary(80 + 0.71 * index - 2.3 * (index % 4 == 0), std, n)
        for index, step in enumerate(ROADMAP.steps)
        if index % 5 != 2
    }


def equal(mean: float, std: float | None = 0.0, n: int = 3) -> Tops:
    return dict.fromkeys(ROADMAP.steps, Summary(mean, std, n))


def other(how: str) -> Ablation:
    """An ablation with its long titles, some of it finished."""
    empty = measured(load_roadmap(ablation=how), "digits_noisy", {}, [])
    rows = [
        replace(row, top1=Summary(80 + index, 0.4, 3) if index % 3 else None, planned=3)
        for index, row in enumerate(empty.rows)
    ]
    return replace(empty, rows=tuple(rows))


ABLATIONS: dict[str, Callable[[], list[Ablation]]] = {
    "published": lambda: [published(ROADMAP)],
    "both regimes": lambda: [published(ROADMAP), published(BASE)],
    "ours and the paper's": lambda: [ours(some(), reference=REGRESSION), published(ROADMAP)],
    "ours twice": lambda: [
        ours(some(), reference=REGRESSION),
        ours(some(n=2, std=1.5), reference=REGRESSION),
    ],
    "the family": lambda: [published(FAMILY)],
    "three seeds, some rows missing": lambda: [ours(some(), diverged=["stage_ratio"], reference=REGRESSION)],
    "two seeds of three": lambda: [ours(some(n=2))],
    "one seed of ten, no spread": lambda: [ours(some(n=1, std=None), planned=10)],
    "wide spread": lambda: [ours(some(std=6.0))],
    "only the highest is unfinished": lambda: [ours({**equal(88.0), "kernel_9": Summary(95.0, 0.2, 2)})],
    "all equal": lambda: [ours(equal(91.5))],
    "all at 100 %": lambda: [ours(equal(100.0))],
    "all at chance": lambda: [ours(equal(0.1, None, 1))],
    "far apart": lambda: [
        ours({step: Summary(10 + 5 * index, 0.3, 3) for index, step in enumerate(ROADMAP.steps)})
    ],
    "one row": lambda: [ours({"gelu": Summary(91.5, 0.4, 3)})],
    "one row of one seed": lambda: [ours({"kernel_9": Summary(91.5, None, 1)})],
    "two rows at one point": lambda: [
        ours({"gelu": Summary(91.5, 0.4, 3), "kernel_7": Summary(91.5, 0.4, 3)})
    ],
    "none": lambda: [ours({}, planned=0, diverged=["gelu"])],
    "leave one out": lambda: [other("leave-one-out:separate_downsampling")],
    "one at a time": lambda: [other("one-at-a-time")],
    "a random order": lambda: [other("order:3")],
}
WIDTHS = (DOUBLE_COLUMN, SINGLE_COLUMN)
UNMEASURED = {"published", "both regimes", "the family", "leave one out", "one at a time", "a random order"}
NOTHING = {(kind, name) for kind in list(COSTS)[2:] for name in UNMEASURED} | {
    (kind, "none") for kind in COSTS
}
SOME = [
    "published",
    "both regimes",
    "three seeds, some rows missing",
    "one seed of ten, no spread",
    "one row of one seed",
]
# Two costs that are known without a run and that are measured are enough for the others, whose axes are like
# theirs.
FULL = {"bars", "gmacs", "images_per_s"}
CASES = [
    (kind, name)
    for kind in ("bars", *COSTS)
    for name in ABLATIONS
    if kind in FULL or name in [*SOME, "ours twice"]
]
DRAWN = [(*case, width) for case in CASES for width in WIDTHS if case not in NOTHING]


@cache
def ablations_of(name: str) -> list[Ablation]:
    return ABLATIONS[name]()


def make(kind: str, name: str, width: float) -> Figure | None:
    ablations = ablations_of(name)
    return roadmap_bars(ablations, width) if kind == "bars" else accuracy_vs(ablations, kind, width)


@dataclass(frozen=True)
class Drawing:
    """A figure as it was drawn, with the texts that came onto the paper."""

    figure: Figure
    ablations: list[Ablation]
    texts: Texts

    @property
    def axes(self) -> Axes:
        return self.figure.axes[0]

    @property
    def words(self) -> list[str]:
        return [text.get_text() for text, _ in self.texts]

    @property
    def labels(self) -> Texts:
        """The names of points and stars."""
        return [(text, box) for text, box in self.texts if text.axes is self.axes and text.get_zorder() == 5]

    @property
    def bubbles(self) -> list[PathCollection]:
        return [found for found in self.axes.collections if isinstance(found, PathCollection)]

    def pixels(self, points: Any) -> Any:
        return self.axes.transData.transform(points)


@cache
def draw(kind: str, name: str, width: float = DOUBLE_COLUMN) -> Drawing:
    """Draws a figure as it is saved."""
    figure = make(kind, name, width)
    assert figure is not None
    return Drawing(figure, ablations_of(name), texts_of(figure))


def error_bars(axes: Axes) -> list[Any]:
    """From where to where each of them reaches, (2, 2): x and y of the ends."""
    groups = [group for group in axes.containers if isinstance(group, ErrorbarContainer)]
    return [bar.get_segments()[0] for group in groups for bar in group.lines[2]]
