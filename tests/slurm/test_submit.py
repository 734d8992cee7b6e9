"""A roadmap on a real Slurm: submitted once whatever happens, and the same in the end as one that nothing
disturbed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from roadmap import ROOT
from roadmap.lease import attempts, read_attempt
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from slurm.jobs import jobs_of
from slurm.testbed.bed import Testbed
from slurm.testbed.config import Settings
from slurm.testbed.packages import hindrance
from tests.slurm.plans import (
    TINY,
    assert_same,
    cancel_all,
    found,
    job_of,
    outcome,
    outcomes,
    submit,
    wait,
    wait_for_lines,
    write_clusters,
)

STEP = "separate_downsampling"
LONG = 8  # epochs: long enough to be caught at work


@pytest.fixture(scope="session")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The long run, which nothing disturbed."""
    config = resolve(load_roadmap(), STEP, profile="digits", overrides=TINY | {"recipe.epochs": LONG})
    run = prepare(tmp_path_factory.mktemp("quiet"), config)
    train(config, run.path)
    return run


@pytest.fixture(autouse=True)
def nothing_left(testbed: Testbed) -> None:
    """Cancels what another test has left."""
    cancel_all(testbed)


def in_queue(bed: Testbed) -> int:
    lines = bed.run("squeue", "-h", "-r", "-o", "%j").stdout.split()
    return sum(line != "collect" for line in lines)


