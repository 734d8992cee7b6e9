"""The doctor finds what would spoil a training, by name, and nothing where all is well."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blocks.model import build_model
from roadmap.doctor import correctness, environment, speed, training_runs
from roadmap.doctor.correctness import CPU, FIRST, LAST, Machine
from roadmap.doctor.environment import check_dataset, check_disk, check_packages, check_shared_memory
from roadmap.doctor.findings import Finding, is_wrong, measured
from roadmap.doctor.options import CORRECTNESS, SPEED
from roadmap.steps import load_roadmap, resolve
from roadmap.training.engine import Engine
from tests.helpers import commands
from tests.helpers.disks import mounted
from tests.helpers.images import plain, write_folder

ROADMAP = load_roadmap()


class FewSteps:
    """The roadmap with some of its steps."""

    def __init__(self, steps: Sequence[str]) -> None:
        self.steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(ROADMAP, name)


def findings_of(check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *steps: str) -> list[Finding]:
    """What a check finds on the CPU, for some steps only."""
    found: list[Finding] = []
    monkeypatch.setattr(correctness, "load_roadmap", lambda: FewSteps(steps))
    torch.manual_seed(0)
    (correctness.CHECKS | training_runs.CHECKS)[check](Machine(CPU, found.append, tmp_path))
    return found


def errors(found: Iterable[Finding]) -> str:
    return "\n".join(f"{one.check} {one} {one.fix}" for one in found if one.status == "error")


def test_the_doctor_prints_a_line_for_each_finding_and_ends_with_a_count(tmp_path: Path) -> None:
    done = commands.run(
        [sys.executable, "-m", "roadmap", "doctor", "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("python", "packages", "memory", "TMPDIR", "disk", "clock", "hard links", "device"):
        assert f"  ok      {check}" in done.stdout, done.stdout
    assert done.stdout.splitlines()[-1].endswith("0 errors")
    assert not list(tmp_path.iterdir())


def test_json_has_all_findings_and_the_exit_code_is_1_if_something_is_wrong(tmp_path: Path) -> None:
    words = ["doctor", "--json", "--device", "cpu", "--profile", "digits", "--set", "data.dataset=folder"]
    words += ["--set", f"system.data_dir={tmp_path}/nowhere"]
    done = commands.run([sys.executable, "-m", "roadmap", *words])
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    wrong = [one for one in found if one["status"] == "error"]
    assert [one["check"] for one in wrong] == ["data"]
    assert "nowhere" in wrong[0]["subject"] + wrong[0]["value"]


def test_checks_run_in_processes_of_their_own_and_write_a_table(tmp_path: Path) -> None:
    words = ["doctor", "--check", "--bench", "--only", "resume", "peak", "--device", "cpu", "--seconds", "9"]
    done = commands.run([sys.executable, "-m", "roadmap", *words, "--out", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resume        not finished: ended after" in done.stdout
    assert "peak          not run" in done.stdout
    words = ["doctor", "--bench", "--only", "peak", "--device", "cpu"]
    done = commands.run([sys.executable, "-m", "roadmap", *words, "--out", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "checks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["check"] for row in rows} >= {"python", "device", "peak"}
    assert any(row["unit"] == "TFLOP/s" and float(row["value"]) > 0 for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checks.csv", "log.txt"]


def test_no_check_outlives_the_command(tmp_path: Path) -> None:
    words = ["doctor", "--check", "--only", "resume", "--device", "cpu", "--out", str(tmp_path / "out")]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = commands.Command(
        [sys.executable, "-m", "roadmap", *words], env=os.environ | {"TMPDIR": str(temporary)}
    )
    wait_for(lambda: any(temporary.glob("**/metrics.jsonl")))
    os.kill(command.pid, signal.SIGKILL)
    command.wait(30)

    def runs() -> list[str]:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
        return [line.decode() for line in lines if str(temporary).encode() in line]

    wait_for(lambda: not runs())


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_only_names_checks_of_what_is_asked_for() -> None:
    for words, problem in (
        (["--check", "--only", "peak"], "--only peak is a part of --bench, which is not given"),
        (["--only", "sync"], "--only sync is a part of --check, which is not given"),
        (["--check", "--seconds", "0"], "--seconds must be more than 0, not 0"),
        (["--out", "somewhere"], "--out needs --check or --bench"),
        (["--cluster-file", "mine.yaml"], "--cluster-file needs the name of an entry, --cluster"),
    ):
        done = commands.run([sys.executable, "-m", "roadmap", "doctor", *words])
        assert (done.returncode, done.stderr.strip()) == (2, problem)


def test_every_check_has_a_function_and_a_description() -> None:
    assert (correctness.CHECKS | training_runs.CHECKS).keys() == CORRECTNESS.keys()
    assert list(speed.CHECKS) == list(SPEED)


def test_nan_is_within_no_bound() -> None:
    assert is_wrong([measured("check", "subject", "quantity", float("nan"), at_most=1)])
    assert measured("check", "subject", "quantity", 1, at_most=1, fix="not needed").fix == ""


# -- planted faults ----------------------------------------------------------------------------------------


def test_a_wrong_weight_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not errors(findings_of("forward", tmp_path, monkeypatch, LAST))
    right = correctness.copied

    network = build_model(resolve(ROADMAP, LAST, overrides=correctness.SHALLOW).ours)
    name = next(name for name, tensor in network.named_parameters() if tensor.ndim == 4)

    def wrong_copy(network: nn.Module, device: torch.device) -> nn.Module:
        found = right(network, device)
        with torch.no_grad():
            dict(found.named_parameters())[name].mul_(1.01)
        return found

    monkeypatch.setattr(correctness, "copied", wrong_copy)
    found = errors(findings_of("forward", tmp_path, monkeypatch, LAST))
    assert "tensors that differ after the copy to the device 1 (at most 0)" in found
    assert name in found
    assert "logits, fp32" in found


def test_an_iteration_that_waits_for_the_device_is_found_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Engine.train_step

    def waiting(self: Engine, batches: Any) -> Tensor:
        loss = step(self, batches)
        float(loss)  # the planted fault
        return loss

    monkeypatch.setattr(Engine, "train_step", waiting)
    found = errors(findings_of("sync", tmp_path, monkeypatch))
    line = waiting.__code__.co_firstlineno + 2
    assert f"an iteration waits in tests/test_doctor.py:{line}" in found


def test_a_random_number_without_a_seed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Engine._augment
    unseeded = random.SystemRandom()

    def drawing(self: Engine, *arguments: Any) -> Any:
        images, labels = augment(self, *arguments)
        return images * (1 + unseeded.random()), labels

    monkeypatch.setattr(Engine, "_augment", drawing)
    found = errors(findings_of("deterministic", tmp_path, monkeypatch, FIRST))
    assert f"{FIRST}: tensors that differ between two trainings, fp32" in found


def test_a_compiled_network_with_a_gradient_of_zero_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_wrong(network: nn.Module, mode: str) -> nn.Module:
        name, parameter = next(
            (name, parameter) for name, parameter in network.named_parameters() if parameter.ndim == 4
        )
        calls = itertools.count()
        hooked: Any = parameter
        hooked.register_hook(lambda gradient: gradient * (0 if next(calls) else 1))
        names.append(name)
        return network

    names: list[str] = []
    monkeypatch.setattr(correctness, "compile_network", compile_wrong)
    found = errors(findings_of("compile", tmp_path, monkeypatch))
    assert "gradients that are wrong, fp32 1 of" in found
    assert names[0] in found


def test_an_image_that_cannot_be_read_is_found_by_its_name(tmp_path: Path) -> None:
    config = plain(write_folder(tmp_path / "data"))
    assert not errors(check_dataset(config))
    image = sorted((tmp_path / "data" / "train").glob("*/*"))[1]
    image.write_bytes(image.read_bytes()[:-20])
    found = errors(check_dataset(config))
    assert image.name in found
    assert "system.corrupt_images" in found


def test_shared_memory_that_is_too_small_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(tmp_path / "shm", "size=1m") as small:
        monkeypatch.setattr(environment, "SHARED_MEMORY", small)
        found = check_shared_memory(100 * 2**20, 4)
    assert found.status == "error"
    assert "--shm-size" in found.fix
    assert check_shared_memory(0, 4).status == "ok"


def test_a_folder_of_runs_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "full").write_bytes(bytes(2**20 - 2**14))
        found = list(check_disk(disk / "runs"))
    assert [one.status for one in found if one.check == "disk"] == ["warning"]
    (tmp_path / "file").touch()
    assert "cannot be written" in errors(check_disk(Path("/proc/runs")))


def test_a_package_that_is_missing_or_too_old_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: str) -> str:
        if name == "timm":
            raise PackageNotFoundError(name)
        return "1.0.0+cu130" if name == "torch" else version(name)

    monkeypatch.setattr(environment, "version", other)
    found = errors(check_packages())
    assert "timm: not installed pip install 'timm>=1.0.31'" in found
    assert "torch: 1.0.0+cu130 (>=2.9)" in found
