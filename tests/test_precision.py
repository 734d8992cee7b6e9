"""Seeds for a given precision: the two-stage procedure covers as it promises, within its limits."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from roadmap import ROOT
from roadmap.cli import collect as cli_collect
from roadmap.cli.options import main_of
from roadmap.config import RunConfig
from roadmap.records import prepare
from roadmap.report.precision import Contrast, Precision, allocate, two_stage
from roadmap.report.stats import difference
from roadmap.steps import load_roadmap, resolve
from slurm import submit as cli_submit
from tests.helpers.reports import result_of

PAGE = (ROOT / "docs/seeds.md").read_text(encoding="utf-8")
Floats = NDArray[np.float64]

# The mathematics


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(2, 20))
def test_the_pairs_needed_are_the_fewest_that_give_the_width(spread: float, width: float, first: int) -> None:
    precision = Precision(width, first)
    needed = precision.needed(spread)
    quantile = stats.t.ppf(0.975, first - 1)
    assert precision.margin(spread, 4) == pytest.approx(quantile * spread / 2)
    if quantile * spread / width < 1e5:
        assert precision.margin(spread, needed) <= width * (1 + 1e-9)
    assert needed == first or precision.margin(spread, needed - 1) > width * (1 - 1e-9)


def test_the_first_stage_alone_gives_the_paired_t_interval() -> None:
    child, parent = {0: 81.0, 1: 83.0, 2: 82.5}, {0: 80.0, 1: 80.5, 2: 81.0}
    found, plain = two_stage(child, parent, Precision(5.0, 3)), difference(child, parent)
    assert found
    assert plain
    assert found.reached
    assert (found.pairs, found.needed) == (3, 3)
    assert (found.delta.value, found.delta.margin, found.delta.p) == pytest.approx(
        (plain.value, plain.margin, plain.p)
    )


def test_seeds_beyond_those_needed_change_nothing_and_missing_ones_leave_the_interval_wide() -> None:
    child, parent = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0}
    precision = Precision(2.0, 3)  # 4.30 * 1 / 2, squared: 5 pairs
    child |= {3: 4.0, 4: 5.0}
    four, five, nine = (
        two_stage(child, dict.fromkeys(seeds, 0.0), precision) for seeds in (range(4), range(5), range(9))
    )
    assert four
    assert five
    assert (four.pairs, four.needed, four.reached) == (4, 5, False)
    assert (five.pairs, five.needed, five.reached) == (5, 5, True)
    assert five.delta.margin == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(5))
    more = two_stage(child | dict.fromkeys(range(5, 9), 99.0), dict.fromkeys(range(9), 0.0), precision)
    assert five == nine == more
    for gone in ({1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, {0: 1.0, 1: 1.0, 2: 1.0}):  # no seed 0; no spread
        unknown = two_stage(gone, parent, precision)
        assert unknown
        assert (unknown.delta.margin, unknown.needed, unknown.reached) == (None, None, False)
    assert two_stage({}, parent, precision) is None


def test_a_step_gets_the_most_seeds_that_a_difference_of_its_own_takes() -> None:
    precision, hours = Precision(1.0, 3), {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}
    contrasts = [Contrast("b", "a", 0.5), Contrast("c", "b", 1.0), Contrast("d", "c", 0.1)]
    plan = allocate(contrasts, hours, precision)
    assert plan.seeds == {"a": 5, "b": 19, "c": 19, "d": 3}
    assert plan.second_stage(hours) == 2 * 1 + 16 * 2 + 16 * 4
    assert all(map(plan.reaches, contrasts))
    capped = allocate(contrasts, hours, precision, max_seeds=10)
    assert capped.seeds == {"a": 5, "b": 10, "c": 10, "d": 3}
    assert list(map(capped.reaches, contrasts)) == [True, False, True]
    assert capped.margin(contrasts[1]) == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(10))
    for budget in (0.0, 5.9, 6.0, 50.0, 97.9, 98.0):
        limited = allocate(contrasts, hours, precision, budget=budget)
        assert limited.second_stage(hours) <= budget
        assert limited.second_stage(hours) > budget - 7, "no pair more of the widest difference"
        assert limited.seeds == plan.seeds or limited.width > 1


# Simulations of it

# Three differences share the parent `a` or `b`, whose runs are in each of them.
PARENTS = {"b": "a", "c": "b", "d": "b", "e": "d"}
CASES: dict[str, tuple[int, tuple[float, ...], float, int | None, float | None]] = {
    "equal variances, 3 seeds": (3, (0.5,) * 5, 0.0, None, None),
    "unequal variances, seeds correlated, 3 seeds": (3, (0.2, 0.7, 0.3, 0.4, 0.1), 0.5, None, None),
    "equal variances, 5 seeds": (5, (0.7,) * 5, 0.0, None, None),
    "unequal variances, seeds correlated, 5 seeds": (5, (0.3, 1.0, 0.4, 0.6, 0.2), 0.5, None, None),
    "at most 8 seeds": (3, (0.2, 0.7, 0.3, 0.4, 0.1), 0.5, 8, None),
    "a budget of 20 runs": (3, (0.2, 0.7, 0.3, 0.4, 0.1), 0.5, None, 20.0),
}


@pytest.mark.parametrize(("first", "stds", "common", "most", "budget"), CASES.values(), ids=CASES)
def test_the_intervals_cover(
    first: int, stds: tuple[float, ...], common: float, most: int | None, budget: float | None
) -> None:
    """All effects are zero; an effect would shift the accuracies and nothing else."""
    repeats, rng = 1500, np.random.default_rng(19)
    precision, hours = Precision(1.0, first), dict.fromkeys("abcde", 1.0)

    def draw(seeds: int) -> list[list[float]]:
        """Accuracies of so many seeds of each step."""
        own = np.array(stds)[:, None] * rng.standard_normal((5, seeds))
        found: list[list[float]] = (own + common * rng.standard_normal(seeds)).tolist()
        return found

    covered = reached = 0
    for _ in range(repeats):
        top1 = dict(zip("abcde", draw(first), strict=True))
        by_seed = {step: dict(enumerate(values)) for step, values in top1.items()}
        spreads = {step: precision.spread(by_seed[step], by_seed[parent]) for step, parent in PARENTS.items()}
        contrasts = [Contrast(step, PARENTS[step], spread) for step, spread in spreads.items() if spread]
        plan = allocate(contrasts, hours, precision, most, budget)
        assert most is None or max(plan.seeds.values()) <= most
        assert budget is None or plan.second_stage(hours) <= budget
        more = draw(max(plan.seeds.values()) - first)
        for (step, seeds), others in zip(plan.seeds.items(), more, strict=True):
            by_seed[step] |= enumerate(others[: seeds - first], first)
        for contrast in contrasts:
            found = two_stage(by_seed[contrast.step], by_seed[contrast.parent], precision)
            assert found
            assert found.delta.margin == plan.margin(contrast)
            assert found.reached == plan.reaches(contrast) == (plan.margin(contrast) <= 1)
            covered += not found.delta.resolved
            reached += found.reached
    assert covered / (repeats * len(PARENTS)) >= 0.94
    if most is None and budget is None:
        assert reached == repeats * len(PARENTS)
    else:
        assert 0 < reached < repeats * len(PARENTS)


def first_significant(values: Floats, first: int) -> Floats:
    """Which rows of differences have p < .05 at some number of seeds from `first` on."""
    n = np.arange(1, values.shape[1] + 1)
    mean = values.cumsum(1) / n
    variance = ((values**2).cumsum(1) - n * mean**2)[:, first - 1 :] / (n - 1)[first - 1 :]
    t = np.abs(mean[:, first - 1 :]) * np.sqrt(n[first - 1 :] / variance)
    found: Floats = (t > stats.t.ppf(0.975, n[first - 1 :] - 1)).any(1)
    return found


def ordinary_coverage(first: int, rng: np.random.Generator, repeats: int) -> float:
    """Of the ordinary t interval over all pairs of the two-stage procedure, where spread and width are 1.

    Sums of squares have chi-squared distributions, so that only the first stage is drawn pair by pair.
    """
    pairs = rng.standard_normal((repeats, first))
    n = np.maximum(first, np.ceil((stats.t.ppf(0.975, first - 1) * pairs.std(1, ddof=1)) ** 2))
    more = n - first
    other = rng.standard_normal(repeats) / np.sqrt(np.maximum(more, 1)) * (more > 0)
    squares = (pairs.var(1) * first) + rng.chisquare(np.maximum(more - 1, 1)) * (more > 1)
    squares += first * more / n * (pairs.mean(1) - other) ** 2
    mean = (first * pairs.mean(1) + more * other) / n
    inside = np.abs(mean) <= stats.t.ppf(0.975, n - 1) * np.sqrt(squares / (n - 1) / n)
    return float(inside.mean())


def test_the_page_states_what_peeking_does() -> None:
    """In 100,000 simulated differences of steps that change nothing."""
    values = np.random.default_rng(0).standard_normal((100_000, 20))
    fixed, peeking = (first_significant(of, n).mean() for of, n in ((values, 20), (values, 3)))
    assert 0.045 < fixed < 0.055
    assert f"| {100 * peeking:.0f} % |" in PAGE
    coverage = [ordinary_coverage(n, np.random.default_rng(1), 100_000) for n in (3, 5)]
    assert (
        f"{100 * coverage[0]:.0f} % with a first stage of 3 seeds and {100 * coverage[1]:.0f} % with 5"
        in PAGE
    )


def test_the_page_states_the_seeds_that_a_first_stage_leads_to() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0]) for row in rows] == [2, 3, 5, 8, 10]
    for first, factor, at_one in rows:
        squared = stats.t.ppf(0.975, int(first) - 1) ** 2
        assert float(factor) == pytest.approx(squared, abs=0.05)
        assert int(at_one) == max(int(first), math.ceil(squared))


# The command lines

STEPS = ["resnet50", "enhanced_recipe", "stage_ratio"]
# of three seeds, and of those that follow: the spread of the first difference is 1, that of the second .1
FIRST = {"resnet50": [80.0] * 3, "enhanced_recipe": [80.0, 81.0, 82.0], "stage_ratio": [80.0, 81.1, 82.2]}


@cache
def config_of(step: str, profile: str) -> RunConfig:
    return resolve(load_roadmap(), step, profile=profile)


def finish(runs: Path, step: str, seed: int, top1: float | None, profile: str = "cifar10") -> None:
    run = prepare(runs, config_of(step, profile).model_copy(update={"seed": seed}))
    found = result_of(step, seed, run.hash, top1, profile=profile, dataset=profile, train_seconds=1800.0)
    run.result.write_text(found.model_dump_json(), encoding="utf-8")


def finish_first(runs: Path, profile: str = "cifar10") -> None:
    for step, values in FIRST.items():
        for seed, top1 in enumerate(values):
            finish(runs, step, seed, top1, profile)


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line in `tmp_path`, and returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(script: str, *words: str) -> tuple[int, str, str]:
        module = {"submit": cli_submit, "collect": cli_collect}[script]
        monkeypatch.setattr("sys.argv", [script, *words])
        code = main_of(module.parser(), module.run)
        return (code, *capsys.readouterr())

    return run


def plan_of(output: str) -> dict[str, list[str]]:
    """The cells of the printed plan, by step."""
    lines = (line.split() for line in output.splitlines())
    return {words[0]: words[1:] for words in lines if words and words[0] in STEPS}


def dry_run(call: Call, *words: str, precision: str = "1") -> str:
    given = ("--cluster", "local", "--profile", "cifar10", "--steps", *STEPS, "--precision", precision)
    code, output, errors = call("submit", *given, "--dry-run", *words)
    assert (code, errors) == (0, "")
    return output


def test_a_dry_run_shows_the_plan_and_its_cost_and_writes_nothing(call: Call, tmp_path: Path) -> None:
    assert "first stage: 9 of 9 runs unfinished; when all have a result" in dry_run(call)
    assert not any(tmp_path.iterdir())
    finish_first(tmp_path / "runs")
    before = sorted(tmp_path.rglob("*"))
    output = dry_run(call)
    assert plan_of(output) == {
        "resnet50": ["–", "–", "–", "–", "–", "–", "19", "8.00"],
        "enhanced_recipe": ["resnet50", "1.00", "19", "3", "no", "0.99", "19", "8.00"],
        "stage_ratio": ["enhanced_recipe", "0.10", "3", "3", "yes", "0.25", "3", "0.00"],
    }
    assert "second stage: 32 runs after seed 2, 16.00 device-hours" in output
    assert "41 runs: 32 pending, 9 done; " in output
    assert "\nestimate: " in output
    capped = dry_run(call, "--max-seeds", "10")
    assert [cells[-2] for cells in plan_of(capped).values()] == ["10", "10", "3"]
    assert "not to ± 1: enhanced_recipe (± 1.36)\n" in capped
    limited = dry_run(call, "--budget", "10")
    assert [cells[-2] for cells in plan_of(limited).values()] == ["13", "13", "3"]
    assert "--budget allows ± 1.19 instead of ± 1\n" in limited
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_diverged_promise_nothing(call: Call, tmp_path: Path) -> None:
    finish_first(tmp_path / "runs")
    finish(tmp_path / "runs", "enhanced_recipe", 5, None)
    output = dry_run(call)
    assert "enhanced_recipe: will not reach ± 1, since seed 5 of enhanced_recipe diverged" in output
    finish(tmp_path / "runs", "stage_ratio", 1, None)
    output = dry_run(call)
    assert "stage_ratio: no interval, since seed 1 of stage_ratio diverged" in output
    assert plan_of(output)["stage_ratio"] == ["enhanced_recipe", *["–"] * 5, "3", "0.00"]
    for seed in range(3):
        finish(tmp_path / "runs", "stage_ratio", seed, FIRST["enhanced_recipe"][seed] + 1)
    assert "all differences of the first stage are the same" in dry_run(call)


def test_both_stages_by_the_same_command_and_the_table_that_reports_them(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a Slurm that accepts everything; all runs of the second stage get results by hand."""
    for name, line in {"sbatch": "echo $$", "squeue": "", "srun": "", "scontrol": ""}.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    runs = tmp_path / "runs"

    def submit() -> tuple[str, set[tuple[str, int]]]:
        """What is printed, and the runs without a result, which were submitted."""
        words = ("--cluster", "slurm", "--profile", "synthetic", "--steps", *STEPS, "--precision", "1")
        code, output, errors = call("submit", *words)
        assert (code, errors) == (0, "")
        folders = [path for path in runs.glob("*/synthetic/*/seed*") if not (path / "result.json").exists()]
        return output, {(path.parent.name, int(path.name[4:].partition("-")[0])) for path in folders}

    output, submitted = submit()
    assert "9 runs: 9 pending; 0 in the queue, 9 to submit" in output
    assert submitted == {(step, seed) for step in STEPS for seed in range(3)}
    collecting = next(runs.glob("*/*/jobs/collect/*_submitted.pkl")).read_bytes()
    assert b"--precision" in collecting
    finish_first(runs, "synthetic")
    output, submitted = submit()
    assert "41 runs: 32 pending, 9 done; 0 in the queue, 32 to submit" in output
    assert submitted == {(step, seed) for step in STEPS[:2] for seed in range(3, 19)}
    for step, seed in submitted:
        finish(runs, step, seed, 80.0 if step == "resnet50" else 84.0 + seed % 3, "synthetic")
    output, submitted = submit()
    assert "41 runs: 41 done; 0 in the queue, 0 to submit" in output
    assert submitted == set()
    assert [cells[4] for cells in plan_of(output).values()] == ["–", "yes", "yes"]

    def rows() -> dict[str, Any]:
        code, output, errors = call("collect", "runs", "--precision", "1", "--tables-only", "--out", "out")
        assert (code, errors) == (0, "")
        assert "Known to ± 1 points: 2 of 18 differences" in output
        found = json.loads((tmp_path / "out/ablation.json").read_text(encoding="utf-8"))["rows"]
        return {row["step"]: row["delta"] for row in found if row["delta"]}

    before = rows()
    pairs = FIRST["enhanced_recipe"] + [84.0 + seed % 3 for seed in range(3, 19)]
    wanted = {
        "value": sum(pairs) / 19 - 80,
        "margin_95": stats.t.ppf(0.975, 2) / math.sqrt(19),
        "p": 2 * stats.t.sf((sum(pairs) / 19 - 80) * math.sqrt(19), 2),
    }
    found = before["enhanced_recipe"]
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    assert [found[key] for key in ("pairs", "pairs_needed", "reached", "resolved")] == [19, 19, True, True]
    table = (tmp_path / "out/ablation.md").read_text(encoding="utf-8")
    assert "| precision reached? |" in table
    for step in STEPS[:2]:
        finish(runs, step, 19, 0.0, "synthetic")
    assert rows() == before, "a seed more is no part of the procedure"


