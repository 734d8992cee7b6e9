"""What the figures of curves, agreement and seeds draw is what the runs and the rows say."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Annotation, Text
from scipy import stats

from roadmap.report.curves import curves_of
from roadmap.report.figures.panels import number_steps
from tests.helpers.trained import ALL_LOST, FEW, ROADMAP, case, trained
from tests.test_figures import made


def line(axes: Axes, label: str) -> np.ndarray[Any, Any]:
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(found.get_xydata())


def test_a_curve_is_the_mean_of_the_seeds_and_its_band_their_range() -> None:
    (ablation,) = case("all")
    curves, axes = curves_of(ablation), made("curves", [ablation]).axes
    for panel, name in ((axes[0], "top1"), (axes[1], "train_loss")):
        bands = [band for band in panel.collections if isinstance(band, PolyCollection)]
        for number, (step, band) in enumerate(zip(ROADMAP.steps, bands, strict=True), 1):
            by_epoch = list(
                zip(*[getattr(curve, name) for curve in curves if curve.step == step], strict=True)
            )
            assert line(panel, str(number))[:, 0].tolist() == [1, 2, 3, 4, 5]
            assert line(panel, str(number))[:, 1] == pytest.approx(
                [statistics.fmean(values) for values in by_epoch]
            )
            corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices)}
            assert {
                (epoch, end) for epoch, values in enumerate(by_epoch, 1) for end in (min(values), max(values))
            } <= corners


def test_a_mean_ends_where_a_seed_does_and_a_diverged_one_is_in_none() -> None:
    (ablation,) = case("messy")
    axes = made("curves", [ablation]).axes[0]
    of = {step: str(number) for step, number in number_steps([ablation]).of[0].items()}
    top1 = {(curve.step, curve.seed): curve.top1 for curve in curves_of(ablation)}
    assert line(axes, of["layer_norm"])[:, 0].tolist() == [1, 2, 3]  # of 3, 4, 5, 6 and 7 epochs
    assert line(axes, of["gelu"])[-1, 1] == pytest.approx(
        statistics.fmean(top1["gelu", seed][-1] or 0 for seed in (0, 2, 3, 4))
    )
    labels = [line.get_label() for line in axes.lines]
    assert of["stage_ratio"] not in labels
    assert of["no_downsampling_norms"] not in labels
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == 1 + len(ALL_LOST)
    alone = [
        tuple(np.asarray(line.get_xydata())[:, 0])
        for line in axes.lines
        if line.get_linewidth() < 1 and line not in crosses
    ]
    assert sorted(alone) == sorted([*[(1, 2)] * 6, *[tuple(range(3, end)) for end in (5, 6, 7, 8)] * 2])


def test_side_branches_are_dashed_and_later_steps_lighter() -> None:
    axes = made("curves", case("all")).axes[0]
    drawn = {ROADMAP.steps[int(str(line.get_label())) - 1]: line for line in axes.lines}
    assert {step for step, line in drawn.items() if line.get_linestyle() != "-"} == set(ROADMAP.steps) - set(
        ROADMAP.trunk
    )
    greens = [mpl.colors.to_rgb(drawn[step].get_color())[1] for step in ROADMAP.trunk]
    assert greens == sorted(greens)
    assert len(set(greens)) == len(greens)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_lines_to_the_numbers_lie_outside_the_axes_and_are_gray(epochs: int, tmp_path: Path) -> None:
    figure = made("curves", [trained(tmp_path, FEW, epochs=epochs, lost=[("gelu", 1)] if epochs > 1 else [])])
    figure.draw_without_rendering()
    for axes in figure.axes:
        area, leaders = (
            axes.get_window_extent(),
            [text.arrow_patch for text in axes.texts if isinstance(text, Annotation)],
        )
        assert len(leaders) == len(FEW)
        for leader in leaders:
            assert leader is not None
            assert leader.get_window_extent().x0 >= area.x1 - 1
            assert len(set(mpl.colors.to_rgb(leader.get_edgecolor()))) == 1
        assert 0.95 < axes.transAxes.inverted().transform(axes.transData.transform((epochs, 0)))[0] < 1
        assert all(
            1 <= tick <= epochs
            for tick in axes.get_xticks()
            if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
        )


def bars(axes: Axes) -> list[tuple[float, ...]]:
    """x, y and the half lengths of the error bars in x and y of all points."""
    found = []
    for group in axes.containers:
        assert isinstance(group, ErrorbarContainer)
        lengths = [0.0, 0.0]
        for bar in group.lines[2]:
            start, end = np.asarray(bar.get_segments()[0])
            direction = int(start[0] == end[0])
            lengths[direction] = float(end[direction] - start[direction]) / 2
        assert group.lines[0] is not None
        found.append((*map(float, np.asarray(group.lines[0].get_xydata())[0]), *lengths))
    return found


@pytest.mark.parametrize("name", ["few", "one seed", "two roadmaps"])
def test_agreement_draws_the_values_of_the_rows(name: str) -> None:
    axes = made("agreement", case(name)).axes
    for ablation, first, second in zip(case(name), axes[::2], axes[1::2], strict=True):
        both = [(row.paper, row.top1) for row in ablation.rows if row.paper and row.top1]
        assert np.array(bars(first)) == pytest.approx(
            np.array([(x.mean, y.mean, x.std or 0, y.std or 0) for x, y in both])
        )
        changes = [(row.paper_delta, row.delta) for row in ablation.rows if row.paper_delta and row.delta]
        assert np.array(bars(second)) == pytest.approx(
            np.array([(x.value, y.value, x.margin or 0, y.margin or 0) for x, y in changes])
        )
        same_task = any(row.gap is not None for row in ablation.rows)
        assert same_task is (ablation.profile is None)
        assert ("y = x" in [line.get_label() for line in first.lines]) is same_task
        assert (first.get_xlim() == first.get_ylim()) is same_task
        start, end = line(second, "y = x")
        assert start[0] == start[1] < end[0] == end[1]
        words, more = (
            " ".join(text.get_text() for text in axes.texts)
            .replace("\N{NO-BREAK SPACE}", " ")
            .replace("\n", " ")
            for axes in (first, second)
        )
        found = ablation.agreement
        assert found is not None
        assert found.top1 is not None
        assert found.signs is not None
        assert f"ρ = {found.top1}, n = {found.top1.n} steps" in words
        assert (f"ρ = {found.delta}" in more) is (found.delta is not None)
        assert f"same sign in {found.signs.same} of {found.signs.n} steps" in more


@pytest.mark.parametrize("name", ["messy", "one seed", "two roadmaps"])
def test_the_strip_has_every_seed_the_mean_and_its_interval(name: str) -> None:
    for ablation, axes in zip(case(name), made("seeds", case(name)).axes, strict=True):
        intervals = [
            bar for group in axes.containers if isinstance(group, ErrorbarContainer) for bar in group.lines[2]
        ]
        spans = [tuple(bar.get_segments()[0][:, 0]) for bar in intervals]
        known = [list(row.seeds.values()) for row in ablation.rows if len(row.seeds) > 1]
        expected = [stats.t.interval(0.95, len(tops) - 1, np.mean(tops), stats.sem(tops)) for tops in known]
        assert np.array(spans) == pytest.approx(np.array(expected))
        for row in ablation.rows:
            if row.results:
                assert line(axes, row.step)[:, 0].tolist() == list(row.seeds.values())
        ticks = [
            float(np.asarray(line.get_xydata())[0, 0])
            for line in axes.lines
            if line.get_marker() == "|" and line.get_markersize() == 9
        ]
        assert ticks == pytest.approx([row.top1.mean for row in ablation.rows if row.top1])


def test_crosses_are_the_seeds_that_diverged_and_many_are_counted() -> None:
    (ablation,) = case("messy")
    axes = made("seeds", [ablation]).axes[0]
    places = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_marker() == "x"]
    crosses = {float(place[0, 1]): len(place) for place in places if len(place)}
    steps = [row.step for row in ablation.rows]
    assert crosses == {steps.index("gelu"): 1, steps.index("no_downsampling_norms"): 1}
    (number,) = [text for text in axes.texts if type(text) is Text and text.get_text() == str(len(ALL_LOST))]
    assert number.get_position()[1] == steps.index("no_downsampling_norms")
    words = [text.get_text() for text in axes.texts]
    assert words.count("no run has finished") == sum(not row.results for row in ablation.rows) == 3
    assert words.count("4/5") == 1
    first = min(value for row in ablation.rows for value in row.seeds.values())
    assert axes.transAxes.inverted().transform(axes.transData.transform((first, 0)))[0] > 0.12
