"""Screening designs, `--ablate factorial:N`: their networks, and the effects estimated from their runs."""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blocks import complexity
from roadmap import ROOT
from roadmap.cli.collect import parser
from roadmap.cli.collect import run as run_collect
from roadmap.deltas import Roadmap
from roadmap.errors import ConfigError
from roadmap.records import LONGEST_ID, prepare
from roadmap.report.factorial import (
    EFFECT,
    INTERACTION,
    alias_matrix,
    average_effects,
    changes_of,
    least_squares,
    parse_interactions,
)
from roadmap.report.figures.marginal_effects import effects_figure
from roadmap.report.marginal import AVERAGE, IN_PLACE, READINGS, MarginalEffect, adjust, with_average
from roadmap.report.runs import read_experiment
from roadmap.report.stats import Difference, holm
from roadmap.screening import COST_CAP, Matrix, _ratios, model_matrix, relative_variances
from roadmap.steps import load_roadmap, resolve
from tests.helpers import commands
from tests.helpers.rendered_text import outside, overlapping, texts_of
from tests.helpers.reports import result_of
from tests.test_collect import finish

ROADMAP = load_roadmap()
CHANGES = ROADMAP.trunk[1:]
DESIGN = load_roadmap(ablation="factorial:32")
SMALL = load_roadmap(ablation="factorial:16")
FAMILY = {"base": "convnext_t/separate_downsampling"}


def matrix_of(design: Roadmap, pairs: Sequence[tuple[str, str]] = ()) -> Matrix:
    return model_matrix(list(design.contexts.values()), changes_of(design), pairs)


