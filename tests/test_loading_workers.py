"""`system.workers: auto`: as many data-loading workers as a process has cores to spare, and as fit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from roadmap import provenance
from roadmap.cli.run import parser, run
from roadmap.config import RunConfig
from roadmap.data.loader import Loader
from roadmap.data.workers import STREAMING, expected_rate, workers_of
from roadmap.errors import ConfigError
from roadmap.records import prepare, read_result
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from tests.helpers.images import CPU, Pictures, batches, custom, picture, same, write_folder

LAUNCH = ("SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "SUBMITIT_LOCAL_NTASKS", provenance.WORKERS_HERE)
AUTO: dict[str, Any] = {"system__workers": "auto"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)


def cores(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(provenance, "usable_cores", lambda: number)


def paper(**overrides: Any) -> RunConfig:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return resolve(load_roadmap(), "gelu", overrides=given)


def test_the_default_is_auto_and_changes_no_hash() -> None:
    assert paper().system.workers == "auto"
    assert paper().hash == paper(system__workers=8).hash
    with pytest.raises(ConfigError, match=r"system\.workers"):
        paper(system__workers="all")


@pytest.mark.parametrize(
    ("environment", "spare"),
    [
        ({}, 32),
        ({"LOCAL_WORLD_SIZE": "4"}, 8),
        ({"SLURM_CPUS_PER_TASK": "12"}, 12),
        ({"SLURM_CPUS_PER_TASK": "64", "LOCAL_WORLD_SIZE": "8"}, 4),
        ({"SUBMITIT_LOCAL_NTASKS": "2", provenance.WORKERS_HERE: "8"}, 2),
        ({"LOCAL_WORLD_SIZE": "64"}, 1),
        ({"SLURM_CPUS_PER_TASK": "none"}, 32),
    ],
)
def test_processes_share_the_cores(
    environment: dict[str, str], spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, 32)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert provenance.cores_per_process() == spare
    assert workers_of(paper(), "cuda", streams=False) == min(16, max(1, spare - 1))


@pytest.mark.parametrize(("number", "cuda", "cpu"), [(1, 1, 0), (2, 1, 1), (8, 7, 1), (64, 16, 1)])
def test_a_core_is_left_to_the_training_thread(
    number: int, cuda: int, cpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, number)
    assert [workers_of(paper(), device, streams=False) for device in ("cuda", "cpu")] == [cuda, cpu]
    assert workers_of(paper(system__workers=5), "cpu", streams=False) == 5
    # a resumed stream must have as many on any machine
    assert {workers_of(paper(), device, streams=True) for device in ("cuda", "cpu")} == {STREAMING}


def test_auto_takes_as_many_as_shared_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cores(monkeypatch, 8)
    pictures = Pictures([(picture(number), number % 3) for number in range(8)])
    assert Loader(custom(**AUTO), "train", CPU, source=pictures).workers == 1
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**10))
    with caplog.at_level(logging.WARNING):
        assert Loader(custom(**AUTO), "train", CPU, source=pictures).workers == 0
    (told,) = caplog.messages
    assert "room for 0 of 1 data-loading workers; a container gets more with --shm-size" in told


def test_a_run_records_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 2)
    config, pictures = custom(**AUTO), Pictures([(picture(number), number % 3) for number in range(8)])
    done = prepare(tmp_path, config)
    monkeypatch.setenv(provenance.RUNS_PER_GPU, "3")
    result = train(config, done.path, data=(pictures, pictures))  # type: ignore[arg-type]
    assert (result.runs_per_gpu, read_result(done)) == (3, result)
    assert json.loads(done.provenance.read_text(encoding="utf-8"))["data_loading_workers"] == 1
    assert "workers: auto" in done.config.read_text(encoding="utf-8")
    explicit = custom(system__workers=0)
    assert same(batches(config, epoch=1, source=pictures), batches(explicit, epoch=1, source=pictures))


def test_the_plan_estimates_what_the_workers_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cores(monkeypatch, 9)
    folder = write_folder(tmp_path)
    words = ["gelu", "--plan", "--profile", "imagenet", "--set", f"system.data_dir={folder}"]
    run(parser().parse_args([*words, "--set", "recipe.pipeline=tensor"]))
    assert "about 2,640 images/s a process, an estimate for 8 workers on 8 cores" in capsys.readouterr().out
    assert (
        expected_rate(paper(data__dataset="shards", recipe__pipeline="tensor", system__workers=2)) is not None
    )
    for unknown in ({"data__image_size": 160}, {"data__dataset": "synthetic"}):
        assert expected_rate(paper(**unknown)) is None
