"""The testbed is a real Slurm: it runs, accounts for, requeues and preempts jobs,
and survives its daemons.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from slurm.testbed.bed import Testbed
from tests.slurm.jobs import lines_of, submit, wait_for_state


def accounted(bed: Testbed, job: str, *fields: str) -> list[list[str]]:
    lines = bed.run("sacct", "-n", "-X", "-P", "-D", "-j", job, "-o", ",".join(fields)).stdout.splitlines()
    return [line.split("|") for line in lines]


def wait_until_accounted(bed: Testbed, job: str, expected: list[list[str]], *fields: str) -> None:
    bed.wait_for(
        lambda: sorted(accounted(bed, job, *fields)) == sorted(expected),
        f"sacct to show job {job} as {expected}",
    )


def test_a_job_on_two_nodes_is_accounted_for(testbed: Testbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tell = shlex.quote(f"echo $SLURMD_NODENAME $SLURM_PROCID $CUDA_VISIBLE_DEVICES >> {out}")
    job = submit(
        testbed,
        f"srun bash -c {tell}",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--gpus-per-node=2",
    )
    wait_for_state(testbed, job, "COMPLETED")
    assert sorted(lines_of(out)) == ["n1 0 0,1", "n2 1 0,1"]
    wait_until_accounted(
        testbed, job, [["COMPLETED", "0:0", "n[1-2]", "8"]], "state", "exitcode", "nodelist", "alloccpus"
    )


def test_an_array_of_three(testbed: Testbed, tmp_path: Path) -> None:
    job = submit(
        testbed, f"touch {tmp_path}/$SLURM_ARRAY_TASK_ID; test $SLURM_ARRAY_TASK_ID != 1", "--array=0-2"
    )
    expected = [[f"{job}_0", "COMPLETED"], [f"{job}_1", "FAILED"], [f"{job}_2", "COMPLETED"]]
    wait_until_accounted(testbed, job, expected, "jobid", "state")
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2"}


@pytest.mark.parametrize("option", ["--cpus-per-task=9", "--gpus-per-node=9", "--mem=65000"])
def test_what_no_node_has_is_refused(testbed: Testbed, option: str) -> None:
    assert (
        "Requested node configuration is not available"
        in testbed.run("sbatch", option, "--wrap=true", check=False).stderr
    )


def test_what_the_partition_forbids_waits_for_ever(testbed: Testbed) -> None:
    job = submit(testbed, "true", "--partition=short", "--time=3")
    state = ["squeue", "-h", "-j", job, "-o", "%T %r"]
    testbed.wait_for(
        lambda: testbed.run(*state).stdout == "PENDING PartitionTimeLimit\n",
        "the reason why it does not start",
    )
    testbed.run("scancel", job)


def test_a_job_outlives_the_controller(testbed: Testbed, tmp_path: Path) -> None:
    go, out = tmp_path / "go", tmp_path / "out"
    job = submit(testbed, f"echo begun >> {out}; until test -e {go}; do sleep 0.1; done; echo done >> {out}")
    testbed.wait_for(lambda: lines_of(out), "the job to begin")
    testbed.kill_slurmctld()
    assert testbed.alive()["slurmctld"] is None
    testbed.start_slurmctld()
    assert testbed.state_of_job(job) == "RUNNING"
    go.touch()
    wait_for_state(testbed, job, "COMPLETED")
    assert lines_of(out) == ["begun", "done"]
    wait_until_accounted(testbed, job, [["COMPLETED"]], "state")


def test_a_job_outlives_its_nodes_daemon(testbed: Testbed, tmp_path: Path) -> None:
    go, out = tmp_path / "go", tmp_path / "out"
    job = submit(
        testbed,
        f"echo begun >> {out}; until test -e {go}; do sleep 0.1; done; echo done >> {out}",
        "--nodelist=n2",
    )
    testbed.wait_for(lambda: lines_of(out), "the job to begin")
    testbed.kill_slurmd("n2")
    testbed.start_slurmd("n2")
    go.touch()
    wait_for_state(testbed, job, "COMPLETED")
    assert lines_of(out) == ["begun", "done"]


def test_a_node_that_is_lost_has_its_job_requeued(plain: Testbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = submit(
        plain,
        f"echo $SLURMD_NODENAME $SLURM_RESTART_COUNT >> {out}; sleep 1000",
        "--nodelist=n[1-2]",
        "--nodes=1-2",
    )
    plain.wait_for(lambda: lines_of(out) == ["n1"], "the job to begin")
    plain.kill_slurmd("n1")
    plain.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    wait_for_state(plain, job, "PENDING")
    plain.start_slurmd("n1")
    plain.wait_for(lambda: lines_of(out) == ["n1", "n1 1"], "the job to begin again")


def test_accounting_catches_up(testbed: Testbed) -> None:
    testbed.stop_accounting()
    job = submit(testbed, "true")
    wait_for_state(testbed, job, "COMPLETED")
    assert testbed.run("sacct", "-j", job, check=False).returncode != 0
    testbed.start_accounting()
    wait_until_accounted(testbed, job, [["COMPLETED"]], "state")


def test_without_accounting_sacct_reports_that_it_is_disabled(plain: Testbed) -> None:
    assert plain.alive().keys() == {"munged", "slurmctld", "slurmd-n1", "slurmd-n2"}
    job = submit(plain, "true")
    wait_for_state(plain, job, "COMPLETED")
    asked = plain.run("sacct", "-j", job, check=False)
    assert (asked.returncode, "accounting storage is disabled" in asked.stderr) == (1, True)


def test_a_requeued_job_restarts(testbed: Testbed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = submit(
        testbed,
        f"echo restarts $SLURM_RESTART_COUNT >> {out}; test $SLURM_RESTART_COUNT || sleep 1000",
        "--requeue",
    )
    testbed.wait_for(lambda: lines_of(out) == ["restarts"], "the job to begin")
    testbed.run("scontrol", "requeue", job)
    testbed.wait_for(lambda: lines_of(out) == ["restarts", "restarts 1"], "the job to begin again")
    wait_for_state(testbed, job, "COMPLETED")
    wait_until_accounted(testbed, job, [["REQUEUED"], ["COMPLETED"]], "state")


def test_a_preempted_job_is_signaled_and_requeued(plain: Testbed, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.py"
    mine.write_text(
        "import os, signal, sys, time\n"
        "def say(word): print(word, file=open(sys.argv[1], 'a'))\n"
        "signal.signal(signal.SIGUSR2, lambda *_: say('told'))\n"
        "say('begun')\n"
        "time.sleep(0 if 'SLURM_RESTART_COUNT' in os.environ else 1000)\n",
        encoding="utf-8",
    )
    whole = ["--nodes=2", "--exclusive"]
    low = submit(
        plain,
        f"srun --ntasks=1 --nodes=1 {sys.executable} {mine} {out}",
        *whole,
        "--partition=low",
        "--signal=USR2@60",
    )
    plain.wait_for(lambda: lines_of(out) == ["begun"], "the job to begin")
    urgent = submit(plain, "true", *whole)
    wait_for_state(plain, urgent, "COMPLETED")
    plain.wait_for(
        lambda: lines_of(out) == ["begun", "told", "begun"], "the job to be told, and to begin again"
    )
    wait_for_state(plain, low, "COMPLETED")