def steps_file(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "my.yaml"
    path.write_text(f"extends: steps.yaml\nroadmaps: {{{text}}}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "how"),
    [("convnext_t", "factorial:32"), ("convnext_t", "factorial:24:3"), ("convnext_b", "factorial:16")],
)
def test_a_design_holds_different_valid_networks_within_the_cost_cap(name: str, how: str) -> None:
    whole, design = load_roadmap(name=name), load_roadmap(name=name, ablation=how)
    assert len(design.steps) == len(design.contexts) == int(how.split(":")[1])
    assert design.steps[0] == whole.trunk[0]
    assert max(map(len, design.steps)) < LONGEST_ID / 2
    costs = {}
    for step in design.steps:
        config = resolve(design, step)
        assert config == resolve(whole, step)
        costs[config.hash] = complexity(config.model, config.data.image_size).macs
        block = config.ours.block
        assert (block.spatial.kind, block.spatial.kernel, block.hidden, block.order[0]) != (
            "conv",
            7,
            4,
            "pw1",
        )
    assert len(costs) == len(design.steps)
    path = [complexity(resolve(whole, step).model).macs for step in whole.trunk]
    assert max(costs.values()) <= COST_CAP * max(path)
    matrix = matrix_of(design)
    assert matrix.shape == (len(design.steps), len(whole.trunk))
    assert np.linalg.matrix_rank(matrix) == len(whole.trunk)
    assert load_roadmap(name=name, ablation=how, profile="cifar10_small").steps == design.steps


def test_a_network_has_the_changes_of_its_id_and_those_that_a_later_one_overrides() -> None:
    for step, changes in DESIGN.contexts.items():
        written = {delta.name for delta in ROADMAP.lineage(step)[1:]}
        assert set(changes) - written <= {"depthwise_conv"}
        assert written <= set(changes)
        assert "depthwise_conv" in changes or "multiscale_depthwise" not in changes
    (note,) = [note for note in DESIGN.notes if note.startswith("Where ")]
    assert note == (
        "Where multiscale_depthwise is on, so is depthwise_conv: its effect is that of replacing"
        " depthwise_conv."
    )


def test_a_network_of_a_step_or_another_ablation_keeps_that_id() -> None:
    """A design of nearly all networks of a short path, on which all of them have such an id."""
    family = load_roadmap(name="family")
    design = load_roadmap(name="family", ablation="factorial:8")
    others = [load_roadmap(name="family", ablation=how).steps for how in ("one-at-a-time", "leave-one-out")]
    known = {resolve(family, step).hash: step for steps in (*others, family.steps) for step in steps}
    named = [step for step in design.steps if resolve(family, step).hash in known]
    assert len(named) > 5
    assert [known[resolve(family, step).hash] for step in named] == named


def test_a_design_is_near_an_orthogonal_one() -> None:
    for design, efficiency, worst in ((DESIGN, 0.94, 1.75), (SMALL, 0.87, 2.25)):
        matrix = matrix_of(design)
        sign, logarithm = np.linalg.slogdet(matrix.T @ matrix)
        assert sign == 1
        assert np.exp(logarithm / matrix.shape[1]) / len(matrix) >= efficiency
        assert relative_variances(matrix)[1:].max() <= worst
    free = [name for name in CHANGES if "depthwise" not in name]
    variances = dict(zip(CHANGES, relative_variances(matrix_of(DESIGN))[1:], strict=True))
    assert max(variances[name] for name in free) <= 1.12


def test_the_ratio_of_an_exchange_is_that_of_the_determinants() -> None:
    matrix, new = matrix_of(DESIGN), np.where(np.random.default_rng(0).random((20, 15)) < 0.5, 1.0, -1.0)
    expected = []
    for row in new:
        changed = matrix.copy()
        changed[5] = row
        expected.append(np.linalg.det(changed.T @ changed) / np.linalg.det(matrix.T @ matrix))
    # the ridge, a thousandth on a diagonal of 32
    assert _ratios(matrix, 5, new) == pytest.approx(expected, rel=1e-3)


def test_a_design_is_the_same_in_every_process() -> None:
    """The digest holds for all machines: another design would orphan the runs of this one."""
    digest = "9ebe32ec7a174fce"
    assert hashlib.sha256("\n".join(DESIGN.steps).encode()).hexdigest()[:16] == digest
    code = "from roadmap.steps import load_roadmap; print(*load_roadmap(ablation='factorial:32').steps)"
    environment = os.environ | {"PYTHONHASHSEED": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == list(DESIGN.steps)
    assert load_roadmap(ablation="factorial:32:0").steps == DESIGN.steps
    assert load_roadmap(ablation="factorial:32:1").steps != DESIGN.steps


def test_a_step_at_the_end_keeps_the_networks_that_do_not_have_it(tmp_path: Path) -> None:
    new = "{name: silu, title: SiLU, set: {model.block.act.kind: silu}}"
    after = load_roadmap(steps_file(tmp_path, f"convnext_t: {{steps: [{new}]}}"), ablation="factorial:32")
    without = [step for step, changes in after.contexts.items() if "silu" not in changes]
    assert [step for step in after.steps if step in DESIGN.steps] == without
    assert len(without) >= 15
    assert np.linalg.matrix_rank(matrix_of(after)) == len(CHANGES) + 2
    branch = "{name: silu, title: SiLU, parent: gelu, set: {model.block.act.kind: silu}}"
    path = steps_file(tmp_path, f"convnext_t: {{steps: [{branch}]}}")
    assert load_roadmap(path, ablation="factorial:32").steps == DESIGN.steps


def test_a_change_that_needs_another_has_it_and_one_that_is_overridden_is_not_in_the_design(
    tmp_path: Path,
) -> None:
    bare = "{name: bare, title: no norms, parent: separate_downsampling, set: {model.downsample_norm: false}}"
    design = load_roadmap(
        steps_file(tmp_path, f"convnext_t: {{steps: [{bare}]}}"),
        ablation="factorial:20:1",
        profile="digits_noisy",
    )
    having = [changes for changes in design.contexts.values() if "bare" in changes]
    assert len(having) > 4
    assert all("separate_downsampling" in changes for changes in having)
    overridden = load_roadmap(
        ablation="factorial:16", overrides={"model.width": 64, "model.depths": (3, 3, 9, 3)}
    )
    assert set(changes_of(overridden)) == set(CHANGES) - {"stage_ratio", "increase_width"}
    assert "Not in the design: stage_ratio, increase_width, which the profile or --set overrides." in (
        overridden.notes
    )


SHORT = (
    "short: {title: short, base: convnext_t/separate_downsampling, steps: [{name: only, title: only}, {name:"
    " relu, title: relu, set: {model.block.act.kind: relu}}, {name: bare, title: bare, set:"
    " {model.downsample_norm: false}}]}"
)
REFUSED = {
    "factorial": "--ablate: unknown ablation 'factorial'; there are leave-one-out, one-at-a-time (either with"
    " :STEP), order:SEED, such as order:0, and factorial:N or factorial:N:SEED with N up to 999, such as"
    " factorial:32",
    "factorial:0": "unknown ablation 'factorial:0'",
    "factorial:32:": "unknown ablation 'factorial:32:'",
    "factorial:32:x": "unknown ablation 'factorial:32:x'",
    "factorial:1000": "unknown ablation 'factorial:1000'",
    "factorial:15": "--ablate factorial:15 is too small for 14 changes: write factorial:16 or more",
    "factorial:1": "--ablate factorial:1 is too small for 14 changes: write factorial:16 or more",
}


def test_a_design_that_cannot_estimate_the_effects_is_refused(tmp_path: Path) -> None:
    def refused(message: str, *where: object, **how: object) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_roadmap(*where, **how)  # type: ignore[arg-type]

    for ablation, message in REFUSED.items():
        refused(message, ablation=ablation)
    path = steps_file(tmp_path, SHORT)
    most = "within 3 times the GMACs of only"
    assert len(load_roadmap(path, "short", ablation="factorial:4").steps) == 4
    refused(
        f"factorial:5 is more than the 4 different networks {most}: write factorial:4 or less",
        path,
        "short",
        ablation="factorial:5",
    )
    refused(
        "factorial:3 is too small for 2 changes: write factorial:4 or more",
        path,
        "short",
        ablation="factorial:3",
    )
    refused(
        f"cannot estimate 1 changes: there are only 2 networks {most}; use one-at-a-time, or end the path in"
        " another step",
        path,
        "short",
        ablation="factorial:3",
        overrides={"model.downsample_norm": True},
    )
    refused(
        "downsample_norm false needs downsample separate",
        ablation="factorial:32",
        overrides={"model.downsample_norm": False},
    )


ESTIMABLE = [("depthwise_conv", "kernel_7"), ("gelu", "layer_norm")]


def fit(
    design: Roadmap, top1: Mapping[str, float], pairs: Sequence[tuple[str, str]] = (), std: float = 0.0
) -> dict[str, float]:
    """The effects from three runs of each network, whose mean is `top1`."""
    results = {
        step: [result_of(step, seed, "0", value + std * (seed - 1)) for seed in range(3)]
        for step, value in top1.items()
    }
    found = average_effects(design.contexts, changes_of(design), results, pairs)
    return {term: effect.value for term, effect in found.of.items()}


def test_effects_and_interactions_are_recovered_exactly() -> None:
    random = np.random.default_rng(0)
    for design, pairs in ((SMALL, []), (DESIGN, []), (DESIGN, ESTIMABLE)):
        terms = [*CHANGES, *map(":".join, pairs)]
        effects = dict(zip(terms, random.normal(0, 3, len(terms)).tolist(), strict=True))
        scales = np.array([EFFECT] * len(CHANGES) + [INTERACTION] * len(pairs))
        means = 60 + matrix_of(design, pairs)[:, 1:] @ (np.array(list(effects.values())) / scales)
        top1 = dict(zip(design.steps, means.tolist(), strict=True))
        assert fit(design, top1, pairs, std=0.5) == pytest.approx(effects)
    # with its interaction, an effect is the mean of those with and without the other change
    cells = {
        cell: 10.0 * cell[0] + 5.0 * cell[1] + 7.0 * cell[0] * cell[1]
        for cell in itertools.product((0, 1), repeat=2)
    }
    top1 = {
        step: cells["depthwise_conv" in changes, "kernel_7" in changes]
        for step, changes in DESIGN.contexts.items()
    }
    found = fit(DESIGN, top1, ESTIMABLE)
    assert found["depthwise_conv"] == pytest.approx((10 + 17) / 2)
    assert found["kernel_7"] == pytest.approx((5 + 12) / 2)
    assert found["depthwise_conv:kernel_7"] == pytest.approx(7)
    assert (
        max(
            abs(value)
            for term, value in found.items()
            if not {"depthwise_conv", "kernel_7"} & {*term.split(":")}
        )
        < 1e-9
    )


def test_intervals_cover_the_effects() -> None:
    """95 % intervals by simulation, of noise alone and of random interactions that the model leaves out."""
    random, scales = np.random.default_rng(0), np.full(len(CHANGES), EFFECT)
    for design, std in ((SMALL, 0.0), (DESIGN, 0.0), (DESIGN, 0.3)):
        matrix = matrix_of(design)
        contexts = [set(changes) for changes in design.contexts.values()]
        pairs = [
            pair
            for pair in itertools.combinations(CHANGES, 2)
            if len({(pair[0] in on, pair[1] in on) for on in contexts}) == 4
        ]
        products = matrix_of(design, pairs)[:, matrix.shape[1] :]
        covered: list[bool] = []
        for _ in range(400):
            truth = random.normal(0, 2, (matrix.shape[1],))
            left_out = products @ random.normal(0, std, len(pairs))
            values = matrix @ truth + left_out + random.normal(0, 1, len(matrix))
            found, _ = least_squares(matrix, values, scales)
            covered += [
                abs(effect.value - EFFECT * one) <= (effect.margin or 0)
                for effect, one in zip(found, truth[1:].tolist(), strict=True)
            ]
        # 5,600 intervals: a standard error of .3 to .5 points
        assert 0.93 <= np.mean(covered) <= 0.975


def test_an_effect_has_a_sixth_of_the_variance_of_one_at_a_time_with_as_many_runs() -> None:
    """Of 32 runs, each of 15 networks gets 32/15; a difference of two has twice the variance of one."""
    one_at_a_time = 2 / (32 / 15)
    average = EFFECT**2 * relative_variances(matrix_of(DESIGN))[1:] / 32
    assert one_at_a_time / average.mean() == pytest.approx(6.7, abs=0.05)
    assert one_at_a_time / average.max() > 4.5
    # the same by simulation of runs with a standard deviation of 1
    random, matrix = np.random.default_rng(0), matrix_of(DESIGN)
    runs = random.normal(0, 1, (2000, 32))
    simulated = (EFFECT * runs @ np.linalg.pinv(matrix).T)[:, 1:].var(axis=0)
    assert simulated == pytest.approx(average, rel=0.15)


def test_an_interaction_that_is_left_out_biases_an_effect_by_its_share_in_the_alias_matrix() -> None:
    pair = ("depthwise_conv", "kernel_7")
    matrix, products = matrix_of(DESIGN), matrix_of(DESIGN, [pair])[:, -1:]
    interaction = 6.0
    top1 = dict(zip(DESIGN.steps, (70 + products[:, 0] * interaction / INTERACTION).tolist(), strict=True))
    bias = alias_matrix(matrix, products)[1:, 0] * EFFECT * interaction / INTERACTION
    assert np.abs(bias).max() > 0.3
    assert list(fit(DESIGN, top1).values()) == pytest.approx(bias.tolist())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gelu", "'gelu' is not a pair of changes; write A:B, such as enhanced_recipe:stage_ratio"),
        ("gelu:gelu", "'gelu:gelu' is not a pair of changes"),
        ("gelu:layer_norm,", "'' is not a pair of changes"),
        ("gelu:gleu", "--interactions: unknown change 'gleu'; did you mean 'gelu'?"),
        ("gelu:kernel_9", "--interactions: unknown change 'kernel_9'; did you mean 'kernel_7'?"),
        (
            "multiscale_depthwise:depthwise_conv",
            "--interactions depthwise_conv:multiscale_depthwise cannot be estimated: no network of the design"
            " has multiscale_depthwise without depthwise_conv",
        ),
        (
            ",".join(f"gelu:{change}" for change in CHANGES if change != "gelu"),
            "asks for 13 interactions beside 14 changes, which takes --ablate factorial:29 or more",
        ),
    ],
)
def test_an_interaction_that_cannot_be_estimated_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_interactions(text, load_roadmap(ablation="factorial:20"))


