"""Two ablations side by side, and accuracies held against the paper's or an earlier table's."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from roadmap import ROOT
from roadmap.errors import ConfigError
from roadmap.records import Status, prepare
from roadmap.report.ablation import Ablation, measured, published
from roadmap.report.compare import Pair, compare, comparison_table, write_comparison
from roadmap.report.stats import Summary
from roadmap.report.tolerance import Expected, check, published_top1, read_expected
from roadmap.steps import load_roadmap, resolve
from tests.helpers import commands
from tests.helpers.reports import finished, result_of

ROADMAP = load_roadmap()
Top1 = Mapping[str, Mapping[int, float | None]]
# The Δ of A are +4 (resolved), +1 (resolved), -3 (resolved), none, -0.2 (open); those of B see below.
A: Top1 = {
    "resnet50": {0: 80.0, 1: 80.5, 2: 81.0},
    "enhanced_recipe": {0: 84.0, 1: 84.6, 2: 84.9},
    "stage_ratio": {0: 85.0, 1: 85.7, 2: 85.8},
    "patchify_stem": {0: 82.0, 1: 82.6, 2: 82.9},
    "increase_width": {0: None},
    "kernel_7": {0: 83.0},
    "gelu": {0: 82.8, 1: 85.0, 2: 81.0},
}
B: Top1 = {
    "resnet50": {0: 70.0, 1: 70.6, 2: 71.1},
    "enhanced_recipe": {0: 72.0, 1: 72.5, 2: 73.3},
    "stage_ratio": {0: 70.0, 1: 70.6, 2: 71.0},
    "patchify_stem": {3: 70.5, 4: 71.6, 5: 69.9, 6: 71.2},
    "kernel_7": {0: 75.0, 1: 75.2},
    "gelu": {0: 77.0, 1: 77.3},
}


def runs_of(top1: Top1, profile: str) -> list[Status]:
    hashes = {step: resolve(ROADMAP, step, profile=profile).hash for step in top1}
    return [
        finished(step, seed, hashes[step], value)
        for step, values in top1.items()
        for seed, value in values.items()
    ]


def ablation_of(top1: Top1, profile: str = "cifar10") -> Ablation:
    return measured(ROADMAP, profile, {}, runs_of(top1, profile))


def pair_of(step: str, a: Top1 = A, b: Top1 = B) -> Pair:
    return next(
        pair for pair in compare(ablation_of(a), ablation_of(b, "cifar100")).pairs if pair.step == step
    )


@pytest.mark.parametrize(
    ("step", "effects"),
    [
        ("resnet50", "–"),
        ("enhanced_recipe", "agree"),
        ("stage_ratio", "contradict"),
        ("patchify_stem", "A only"),
        ("increase_width", "–"),
        ("gelu", "B only"),
    ],
)
def test_effects_agree_contradict_or_are_open(step: str, effects: str) -> None:
    assert pair_of(step).effects == effects


def test_two_unresolved_effects_are_open_whatever_their_signs() -> None:
    noisy = {"resnet50": {0: 80.0, 1: 84.0}, "enhanced_recipe": {0: 82.0, 1: 82.5}}
    assert (
        pair_of(
            "enhanced_recipe",
            noisy,
            {step: {0: 90 - top1[0], 1: 90 - top1[1]} for step, top1 in noisy.items()},
        ).effects
        == "open"
    )


def test_no_change_has_no_sign() -> None:
    third = 100 / 3
    falls = {
        "resnet50": {0: 50.0},
        "enhanced_recipe": {0: 40.0},
        "stage_ratio": {0: 30.0},
        "patchify_stem": {0: 20.0},
    }
    stays = {
        "resnet50": {0: third},
        "enhanced_recipe": {0: third},
        "stage_ratio": {0: math.nextafter(third, 0)},
        "patchify_stem": {0: 10.0},
    }
    assert (
        "Resolved or not, 1 of 3 (1.0 by chance) have the same sign."
        in compare(ablation_of(falls), ablation_of(stays, "cifar100")).notes
    )
    assert (
        "Resolved or not, 0 of 3 (0.0 by chance) have the same sign."
        in compare(*[ablation_of({step: {0: 50.0} for step in falls})] * 2).notes
    )


def test_the_difference_of_paired_effects_is_welchs_on_the_pairs() -> None:
    found = pair_of("enhanced_recipe").difference
    ours, theirs = (
        [float(side["enhanced_recipe"][seed] or 0) - float(side["resnet50"][seed] or 0) for seed in range(3)]
        for side in (A, B)
    )
    test = stats.ttest_ind(theirs, ours, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert found is not None
    assert found.value == pytest.approx((interval.low + interval.high) / 2)
    assert found.margin == pytest.approx((interval.high - interval.low) / 2)
    assert found.p == pytest.approx(test.pvalue)


def test_the_difference_of_an_effect_in_pairs_and_one_of_four_means_has_satterthwaites_freedom() -> None:
    found = pair_of("patchify_stem").difference
    one = stats.describe(
        [float(A["patchify_stem"][seed] or 0) - float(A["stage_ratio"][seed] or 0) for seed in range(3)]
    )
    groups = [
        stats.describe([float(value or 0) for value in B[step].values()])
        for step in ("patchify_stem", "stage_ratio")
    ]
    errors = [each.variance / each.nobs for each in (one, *groups)]
    freedom = sum(errors) ** 2 / sum(
        error**2 / (each.nobs - 1) for error, each in zip(errors, (one, *groups), strict=True)
    )
    assert found is not None
    assert found.value == pytest.approx(groups[0].mean - groups[1].mean - one.mean)
    assert found.margin == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(sum(errors)))


def test_an_effect_without_a_spread_leaves_the_difference_without_an_interval() -> None:
    single = {step: {0: values[0]} for step, values in B.items() if 0 in values}
    found = pair_of("enhanced_recipe", A, single)
    assert (found.effects, found.difference and found.difference.margin) == ("A only", None)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(2.0 - 4.0)


def test_the_other_way_round_all_differences_change_their_sign() -> None:
    one, other = ablation_of(A), ablation_of(B, "cifar100")
    swapped = {"A only": "B only", "B only": "A only"}
    for there, back in zip(compare(one, other).pairs, compare(other, one).pairs, strict=True):
        assert swapped.get(there.effects, there.effects) == back.effects
        if there.difference and back.difference:
            assert (there.difference.value, there.difference.margin) == (
                -back.difference.value,
                back.difference.margin,
            )


def test_steps_without_a_counterpart_stand_alone_at_the_end() -> None:
    found = compare(published(ROADMAP), published(load_roadmap(name="convnext_b")))
    assert [pair.step for pair in found.pairs][-1] == "resnet200"
    assert {pair.step for pair in found.pairs if pair.effects == "–"} == {"resnet50", "resnet200"}


def test_the_two_regimes_of_the_paper_order_the_changes_much_alike() -> None:
    regimes = [published(load_roadmap(name=name)) for name in ("convnext_t", "convnext_b")]
    found = compare(*regimes)
    # two decimals are printed
    values = [[round(row.delta.value, 6) for row in each.rows if row.delta] for each in regimes]
    assert found.agreement is not None
    assert found.agreement.n == 16
    assert found.agreement.value == pytest.approx(stats.spearmanr(*values).statistic)
    assert "Of 16 steps with both Δ: 11 A only, 5 open." in found.notes
    assert "Resolved or not, 15 of 16 (11.8 by chance) have the same sign." in found.notes
    assert any(note.startswith("B: 16 of 16 Δ have no interval") for note in found.notes)
    assert not any("is against" in note for note in found.notes)


def test_a_step_with_another_parent_is_named() -> None:
    rows = tuple(
        replace(row, parent="kernel_5") if row.step == "gelu" else row for row in ablation_of(A).rows
    )
    odd = replace(ablation_of(A), rows=rows)
    assert (
        "gelu: Δ is against kernel_5 in A, against kernel_7 in B."
        in compare(odd, ablation_of(B, "cifar100")).notes
    )


def test_the_files_hold_the_same_in_full_precision(tmp_path: Path) -> None:
    comparison = compare(ablation_of(A), ablation_of(B, "cifar100"))
    files = write_comparison(comparison, tmp_path / "out")
    assert {path.name for path in files} == {
        f"comparison.{kind}" for kind in ("csv", "html", "json", "md", "tex")
    }
    with (tmp_path / "out" / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["step"]: row for row in csv.DictReader(file)}
    document = json.loads(
        (tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )
    assert list(rows) == [row["step"] for row in document["rows"]] == list(ROADMAP.steps)
    pair = next(pair for pair in comparison.pairs if pair.step == "stage_ratio")
    assert pair.difference is not None
    assert float(rows["stage_ratio"]["delta_difference"]) == pair.difference.value
    assert (rows["stage_ratio"]["effects"], rows["resnet50"]["effects"], rows["kernel_7"]["b_n"]) == (
        "contradict",
        "",
        "2",
    )
    texts = next(cells for cells in comparison_table(comparison).rows if cells[0] == "stage_ratio")
    assert f"| {' | '.join(texts)} |" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def paper(**means: float) -> Expected:
    return Expected("the paper", {step: Summary(mean, 0.1, 3) for step, mean in means.items()})


def test_a_mean_out_of_tolerance_is_reported_with_both_values_and_their_n() -> None:
    verdict = check(ablation_of(A), paper(resnet50=80.5, enhanced_recipe=85.0, gelu=82.0), 0.6)
    assert verdict.lines == ["gelu: 82.93 ± 2.00 (n = 3) here, 82.00 ± 0.10 (n = 3) in the paper: 0.93 above"]
    assert (
        verdict.summary == "2 of 3 steps within 0.6 points of the paper; 3 steps that the paper does not have"
    )
    assert not verdict.passed


def test_exactly_the_tolerance_is_within_it() -> None:
    assert 84.5 - 84.3 > 0.2  # in binary
    assert check(ablation_of(A), paper(enhanced_recipe=84.3), 0.2).passed
    assert not check(ablation_of(A), paper(kernel_7=83.31), 0.3).passed
    assert check(ablation_of(A), paper(kernel_7=83.31), 0.3).lines[0].endswith("0.31 below")


@pytest.mark.parametrize(
    ("step", "why"),
    [("increase_width", "diverged"), ("layer_norm", "no result"), ("nonesuch", "no such step")],
)
def test_a_step_without_a_result_is_out(step: str, why: str) -> None:
    assert check(ablation_of(A), paper(**{step: 80.0}), 50).lines == [
        f"{step}: {why} here, 80.00 ± 0.10 (n = 3) in the paper"
    ]


def test_only_the_papers_own_task_can_be_checked_against_the_paper() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"^--check the paper has no accuracies for these runs "
            r"\(data set 'torch/cifar10', 32 px\).*--against"
        ),
    ):
        published_top1(ablation_of(A))
    on_imagenet = measured(ROADMAP, "imagenet", {}, [])
    assert published_top1(on_imagenet).top1["gelu"] == Summary(80.62, 0.14, 3)
    assert len(published_top1(on_imagenet).top1) == 17


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "has no column step and no column top1_mean"),
        (b"step,top1\ngelu,80\n", "has no column top1_mean"),
        (b"step,top1_mean\n", "holds no accuracy"),
        (b"step,top1_mean\ngelu,\n", "holds no accuracy"),
        (b"step,top1_mean\ngelu,80\nkernel_7,abc\n", "line 3: top1_mean is not a number: 'abc'"),
        (b"step,top1_mean\ngelu,nan\n", "line 2: top1_mean is not a number: 'nan'"),
        (b"step,top1_mean\ngelu,0.8e3\n", "line 2: top1_mean is a percentage, not 800"),
        (b"step,top1_mean,n\ngelu,80,x\n", "line 2: n is not a number: 'x'"),
        (b"step,top1_mean\ngelu,80\ngelu,81\n", "line 3: gelu is a duplicate"),
        (b'step,top1_mean\n"gelu,80\n', "is not a CSV file"),
        (b"\xff\xfe\x00", "is not a CSV file"),
    ],
)
def test_a_table_that_cannot_be_checked_against_is_one_clear_error(
    text: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "old.csv").write_bytes(text)
    with pytest.raises(ConfigError) as error:
        read_expected(tmp_path / "old.csv")
    assert len(error.value.problems) == 1
    assert f"old.csv {said}" in str(error.value)


def collect(*words: str | Path, cwd: Path, seed: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    command = [sys.executable, str(ROOT / "collect.py"), *map(str, words)]
    if not seed:
        return commands.run(command, cwd=cwd)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def write(runs: Path, top1: Top1, profile: str | None) -> None:
    for step, values in top1.items():
        for seed, value in values.items():
            run = prepare(runs, resolve(ROADMAP, step, profile=profile, seed=seed))
            result = result_of(step, seed, run.hash, value, profile=profile)
            run.result.write_text(json.dumps(result.model_dump(mode="json")), encoding="utf-8")


def test_checking_exits_with_0_or_3_and_writes_the_tables_either_way(tmp_path: Path) -> None:
    write(tmp_path / "runs", {"resnet50": {0: 76.0}, "enhanced_recipe": {0: 78.7, 1: 79.0}}, None)
    against_paper = collect("runs", "--out", "out", "--tables-only", "--check", "0.2", cwd=tmp_path)
    assert against_paper.returncode == 3
    lines = against_paper.stdout.splitlines()
    assert lines[-1] == "check: 2 of 17 steps within 0.2 points of the paper"
    assert "gelu: no result here, 80.62 ± 0.14 (n = 3) in the paper" in lines
    again = collect(
        "runs",
        "--out",
        "two",
        "--tables-only",
        "--check",
        "0.01",
        "--against",
        "out/ablation.csv",
        cwd=tmp_path,
    )
    assert (again.returncode, again.stdout.splitlines()[-1]) == (
        0,
        "check: 2 of 2 steps within 0.01 points of out/ablation.csv",
    )
    assert (tmp_path / "out" / "ablation.md").read_bytes() == (tmp_path / "two" / "ablation.md").read_bytes()


def test_two_folders_make_a_comparison_and_the_same_one_every_time(tmp_path: Path) -> None:
    write(tmp_path / "a", A, "cifar10")
    write(tmp_path / "b", B, "cifar100")
    for seed, (one, other) in enumerate([("a", "b"), ("a/convnext_t/cifar10", "b/convnext_t")]):
        done = collect(one, other, "--out", f"out{seed}", cwd=tmp_path, seed=seed)
        assert (done.returncode, done.stderr) == (0, "")
        assert "contradict" in done.stdout
    files = {
        path.relative_to(tmp_path / "out0").as_posix()
        for path in (tmp_path / "out0").rglob("*")
        if path.is_file()
    }
    wanted = {
        "comparison.md",
        "a-cifar10/ablation.md",
        "b-cifar100/ablation.json",
        "b-cifar100/runs.csv",
        "roadmap.pdf",
        "report.html",
    }
    assert wanted <= files
    assert not any(name.startswith("ablation") for name in files)
    assert [
        name
        for name in sorted(files)
        if (tmp_path / "out0" / name).read_bytes() != (tmp_path / "out1" / name).read_bytes()
    ] == []


def test_two_roadmaps_of_the_paper_make_a_comparison(tmp_path: Path) -> None:
    done = collect("--paper", "convnext_t", "convnext_b", "--out", "out", "--tables-only", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    kinds = ("csv", "html", "json", "md", "tex")
    names = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    tables = {f"{roadmap}/ablation.{kind}" for roadmap in ("convnext_t", "convnext_b") for kind in kinds}
    assert names == tables | {f"comparison.{kind}" for kind in kinds}
    assert "+0.64 [+0.16, +0.87] (n = 16 steps)" in (tmp_path / "out" / "comparison.md").read_text(
        encoding="utf-8"
    )
