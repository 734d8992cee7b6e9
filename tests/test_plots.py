"""Figures that can be read: no text covers another or leaves the figure, and bars are what the table says."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.testing.compare import compare_images
from matplotlib.text import Annotation

from roadmap import ROOT
from roadmap.report.figures.style import DOUBLE_COLUMN, save
from tests.helpers import commands
from tests.helpers.ablations_to_plot import DRAWN, SIDE_BRANCHES, SOME, draw, error_bars, make
from tests.helpers.rendered_text import outside, overlapping

GOLDEN = Path(__file__).parent / "golden" / "figures"


@pytest.mark.parametrize(("kind", "name", "width"), DRAWN)
def test_every_text_can_be_read(kind: str, name: str, width: float) -> None:
    drawing = draw(kind, name, width)
    page, smallest = drawing.figure.bbox, 7.0 if width == DOUBLE_COLUMN else 6.0
    assert len(drawing.texts) > 5
    assert (overlapping(drawing.texts), outside(drawing.texts, page)) == ([], [])
    assert [text.get_text() for text, _ in drawing.texts if float(text.get_fontsize()) < smallest] == []
    assert drawing.figure.get_figwidth() == width


@pytest.mark.parametrize("name", SOME)
def test_hatches_mark_exactly_the_side_branches(name: str) -> None:
    bars = draw("bars", name)
    for axes, ablation in zip(bars.figure.axes, bars.ablations, strict=True):
        found = {
            round(bar.get_y() + bar.get_height() / 2): bar
            for bar in axes.patches
            if isinstance(bar, Rectangle)
        }
        assert set(found) == {index for index, row in enumerate(ablation.rows) if row.top1}
        hatched = {ablation.rows[index].step for index, bar in found.items() if bar.get_hatch()}
        assert hatched == {row.step for row in ablation.rows if row.top1} & SIDE_BRANCHES


@pytest.mark.parametrize("kind", ["bars", "gmacs"])
@pytest.mark.parametrize("name", SOME)
def test_error_bars_are_one_standard_deviation_where_it_is_known(kind: str, name: str) -> None:
    drawing = draw(kind, name)
    found = [span[:, 0 if kind == "bars" else 1] for axes in drawing.figure.axes for span in error_bars(axes)]
    known = [
        row.top1
        for ablation in drawing.ablations
        for row in ablation.rows
        if row.top1 and row.top1.std is not None
    ]
    assert len(found) == len(known)
    for span, top1 in zip(found, known, strict=True):
        assert list(span) == pytest.approx([top1.mean - (top1.std or 0), top1.mean + (top1.std or 0)])


@pytest.mark.parametrize(
    "name", ["published", "three seeds, some rows missing", "wide spread", "all at 100 %", "all at chance"]
)
def test_bars_end_at_the_mean_and_the_axis_label_names_its_start(name: str) -> None:
    drawing = draw("bars", name)
    low, high = drawing.axes.get_xlim()
    ends = [bar.get_x() + bar.get_width() for bar in drawing.axes.patches if isinstance(bar, Rectangle)]
    tops = [row.top1.mean for row in drawing.ablations[0].rows if row.top1]
    assert ends == pytest.approx(tops)
    assert all(low < top < high for top in tops)
    assert drawing.axes.get_xlabel() == f"top-1 accuracy (%), axis from {low:g}"


def test_missing_rows_show_the_reason() -> None:
    drawing = draw("bars", "three seeds, some rows missing")
    missing = [row for row in drawing.ablations[0].rows if not row.top1]
    assert drawing.words.count("no run has finished") == len(missing) - 1
    assert drawing.words.count("diverged") == 1


@pytest.mark.parametrize(
    ("name", "row", "beside"),
    [
        ("published", 0, ["76.13", "1", "4.09"]),
        ("published", 1, ["78.82 ± 0.07", "3", "4.09"]),
        ("two seeds of three", 0, ["77.70 ± 0.40", "2/3", "0.0030"]),
        ("both regimes", 1, ["78.82", "3", "4.09"]),
    ],
)
def test_a_bar_has_its_mean_n_and_gmacs_beside_it(name: str, row: int, beside: list[str]) -> None:
    texts = [
        text for text in draw("bars", name).axes.texts if isinstance(text, Annotation) and text.xy == (1, row)
    ]
    assert [text.get_text() for text in texts if text.get_text() in beside] == beside


def test_each_regime_has_its_own_reference() -> None:
    for axes, top1 in zip(draw("bars", "both regimes").figure.axes, (81.30, 83.50), strict=True):
        assert [
            np.asarray(line.get_xdata())[0] for line in axes.lines if line.get_linestyle() in (":", "--")
        ] == [top1]
    assert {"Swin-T 81.30", "Swin-B 83.50"} <= set(draw("bars", "both regimes").words)
    assert [text.get_text() for text, _ in draw("gmacs", "both regimes").labels][-2:] == ["Swin-T", "Swin-B"]
    assert "Swin-T 81.30" in draw("params", "published").words
    assert not any("Swin" in words for kind in ("bars", "gmacs") for words in draw(kind, "all equal").words)


SAVE = """
import sys; from pathlib import Path; from tests.helpers.ablations_to_plot import make; \
from roadmap.report.figures.style import save
for kind in ("bars", "gmacs"): save(make(kind, "one row", 7.0), Path(sys.argv[1]) / kind)
"""


def test_the_same_table_gives_the_same_files(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    commands.run([sys.executable, "-c", SAVE, str(there)], check=True, cwd=ROOT)
    for kind in ("bars", "gmacs"):
        figure = make(kind, "one row", DOUBLE_COLUMN)
        assert figure is not None
        paths = save(figure, tmp_path / kind)
        assert [path.suffix for path in paths] == [".png", ".svg", ".pdf"]
        for path in paths:
            assert path.read_bytes() == (there / path.name).read_bytes()
        words = paths[1].read_text(encoding="utf-8")
        assert "<title>ResNet-50 to ConvNeXt-T on digits_noisy" in words
        assert b"/Title (ResNet-50 to" in paths[2].read_bytes()
        assert not any(stamp in paths[2].read_bytes() for stamp in (b"CreationDate", b"Producer", b"/Type3"))


GOLDENS = [
    ("bars", "published", 7.0),
    ("bars", "both regimes", 7.0),
    ("bars", "three seeds, some rows missing", 3.4),
    ("gmacs", "published", 7.0),
    ("gmacs", "both regimes", 3.4),
    ("images_per_s", "ours twice", 7.0),
]


def golden(kind: str, name: str, width: float) -> Path:
    words = name.replace(",", "").replace(" ", "_")
    return GOLDEN / f"{'bars' if kind == 'bars' else f'cost_{kind}'}_{words}_{width:g}in.png"


def sketch(kind: str, name: str, width: float, path: Path) -> None:
    figure = make(kind, name, width)
    assert figure is not None
    figure.savefig(path, dpi=60, metadata={"Software": None})


@pytest.mark.parametrize(("kind", "name", "width"), GOLDENS)
def test_figures_are_drawn_as_before(kind: str, name: str, width: float, tmp_path: Path) -> None:
    path, expected = golden(kind, name, width), tmp_path / "expected.png"
    shutil.copy(path, expected)  # the comparison writes beside it
    sketch(kind, name, width, tmp_path / "actual.png")
    differs = compare_images(str(expected), str(tmp_path / "actual.png"), tol=2.0)
    assert differs is None, (
        f"{differs}; if that is meant, `python -m tests.test_plots` writes {path.name} anew: look at it"
    )


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for case in GOLDENS:
        sketch(*case, golden(*case))
        print(golden(*case).name)
