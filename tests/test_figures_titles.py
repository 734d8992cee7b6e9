"""Titles are drawn as they are written, dollar signs and all, in every figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from roadmap.bench.figure import throughput_figure
from roadmap.bench.tables import groups_of
from roadmap.report.ablation import Ablation
from roadmap.report.figures.marginal_effects import effects_figure
from roadmap.report.figures.style import save, wrapped
from roadmap.report.marginal import READINGS, MarginalEffect
from roadmap.report.stats import Difference
from roadmap.report.write import draw_figures
from roadmap.steps import load_roadmaps
from tests.helpers.rendered_text import texts_of
from tests.helpers.trained import case
from tests.test_bench import ROWS

TITLES = ["costs $x_$ more", "set $WIDTH_MULT{ and $DEPTH", r"1 \$ or $2$"]


def titled(title: str) -> Ablation:
    (found,) = case("few")
    return replace(found, title=title, rows=tuple(replace(row, title=title) for row in found.rows))


def figures_with_title(title: str, every: bool = True) -> Iterator[tuple[str, Figure]]:
    """Every figure, or two of them, with a title for all steps and for itself."""
    if every:
        yield from draw_figures([titled(title)])
    of = dict.fromkeys(READINGS, Difference(1.0, 0.5))
    yield "worth", effects_figure([MarginalEffect("gelu", title, of, dict.fromkeys(READINGS, 3))], title)
    (group,) = groups_of(ROWS, load_roadmaps())
    entries = {
        mode: [replace(entry, title=title) for entry in found] for mode, found in group.entries.items()
    }
    figure = throughput_figure(replace(group, title=title, entries=entries))
    assert figure is not None
    yield "throughput", figure


@pytest.mark.parametrize("title", TITLES)
def test_a_title_is_as_wide_as_the_same_with_digits_for_dollars(title: str) -> None:
    """A digit of this font is as wide as a dollar sign; a formula has another width, or none where it cannot
    be read. All figures escape a title in the same way, so one of the titles is enough for all of them.
    """
    every = title == TITLES[0]
    plain = dict(figures_with_title(title.replace("$", "0"), every))
    for name, figure in figures_with_title(title, every):
        literal, expected = texts_of(figure), texts_of(plain[name])
        assert any("$" in text.get_text() for text, _ in literal)
        assert [text.get_text().replace("$", "0") for text, _ in literal] == [
            text.get_text() for text, _ in expected
        ]
        assert [box.width for _, box in literal] == pytest.approx([box.width for _, box in expected], abs=1.5)


def test_every_format_takes_any_title(tmp_path: Path) -> None:
    for name, figure in figures_with_title(" and ".join(TITLES)):
        assert [path.suffix for path in save(figure, tmp_path / name)] == [".png", ".svg", ".pdf"]


def test_titles_are_broken_where_they_are_drawn() -> None:
    words = "$MM_{WWWW}$ and $WW_{MMMM}$ are no formulas " * 2
    assert wrapped(words, 1.5, 7) == wrapped(words.replace("$", "0"), 1.5, 7).replace("0", "$")
