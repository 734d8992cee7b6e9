"""Runs of another configuration than the steps file's are named with the options that take them, or taken as
they were trained.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from roadmap.cli import collect
from roadmap.cli.options import main_of
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, resolve
from tests.helpers.reports import result_of

STEPS = ("resnet50", "enhanced_recipe", "increase_width", "gelu")
# all steps but the first smooth labels so
OTHERS = {"recipe.epochs": 7, "recipe.label_smoothing": 0.1, "data.val_split": "it's 08"}
OPTIONS = "--set recipe.epochs=7 --set recipe.label_smoothing=0.1 --set 'data.val_split=it'\"'\"'s 08'"


def train(runs: Path, step: str, seed: int = 0, overrides: Mapping[str, Any] | None = None) -> RunDir:
    run = prepare(runs, resolve(load_roadmap(), step, profile="cifar10", seed=seed, overrides=overrides))
    document = result_of(step, seed, run.hash, 80.0 + seed, profile="cifar10").model_dump(mode="json")
    run.result.write_text(json.dumps(document), encoding="utf-8")
    return run


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Collects tables of `runs` with more options; returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def collected(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["collect.py", "runs", "--out", "out", "--tables-only", *words])
        return main_of(collect.parser(), collect.run), *capsys.readouterr()

    return collected


def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/ablation.json").read_text(encoding="utf-8"))
    return found


def seeds() -> dict[str, int]:
    """How many runs of each step are in the table."""
    return {row["step"]: len(row["seeds"]) for row in table()["rows"] if row["seeds"]}


def left_out() -> list[str]:
    return [note for note in table()["notes"] if "left out" in note]


def test_overrides_shared_by_all_runs_apply_where_none_matches_the_steps_file(
    tmp_path: Path, call: Any
) -> None:
    for step in STEPS:
        train(tmp_path / "runs", step, overrides=OTHERS)
    assert call()[0] == 0
    assert seeds() == dict.fromkeys(STEPS, 1)
    assert table()["overrides"] == OTHERS
    assert (
        table()["notes"][0]
        == f"Collected with {OPTIONS}, as the runs were trained; none has the configuration of the steps"
        " file."
    )
    assert left_out() == []
    as_default = table()
    assert call(*shlex.split(OPTIONS))[0] == 0
    assert (table()["rows"], table()["notes"]) == (as_default["rows"], as_default["notes"][1:])


def test_runs_of_several_configurations_are_left_out_each_with_the_options_that_take_it(
    tmp_path: Path, call: Any
) -> None:
    runs = tmp_path / "runs"
    for step in STEPS:
        for seed in (0, 1):
            train(runs, step, seed, overrides=OTHERS)
    train(runs, "gelu", overrides={"recipe.lr": 1e-6})
    train(runs, "gelu")
    assert call()[0] == 0
    assert seeds() == {"gelu": 1}
    assert left_out() == [
        (
            "8 runs of another configuration left out (resnet50, enhanced_recipe, increase_width and 1 more"
            f" step); add {OPTIONS} to collect them."
        ),
        "1 run of another configuration left out (gelu); add --set recipe.lr=1e-06 to collect it.",
    ]
    assert call("--set", "recipe.lr=1e-6")[0] == 0
    assert seeds() == {"gelu": 1}
    assert left_out()[1:] == [
        "1 run of another configuration left out (gelu); leave --set out to collect it."
    ]
    assert call(*shlex.split(OPTIONS))[0] == 0
    assert seeds() == dict.fromkeys(STEPS, 2)


def test_without_a_run_of_these_steps_an_error_names_those_that_are_there(tmp_path: Path, call: Any) -> None:
    for step, overrides in (("resnet50", OTHERS), ("gelu", {"recipe.lr": 1e-6})):
        train(tmp_path / "runs", step, overrides=overrides)
    code, printed, error = call()
    assert (code, printed) == (2, "")
    assert error.startswith("runs holds no finished run of these configurations (2 done in all);")
    assert error.count("of another configuration left out") == 2
    assert not Path("out").exists()


def test_as_trained_takes_shared_overrides_even_if_some_runs_match_the_steps_file(
    tmp_path: Path, call: Any
) -> None:
    for step in STEPS:
        train(tmp_path / "runs", step, overrides={"recipe.label_smoothing": 0.1})
    assert call()[0] == 0
    assert seeds() == dict.fromkeys(STEPS[1:], 1)
    assert left_out() == [
        "1 run of another configuration left out (resnet50); add --set recipe.label_smoothing=0.1 to"
        " collect it."
    ]
    assert call("--as-trained")[0] == 0
    assert seeds() == dict.fromkeys(STEPS, 1)
    assert table()["notes"][0] == "Collected with --set recipe.label_smoothing=0.1, as the runs were trained."


def test_as_trained_changes_nothing_where_all_runs_match_the_steps_file(tmp_path: Path, call: Any) -> None:
    train(tmp_path / "runs", "gelu")
    assert call("--as-trained")[0] == 0
    assert (seeds(), table()["overrides"]) == ({"gelu": 1}, {})
    assert not [note for note in table()["notes"] if "trained" in note]


def test_as_trained_is_refused_where_runs_differ(tmp_path: Path, call: Any) -> None:
    train(tmp_path / "runs", "resnet50", overrides={"recipe.epochs": 7})
    train(tmp_path / "runs", "resnet50", 1, overrides={"recipe.epochs": 7})
    train(tmp_path / "runs", "gelu")
    message = "--as-trained the runs in runs do not share one configuration; choose one with --set: "
    assert call("--as-trained") == (2, "", f"{message}--set recipe.epochs=7 (2 runs); no --set (1 run)\n")
    assert not (tmp_path / "out").exists()


def test_a_step_that_was_edited_since_is_named_as_such(tmp_path: Path, call: Any) -> None:
    runs = tmp_path / "runs"
    train(runs, "resnet50", overrides={"recipe.epochs": 7})
    train(runs, "kernel_5", overrides={"recipe.epochs": 7})
    train(runs, "kernel_7", overrides={"recipe.epochs": 7, "model.block.spatial.kernel": 13})
    edited = (
        "1 run left out, for kernel_7 was edited since: model.block.spatial.kernel was 13, is 7 now (trained"
        " with --set recipe.epochs=7)."
    )
    code, _, error = call()
    assert code == 2, "not all runs share one set of options"
    assert edited.rstrip(".") in error
    assert call("--as-trained")[0] == 0
    assert seeds() == {"resnet50": 1, "kernel_5": 1}
    assert left_out() == [edited]


@pytest.mark.parametrize("words", [["--set", "recipe.epochs=7"], ["--init-from", "w.pth"]])
def test_as_trained_leaves_nothing_to_be_set(words: list[str], call: Any) -> None:
    message = "--as-trained takes the overrides from the runs; leave out --set and --init-from\n"
    assert call("--as-trained", *words) == (2, "", message)


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, call: Any) -> None:
    train(tmp_path / "runs", "resnet50")
    run = train(tmp_path / "runs", "gelu", overrides={"recipe.epochs": 7})
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(text.replace("  epochs: 7\n", "  epochs: 8\n"), encoding="utf-8")
    assert call()[0] == 0
    where = f"runs/{run.name}/config.yaml"
    assert left_out() == [
        f"1 run of an unknown configuration left out (gelu): {where} gives another hash than {run.hash}."
    ]
    run.config.unlink()
    assert call()[0] == 0
    assert left_out() == [
        f"1 run of an unknown configuration left out (gelu): {where} cannot be read: No such file or"
        " directory."
    ]
