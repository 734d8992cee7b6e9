"""Runs that share a GPU: workers of one job, each with its own run, process, log and end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from roadmap import ROOT
from roadmap.lease import attempts, own_task, read_attempt
from roadmap.records import RunDir, prepare, read_result
from roadmap.steps import load_roadmap, resolve
from slurm.testbed.bed import Testbed
from tests.slurm.plans import TINY, found, job_of, outcomes, submit, wait, write_clusters

STEPS, LONG = ["gelu", "kernel_7"], 6


def write(folder: Path, **values: object) -> None:
    write_clusters(folder, gpus_per_node=1, runs_per_gpu=2, cpus_per_task=2, **values)


def last(run: RunDir) -> dict[str, object]:
    return read_attempt(attempts(run.path)[-1])


def call(bed: Testbed, name: str, *words: str) -> str:
    return bed.run(sys.executable, str(ROOT / f"slurm/{name}.py"), *words, timeout_s=60).stdout


def wait_for_both(bed: Testbed, folder: Path, attempt: int = 1) -> list[RunDir]:
    """The two runs of a job, once both have saved in their attempt of that number."""
    bed.wait_for(
        lambda: (
            sum(len(attempts(run.path)) == attempt and bool(last(run).get("saved")) for run in found(folder))
            == 2
        ),
        "two runs to be at work",
        120,
    )
    return found(folder)


def test_workers_of_a_job_are_disturbed_one_by_one_and_stopped_together(
    testbed: Testbed, tmp_path: Path
) -> None:
    write(tmp_path)
    done = submit(testbed, tmp_path, "--steps", *STEPS, "--seeds", "1", epochs=LONG)
    assert "1 job (gelu) on 1 node, 1 GPU each, 2 runs on it at a time" in done.stdout
    first, second = wait_for_both(testbed, tmp_path)
    assert last(first)["job"] == last(second)["job"] == job_of(testbed, first)
    assert {last(run)["task"] for run in (first, second)} == {0, 1}
    for run in (first, second):
        log = call(testbed, "logs", run.step, "0", "--runs", str(tmp_path / "runs")).splitlines()[0]
        assert Path(log).name == f"{last(run)['job']}_{last(run)['task']}_log.err"
        refused = call(testbed, "cancel", str(tmp_path / "runs"), "--steps", run.step)
        assert "is left alone, since it also trains" in refused
    os.kill(int(str(last(first)["pid"])), signal.SIGKILL)
    testbed.run("scancel", "--signal=USR2", job_of(testbed, second))
    testbed.wait_for(lambda: outcomes(second)[0] == "stopped", "the other run to be saved")
    wait(testbed, tmp_path, 2)
    assert outcomes(first)[0] is None
    for run in (first, second):
        assert len(attempts(run.path)) == 2
        result = read_result(run)
        assert result is not None
        assert (result.processes, result.runs_per_gpu) == (1, 2)


def test_a_run_that_fails_ends_no_other(testbed: Testbed, tmp_path: Path) -> None:
    """Its worker ends with an error, while the other's is at work."""
    write(tmp_path, retries=1)
    bad = prepare(tmp_path / "runs", resolve(load_roadmap(), STEPS[0], profile="digits", overrides=TINY))
    bad.metrics.mkdir()
    submit(testbed, tmp_path, "--steps", *STEPS, "--seeds", "1")
    (good,) = (run for run in found(tmp_path) if run.step != bad.step)
    testbed.wait_for(
        lambda: (
            good.result.exists()
            and not testbed.run("squeue", "-h", "-n", "convnext_t", "-o", "%i").stdout.strip()
        ),
        "the job to end",
        200,
    )
    assert outcomes(good) == ["done"]
    assert outcomes(bad) == ["failed"] * 2
    shown = call(testbed, "status", str(tmp_path / "runs"))
    assert "2 runs: 1 failed, 1 done" in shown or "2 runs: 1 done, 1 failed" in shown
    assert "IsADirectoryError" in shown


def test_a_job_is_cancelled_with_all_its_workers(testbed: Testbed, tmp_path: Path) -> None:
    write(tmp_path)
    submit(testbed, tmp_path, "--steps", *STEPS, "--seeds", "1", epochs=200)
    runs = wait_for_both(testbed, tmp_path)
    job = job_of(testbed, runs[0])
    assert f"job {job} canceled: gelu seed 0, kernel_7 seed 0" in call(
        testbed, "cancel", str(tmp_path / "runs"), "--all"
    )
    testbed.wait_for(
        lambda: not testbed.run("squeue", "-h", "-n", "convnext_t", "-o", "%i").stdout.strip(),
        "the job to be gone",
    )
    assert [outcomes(run) for run in runs] == [["stopped"]] * 2


def test_the_task_of_a_local_worker_is_its_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the shell of an interactive step of Slurm."""
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert own_task() == 3
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    assert own_task() == 0