def test_a_plan_is_trained_and_collected(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    done = submit(testbed, tmp_path, "--steps", "resnet50", "gelu", "--seeds", "1", "--out", "out")
    assert "2 runs: 2 pending; 0 in the queue, 2 to submit" in done.stdout
    again = submit(testbed, tmp_path, "--steps", "resnet50", "gelu", "--seeds", "1", "--out", "out")
    assert re.search("2 in the queue, 0 to submit|[12] running", again.stdout), again.stdout
    runs = wait(testbed, tmp_path, 2)
    assert [outcomes(run) for run in runs] == [["done"]] * 2
    testbed.wait_for(lambda: (tmp_path / "out/ablation.md").is_file(), "the table")
    testbed.wait_for(lambda: (tmp_path / "out/accuracy_vs_gmacs.svg").is_file(), "the figures")
    assert "2 of 19 runs" in (tmp_path / "out/ablation.md").read_text(encoding="utf-8")
    third = submit(testbed, tmp_path, "--steps", "resnet50", "gelu", "--seeds", "1")
    assert "2 runs: 2 done; 0 in the queue, 0 to submit" in third.stdout


def test_a_run_of_all_steps_ends_in_a_table(testbed: Testbed, tmp_path: Path) -> None:
    steps = load_roadmap().steps
    write_clusters(tmp_path)
    done = submit(testbed, tmp_path, "--seeds", "1", "--out", "out", "--pack", "5", epochs=1)
    assert f"{len(steps)} to submit" in done.stdout
    runs = wait(testbed, tmp_path, len(steps))
    assert {run.step for run in runs} == set(steps)
    assert all(outcomes(run) == ["done"] for run in runs)
    testbed.wait_for(lambda: (tmp_path / "out/accuracy_vs_gmacs.svg").is_file(), "the figures")
    table = (tmp_path / "out/ablation.md").read_text(encoding="utf-8")
    assert f"{len(steps)} of {len(steps)} runs" in table
    assert [line.split("|")[1].strip(" └") for line in table.splitlines() if line.startswith("| ")][
        2:
    ] == list(steps)


def test_runs_are_submitted_while_the_accounting_is_down(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    testbed.stop_accounting()
    try:
        submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1", "--out", "out")
        run = wait(testbed, tmp_path, 1)[0]
        assert outcomes(run) == ["done"]
    finally:
        testbed.start_accounting()


@pytest.mark.parametrize("how", ["requeue", "USR2", "kill -9", "kill -9 of the node's daemon", "node down"])
def test_a_disturbed_run_ends_as_a_quiet_one(
    how: str, testbed: Testbed, quiet: RunDir, tmp_path: Path
) -> None:
    write_clusters(tmp_path)
    submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1", epochs=LONG)
    run = wait_for_lines(testbed, tmp_path)
    job = job_of(testbed, run)
    before = len(attempts(run.path))
    if how == "requeue":
        testbed.run("scontrol", "requeue", job)
    elif how == "USR2":
        testbed.run("scancel", "--signal=USR2", job)
    elif how == "kill -9":
        os.kill(read_attempt(attempts(run.path)[-1])["pid"], signal.SIGKILL)
    elif how == "node down":
        node = testbed.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
        testbed.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        # a node that registers anew by itself meanwhile, as on a slow machine, cannot be resumed; the run
        # shows whether it is back
        testbed.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    else:
        node = testbed.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
        os.kill(read_attempt(attempts(run.path)[-1])["pid"], signal.SIGKILL)
        testbed.kill_slurmd(node)
        testbed.start_slurmd(node)
    wait(testbed, tmp_path, 1)
    assert len(attempts(run.path)) > before
    assert outcomes(run)[-1] == "done"
    assert_same(run, quiet)


def test_the_controller_may_die_and_come_back(testbed: Testbed, quiet: RunDir, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1", epochs=LONG)
    run = wait_for_lines(testbed, tmp_path)
    testbed.kill_slurmctld()
    refused = submit(testbed, tmp_path, "--steps", STEP, "--seeds", "2", epochs=LONG, check=False)
    assert refused.returncode == 2
    assert "does not answer, so it is unknown what is queued, and nothing was submitted" in refused.stderr
    testbed.start_slurmctld()
    wait(testbed, tmp_path, 1)
    assert_same(run, quiet)


def test_a_time_limit_only_interrupts(testbed: Testbed, tmp_path: Path) -> None:
    """Slurm announces the limit up to a minute earlier than asked: here 30 to 60 s after a job's start."""
    write_clusters(tmp_path, time="00:02:00", signal_seconds=60)
    submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1", epochs=2000)
    run = wait_for_lines(testbed, tmp_path)
    testbed.wait_for(lambda: len(outcomes(run)) > 1, "the run to be at work again", 300)
    assert outcomes(run)[0] == "stopped"
    job = testbed.run("squeue", "-h", "-j", job_of(testbed, run), "-O", "restartcnt").stdout
    assert int(job) == 1


def test_a_cancelled_job_is_not_queued_again(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1", epochs=200)
    run = wait_for_lines(testbed, tmp_path)
    testbed.run("scancel", job_of(testbed, run))
    testbed.wait_for(lambda: in_queue(testbed) == 0, "the job to be gone")
    assert outcomes(run) == ["stopped"]
    assert not run.result.exists()


def test_only_the_task_that_was_stopped_is_queued_again(testbed: Testbed, tmp_path: Path) -> None:
    """The last task of an array, whose job id is the array's own."""
    write_clusters(tmp_path)
    done = submit(testbed, tmp_path, "--steps", STEP, "--seeds", "3", epochs=2000)
    array = done.stdout.partition("job ")[2].partition(":")[0]
    testbed.wait_for(
        lambda: sum(any(run.checkpoints.glob("*.pt")) for run in found(tmp_path)) == 3,
        "three runs to be at work",
        180,
    )
    runs = sorted(found(tmp_path), key=lambda run: run.seed)

    def shown(index: int) -> dict[str, str]:
        text = testbed.run("scontrol", "show", "job", f"{array}_{index}").stdout
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    assert shown(2)["JobId"] == array
    testbed.run("scancel", f"{array}_1")
    testbed.wait_for(lambda: shown(1)["JobState"] == "CANCELLED", "the middle task to be cancelled")
    testbed.run("scancel", "--signal=USR2", f"{array}_2")
    testbed.wait_for(lambda: len(attempts(runs[2].path)) == 2, "the last task to be begun again", 180)
    assert [(shown(index)["JobState"], shown(index)["Restarts"]) for index in (0, 2)] == [
        ("RUNNING", "0"),
        ("RUNNING", "1"),
    ]
    assert [outcomes(run) for run in runs] == [[None], ["stopped"], ["stopped", None]]
    assert testbed.run("squeue", "-h", "-r", "-j", array, "-o", "%K").stdout.split() in (
        ["0", "2"],
        ["2", "0"],
    )


def test_a_run_that_crashes_is_retried_a_few_times(testbed: Testbed, tmp_path: Path) -> None:
    """A metrics file that is a folder fails each attempt; the reason is kept."""
    write_clusters(tmp_path, retries=2)
    config = resolve(load_roadmap(), STEP, profile="digits", overrides=TINY)
    run = prepare(tmp_path / "runs", config)
    run.metrics.mkdir()
    submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1")
    testbed.wait_for(lambda: len(attempts(run.path)) >= 3 and in_queue(testbed) == 0, "three attempts", 200)
    assert outcomes(run) == ["failed"] * 3
    assert "IsADirectoryError" in read_attempt(attempts(run.path)[-1])["reason"]
    run.metrics.rmdir()
    submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1", "--only", "failed")
    wait(testbed, tmp_path, 1)


def test_a_rejected_submission_leaves_nothing(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path, partition="moon")
    refused = submit(testbed, tmp_path, "--steps", STEP, "--seeds", "2", check=False)
    assert refused.returncode == 2
    assert re.fullmatch(r"cluster 'bed': sbatch refuses: .*invalid partition.*\n", refused.stderr), (
        refused.stderr
    )
    jobs = jobs_of(found(tmp_path)[0])
    assert [path.name for path in jobs.iterdir() if not path.name.startswith("source-")] == ["attempts"]


def test_two_submissions_at_once_submit_once(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    said: list[subprocess.CompletedProcess[str]] = []
    words = ("--steps", STEP, "--seeds", "2")
    threads = [
        threading.Thread(target=lambda: said.append(submit(testbed, tmp_path, *words, check=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {done.returncode for done in said} <= {0, 2}
    assert sum("2 to submit" in done.stdout for done in said) == 1, [
        done.stdout + done.stderr for done in said
    ]
    runs = wait(testbed, tmp_path, 2)
    assert [outcomes(run) for run in runs] == [["done"]] * 2


def test_two_nodes_train_a_run_together(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path, nodes=2)
    submit(testbed, tmp_path, "--steps", STEP, "--seeds", "1", "--set", "recipe.local_batch=32")
    run = wait(testbed, tmp_path, 1)[0]
    text = run.result.read_text(encoding="utf-8")
    assert '"processes": 2' in text
    config = resolve(load_roadmap(), STEP, profile="digits", overrides=TINY | {"recipe.local_batch": 32})
    alone = prepare(tmp_path / "alone", config)
    train(config, alone.path)
    (metrics, _), (expected, _) = (outcome(each) for each in (run, alone))
    ours, theirs = (
        [line["train_loss"] for line in lines if line["kind"] == "train"] for lines in (metrics, expected)
    )
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_arrays_are_cut_to_what_slurm_allows(tmp_path: Path) -> None:
    if reason := hindrance():
        pytest.skip(reason)
    with Testbed(tmp_path / "bed", Settings(accounting=False, max_array_size=5)) as bed:
        write_clusters(tmp_path, cpus_per_task=8)
        done = submit(bed, tmp_path, "--seeds", "1", "--steps", *load_roadmap().steps[:12])
        assert re.findall(r"job \d+: (\d+) jobs", done.stdout) == ["5", "5", "2"]
        assert in_queue(bed) == 12


def test_a_limit_of_runs_at_a_time_holds_for_jobs_of_two_kinds(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path, parallel=1, steps={"gelu": {"time": "00:10:00"}})
    done = submit(testbed, tmp_path, "--steps", "gelu", STEP, "--seeds", "1", epochs=LONG)
    assert len(re.findall(r"^job \d+: 1 job", done.stdout, re.MULTILINE)) == 2
    runs = wait(testbed, tmp_path, 2)
    first, second = sorted(
        (read_attempt(attempts(run.path)[0]) for run in runs), key=lambda record: str(record["started"])
    )
    assert first["ended"] <= second["started"]


def test_a_slurm_without_arrays_gets_plain_jobs(tmp_path: Path) -> None:
    if reason := hindrance():
        pytest.skip(reason)
    with Testbed(tmp_path / "bed", Settings(accounting=False, max_array_size=0)) as bed:
        write_clusters(tmp_path)
        done = submit(bed, tmp_path, "--seeds", "2", "--steps", STEP)
        assert re.findall(r"job \d+: (\d+) job ", done.stdout) == ["1", "1"]
        wanted = bed.run("squeue", "-h", "-t", "all", "-n", "convnext_t", "-o", "%K").stdout.split()
        assert wanted == ["N/A"] * 2
        assert [outcomes(run) for run in wait(bed, tmp_path, 2)] == [["done"]] * 2


def test_packed_runs_share_a_job(testbed: Testbed, tmp_path: Path) -> None:
    write_clusters(tmp_path)
    done = submit(testbed, tmp_path, "--steps", "resnet50", "gelu", STEP, "--seeds", "1", "--pack", "3")
    assert "1 job (" in done.stdout
    runs = wait(testbed, tmp_path, 3)
    hosts = {read_attempt(attempts(run.path)[0])["pid"] for run in runs}
    assert len(hosts) == 1


def test_the_source_may_be_edited_after_a_submission(testbed: Testbed, tmp_path: Path) -> None:
    """What is submitted runs as it was: here from a copy of the project that is broken at once."""
    copy = tmp_path / "project"
    for part in ("blocks", "roadmap", "slurm"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("steps.yaml", "run_step.py", "collect.py"):
        shutil.copy(ROOT / part, copy / part)
    write_clusters(tmp_path)
    words = [
        word for key, value in TINY.items() for word in ("--set", f"{key}={str(value).replace(' ', '')}")
    ]
    command = ["env", f"PYTHONPATH={copy}", sys.executable, str(copy / "slurm/submit.py"), "--cluster", "bed"]
    command += [
        "--cluster-file",
        str(tmp_path / "clusters.yaml"),
        "--profile",
        "digits",
        "--steps",
        STEP,
        "--seeds",
        "1",
        *words,
    ]
    testbed.run(*command, cwd=tmp_path, timeout_s=60)
    (copy / "roadmap/train.py").write_text("raise SystemExit('edited')\n", encoding="utf-8")
    run = wait(testbed, tmp_path, 1)[0]
    assert outcomes(run) == ["done"]
