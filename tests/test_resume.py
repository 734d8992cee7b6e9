"""A run that was killed or stopped ends exactly as one that was not: every logged loss and accuracy, and the
final weights.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.loader import Loader
from roadmap.records import RunDir, prepare, run_dir_of
from roadmap.run import train_run
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, parse_overrides, resolve
from roadmap.train import train
from roadmap.training.distributed import Distributed
from tests.helpers import commands
from tests.helpers.images import plain, write_folder
from tests.helpers.processes import finish, start, train_together
from tests.helpers.stopping import StopAt

# Everything that draws random numbers is on: drop path, RandAugment, crops, flips, erasing, mixup, cutmix;
# and EMA.
BUSY = [
    "data.copies=1",
    "model.depths=[1, 1, 2, 1]",
    "model.drop_path=0.2",
    "recipe.epochs=2",
    "recipe.mixup=0.8",
    "recipe.cutmix=1.0",
    "recipe.random_erasing=0.5",
    "recipe.randaugment=rand-m9-mstd0.5-inc1",
    "recipe.crop_scale=[0.5, 1.0]",
    "recipe.hflip=0.5",
    "recipe.ema=0.9",
    "system.log_every=2",
]
ITERATIONS = 36
STEP = "fewer_norms"
TIMES = {"seconds", "data_seconds", "images_per_s"}


def config_of(*more: str) -> RunConfig:
    return resolve(load_roadmap(), STEP, profile="digits", overrides=parse_overrides([*BUSY, *more]))


def metrics(run: RunDir) -> list[dict[str, Any]]:
    lines = run.metrics.read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def lines_of(run: RunDir) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    newest = max(run.checkpoints.glob("*.pt"))
    engine = torch.load(newest, weights_only=True)["engine"]
    assert engine["iteration"] == ITERATIONS
    return {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in engine[part].items()}


def assert_same(run: RunDir, other: RunDir) -> None:
    assert metrics(run) == metrics(other)
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that nothing disturbed."""
    config = config_of()
    run = prepare(tmp_path_factory.mktemp("quiet"), config)
    assert train(config, run.path).status == "done"
    return run


CASES = [
    (number, size, minutes, draw.randint(1, 22), draw.randint(1, 12))
    for number, (size, minutes, draw) in enumerate(
        (size, minutes, random.Random(f"{size} {minutes} {number}"))
        for size in (1, 2)
        for minutes, cases in ((0.0001, 3), (10.0, 1))
        for number in range(cases)
    )
]


