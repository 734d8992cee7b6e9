"""Status, cancelling and logs on a real Slurm: what waits, runs, crashed or was cancelled there is told, and
nothing else is stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from roadmap import ROOT
from roadmap.records import RunDir, prepare, status
from roadmap.steps import load_roadmap, resolve
from slurm.jobs import Submission, jobs_of
from slurm.testbed.bed import Testbed
from slurm.testbed.config import Settings
from tests.slurm.plans import outcomes

TINY = {
    "data.copies": 1,
    "model.depths": [1, 1, 1, 1],
    "recipe.epochs": 30,
    "system.log_every": 3,
    "system.checkpoint_minutes": 0.0001,
}
OPTIONS = [
    "--profile",
    "digits",
    *(word for key, value in TINY.items() for word in ("--set", f"{key}={value}")),
]
NAME = "20260101000000-0000000{}"
WAIT = "until test -e {go}; do sleep 0.1; done"


def make(runs: Path, step: str, seed: int) -> RunDir:
    return prepare(runs, resolve(load_roadmap(), step, profile="digits", seed=seed, overrides=TINY))


def call(bed: Testbed, command: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "slurm" / f"{command}.py"), *map(str, words)]
    return subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=bed.environment,
        cwd=bed.plan.folder,
    )


def rows(bed: Testbed, runs: Path) -> list[dict[str, Any]]:
    done = call(bed, "status", "--json", runs)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return found


def states(bed: Testbed, runs: Path) -> list[str]:
    return [row["state"] for row in rows(bed, runs)]


def submit(
    bed: Testbed, groups: Sequence[Sequence[RunDir]], script: str, *options: str, number: int = 0
) -> str:
    """An array of shell scripts in the place of training, on record as slurm/submit.py and submitit have it;
    returns its job.
    """
    jobs, name = jobs_of(groups[0][0]), NAME.format(number)
    (jobs / name).mkdir(parents=True)
    Submission(name, "testbed", "now", tuple(tuple(run.name for run in group) for group in groups)).write(
        jobs
    )
    logs = [f"--output={jobs / name}/%A_%a_0_log.out", f"--error={jobs / name}/%A_%a_0_log.err"]
    words = [
        "sbatch",
        "--parsable",
        f"--comment={name}",
        f"--array=0-{len(groups) - 1}",
        "--cpus-per-task=1",
        *logs,
        *options,
    ]
    job = bed.run(*words, "--wrap", script).stdout.strip()
    (jobs / name / f"{job}_0_submitted.pkl").touch()
    return job


def task_states(bed: Testbed, job: str) -> dict[str, str]:
    lines = bed.run("squeue", "-h", "--array", "-t", "all", "-j", job, "-o", "%K %T").stdout.splitlines()
    return dict(line.split() for line in lines)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[RunDir]]:
    yield [make(tmp_path / "runs", "gelu", seed) for seed in range(4)]
    (tmp_path / "go").touch()


def test_queued_runs_are_listed_with_the_reason(testbed: Testbed, runs: list[RunDir], tmp_path: Path) -> None:
    job = submit(testbed, [[run] for run in runs[:2]], WAIT.format(go=tmp_path / "go"), "--hold")
    testbed.wait_for(lambda: "JobHeldUser" in str(rows(testbed, tmp_path / "runs")), "the reason")
    found = rows(testbed, tmp_path / "runs")
    assert [(row["state"], row["why"], row["job"]) for row in found] == [
        ("queued", "waits: JobHeldUser", f"{job}_0"),
        ("queued", "waits: JobHeldUser", f"{job}_1"),
        ("pending", None, None),
        ("pending", None, None),
    ]
    assert (
        call(testbed, "logs", "gelu", "1", "--runs", tmp_path / "runs").stdout
        == f"no log; gelu seed 1: queued, job {job}_1, waits: JobHeldUser\n"
    )
    testbed.run("scontrol", "release", job)
    testbed.wait_for(lambda: states(testbed, tmp_path / "runs")[:2] == ["starting"] * 2, "the jobs to begin")
    assert rows(testbed, tmp_path / "runs")[0]["where"] in testbed.nodes


def test_how_jobs_ended_is_reported_with_the_last_line_of_the_log(
    testbed: Testbed, runs: list[RunDir], tmp_path: Path
) -> None:
    script = (
        f"echo no such module >&2; test $SLURM_ARRAY_TASK_ID = 0 && exit 3; {WAIT.format(go=tmp_path / 'go')}"
    )
    job = submit(testbed, [[run] for run in runs], script)
    testbed.wait_for(
        lambda: states(testbed, tmp_path / "runs") == ["failed", *["starting"] * 3], "a job to fail"
    )
    assert (
        rows(testbed, tmp_path / "runs")[0]["why"] == f"job {job}_0: failed with exit code 3; no such module"
    )
    log = jobs_of(runs[0]) / NAME.format(0) / f"{job}_0_0_log.err"
    assert (
        call(testbed, "logs", "gelu", "0", "--runs", tmp_path / "runs").stdout == f"{log}\nno such module\n"
    )
    testbed.run("scancel", f"{job}_1")
    testbed.wait_for(lambda: "cancelled" in str(rows(testbed, tmp_path / "runs")[1]["why"]), "the accounting")
    found = rows(testbed, tmp_path / "runs")[1]
    assert (found["state"], found["why"]) == ("pending", f"job {job}_1: cancelled")
    again = submit(testbed, [[runs[0]]], "sleep 1", "--hold", number=1)
    testbed.wait_for(
        lambda: rows(testbed, tmp_path / "runs")[0]["job"] == f"{again}_0", "the later job to count"
    )
    testbed.run("scancel", again)


def test_a_restarted_job_is_reported_as_requeued(
    testbed: Testbed, runs: list[RunDir], tmp_path: Path
) -> None:
    script = f"test $SLURM_RESTART_COUNT || echo out of luck >&2; {WAIT.format(go=tmp_path / 'go')}"
    job = submit(testbed, [[runs[0]]], script, "--requeue")
    testbed.wait_for(lambda: states(testbed, tmp_path / "runs")[0] == "starting", "the job to begin")
    testbed.run("scontrol", "requeuehold", f"{job}_0")
    testbed.wait_for(lambda: states(testbed, tmp_path / "runs")[0] == "requeued", "the job to wait again")
    assert rows(testbed, tmp_path / "runs")[0]["why"].endswith("; before: out of luck")
    testbed.run("scancel", job)


def test_exactly_what_is_chosen_is_cancelled(testbed: Testbed, runs: list[RunDir], tmp_path: Path) -> None:
    other = make(tmp_path / "runs", "kernel_7", 0)
    job = submit(testbed, [[run] for run in [*runs, other]], WAIT.format(go=tmp_path / "go"))
    testbed.wait_for(lambda: set(task_states(testbed, job).values()) == {"RUNNING"}, "the jobs to begin")
    rehearsed = call(testbed, "cancel", "--all", "--dry-run", tmp_path / "runs")
    assert "5 jobs and 0 processes in all" in rehearsed.stdout
    done = call(testbed, "cancel", "--seed", "1", "2", "--steps", "gelu", "--", tmp_path / "runs")
    assert (
        done.stdout
        == f"job {job}_1 canceled: gelu seed 1\njob {job}_2 canceled: gelu seed 2\n2 jobs and 0 processes"
        " in all\n"
    )
    running, gone = {"0": "RUNNING", "3": "RUNNING", "4": "RUNNING"}, {"1": "CANCELLED", "2": "CANCELLED"}
    testbed.wait_for(lambda: task_states(testbed, job) == running | gone, "two to be cancelled")


def test_a_job_that_waits_is_cancelled(testbed: Testbed, runs: list[RunDir], tmp_path: Path) -> None:
    job = submit(testbed, [[run] for run in runs], "sleep 100", "--hold")
    assert "4 jobs and 0 processes" in call(testbed, "cancel", "--all", tmp_path / "runs").stdout
    testbed.wait_for(lambda: set(task_states(testbed, job).values()) == {"CANCELLED"}, "all to be cancelled")
    gone = [
        {f"job {job}_{index}: cancelled", f"job {job}_{index} is no longer in the queue"}
        for index in range(4)
    ]
    found = rows(testbed, tmp_path / "runs")
    assert [row["why"] in said for row, said in zip(found, gone, strict=True)] == [True] * 4, found
    assert {row["state"] for row in found} == {"pending"}
    assert "nothing to stop" in call(testbed, "cancel", "--all", tmp_path / "runs").stdout


def test_a_job_of_several_runs_is_cancelled_for_all_of_them_alone(
    testbed: Testbed, runs: list[RunDir], tmp_path: Path
) -> None:
    job = submit(testbed, [runs[:2], runs[2:]], WAIT.format(go=tmp_path / "go"))
    testbed.wait_for(lambda: states(testbed, tmp_path / "runs") == ["starting"] * 4, "the jobs to begin")
    assert rows(testbed, tmp_path / "runs")[0]["why"] == "its job trains 1 more"
    done = call(testbed, "cancel", "--seed", "0", "2", "3", "--", tmp_path / "runs")
    assert f"job {job}_1 canceled: gelu seed 2, gelu seed 3" in done.stdout
    assert (
        f"job {job}_0 (gelu seed 0) is left alone, since it also trains gelu seed 1; select all of them"
        in done.stdout
    )
    testbed.wait_for(
        lambda: task_states(testbed, job) == {"0": "RUNNING", "1": "CANCELLED"}, "one to be cancelled"
    )


def test_a_slurm_that_does_not_answer_is_not_guessed_at(
    runs: list[RunDir], testbed: Testbed, tmp_path: Path
) -> None:
    with Testbed(tmp_path / "bed", Settings(accounting=False)) as bed:
        job = submit(bed, [[runs[0]]], WAIT.format(go=tmp_path / "go"))
        bed.wait_for(lambda: states(bed, tmp_path / "runs")[0] == "starting", "the job to begin")
        bed.kill_slurmctld()
        shown = call(bed, "status", tmp_path / "runs").stdout
        assert "squeue does not answer: " in shown
        assert states(bed, tmp_path / "runs") == ["unknown", "pending", "pending", "pending"]
        refused = call(bed, "cancel", "--all", tmp_path / "runs")
        assert (refused.returncode, refused.stdout) == (1, "")
        *retries, last = refused.stderr.splitlines()
        assert last.startswith("Slurm does not answer, so it is unknown what is queued: ")
        assert all(line.startswith("squeue: ") and "; retrying in " in line for line in retries)
        bed.start_slurmctld()
        assert states(bed, tmp_path / "runs")[0] == "starting"
        bed.run("scancel", job)
        bed.wait_for(lambda: states(bed, tmp_path / "runs")[0] == "pending", "the job to be gone")
        assert "sacct does not answer: " in call(bed, "status", tmp_path / "runs").stdout


def test_a_cancelled_run_has_saved_and_starts_again_only_when_submitted(
    testbed: Testbed, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    words: list[str | Path] = [
        "--steps",
        "gelu",
        "--seeds",
        "1",
        "--cluster",
        "testbed",
        *OPTIONS,
        "--runs",
        folder,
    ]
    run = make(folder, "gelu", 0)
    first = call(testbed, "submit", *words)
    assert first.returncode == 0, first.stderr
    testbed.wait_for(lambda: any(run.checkpoints.glob("*.pt")), "a checkpoint", 180)
    assert states(testbed, folder) == ["running"]
    done = call(testbed, "cancel", "--all", folder)
    assert "1 job and 0 processes in all" in done.stdout
    job = done.stdout.split()[1]
    testbed.wait_for(lambda: testbed.state_of_job(job) == "CANCELLED", "the job to be cancelled")
    assert outcomes(run) == ["stopped"]
    testbed.wait_for(lambda: "cancelled" in str(rows(testbed, folder)[0]["why"]), "the accounting")
    assert rows(testbed, folder)[0]["state"] == "stale"
    assert "stopped by SIGTERM" in call(testbed, "logs", "gelu", "0", "--runs", folder).stdout
    assert testbed.state_of_job(job) == "CANCELLED", "not begun again"
    assert call(testbed, "submit", *words).returncode == 0
    testbed.wait_for(lambda: outcomes(run) == ["stopped", "done"], "the run to be done", 180)
    assert status(run).state == "done"
