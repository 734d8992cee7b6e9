"""All figures of some ablations, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from matplotlib.figure import Figure

from roadmap.report.figures.accuracy_vs_cost import accuracy_vs
from roadmap.report.figures.measured_vs_paper import measured_vs_paper
from roadmap.report.figures.roadmap_bars import roadmap_bars
from roadmap.report.figures.seed_strip import seed_strip
from roadmap.report.figures.style import DOUBLE_COLUMN
from roadmap.report.figures.training_curves import training_curves
from roadmap.report.rows import Ablation

SPEED = "images_per_s"


def draw(
    ablations: Sequence[Ablation], x: Sequence[str] = ("gmacs",), width: float = DOUBLE_COLUMN
) -> Iterator[tuple[str, Figure]]:
    """The figures that have anything to show, with the names of their files; each is drawn when it is asked
    for, so that the last can go.

    `x` names the costs that accuracy is drawn against, and measured speeds are drawn if there are any;
    `width` is in inches.
    """
    costs = list(
        dict.fromkeys(
            [*x, *([SPEED] if any(row.images_per_s for each in ablations for row in each.rows) else [])]
        )
    )
    makers: dict[str, Callable[..., Figure | None]] = {
        "roadmap": roadmap_bars,
        **{f"accuracy_vs_{cost}": partial(accuracy_vs, x=cost) for cost in costs},
        "measured_vs_paper": measured_vs_paper,
        "training_curves": training_curves,
        "seeds": seed_strip,
    }
    for name, make in makers.items():
        if (figure := make(ablations, width=width)) is not None:
            yield name, figure
