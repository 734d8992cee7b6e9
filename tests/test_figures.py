"""Training curves, agreement with the paper and the strip of seeds: they can be read, and what is drawn is
what the runs say.

The images in tests/golden/figures are drawn anew by `python -m tests.test_figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import roadmap.report.figures.seed_strip as strip
from roadmap.report.ablation import Ablation, published
from roadmap.report.figures.measured_vs_paper import measured_vs_paper
from roadmap.report.figures.seed_strip import seed_strip
from roadmap.report.figures.style import save, style
from roadmap.report.figures.training_curves import spread, training_curves
from roadmap.report.write import draw_figures
from tests.helpers.trained import CASES, FEW, ROADMAP, case, trained

GOLDEN = Path(__file__).parent / "golden/figures"
TOLERANCE = 3.0  # of the root mean square of the difference, out of 255
FIGURES = {"agreement": measured_vs_paper, "curves": training_curves, "seeds": seed_strip}
SLACK = 0.5  # pixels by which two texts may touch

every_figure = pytest.mark.parametrize("kind", FIGURES)


def made(kind: str, ablations: Sequence[Ablation], width: float = 7.0) -> Figure:
    figure = FIGURES[kind](ablations, width)
    assert figure is not None
    return figure


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """The texts that come onto the paper, and where."""
    drawn: list[Text] = []
    original = Text.draw

    def note(self: Text, *words: Any, **named: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        original(self, *words, **named)

    with pytest.MonkeyPatch.context() as patch:
        figure.draw_without_rendering()  # the layout
        patch.setattr(Text, "draw", note)
        figure.draw_without_rendering()
    return [(text.get_text(), Text.get_window_extent(text)) for text in dict.fromkeys(drawn)]


def overlap(one: Bbox, other: Bbox) -> bool:
    across, down = (
        min(one.x1, other.x1) - max(one.x0, other.x0),
        min(one.y1, other.y1) - max(one.y0, other.y0),
    )
    return bool(across > SLACK and down > SLACK)


@pytest.mark.filterwarnings("error:constrained_layout")
@every_figure
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"all", "golden"}))
@pytest.mark.parametrize("width", [7.0, 3.4])
def test_no_text_covers_another_or_leaves_the_figure(kind: str, name: str, width: float) -> None:
    figure = made(kind, case(name), width)
    texts, page = texts_of(figure), figure.bbox.padded(SLACK)
    assert figure.get_size_inches()[0] == width
    assert len(texts) > 2 * len(FEW)
    assert [(one, other) for (one, box), (other, its) in combinations(texts, 2) if overlap(box, its)] == []
    assert [text for text, box in texts if not (page.contains(*box.p0) and page.contains(*box.p1))] == []


def test_texts_that_overlap_would_be_found() -> None:
    figure = made("seeds", case("few"))
    figure.axes[0].text(0, 0.3, "far too long " * 20, transform=figure.axes[0].transAxes).set_in_layout(False)
    figure.axes[0].text(0.5, 0.5, "one", transform=figure.axes[0].transAxes)
    figure.axes[0].text(0.5, 0.5, "two", transform=figure.axes[0].transAxes)
    texts, page = dict(texts_of(figure)), figure.bbox
    assert overlap(texts["one"], texts["two"])
    assert [text for text, box in texts.items() if box.x1 > page.x1] == ["far too long " * 20]


def test_a_publication_has_no_curves_seeds_or_agreement(tmp_path: Path) -> None:
    assert [make([published(ROADMAP)]) for make in FIGURES.values()] == [None] * 3
    assert measured_vs_paper([trained(tmp_path / "two", FEW[:2])]) is None
    assert measured_vs_paper([trained(tmp_path / "three", FEW[:3])]) is not None


def test_all_figures_come_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(strip, "seed_strip", lambda *words, **named: called.append(words))
    before, drawn = dict(mpl.rcParams), []
    for name, figure in draw_figures(case("few"), ("gmacs", "params")):
        assert dict(mpl.rcParams) == before
        assert figure.get_figwidth() == 7.0
        assert not called
        drawn.append(name)
    costs = ["accuracy_vs_gmacs", "accuracy_vs_params", "accuracy_vs_images_per_s"]
    assert drawn == ["roadmap", *costs, "measured_vs_paper", "training_curves"]
    assert len(called) == 1


def test_figures_that_have_nothing_to_show_are_left_out() -> None:
    assert [name for name, _ in draw_figures([published(ROADMAP)])] == ["roadmap", "accuracy_vs_gmacs"]
    names = ["roadmap", "accuracy_vs_images_per_s", "measured_vs_paper", "training_curves", "seeds"]
    assert [name for name, _ in draw_figures(case("few"), ("images_per_s",), 3.4)] == names


@every_figure
def test_the_same_runs_give_the_same_files(kind: str, tmp_path: Path) -> None:
    one, other = (save(made(kind, case("few")), tmp_path / name) for name in ("one", "other"))
    assert len(one) >= 2
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


@given(st.lists(st.floats(-20, 120), min_size=1, max_size=10))
def test_labels_are_spread_in_order_and_apart(wanted: list[float]) -> None:
    places = spread(wanted, 8, 0, 100)
    inorder = [places[index] for index in sorted(range(len(wanted)), key=lambda index: wanted[index])]
    assert all(after - before >= 8 - 1e-6 for before, after in pairwise(inorder))
    assert min(places) >= -1e-6
    assert max(places) <= 100 + 1e-6
    assert spread([10, 20, 30], 8, 0, 100) == [10, 20, 30]
    assert spread([50, 50], 8, 0, 100) == [46, 54]


def picture(kind: str, folder: Path, ablations: Sequence[Ablation]) -> Path:
    path = folder / f"{kind}.png"
    with style():
        made(kind, ablations).savefig(path, dpi=50, metadata={"Software": None})
    return path


def difference(kind: str, folder: Path, name: str) -> str | None:
    """What `compare_images` says; None if the figure looks as it did."""
    try:
        found = compare_images(str(GOLDEN / f"{kind}.png"), str(picture(kind, folder, case(name))), TOLERANCE)
    except ImageComparisonFailure as error:
        return str(error)
    return None if found is None else str(found)


@every_figure
def test_figures_are_drawn_as_before(kind: str, tmp_path: Path) -> None:
    found = difference(kind, tmp_path, "golden")
    assert found is None, f"{found}\nIf that is meant, look at them and run python -m tests.test_figures"
    assert difference(kind, tmp_path, "all") is not None  # or the tolerance would be too wide


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        print(picture(name, GOLDEN, case("golden")))
