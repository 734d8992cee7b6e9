"""What becomes of a job that has ended, with real processes and a stand-in for Slurm's scontrol."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roadmap import ROOT
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, resolve
from slurm.job import STOPPED


def make(runs: Path, step: str) -> RunDir:
    return prepare(runs, resolve(load_roadmap(), step, profile="digits"))


def slurm(folder: Path, **known: object) -> dict[str, str]:
    """The environment of a job, where scontrol writes down what it is asked for."""
    (folder / "bin").mkdir(exist_ok=True)
    scontrol = folder / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n', encoding="utf-8")
    scontrol.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return clean | {"PATH": path} | {f"SLURM_{name}": str(value) for name, value in known.items()}


def end(environment: dict[str, str], code: int, retries: int, runs: list[RunDir]) -> int:
    """The exit code of the last line of a job's script."""
    words = [sys.executable, "-m", "slurm.job", str(code), str(retries), *(str(run.path) for run in runs)]
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.parametrize(
    ("known", "job"),
    [({"JOB_ID": 7}, "7"), ({"JOB_ID": 7, "ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": 2}, "7_2")],
    ids=["job", "array's last task"],
)
def test_a_job_has_itself_alone_queued_again(known: dict[str, int], job: str, tmp_path: Path) -> None:
    assert end(slurm(tmp_path, **known), STOPPED, 1, [make(tmp_path / "runs", "gelu")]) == STOPPED
    assert (tmp_path / "asked").read_text(encoding="utf-8") == f"requeue {job}\n"
