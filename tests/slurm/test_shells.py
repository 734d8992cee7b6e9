"""A roadmap on a real Slurm behind what shells and sites put before it: variables, foreign jobs, wrappers,
errors, a full queue.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from roadmap import ROOT
from slurm.jobs import jobs_of, submissions, submitted_jobs
from slurm.testbed.bed import Testbed
from tests.slurm.plans import cancel_all, found, outcomes, submit, wait, write_clusters

PLAN = ("--steps", "resnet50", "gelu", "--seeds", "1")
SHELL = {
    "SQUEUE_STATES": "RUNNING",
    "SQUEUE_PARTITION": "moon",
    "SQUEUE_USERS": "nobody",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_MEM_PER_NODE": "100",
    "SBATCH_HOLD": "1",
    "SCANCEL_STATE": "RUNNING",
    "SLURM_TIME_FORMAT": "relative",
}
TIMEOUT = (
    "echo sbatch: error: Batch job submission failed: Socket timed out on send/recv operation >&2; exit 1"
)
ONCE = "test -e $0.once || { touch $0.once; %s; }"


@pytest.fixture(autouse=True)
def nothing_left(testbed: Testbed) -> Iterator[None]:
    """No job of another test's, before and after."""
    cancel_all(testbed)
    yield
    cancel_all(testbed)


