"""A run resumes in the data that its checkpoint was made in, and in no other."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare
from roadmap.signals import Stopped, StopSignals
from roadmap.train import train
from roadmap.training.checkpoint import Checkpoints
from tests.helpers.images import config_of, jpeg, plain, write_folder, write_shards
from tests.helpers.stopping import StopAt

EPOCHS, IMAGES, BATCH = 4, 42, 8  # five iterations an epoch, and two images left over
BUDGET: dict[str, Any] = {
    "recipe__epochs": EPOCHS,
    "recipe__global_batch": BATCH,
    "recipe__local_batch": BATCH,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", train=IMAGES // 3)


def stopped_run(config: RunConfig, runs: Path, iterations: int = 12) -> RunDir:
    """A run that was stopped in its third epoch."""
    run, stop = prepare(runs, config), StopSignals()
    with pytest.raises(Stopped):
        train(config, run.path, stop=stop, callback=StopAt(stop, iterations))
    return run


def more(data: Path, images: int) -> None:
    for number in range(images):
        (data / "train" / "ant" / f"more{number}.jpg").write_bytes(jpeg(1))


def fewer(data: Path) -> None:
    for path in sorted((data / "train").rglob("*.jpg"))[24:]:
        path.unlink()


def relabeled(data: Path) -> None:
    (data / "train" / "ant" / "0.jpg").rename(data / "train" / "bee" / "moved.jpg")


def renamed(data: Path) -> None:
    (data / "val" / "ant" / "0.jpg").rename(data / "val" / "ant" / "9.jpg")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "more": (
        lambda data: more(data, 16),
        "training images: 42 then, 58 now; iterations an epoch: 5 then, 7 now",
    ),
    "many more": (
        lambda data: more(data, 80),
        "training images: 42 then, 122 now; iterations an epoch: 5 then, 15 now",
    ),
    "one more": (
        lambda data: more(data, 1),
        "training images: 42 then, 43 now; digest of the training images",
    ),
    "fewer": (fewer, "training images: 42 then, 24 now; iterations an epoch: 5 then, 3 now"),
    "another label": (
        relabeled,
        r"digest of the training images' names and labels: \w{16} then, \w{16} now\)",
    ),
    "another validation image": (
        renamed,
        r"\(digest of the validation images' names and labels: \w{16} then, \w{16} now\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_has_changed_is_refused_and_nothing_lost(change: str, data: Path, tmp_path: Path) -> None:
    config = config_of(data, **BUDGET)
    run = stopped_run(config, tmp_path / "runs")
    before = {
        path: path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and "attempts" not in path.parts
    }
    shutil.copytree(data, tmp_path / "kept")
    alter, said = CHANGES[change]
    alter(data)
    with pytest.raises(
        ConfigError,
        match=(
            rf"^{re.escape(str(data))} has changed since iteration 12, in epoch 3, .*{said}.*; resume with"
            r" the data as"
        ),
    ):
        train(config, run.path)
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(data)
    (tmp_path / "kept").rename(data)
    result = train(config, run.path)
    assert (result.status, result.iterations, result.attempts) == ("done", 5 * EPOCHS, 3)


def forget(run: RunDir) -> None:
    """Makes the run's checkpoints those of a version that kept nothing of the data."""
    checkpoints = Checkpoints(run.checkpoints)
    state = checkpoints.newest()
    assert state is not None
    del state["data"], state["name"]
    shutil.rmtree(run.checkpoints)
    checkpoints.save(state["engine"]["iteration"], state)


@pytest.mark.parametrize(
    ("alter", "said"), [(lambda data: None, None), (fewer, "an epoch has 3 iterations now")]
)
def test_a_checkpoint_that_knows_nothing_of_the_data_is_held_to_its_epochs(
    alter: Callable[[Path], None], said: str | None, data: Path, tmp_path: Path
) -> None:
    config = config_of(data, **BUDGET)
    run = stopped_run(config, tmp_path / "runs", iterations=14)
    forget(run)
    alter(data)
    if said is None:
        assert train(config, run.path).status == "done"
        return
    with pytest.raises(ConfigError, match=said):
        train(config, run.path)
    assert not run.result.exists()


def test_a_stream_resumes_with_as_many_readers_only(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    root = write_shards(tmp_path / "shards", train=8, val=3)
    splits = {"data__train_split": "train-{00..07}.tar|32", "data__val_split": "val-{00..02}.tar|12"}
    configs = [
        plain(root, data__dataset="wds/pictures", system__workers=workers, **splits, **BUDGET)
        for workers in (0, 2)
    ]
    run = stopped_run(configs[0], tmp_path / "runs", iterations=6)
    with pytest.raises(
        ConfigError,
        match=r"processes x workers x images at a time that share the stream: 1 x 1 x 8 then, 1 x 2 x 8 now",
    ):
        train(configs[1], run.path)
    assert train(configs[0], run.path).status == "done"


def test_a_checkpoint_holds_the_classes_in_the_order_of_their_labels(data: Path, tmp_path: Path) -> None:
    run = stopped_run(config_of(data, **BUDGET), tmp_path / "runs")
    state = torch.load(next(run.checkpoints.glob("*.pt")), weights_only=True)
    assert state["data"]["classes"] == ["ant", "bee", "cat"]
    assert (state["data"]["images"], state["data"]["iterations_per_epoch"]) == (IMAGES, 5)
