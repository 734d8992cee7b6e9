"""Damaged files are recovered from or named, and never read as a number."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.data.corrupt import CorruptImages
from roadmap.errors import ConfigError
from roadmap.files import JsonLines, create_exclusive, read_json_lines, write_atomic
from roadmap.lease import Lease, LeaseLost
from roadmap.records import DamagedResult, NewerResult, RunDir, find_runs, prepare, read_result, status
from roadmap.run import EXIT_BUSY, train_run
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import OutOfMemory
from roadmap.training.distributed import Distributed
from roadmap.training.evaluate import evaluate_found, find_run
from slurm.submission import is_open
from slurm.worker import next_open
from tests.helpers import commands
from tests.helpers.stopping import StopAt

TINY = {"data.copies": 1, "model.depths": [1, 1, 1, 1], "recipe.epochs": 2, "system.log_every": 5}


def config_of(**more: float) -> RunConfig:
    overrides = TINY | {f"recipe.{name}": value for name, value in more.items()}
    return resolve(load_roadmap(), "layer_norm", profile="digits", overrides=overrides)


def with_system(config: RunConfig, **values: int) -> RunConfig:
    return config.model_copy(update={"system": config.system.model_copy(update=values)})


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    config = config_of()
    run = prepare(tmp_path, config)
    train(config, run.path)
    return run


def test_a_run_directory_holds_what_it_should(finished: RunDir) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert names == {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "checkpoint",
        "attempts",
        "result.json",
    }
    assert len(list(finished.checkpoints.iterdir())) == 2
    result = read_result(finished)
    assert result is not None
    last = read_json_lines(finished.metrics)[-1]
    assert (result.top1, result.epochs, last["kind"]) == (last["top1"], 2, "epoch")
    assert finished.path.name == f"seed0-{result.hash}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "{",
        '{"format": 1}',
        '{"format": 0}',
        '{"format": "2"}',
        '{"format": 2',
        "[]",
        "null",
        "\xff",
    ],
)
def test_a_damaged_result_is_named_and_made_again(text: str, finished: RunDir) -> None:
    before = json.loads(finished.result.read_text(encoding="utf-8"))
    finished.result.write_text(text, encoding="utf-8")
    with pytest.raises(DamagedResult, match=r"result\.json is (empty|damaged)"):
        read_result(finished)
    assert status(finished).state == "stale"
    assert "result.json" in str(status(finished).why)
    again = train(config_of(), finished.path)
    assert (again.top1, again.iterations) == (before["top1"], before["iterations"])


@pytest.mark.parametrize("key", ["top1", "top5", "ema_top1"])
@pytest.mark.parametrize("percent", [163.0, -1.0, float("nan")])
def test_an_accuracy_that_is_no_percentage_is_damage(key: str, percent: float, finished: RunDir) -> None:
    document = json.loads(finished.result.read_text(encoding="utf-8"))
    finished.result.write_text(json.dumps(document | {key: percent}), encoding="utf-8")
    with pytest.raises(DamagedResult, match=rf"result\.json is damaged: {key}"):
        read_result(finished)


def test_the_next_attempt_takes_the_system_that_was_asked_for_last(tmp_path: Path) -> None:
    run = prepare(tmp_path, config_of())
    os.utime(run.config, (1000, 1000))
    asked = with_system(config_of(), workers=3)
    assert prepare(tmp_path, asked) == run
    assert RunConfig.read(run.config) == asked
    assert run.config.stat().st_mtime == 1000, "when the run was made"
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]
    run.config.write_text(config_of(lr=0.5).to_yaml(), encoding="utf-8")
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        prepare(tmp_path, asked)
    assert RunConfig.read(run.config) == config_of(lr=0.5)


def test_a_finished_run_keeps_the_system_that_it_was_trained_with(finished: RunDir, tmp_path: Path) -> None:
    for _ in range(2):
        assert prepare(tmp_path, with_system(config_of(), workers=3)) == finished
        assert RunConfig.read(finished.config) == config_of()
        newer(finished)


def newer(run: RunDir) -> bytes:
    """Gives a finished run the result of a later version; returns it."""
    document = json.loads(run.result.read_text(encoding="utf-8"))
    run.result.write_text(
        json.dumps(document | {"format": 2, "top1": {"mean": 1.0}, "seed": "zero"}), encoding="utf-8"
    )
    return run.result.read_bytes()


def test_a_newer_result_is_recognized_and_the_run_not_trained_again(finished: RunDir) -> None:
    before = newer(finished)
    said = (
        r"seed0-\w+/result\.json was written by a later version \(format 2, this one reads 1\); update this"
        r" code to collect it"
    )
    with pytest.raises(NewerResult, match=said):
        read_result(finished)
    assert status(finished).state == "newer"
    assert re.search(said, str(status(finished).why))
    assert status(finished).result is None
    with pytest.raises(NewerResult, match=said):
        train(config_of(), finished.path)
    assert finished.result.read_bytes() == before


def test_a_run_with_a_newer_result_is_neither_submitted_nor_taken(finished: RunDir) -> None:
    newer(finished)
    assert not is_open(status(finished), {})
    assert next_open([str(finished.path)], set()) == (None, False)


def test_training_a_run_with_a_newer_result_is_refused_by_the_command(
    finished: RunDir, tmp_path: Path
) -> None:
    before = newer(finished)
    command = [
        sys.executable,
        str(ROOT / "run_step.py"),
        "layer_norm",
        "--profile",
        "digits",
        "--runs",
        str(tmp_path),
    ]
    command += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    done = commands.run(command)
    assert done.returncode == 2
    assert "was written by a later version" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert finished.result.read_bytes() == before
    assert status(finished).state == "newer"


@pytest.mark.parametrize("field", ["step", "seed", "hash"])
def test_a_result_that_belongs_to_another_run_is_damaged(field: str, finished: RunDir) -> None:
    document = json.loads(finished.result.read_text(encoding="utf-8"))
    other = {"step": "gelu", "seed": 5, "hash": "01234567"}
    finished.result.write_text(json.dumps(document | {field: other[field]}), encoding="utf-8")
    with pytest.raises(DamagedResult, match=rf"is damaged: it belongs to .*{other[field]}"):
        read_result(finished)
    assert status(finished).state == "stale"


def test_a_result_that_is_a_folder_is_damaged(tmp_path: Path) -> None:
    run = prepare(tmp_path, config_of())
    run.result.mkdir()
    with pytest.raises(DamagedResult, match=r"result\.json cannot be read: Is a directory"):
        read_result(run)
    assert status(run).state == "pending"


def test_a_truncated_checkpoint_is_named_and_the_one_before_taken(
    finished: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    before = json.loads(finished.result.read_text(encoding="utf-8"))
    newest = max(finished.checkpoints.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1000])
    finished.result.unlink()
    with caplog.at_level(logging.WARNING):
        again = train(config_of(), finished.path)
    assert newest.name in caplog.text
    assert again.top1 == before["top1"]


def test_a_flipped_bit_is_noticed(finished: RunDir) -> None:
    newest, older = sorted(finished.checkpoints.iterdir(), reverse=True)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    states = list(Checkpoints(finished.checkpoints).load())
    assert [state["engine"]["iteration"] for state in states] == [int(older.name[:9])]


def test_a_checkpoint_that_cannot_be_read_ends_the_attempt_and_nothing_is_forgotten(finished: RunDir) -> None:
    """It may be whole, and the file system down for a moment; a folder stands in for what cannot be read."""
    newest = max(finished.checkpoints.iterdir())
    kept = newest.rename(finished.path / "kept")
    newest.mkdir()
    finished.result.unlink()
    before = {path: path.stat().st_mtime_ns for path in [finished.metrics, *finished.checkpoints.iterdir()]}
    with pytest.raises(IsADirectoryError):
        train(config_of(), finished.path)
    with pytest.raises(ConfigError, match="checkpoint cannot be read: Is a directory"):
        find_run(config_of(), finished)
    assert {
        path: path.stat().st_mtime_ns for path in [finished.metrics, *finished.checkpoints.iterdir()]
    } == before
    newest.rmdir()
    kept.rename(newest)
    assert train(config_of(), finished.path).attempts == 3


def test_without_any_intact_checkpoint_a_run_starts_again(finished: RunDir) -> None:
    before = json.loads(finished.result.read_text(encoding="utf-8"))
    for checkpoint in finished.checkpoints.iterdir():
        checkpoint.write_bytes(b"")
    finished.result.unlink()
    again = train(config_of(), finished.path)
    assert again.top1 == before["top1"]
    assert len(read_json_lines(finished.metrics)) == 2 * (18 // 5) + 1 + 2


def test_a_run_that_starts_again_keeps_its_new_checkpoints(finished: RunDir) -> None:
    for checkpoint in finished.checkpoints.iterdir():
        checkpoint.write_bytes(b"")
    finished.result.unlink()
    stop = StopSignals()
    with pytest.raises(Stopped):
        train(config_of(), finished.path, stop=stop, callback=StopAt(stop, 5))
    states = list(Checkpoints(finished.checkpoints).load())
    assert [state["engine"]["iteration"] for state in states] == [5]


def test_an_unreadable_epoch_line_does_not_lend_its_place_to_another(finished: RunDir) -> None:
    before = read_result(finished)
    assert before is not None
    finished.metrics.write_bytes(
        finished.metrics.read_bytes().replace(b'"kind": "epoch", "epoch": 2', b'"kind": "epoch", "epoch":"2')
    )
    finished.result.unlink()
    assert train(config_of(), finished.path).top1 == before.top1


def test_metrics_shorter_than_a_checkpoint_records_mean_an_older_checkpoint(finished: RunDir) -> None:
    lines = finished.metrics.read_bytes().splitlines(keepends=True)
    finished.metrics.write_bytes(b"".join(lines[:-1]))
    finished.result.unlink()
    train(config_of(), finished.path)
    assert [json.loads(line)["iteration"] for line in finished.metrics.read_bytes().splitlines()] == [
        json.loads(line)["iteration"] for line in lines
    ]


def test_a_truncated_last_line_is_skipped(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.append({"kind": "train"})
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "ep')
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"kind": "train"}]


def test_evaluating_gives_the_logged_accuracy(finished: RunDir, tmp_path: Path) -> None:
    result = read_result(finished)
    assert result is not None
    evaluations = evaluate_found(find_run(config_of(), finished), config_of())
    assert list(evaluations) == ["raw"]
    scores = evaluations["raw"].metrics
    assert (scores.top1, scores.top5, scores.loss) == (result.top1, result.top5, result.val_loss)
    with pytest.raises(ConfigError, match="has no checkpoint to evaluate"):
        find_run(config_of(), RunDir(tmp_path / "nothing"))


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run = prepare(tmp_path, config_of())
    run.config.write_text(config_of(lr=0.5).to_yaml(), encoding="utf-8")
    with pytest.raises(
        ConfigError,
        match=r"config\.yaml belongs to another configuration \(recipe\.lr: 0\.5 there, 0\.004 now\)",
    ):
        prepare(tmp_path, config_of())
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]


def test_divergence_is_a_result(tmp_path: Path) -> None:
    config = config_of(lr=1e6, warmup_epochs=0.0, epochs=4)
    run = prepare(tmp_path, config)
    result = train(config, run.path)
    assert (result.status, result.top1) == ("diverged", None)
    assert status(run).state == "diverged"
    assert result.epochs < 4
    assert all(b"NaN" not in line for line in run.metrics.read_bytes().splitlines())


def test_a_full_disk_leaves_the_last_checkpoint_and_one_clear_message(tmp_path: Path) -> None:
    config = config_of()
    run = prepare(tmp_path, config)
    limit = 60_000  # bytes a file may have: enough for the log, not for a checkpoint
    script = (
        f"import resource, runpy\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"runpy.run_path({str(ROOT / 'run_step.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", script, "layer_norm", "--profile", "digits", "--runs", str(tmp_path)]
    command += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    done = commands.run(command)
    assert done.returncode == 1
    assert "resumes from the last intact checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(run.checkpoints.iterdir()) == []
    assert status(run).state == "failed"
    assert train(config, run.path).status == "done"


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_atomic(target, "first")
    code = (
        "import resource, sys, pathlib\nfrom roadmap.files import"
        " write_atomic\nresource.setrlimit(resource.RLIMIT_FSIZE, (10,"
        " 10))\nwrite_atomic(pathlib.Path(sys.argv[1]), 'x' * 100)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True).returncode == 1
    assert target.read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_exclusive_creation_happens_once(tmp_path: Path) -> None:
    assert create_exclusive(tmp_path / "a", "one")
    assert not create_exclusive(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "one"


def test_runs_are_found_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    run = prepare(tmp_path / "deep", config_of())
    (tmp_path / "seed0-nothex").mkdir()
    assert find_runs(tmp_path) == find_runs(run.path) == [run]
    with pytest.raises(ConfigError, match="cannot be read as a folder of runs"):
        find_runs(tmp_path / "missing")
    with pytest.raises(
        ConfigError, match=r"config\.yaml cannot be read as a folder of runs: Not a directory"
    ):
        find_runs(run.config)


def test_runs_are_found_in_the_order_of_their_folders(tmp_path: Path) -> None:
    names = ["b/digits/gelu", "a-b/digits/gelu", "a/digits/gelu", "a/digits/gelu-gelu", "a/digits/gelu+gelu"]
    for name in names:
        for seed in (10, 2):
            (tmp_path / "runs" / name / f"seed{seed}-0123abcd").mkdir(parents=True)
    found = [run.path for run in find_runs(tmp_path / "runs")]
    assert found == sorted(
        (tmp_path / "runs").resolve() / name / f"seed{seed}-0123abcd" for name in names for seed in (2, 10)
    )


def test_the_search_for_runs_does_not_descend_into_a_run(tmp_path: Path) -> None:
    inner = tmp_path / "convnext_t/digits/gelu/seed0-0123abcd"
    (inner / "a/b/c/seed1-0123abcd").mkdir(parents=True)
    assert [run.path for run in find_runs(tmp_path)] == [inner.resolve()]


def test_a_run_leased_by_another_process_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare(tmp_path, config_of())
    with Lease(run.path):
        assert train_run(config_of(), tmp_path) == EXIT_BUSY
    assert f"is being worked on by process {os.getpid()}" in capsys.readouterr().err.replace("\n", " ")
    assert not run.metrics.exists()


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    config = resolve(
        load_roadmap(), "layer_norm", profile="digits", overrides=TINY | {"system.device": "cuda"}
    )
    with pytest.raises(ConfigError, match="'cuda' is unavailable on this machine"):
        train_run(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [OSError("torn"), OutOfMemory("out of memory"), CorruptImages("too many"), LeaseLost("taken over")],
)
def test_a_process_that_fails_does_not_wait_for_the_others(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It leaves their world by its error, for to leave it well takes all of them."""
    left: list[Exception] = []

    @contextmanager
    def joined(stop: StopSignals) -> Iterator[Distributed]:
        try:
            yield Distributed()
        except Exception as found:
            left.append(found)
            raise

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("roadmap.training.distributed.joined", joined)
    monkeypatch.setattr("roadmap.train.train", fail)
    assert train_run(config_of(), tmp_path) == (EXIT_BUSY if isinstance(error, LeaseLost) else 1)
    assert left == [error]
    assert str(error) in capsys.readouterr().err