@pytest.fixture
def busy(testbed: Testbed) -> None:
    """No room for any other job."""
    testbed.run("sbatch", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600")


def wrapper(bed: Testbed, folder: Path, command: str, script: str) -> dict[str, str]:
    """The variables of a shell that finds a script of the site's before a command of Slurm's, which the
    script calls as $real.
    """
    real = bed.run("which", command).stdout.strip()
    file = folder / "site" / command
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\nreal={real}\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
    return {"PATH": f"{file.parent}:{bed.environment['PATH']}"}


def call(
    bed: Testbed, folder: Path, command: str, *words: str, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    shell = ["env", *(f"{name}={value}" for name, value in variables.items())]
    return bed.run(*shell, sys.executable, str(ROOT / "slurm" / f"{command}.py"), *words, cwd=folder)


def tasks(bed: Testbed) -> list[str]:
    """The names of all tasks in the queue; runs are tasks of convnext_t."""
    return sorted(
        name
        for name in bed.run("squeue", "-h", "-r", "-o", "%j").stdout.split()
        if name in ("convnext_t", "collect")
    )


def job_in(folder: Path) -> str:
    """The job on record for the one submission there."""
    (submission,) = submissions(jobs := jobs_of(found(folder)[0]))
    ((job, _),) = set(submitted_jobs(jobs / submission.name))
    return job


@pytest.mark.usefixtures("busy")
def test_a_shells_defaults_for_slurms_commands_change_nothing(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    done = submit(testbed, tmp_path, *PLAN, variables=SHELL)
    warning = (
        f"ignored: {', '.join(sorted(SHELL))} in the environment; what a job gets is set in the cluster"
        " file\n"
    )
    assert done.stderr == warning
    again = submit(testbed, tmp_path, *PLAN, variables=SHELL)
    assert "2 in the queue, 0 to submit" in again.stdout
    known = tasks(testbed)
    assert known.count("convnext_t") == 2
    shown = testbed.run("scontrol", "show", "job", job_in(tmp_path)).stdout
    assert {"TimeLimit=00:20:00", "Requeue=1", "MinMemoryNode=2G", "Reason=Resources"} <= set(
        shown.replace("Priority", "Resources").split()
    )
    status = call(testbed, tmp_path, "status", "runs", "--json", variables=SHELL)
    assert [run["state"] for run in json.loads(status.stdout)["runs"]] == ["queued"] * 2
    cancelled = call(testbed, tmp_path, "cancel", "runs", "--all", variables=SHELL)
    assert "2 jobs and 0 processes in all" in cancelled.stdout
    testbed.wait_for(lambda: "convnext_t" not in tasks(testbed), "the jobs to be cancelled")


@pytest.mark.usefixtures("busy")
def test_other_jobs_may_have_any_comment(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    comment = "a\n1|2|PENDING||N/A|b|c\n" + "\x1f".join("1234567")
    other = testbed.run(
        "sbatch", "--parsable", f"--comment={comment}", "--output=/dev/null", "--wrap", "sleep 9"
    ).stdout.strip()
    submit(testbed, tmp_path, *PLAN)
    assert "2 in the queue, 0 to submit" in submit(testbed, tmp_path, *PLAN).stdout
    status = call(testbed, tmp_path, "status", "runs", "--json", variables={})
    assert [run["state"] for run in json.loads(status.stdout)["runs"]] == ["queued"] * 2
    assert (
        "2 jobs and 0 processes in all"
        in call(testbed, tmp_path, "cancel", "runs", "--all", variables={}).stdout
    )
    assert testbed.state_of_job(other) == "PENDING"


BANNERS = {
    "a banner": 'echo "Your last job 99 used 12 hours"; echo; $real "$@"; echo "Good luck with job 98!"',
    "prose alone": '$real "$@" > /dev/null; echo "Submitted batch job 99 and more"',
    "a number alone": 'echo 99; $real "$@"',
}


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("script", BANNERS.values(), ids=BANNERS)
def test_a_site_may_print_what_it_likes_when_a_job_is_submitted(
    script: str, testbed: Testbed, tmp_path: Path
) -> None:
    write_clusters(tmp_path)
    done = submit(testbed, tmp_path, *PLAN, variables=wrapper(testbed, tmp_path, "sbatch", script))
    job = job_in(tmp_path)
    assert f"job {job}: 2 jobs" in done.stdout
    assert testbed.run("squeue", "-h", "-r", "-j", job, "-o", "%j").stdout.split() == ["convnext_t"] * 2


def test_a_job_that_is_queued_though_sbatch_fails_is_adopted(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    shell = wrapper(testbed, tmp_path, "sbatch", f'$real "$@" > /dev/null; {TIMEOUT}')
    # which a job's srun reads
    submit(
        testbed, tmp_path, *PLAN, variables=shell | {"SLURM_EXPORT_ENV": "NONE", "SRUN_EXPORT_ENV": "NONE"}
    )
    assert "0 to submit" in submit(testbed, tmp_path, *PLAN).stdout
    assert tasks(testbed) == ["collect", "convnext_t", "convnext_t"]
    assert [outcomes(run) for run in wait(testbed, tmp_path, 2)] == [["done"]] * 2


@pytest.mark.usefixtures("busy")
def test_a_busy_controller_is_asked_again(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    shell = wrapper(testbed, tmp_path, "sbatch", f'{ONCE % TIMEOUT}; exec $real "$@"')
    shell |= wrapper(testbed, tmp_path, "squeue", f'{ONCE % TIMEOUT}; exec $real "$@"')
    done = submit(testbed, tmp_path, *PLAN, variables=shell)
    assert f"job {job_in(tmp_path)}: 2 jobs" in done.stdout
    assert tasks(testbed) == ["collect", "convnext_t", "convnext_t"]


def test_a_job_of_unknown_state_is_not_queued_twice(testbed: Testbed, tmp_path: Path) -> None:
    """Neither sbatch nor squeue answers once the job is queued; it trains its runs all the same."""
    write_clusters(tmp_path)
    shell = wrapper(
        testbed,
        tmp_path,
        "sbatch",
        '$real "$@" > /dev/null; touch $0.down; echo something went wrong >&2; exit 1',
    )
    shell |= wrapper(
        testbed,
        tmp_path,
        "squeue",
        f"test ! -e $(dirname $0)/sbatch.down || {{ {TIMEOUT.replace('sbatch', 'squeue')}; }}; exec $real"
        ' "$@"',
    )
    done = submit(testbed, tmp_path, *PLAN, check=False, variables=shell)
    assert done.returncode == 2
    assert re.search(
        r"cluster 'bed': it is unknown whether 2 jobs of runs/.*\.json are queued, .* Socket timed out .* not"
        r" queued twice\n$",
        done.stderr,
    )
    assert "2 in the queue, 0 to submit" in submit(testbed, tmp_path, *PLAN).stdout
    assert tasks(testbed) == ["collect", "convnext_t", "convnext_t"]
    assert [outcomes(run) for run in wait(testbed, tmp_path, 2)] == [["done"]] * 2


@pytest.mark.usefixtures("busy")
def test_a_queue_that_is_full_after_some_jobs_keeps_them(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path, steps={"gelu": {"time": "00:10:00"}})
    full = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"
    shell = wrapper(
        testbed,
        tmp_path,
        "sbatch",
        f'if grep -q "time=10$" $2; then echo "{full}" >&2; exit 1; fi; exec $real "$@"',
    )
    refused = submit(testbed, tmp_path, *PLAN, check=False, variables=shell)
    assert refused.returncode == 2
    job = job_in(tmp_path)
    name = next(run.name for run in found(tmp_path) if run.step == "gelu")
    assert (
        refused.stderr
        == "cluster 'bed': sbatch refuses: Batch job submission failed: Job violates accounting/QOS policy"
        f" (job submit limit)\ncluster 'bed': queued are the jobs {job}, but not 1 run from {name} on; the"
        " same command submits those later\n"
    )
    assert re.search(r"job \d+: collects when they have ended", refused.stdout)
    assert tasks(testbed) == ["collect", "convnext_t"]
    later = submit(testbed, tmp_path, *PLAN)
    assert "1 in the queue, 1 to submit" in later.stdout
    assert tasks(testbed) == ["collect", "collect", "convnext_t", "convnext_t"]


@pytest.mark.usefixtures("busy")
def test_a_refused_job_that_collects_is_submitted_the_next_time(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    script = (
        'if grep -q "job-name=collect$" $2; then echo "sbatch: error: no" >&2; exit 1; fi; exec $real "$@"'
    )
    shell = wrapper(testbed, tmp_path, "sbatch", script)
    refused = submit(testbed, tmp_path, *PLAN, check=False, variables=shell)
    assert refused.returncode == 2
    assert (
        "the runs are queued, but not the job that collects: no; when they have ended, run " in refused.stderr
    )
    assert tasks(testbed) == ["convnext_t", "convnext_t"]
    again = submit(testbed, tmp_path, *PLAN)
    assert re.search(r"2 in the queue, 0 to submit\njob \d+: collects when they have ended", again.stdout)
    submit(testbed, tmp_path, *PLAN)
    assert tasks(testbed) == ["collect", "convnext_t", "convnext_t"]
