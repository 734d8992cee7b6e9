"""What cannot be read is named, counted and left out, until it is too much; signals are left to the process
that trains.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from roadmap.data.corrupt import CorruptImages
from roadmap.data.loader import Loader
from tests.helpers.images import (
    CLASSES,
    CPU,
    Pictures,
    batches,
    config_of,
    custom,
    labels_of,
    numbers_of,
    plain,
    plan_of,
    write_folder,
)

VAL = 9
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def damage(folder: Path, split: str, *names: str) -> None:
    for name in names:
        file = folder / split / name
        file.write_bytes(file.read_bytes()[:-200] if name.endswith("0.jpg") else b"no picture")


@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_the_next_image_takes_the_place_of_a_corrupt_one(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = plain(folder)
    before = [numbers_of(batches(whole, epoch=epoch), whole) for epoch in range(2)]
    damage(folder, "train", "ant/0.jpg", "bee/1.jpg", "bee/2.jpg")
    config = plain(folder, system__corrupt_images=3, system__workers=workers)
    loader = Loader(config, "train", CPU)
    replaced = {0: 1, 6: 8, 7: 8}
    for epoch in range(2):
        assert numbers_of(list(loader.epoch(epoch)), config) == [
            replaced.get(number, number) for number in before[epoch]
        ]
    assert loader.corrupt.count == 3
    if not workers:
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(said) == 3
        assert all(
            any(f"{name} is not an image that can be read" in line for line in said)
            for name in ("ant/0.jpg", "bee/1.jpg", "bee/2.jpg")
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_in_evaluation_a_corrupt_image_is_marked(folder: Path, workers: int) -> None:
    damage(folder, "val", "bee/1.jpg", "cat/2.jpg")
    config = plain(folder, system__corrupt_images=2, system__workers=workers, recipe__global_batch=6)
    loader = Loader(config, "val", CPU)
    found = list(loader.epoch())
    assert labels_of(found) == [0, 0, 0, 1, -1, 1, 2, 2, -1]
    black = (torch.zeros(3) - torch.tensor(config.data.mean)) / torch.tensor(config.data.std)
    assert torch.allclose(found[1][0][0].mean((1, 2)), black)
    assert (loader.corrupt.count, loader.images) == (2, VAL)
    parts = [labels_of(batches(config, "val", rank=rank, plan=plan_of(config, 2))) for rank in range(2)]
    assert parts == [[0, 0, -1, 2, -1], [0, 1, 1, 2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_corrupt_images_than_allowed_end_the_run(folder: Path, workers: int) -> None:
    damage(folder, "train", *(f"{name}/{number}.jpg" for name in CLASSES for number in range(4)))
    loader = Loader(plain(folder, system__corrupt_images=4, system__workers=workers), "train", CPU)
    with pytest.raises(CorruptImages) as ended:
        list(loader.epoch())
    line = str(ended.value)
    assert "\n" not in line
    count = int(line.partition(" ")[0])
    assert 4 < count <= loader.corrupt.count <= 12
    assert line.startswith(
        f"{count} images cannot be read, system.corrupt_images lets 4 pass: {folder}/train/"
    )
    assert line.endswith(f" and {count - 3} more; --set system.corrupt_images={count} leaves these out")
    assert line.count(".jpg") == 3


@pytest.mark.parametrize(("allowed", "named", "left_out"), [(0, 1, 0), (1, 3, 1), (3, 3, 3)])
def test_an_image_is_called_left_out_only_if_it_is(
    allowed: int, named: int, left_out: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder, "val", "ant/1.jpg", "bee/1.jpg", "cat/1.jpg")
    expected = (
        nullcontext()
        if left_out == 3
        else pytest.raises(CorruptImages, match=rf"corrupt_images={named} leaves (it|these) out$")
    )
    with expected:
        batches(plain(folder, system__corrupt_images=allowed), "val")
    said = [
        record.getMessage()
        for record in caplog.records
        if "is not an image that can be read" in record.getMessage()
    ]
    assert len(said) == named
    assert [line.endswith("; it is left out") for line in said] == [True] * left_out + [False] * (
        named - left_out
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_training_and_validation_share_what_is_allowed(folder: Path, workers: int) -> None:
    damage(folder, "train", "ant/0.jpg", "bee/1.jpg")
    damage(folder, "val", "cat/2.jpg")
    for allowed in (3, 2):
        config = plain(folder, system__corrupt_images=allowed, system__workers=workers)
        train = Loader(config, "train", CPU)
        val = Loader(config, "val", CPU, beside=train)
        for epoch in range(2):
            list(train.epoch(epoch))
        assert (train.corrupt.count, val.corrupt.count) == (2, 0)
        if allowed == 3:
            list(val.epoch())
            assert (train.corrupt.count, val.corrupt.count) == (2, 1)
        else:
            files = rf"{folder}/train/ant/0\.jpg, {folder}/train/bee/1\.jpg, {folder}/val/cat/2\.jpg"
            hint = r"--set system\.corrupt_images=3 leaves these out"
            with pytest.raises(
                CorruptImages,
                match=rf"^3 images cannot be read, system\.corrupt_images lets 2 pass: {files}; {hint}$",
            ):
                list(val.epoch())
        train.close()
        val.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_could_not_be_read_is_known_after_a_resume(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder, "train", "ant/0.jpg", "bee/1.jpg")
    config = plain(folder, system__corrupt_images=2, system__workers=workers)
    loader, again = Loader(config, "train", CPU), Loader(config, "train", CPU)
    assert loader.corrupt.state() == []
    for epoch in range(2):
        list(loader.epoch(epoch))
    assert loader.corrupt.state() == [0, 6]
    caplog.clear()
    again.corrupt.restore(loader.corrupt.state())
    assert (again.corrupt.count, again.corrupt.state()) == (2, [0, 6])
    for epoch in range(2):
        list(again.epoch(epoch))
    assert again.corrupt.state() == [0, 6]
    assert caplog.records == []
    loader.close()
    again.close()


def test_more_known_images_than_allowed_are_refused_where_they_are_checked(folder: Path) -> None:
    config = plain(folder, system__corrupt_images=1)
    train = Loader(config, "train", CPU)
    val = Loader(config, "val", CPU, beside=train)
    val.corrupt.restore([4, 1000])  # the data set has become smaller
    train.corrupt.check()
    train.corrupt.restore([2])
    for loader in (train, val):
        with pytest.raises(
            CorruptImages,
            match=rf"^2 images .* lets 1 pass: {folder}/train/ant/2\.jpg, {folder}/val/bee/1\.jpg; --set ",
        ):
            loader.corrupt.check()
    with pytest.raises(CorruptImages):
        next(train.epoch())


def test_a_counter_travels_to_workers_that_are_not_forked(folder: Path) -> None:
    damage(folder, "train", "ant/0.jpg")
    config = plain(folder, system__corrupt_images=0)
    train = Loader(config, "train", CPU)
    Loader(config, "val", CPU, beside=train).corrupt.restore([1])
    counter: Any = train._feed.corrupt
    process = SPAWN.Process(target=counter.add, args=(0, OSError("ant/0.jpg is no image")))
    process.start()
    process.join()
    assert (process.exitcode, train.corrupt.state()) == (0, [0])


def test_images_that_are_all_corrupt_end_the_run_however_many_are_allowed(folder: Path) -> None:
    damage(folder, "train", *(f"{name}/{number}.jpg" for name in CLASSES for number in range(5)))
    with pytest.raises(CorruptImages, match="has no image in train that can be read"):
        batches(plain(folder, system__corrupt_images=99))


def test_a_process_without_files_left_does_not_blame_the_images(folder: Path) -> None:
    error = OSError(24, "Too many open files")
    with pytest.raises(OSError, match="Too many open files") as raised:
        batches(custom(system__corrupt_images=9), "val", source=Pictures([(error, 0)]))
    assert not isinstance(raised.value, CorruptImages)


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CorruptImages("3 images cannot be read")))
    assert isinstance(error, CorruptImages)
    assert str(error) == "3 images cannot be read"


# Signals


SCRIPT = """
import signal, sys, time
from tests.helpers.images import CPU, config_of
from roadmap.data.loader import Loader
from roadmap.signals import StopSignals
loader = Loader(config_of(sys.argv[1], system__workers=2), "train", CPU)
next(loader.epoch())  # the workers start without the handlers
with StopSignals() as stop:
    for epoch in range(2):
        for number, _ in enumerate(loader.epoch(epoch)):
            if (epoch, number) == (0, 0):
                print("ready", flush=True)
                sys.stdin.readline()
    loader.close()
    print(stop.signal.name, epoch, number, flush=True)
"""


def test_signals_to_all_processes_are_left_to_the_one_that_trains(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], cwd=Path(__file__).parent.parent,
        text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        os.killpg(process.pid, number)
        time.sleep(0.05)
    said, complained = process.communicate("go on\n", timeout=30)
    assert (said, complained, process.returncode) == ("SIGINT 1 2\n", "", 0)


def test_a_worker_ends_when_its_parent_wants_it_to(folder: Path) -> None:
    loader = Loader(config_of(folder, system__workers=1), "train", CPU)
    next(iter(loader.epoch()))
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    subprocess.run(["kill", str(worker.pid)], check=True)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0
    loader.close()