@pytest.fixture(scope="module")
def quiet_pair(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of two processes that nothing disturbed; BN takes half of the batch in each."""
    config, runs = config_of("recipe.local_batch=32"), tmp_path_factory.mktemp("pair")
    assert finish(start(2, train_together, config, runs)) == [0, 0]
    return run_dir_of(runs, config)


@pytest.mark.parametrize(("number", "size", "minutes", "first", "second"), CASES)
def test_a_run_killed_twice_at_random_iterations_ends_the_same(
    number: int,
    size: int,
    minutes: float,
    first: int,
    second: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """The first of `size` processes dies of SIGKILL after `first` iterations, and again `second` iterations
    after it went on.
    """
    expected: RunDir = request.getfixturevalue("quiet" if size == 1 else "quiet_pair")
    config = config_of(f"recipe.local_batch={64 // size}", f"system.checkpoint_minutes={minutes}")
    run = run_dir_of(tmp_path, config)
    for iterations in (first, second):
        codes = finish(start(size, train_together, config, tmp_path, (signal.SIGKILL, iterations)))
        assert codes[0] == -signal.SIGKILL
        assert not run.result.exists()
    assert finish(start(size, train_together, config, tmp_path)) == [0] * size
    assert json.loads(run.result.read_text(encoding="utf-8"))["attempts"] == 3
    assert_same(run, expected)


@pytest.mark.parametrize("first", [1, 5, 17, 18, 19, 35, 36])
def test_stopping_at_an_iteration_changes_nothing(first: int, quiet: RunDir, tmp_path: Path) -> None:
    config = config_of()
    run = prepare(tmp_path, config)
    stop = StopSignals()
    with pytest.raises(Stopped):
        train(config, run.path, stop=stop, callback=StopAt(stop, first))
    assert not run.result.exists()
    assert train(config, run.path).attempts == 2
    assert_same(run, quiet)


def stop_in_evaluation(world: Distributed, config: RunConfig, runs: Path, evaluation: int) -> None:
    """Trains a run whose last process is sent SIGTERM as it takes the first batch of an evaluation."""
    batches, evaluations = Loader.epoch, itertools.count()

    def epoch(loader: Loader, *place: int) -> Iterator[Batch]:
        if not place and next(evaluations) == evaluation and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(loader, *place)

    Loader.epoch = epoch  # type: ignore[method-assign, assignment]
    train_together(world, config, runs)


@pytest.mark.parametrize("evaluation", [0, 1])
@pytest.mark.parametrize("size", [1, 2])
def test_a_run_stopped_while_it_evaluates_saves_and_evaluates_again(
    size: int, evaluation: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of two processes the first has two batches of 299 and 1, the other one of 299."""
    expected: RunDir = request.getfixturevalue("quiet" if size == 1 else "quiet_pair")
    config = config_of(f"recipe.local_batch={64 // size}", "system.eval_batch=299")
    run, epoch = run_dir_of(tmp_path, config), evaluation
    assert finish(start(size, stop_in_evaluation, config, tmp_path, evaluation)) == [0] * size
    assert not run.result.exists()
    saved = torch.load(max(run.checkpoints.glob(f"{18 * (epoch + 1):09d}-*.pt")), weights_only=True)
    assert saved["epoch"] == epoch
    assert sum(line["kind"] == "epoch" for line in metrics(run)) == epoch
    assert finish(start(size, train_together, config, tmp_path)) == [0] * size
    ours, theirs = weights(run), weights(expected)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for line, other in zip(metrics(run), metrics(expected), strict=True):
        # it is summed in other batches
        assert line.pop("val_loss", 0.0) == pytest.approx(other.pop("val_loss", 0.0), rel=1e-6)
        assert line == other


def test_kill_9_at_random_moments_changes_nothing(quiet: RunDir, tmp_path: Path) -> None:
    overrides = [*BUSY, "system.checkpoint_minutes=0.0001"]
    run = prepare(tmp_path, config_of("system.checkpoint_minutes=0.0001"))
    command = [
        sys.executable,
        str(ROOT / "run_step.py"),
        STEP,
        "--profile",
        "digits",
        "--runs",
        str(tmp_path),
    ]
    command += [word for override in overrides for word in ("--set", override)]
    moments = random.Random(7)
    for _ in range(3):
        # more than there is, so that the attempt is at work when it dies
        seen = lines_of(run) + moments.randint(1, 2)
        process = commands.Command(command)
        while lines_of(run) < seen:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        assert not run.result.exists()
    commands.run(command, check=True, timeout=300)
    assert json.loads(run.result.read_text(encoding="utf-8"))["attempts"] == 4
    assert_same(run, quiet)


def test_ctrl_c_leaves_a_run_that_resumes(quiet: RunDir, tmp_path: Path) -> None:
    run = prepare(tmp_path, config_of())
    command = [
        sys.executable,
        str(ROOT / "run_step.py"),
        STEP,
        "--profile",
        "digits",
        "--runs",
        str(tmp_path),
    ]
    command += [word for override in BUSY for word in ("--set", override)]
    process = commands.Command(command)
    while not run.metrics.exists() or not run.metrics.read_bytes():
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode == 128 + signal.SIGINT
    assert "the same command resumes the run" in said
    assert "Traceback" not in said
    commands.run(command, check=True, timeout=300)
    assert_same(run, quiet)


def test_a_finished_run_is_not_trained_again(quiet: RunDir) -> None:
    before = quiet.result.read_bytes()
    assert train(config_of(), quiet.path).status == "done"
    assert quiet.result.read_bytes() == before
    assert len(list((quiet.path / "attempts").iterdir())) == 1


def test_the_command_of_a_finished_run_reports_it_and_on_which_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, elsewhere = (plain(tmp_path / name, recipe__epochs=1) for name in ("data", "elsewhere"))
    write_folder(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    for again, said in (
        (config, None),
        (config, "the run is finished already\n"),
        (elsewhere, f"data in {tmp_path}/data, not in {tmp_path}/else"),
    ):
        assert train_run(again, tmp_path / "runs") == 0
        found = capsys.readouterr().err
        assert said in found if said else "finished already" not in found
