"""What each change is worth alone, in place and last: the arithmetic, the table and the figure."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from scipy import stats

from roadmap import ROOT
from roadmap.records import find_runs, prepare, status
from roadmap.report.figures.marginal_effects import MARKS, effects_figure
from roadmap.report.figures.style import DOUBLE_COLUMN, SINGLE_COLUMN
from roadmap.report.marginal import (
    ALONE,
    IN_PLACE,
    LAST,
    NAMES,
    READINGS,
    MarginalEffect,
    marginal_effects,
    results_by_step,
)
from roadmap.report.stats import Difference
from roadmap.steps import load_roadmap, resolve
from tests.helpers import commands
from tests.helpers.rendered_text import outside, overlapping, texts_of
from tests.test_collect import finish

ROADMAP = load_roadmap()
END = "separate_downsampling"
# Top-1 in % by seed; what is not here has not run. separate_downsampling without separate_downsampling is
# layer_norm.
TOP1: Mapping[str, Mapping[int, float]] = {
    "resnet50": {0: 80.0, 1: 81.0, 2: 82.0},
    "enhanced_recipe": {0: 82.0, 1: 83.5, 2: 84.0},
    "stage_ratio": {0: 82.5, 1: 83.0, 2: 84.5},
    "kernel_7": {0: 85.0},
    "gelu": {0: 86.5},
    "layer_norm": {0: 90.0, 1: 90.5, 2: 91.0},
    "separate_downsampling": {0: 91.0, 1: 91.0, 2: 92.0},
    "resnet50+gelu": {0: 80.5, 1: 80.0},
    "separate_downsampling-gelu": {0: 88.0, 1: 88.5, 2: 89.0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worth") / "runs"
    for step, results in TOP1.items():
        for seed, top1 in results.items():
            finish(
                prepare(folder, resolve(ROADMAP, step, profile="digits_noisy", seed=seed)), step, seed, top1
            )
    # has not begun
    prepare(folder, resolve(ROADMAP, "separate_downsampling-kernel_7", profile="digits_noisy"))
    return folder


def of(found: list[MarginalEffect], step: str) -> MarginalEffect:
    return next(worth for worth in found if worth.step == step)


def effects_of(runs: Path, end: str) -> list[MarginalEffect]:
    there = [status(run) for run in find_runs(runs)]
    return marginal_effects(ROADMAP, end, results_by_step(ROADMAP, "digits_noisy", {}, there))


def test_each_reading_is_the_difference_that_it_names(runs: Path) -> None:
    found = effects_of(runs, END)
    assert [worth.step for worth in found] == list(ROADMAP.trunk[1:-1])
    recipe, gelu, kernel, separate = (
        of(found, step) for step in ("enhanced_recipe", "gelu", "kernel_7", END)
    )
    assert recipe.of[ALONE] == recipe.of[IN_PLACE]
    assert value(recipe, ALONE) == pytest.approx((2.0 + 2.5 + 2.0) / 3)
    assert value(gelu, ALONE) == pytest.approx(80.25 - 81.0)
    assert value(gelu, IN_PLACE) == pytest.approx(1.5)
    assert value(gelu, LAST) == pytest.approx((3.0 + 2.5 + 3.0) / 3)
    assert gelu.n == {ALONE: 2, IN_PLACE: 1, LAST: 3}
    assert (kernel.of[LAST], kernel.n[LAST]) == (None, 0)
    assert separate.of[LAST] == separate.of[IN_PLACE]
    assert value(separate, LAST) == pytest.approx(2.5 / 3)


def value(worth: MarginalEffect, reading: str) -> float:
    found = worth.of[reading]
    assert found is not None
    return found.value


def test_an_overridden_change_has_no_effect_left_out_of_the_final_model(runs: Path) -> None:
    found = effects_of(runs, "multiscale_depthwise")
    assert of(found, "depthwise_conv").of[LAST] is None


def collect(runs: Path, out: Path, *words: str) -> str:
    command = [sys.executable, str(ROOT / "collect.py"), str(runs), "--out", str(out), *words]
    return commands.run(command, check=True, cwd=out.parent).stdout


def test_collect_writes_the_combinations_and_marginal_effects(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = collect(runs, out, "--ablate", f"leave-one-out:{END}")
    table = (out / "ablation.md").read_text(encoding="utf-8")
    assert (
        "| separate_downsampling-gelu | act.kind gelu → relu | 3 | 88.50 ± 0.50 | -2.83 ± 0.72 | yes |"
        in table
    )
    assert "| separate_downsampling-kernel_7 | spatial.kernel 7 → 3 | 0/3 | – | – | – |" in table
    assert "| layer_norm | " in table
    assert "resnet50" not in table
    assert "- 13 runs of other steps and combinations left out (--ablate chooses others)." in table
    worth = (out / "worth.md").read_text(encoding="utf-8")
    welch = stats.ttest_ind([80.5, 80.0], [80.0, 81.0, 82.0], equal_var=False).confidence_interval(0.95)
    assert (
        f"| gelu | -0.75 ± {(welch.high - welch.low) / 2:.2f} | +1.50 | +2.83 ± 0.72 * | 2, 1, 3 |" in worth
    )
    assert all(
        line in said
        for line in ("added to the base: the first step with the change minus the first step.", "worth.md")
    )
    assert "- Hardware: one core.\n- Versions: python 3.11.7, scikit-learn 1.7.0.\n- Code: 0123" in worth
    with (out / "worth.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["step"], row["reading"]): row for row in csv.DictReader(file)}
    assert len(rows) == len(ROADMAP.trunk[1:-1]) * len(READINGS)
    assert float(rows["gelu", LAST]["delta"]) == pytest.approx(8.5 / 3)
    assert (rows["gelu", LAST]["n"], rows["gelu", LAST]["resolved"]) == ("3", "True")
    assert rows["kernel_7", LAST]["delta"] == ""
    assert {path.name for path in out.glob("worth.*")} == {
        f"worth.{kind}" for kind in ("csv", "md", "pdf", "png", "svg")
    }


def test_the_path_leaves_combinations_out_and_notes_it(runs: Path, tmp_path: Path) -> None:
    collect(runs, tmp_path / "out", "--tables-only")
    table = (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8")
    assert "resnet50+gelu" not in table
    assert "not a step of" not in table
    assert "- 6 runs of other steps and combinations left out (--ablate chooses others)." in table
    assert not (tmp_path / "out" / "worth.md").exists()


def test_a_run_filed_under_another_name_of_the_same_network_counts_once(runs: Path, tmp_path: Path) -> None:
    aliased = tmp_path / "runs"
    shutil.copytree(runs, aliased)
    for seed, top1 in {0: 70.0, 1: 71.0}.items():
        alias = prepare(
            aliased, resolve(ROADMAP, "resnet50+gelu-gelu+kernel_7", profile="digits_noisy", seed=seed)
        )
        finish(alias, "resnet50+gelu-gelu+kernel_7", seed, top1)
    # the path's gelu has 86.50
    again = prepare(aliased, resolve(ROADMAP, "gelu-gelu+gelu", profile="digits_noisy"))
    finish(again, "gelu-gelu+gelu", 0, 1.0)
    collect(aliased, tmp_path / "out", "--tables-only", "--ablate", "one-at-a-time")
    assert "| resnet50+kernel_7 | spatial.kernel 3 → 7 | 2 | 70.50 ± 0.71 |" in (
        tmp_path / "out" / "ablation.md"
    ).read_text(encoding="utf-8")
    collect(aliased, tmp_path / "path", "--tables-only")
    assert "| gelu | act.kind relu → gelu | 1/3 | 86.50 |" in (tmp_path / "path" / "ablation.md").read_text(
        encoding="utf-8"
    )


def test_divergence_is_reported(runs: Path, tmp_path: Path) -> None:
    some = tmp_path / "runs"
    shutil.copytree(runs, some)
    for step, seed in [("resnet50+layer_norm", 0), ("resnet50+layer_norm", 1), ("resnet50+gelu", 2)]:
        finish(prepare(some, resolve(ROADMAP, step, profile="digits_noisy", seed=seed)), step, seed, None)
    collect(some, tmp_path / "out", "--tables-only", "--ablate", f"leave-one-out:{END}")
    worth = (tmp_path / "out" / "worth.md").read_text(encoding="utf-8")
    assert "| layer_norm | diverged | " in worth
    assert re.search(r"\| gelu \| -0\.75 ± \d\.\d\d \(1 diverged\) \| ", worth)
    assert "- Runs that diverged are counted behind the difference, and in no mean." in worth


def test_an_order_has_its_own_table_and_no_marginal_effects(runs: Path, tmp_path: Path) -> None:
    collect(runs, tmp_path / "out", "--tables-only", "--ablate", "order:3")
    table = (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8")
    assert "| gelu@order3 | act.kind relu → gelu | 0/3 |" in table
    assert "rank correlation" not in table
    assert not (tmp_path / "out" / "worth.md").exists()


def test_the_paper_has_no_ablations(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "collect.py"),
        "--paper",
        "--ablate",
        "order:1",
        "--out",
        str(tmp_path / "out"),
    ]
    done = commands.run(command)
    assert (done.returncode, done.stderr) == (2, "--ablate the paper has values for the path only\n")
    assert not (tmp_path / "out").exists()


DIFFERENCES: Mapping[str, Any] = {
    "with intervals": [Difference(3.92, 3.16), Difference(-8.85, 3.82), Difference(0.01, 0.85)],
    "one seed": [Difference(3.92, None), Difference(-8.85, None), Difference(0.01, None)],
    "some missing": [Difference(3.92, 3.16), None, None],
    "none": [None, None, None],
    "tiny": [Difference(0.001, 0.0001), Difference(-0.001, None), Difference(0.0, None)],
}


def marks(axes: Axes) -> dict[str, list[tuple[float, bool]]]:
    """The value of each mark, and whether it is filled, by its reading."""
    colors = {to_hex(color): reading for reading, (color, _) in MARKS.items()}
    found: dict[str, list[tuple[float, bool]]] = {reading: [] for reading in READINGS}
    for points in axes.collections:
        if isinstance(points, PathCollection):
            edges, faces = np.asarray(points.get_edgecolor()), np.asarray(points.get_facecolor())
            values = np.asarray(points.get_offsets())[:, 0].tolist()
            filled = [bool(np.all(face == edges[0])) for face in faces]
            found[colors[to_hex(edges[0])]] += zip(values, filled, strict=True)
    return found


@pytest.mark.parametrize("width", [DOUBLE_COLUMN, SINGLE_COLUMN])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_figure_shows_every_difference_and_no_text_covers_another(name: str, width: float) -> None:
    found = [
        MarginalEffect(
            step,
            ROADMAP.tree[step].title,
            dict(zip(READINGS, DIFFERENCES[name], strict=True)),
            dict.fromkeys(READINGS, 3),
        )
        for step in ROADMAP.trunk[1:]
    ]
    figure = effects_figure(
        found,
        f"Marginal effect of each change on the way to {ROADMAP.tree[END].title} on digits_noisy",
        width,
    )
    (axes,) = figure.axes
    for reading, difference in zip(READINGS, DIFFERENCES[name], strict=True):
        drawn = marks(axes)[reading]
        assert [value for value, _ in drawn] == pytest.approx(
            [] if difference is None else [difference.value] * len(found)
        )
        assert [filled for _, filled in drawn] == [difference.resolved is True for _ in drawn]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [NAMES[reading] for reading in READINGS]
    texts = texts_of(figure)
    assert len(texts) > len(found) + len(READINGS) + 2
    assert (overlapping(texts), outside(texts, figure.bbox)) == ([], [])


def test_a_difference_far_from_all_others_is_written_at_the_border() -> None:
    found = [
        MarginalEffect(
            step,
            ROADMAP.tree[step].title,
            dict.fromkeys(READINGS, Difference(1.0, 0.5)),
            dict.fromkeys(READINGS, 3),
        )
        for step in ROADMAP.trunk[1:]
    ]
    found[2] = MarginalEffect(
        "far",
        "far",
        {ALONE: Difference(-74.44, 2.07), IN_PLACE: Difference(30.0, None), LAST: None},
        found[0].n,
    )
    (axes,) = effects_figure(found, "far").axes
    assert [text.get_text() for text in axes.texts] == ["◀ -74.44 ± 2.07", "+30.00 ▶"]
    low, high = axes.get_xlim()
    assert -10 < low < high < 10
    assert {reading: len(drawn) for reading, drawn in marks(axes).items()} == dict.fromkeys(
        READINGS, len(found) - 1
    )


def test_the_csv_of_runs_holds_the_ablations_runs_only(runs: Path, tmp_path: Path) -> None:
    collect(runs, tmp_path / "out", "--tables-only", "--ablate", "one-at-a-time")
    with (tmp_path / "out" / "runs.csv").open(encoding="utf-8", newline="") as file:
        steps = {row["step"] for row in csv.DictReader(file)}
    assert steps == {"resnet50", "enhanced_recipe", "resnet50+gelu"}