BAD = {
    "--precision 0": "--precision must be more than 0 points, not 0",
    "--precision nan": "--precision must be more than 0 points, not nan",
    "--precision -1": "--precision must be more than 0 points, not -1",
    "--precision inf": "--precision must be more than 0 points, not inf",
    "--precision 1 --seeds 1": "--seeds must be at least 2 with --precision, not 1: the first stage measures"
    " the spread",
    "--precision 1 --max-seeds 2": "--max-seeds must be from --seeds, 3, to 1,000, not 2",
    "--precision 1 --max-seeds 2000": "--max-seeds must be from --seeds, 3, to 1,000, not 2,000",
    "--precision 1 --budget -1": "--budget must be a number of hours, 0 or more, not -1",
    "--precision 1 --budget nan": "--budget must be a number of hours, 0 or more, not nan",
    "--precision 1 --ablate factorial:32": "--precision is about differences of a step to its parent; the"
    " averages of --ablate factorial:32 gain from more networks instead",
    "--max-seeds 4": "--max-seeds limits the seeds that --precision W asks for; give both",
    "--budget 4": "--budget limits the seeds that --precision W asks for; give both",
    "--precision 1 --steps gelu kernel_9": "--steps selects no step together with its parent; add kernel_7,"
    " move_up_depthwise",
    "--precision 0.001": "--precision 0.001 needs 18,512,821 seeds of 'resnet50', more than 1,000; give a"
    " larger one, or --max-seeds",
}


def test_bad_input_is_refused_and_touches_nothing(call: Call, tmp_path: Path) -> None:
    finish_first(tmp_path / "runs")
    before = sorted(tmp_path.rglob("*"))
    for words, message in BAD.items():
        given = ["--cluster", "local", "--profile", "cifar10", "--dry-run", "--steps", *STEPS, *words.split()]
        assert call("submit", *given) == (2, "", f"{message}\n"), words
    for words, message in {
        "--precision 0": "--precision must be more than 0 points, not 0",
        "--precision 1 --seeds 1": BAD["--precision 1 --seeds 1"],
        "--precision 1 --ablate factorial:32": BAD["--precision 1 --ablate factorial:32"],
        "--seeds 4": "--seeds is the size of the first stage of --precision W; give both",
        "runs --precision 1": "--precision takes one folder of RUNS",
    }.items():
        assert call("collect", "runs", *words.split(), "--out", "out") == (2, "", f"{message}\n"), words
    code, _, errors = call("collect", "--paper", "--precision", "1", "--out", "out")
    assert (code, errors) == (2, "--paper takes no --precision: the paper's values are from its own runs\n")
    assert sorted(tmp_path.rglob("*")) == before
