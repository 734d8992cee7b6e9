"""What becomes of a job that has ended, with real processes and a stand-in for Slurm's scontrol."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from roadmap import ROOT
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, resolve
from slurm.worker import STOPPED, next_open
from tests.helpers import commands
from tests.helpers.processes import free_port
from tests.slurm.plans import outcomes

TINY: dict[str, Any] = {
    "data.copies": 1,
    "model.depths": [1, 1, 1, 1],
    "recipe.epochs": 1,
    "recipe.local_batch": 32,
    "system.threads": 1,
}
# A job's runs, of which the first kills the process in the middle of its training, as the OOM killer does.
DEADLY = """
import os, signal, sys
import roadmap.train
from slurm.worker import work
from roadmap.lease import Lease
train = roadmap.train.train
def deadly(config, path, **more):
    if config.step == "resnet50":
        with Lease(path):
            os.kill(os.getpid(), signal.SIGKILL)
    return train(config, path, **more)
roadmap.train.train = deadly
work(sys.argv[2:], patient=False, retries=int(sys.argv[1]))
"""
WORK = (
    "import sys\nfrom slurm.worker import work\nwork(sys.argv[2:], patient=False, retries=int(sys.argv[1]))\n"
)


def make(runs: Path, step: str) -> RunDir:
    return prepare(runs, resolve(load_roadmap(), step, profile="digits", overrides=TINY))


def slurm(folder: Path, **known: object) -> dict[str, str]:
    """The environment of a job, where scontrol writes down what it is asked for."""
    (folder / "bin").mkdir(exist_ok=True)
    scontrol = folder / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n', encoding="utf-8")
    scontrol.chmod(0o755)
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))
    }
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return clean | {"PATH": path} | {f"SLURM_{name}": str(value) for name, value in known.items()}


def end(environment: dict[str, str], code: int, retries: int, runs: list[RunDir]) -> int:
    """The exit code of the last line of a job's script."""
    words = [sys.executable, "-m", "slurm.worker", str(code), str(retries), *(str(run.path) for run in runs)]
    return commands.run(words, env=environment, cwd=ROOT, timeout=60).returncode


@pytest.mark.parametrize(
    ("known", "job"),
    [({"JOB_ID": 7}, "7"), ({"JOB_ID": 7, "ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": 2}, "7_2")],
    ids=["job", "array's last task"],
)
def test_a_job_has_itself_alone_queued_again(known: dict[str, int], job: str, tmp_path: Path) -> None:
    assert end(slurm(tmp_path, **known), STOPPED, 1, [make(tmp_path / "runs", "gelu")]) == STOPPED
    assert (tmp_path / "asked").read_text(encoding="utf-8") == f"requeue {job}\n"


def test_a_busy_controller_is_asked_again(tmp_path: Path) -> None:
    environment = slurm(tmp_path, JOB_ID=7)
    busy = "echo slurm_update error: Socket timed out on send/recv operation >&2; exit 1"
    with (tmp_path / "bin/scontrol").open("a", encoding="utf-8") as file:
        file.write(f"test -e $0.once || {{ touch $0.once; {busy}; }}\n")
    assert end(environment, STOPPED, 1, [make(tmp_path / "runs", "gelu")]) == STOPPED
    assert (tmp_path / "asked").read_text(encoding="utf-8") == 2 * "requeue 7\n"


def begin(environment: dict[str, str], script: str, retries: int, runs: list[RunDir], size: int = 1) -> int:
    """The exit code of a job's step of `size` processes: once one of them fails, all are killed, as srun
    does.
    """
    port, together = free_port(), {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
    words = [sys.executable, "-c", script, str(retries), *(str(run.path) for run in runs)]
    processes = []
    for rank in range(size):
        launch = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port, **together}
        known = environment | {name: str(value) for name, value in launch.items()}
        processes.append(commands.Command(words, env=known, cwd=ROOT))
    try:
        while (codes := [process.poll() for process in processes]).count(0) < size and not any(codes):
            time.sleep(0.05)
        return next((128 - code if code < 0 else code for code in codes if code), 0)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def job_of(folder: Path, job: int, script: str, retries: int, runs: list[RunDir], size: int = 1) -> int:
    """How often Slurm begins a job of `runs` until it is not queued again."""
    (folder / "asked").unlink(missing_ok=True)
    for restarts in range(12):
        environment = slurm(folder, JOB_ID=job, RESTART_COUNT=restarts)
        end(environment, begin(environment, script, retries, runs, size), retries, runs)
        asked = (
            (folder / "asked").read_text(encoding="utf-8").count("\n") if (folder / "asked").exists() else 0
        )
        if asked == restarts:
            return restarts + 1
    raise AssertionError("queued again for ever")


@pytest.mark.parametrize(("how", "retries"), [("killed", 2), ("raises in two processes", 1)])
def test_a_bad_run_keeps_no_other_from_being_trained(how: str, retries: int, tmp_path: Path) -> None:
    bad, good = runs = [make(tmp_path / "runs", step) for step in ("resnet50", "gelu")]
    script, size, crash = DEADLY, 1, None
    if how != "killed":
        bad.metrics.mkdir()  # cannot be written to
        script, size, crash = WORK, 2, "failed"
    assert job_of(tmp_path, 7, script, retries, runs, size) == retries + 1
    assert (outcomes(good), outcomes(bad)) == (["done"], [crash] * (retries + 1))
    assert next_open([str(bad.path)], set(), 0) == (bad, False), (
        "submitted again, it has another set of tries"
    )