def test_interactions_that_are_linear_combinations_are_refused() -> None:
    """Without a depthwise convolution, the cost cap allows inverting and moving up only together."""
    one, other = (f"depthwise_conv:{change}" for change in ("inverting_dimensions", "move_up_depthwise"))
    for alone in (one, other):
        assert parse_interactions(f"{alone}, gelu:layer_norm,{alone}", DESIGN) == [
            tuple(alone.split(":")),
            ("gelu", "layer_norm"),
        ]
    message = (
        f"inverting_dimensions, move_up_depthwise, {one}, {other} cannot be estimated apart from each other"
    )
    with pytest.raises(ConfigError, match=message):
        parse_interactions(f"{one},{other}", DESIGN)


def test_unfinished_and_diverged_networks_are_left_out_and_named() -> None:
    results = {
        step: [result_of(step, seed, "0", 50.0 + index + seed) for seed in range(2)]
        for index, step in enumerate(DESIGN.steps)
    }
    first, second, third = DESIGN.steps[1:4]
    del results[first]
    results[second] = [result_of(second, 0, "0", None)]
    results[third][0] = result_of(third, 0, "0", None)
    found = average_effects(DESIGN.contexts, CHANGES, results)
    assert found.n == 30
    assert list(found.of) == list(CHANGES)
    assert found.notes[0] == f"Not trained yet, and in no average: {first}."
    assert found.notes[1].endswith(f"over the networks that can be trained: {second}.")
    assert re.fullmatch(
        r"Residual standard deviation .* \(15 degrees of freedom\); the spread over seeds .*", found.notes[2]
    )
    assert "times that in an orthogonal design of 30 networks." in found.notes[3]
    assert found.notes[4].startswith("Aliasing: ")
    few = {step: results[step] for step in DESIGN.steps[4:14]}
    lost = average_effects(DESIGN.contexts, CHANGES, few)
    assert (lost.of, lost.n) == ({}, 10)
    assert lost.notes[0].startswith("No averages: 10 of 32 networks cannot estimate ")
    for pairs, nothing in (((), "any effect"), ([(CHANGES[0], CHANGES[1])], "any effect or interaction")):
        (note, *_) = average_effects(DESIGN.contexts, CHANGES, {}, pairs).notes
        assert note == f"No averages: 0 of 32 networks cannot estimate {nothing}."


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The design with one seed and effects of 1, 2, ... points, less its last network."""
    folder = tmp_path_factory.mktemp("design") / "runs"
    random = np.random.default_rng(0)
    for step, changes in list(DESIGN.contexts.items())[:-1]:
        top1 = 5.0 + sum(CHANGES.index(change) / 2 for change in changes) + float(random.normal(0, 0.2))
        finish(prepare(folder, resolve(DESIGN, step, profile="digits_noisy")), step, 0, top1)
    return folder


def test_the_base_with_more_seeds_asks_for_none_of_the_networks(tmp_path: Path) -> None:
    base, one, other, *_ = DESIGN.steps
    for step, seed in ((base, 0), (base, 1), (base, 2), (one, 0), (other, 0)):
        config = resolve(DESIGN, step, profile="digits_noisy", seed=seed)
        finish(prepare(tmp_path, config), step, seed, 80.0)
    ablation = read_experiment(tmp_path, kind="factorial:32").ablation
    assert {row.step: row.planned for row in ablation.rows} == dict.fromkeys(DESIGN.steps, 1) | {base: 3}
    assert ablation.notes[0].startswith("5 of 34 runs;")


def test_a_design_is_submitted_and_collected(runs: Path, tmp_path: Path) -> None:
    submit = [
        sys.executable,
        str(ROOT / "slurm/submit.py"),
        "--ablate",
        "factorial:32",
        "--profile",
        "digits_noisy",
    ]
    submit += ["--seeds", "1", "--cluster", "local", "--runs", str(runs), "--dry-run"]
    planned = commands.run(submit, check=True, cwd=tmp_path).stdout
    assert planned.startswith("32 runs: 31 done, 1 pending")
    out = str(tmp_path / "out")
    words = ["--ablate", "factorial:32", "--holm", "--tables-only"]
    interactions = ["--interactions", "depthwise_conv:kernel_7"]
    assert run_collect(parser().parse_args([str(runs), "--out", out, *words, *interactions])) == 0
    table = (tmp_path / "out" / "worth.md").read_text(encoding="utf-8")
    assert "| step | average | n |" in table
    assert re.search(r"\| gelu \| \+[34]\.\d\d ± 0\.\d\d \* \| 31 \|", table)
    assert f"- Not trained yet, and in no average: {DESIGN.steps[-1]}." in table
    assert "- Aliasing: " in table
    assert "adjusted over all changes (Holm)" in table
    with (tmp_path / "out" / "worth.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["step"]: row for row in csv.DictReader(file) if row["reading"] == AVERAGE}
    assert list(rows) == [*CHANGES, "depthwise_conv:kernel_7"]
    for index, change in enumerate(CHANGES):
        assert float(rows[change]["delta"]) == pytest.approx(index / 2, abs=0.5)
        assert 1 <= float(rows[change]["relative_variance"]) < 2.5
    assert [float(row["p_holm"]) for row in rows.values()] == pytest.approx(
        holm([float(row["p"]) for row in rows.values()])
    )
    assert rows["separate_downsampling"]["resolved"] == "True"
    ablation = (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8")
    assert f"| {DESIGN.steps[1]} | {', '.join(DESIGN.contexts[DESIGN.steps[1]])} | 1 |" in ablation
    assert "- Screening design of 32 networks for 14 changes, seed 0: " in ablation
    with pytest.raises(ConfigError, match="--interactions needs a screening design, such as"):
        run_collect(parser().parse_args([str(runs), "--out", str(tmp_path / "none"), *interactions]))
    assert not (tmp_path / "none").exists()


def test_the_figure_shows_averages_and_interactions() -> None:
    random = np.random.default_rng(0)
    results = {step: [result_of(step, 0, "0", float(random.normal(80, 3)))] for step in DESIGN.steps}
    average = average_effects(DESIGN.contexts, CHANGES, results, ESTIMABLE)
    path = [
        MarginalEffect(step, ROADMAP.tree[step].title, dict.fromkeys(READINGS), dict.fromkeys(READINGS, 0))
        for step in CHANGES
    ]
    path[2] = replace(
        path[2], of={**path[2].of, IN_PLACE: Difference(1.5, None)}, n={**path[2].n, IN_PLACE: 1}
    )
    effects = with_average(path, average, [])
    assert [effect.is_interaction for effect in effects] == [False] * len(CHANGES) + [True] * 2
    assert effects[-1].title == "ReLU to GELU × BN to LN"
    figure = effects_figure(effects, "Marginal effect of each change")
    (axes,) = figure.axes
    drawn = [np.asarray(found.get_offsets()) for found in axes.collections]
    (points,) = [offsets for offsets in drawn if len(offsets) == len(effects)]
    assert points[:, 0].tolist() == pytest.approx([effect.value for effect in average.of.values()])
    assert axes.get_xlabel().replace("\n", " ").endswith("n = 1 seed, average over 32 networks")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["along the path", "average"]
    texts = texts_of(figure)
    assert (overlapping(texts), outside(texts, figure.bbox)) == ([], [])
    adjusted = effects_figure(adjust(effects), "Marginal effect of each change")
    assert "p < .05 after Holm" in adjusted.axes[0].get_xlabel().replace("\n", " ")
