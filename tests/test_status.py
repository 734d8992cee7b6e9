"""Where runs stand, stopping them and their logs, on real directories and processes; with Slurm, see
tests/slurm/test_status.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from roadmap import ROOT
from roadmap.lease import Lease, attempts, read_attempt
from roadmap.records import RunDir, prepare, status
from roadmap.steps import load_roadmap, resolve
from slurm.client import tasks_of
from slurm.jobs import Submission, jobs_of
from slurm.status_table import duration
from tests.helpers import commands

TINY = {
    "data.copies": 1,
    "model.depths": [1, 1, 1, 1],
    "recipe.epochs": 10,
    "system.checkpoint_minutes": 0.0001,
}
PLAN = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
HOLD = """
import sys, time, pathlib
from roadmap.lease import Lease
with Lease(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(600)
"""


def make(runs: Path, step: str, seed: int = 0, overrides: dict[str, Any] | None = None) -> RunDir:
    return prepare(
        runs, resolve(load_roadmap(), step, profile="digits", seed=seed, overrides=TINY | (overrides or {}))
    )


def call(command: str, *words: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "slurm" / f"{command}.py"), *map(str, words)]
    environment = os.environ | ({} if path is None else {"PATH": path})
    return commands.run(line, timeout=120, env=environment)


def status_json(runs: Path, *words: str, path: str | None = None) -> dict[str, Any]:
    done = call("status", runs, "--json", *words, path=path)
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def hold(run: RunDir) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def attempt(run: RunDir, outcome: str, reason: str | None = None) -> None:
    with Lease(run.path) as lease:
        lease.outcome, lease.reason = outcome, reason


def record(kind: str, epoch: int, iteration: int, seconds: float, **more: float) -> str:
    figures = {
        "kind": kind,
        "epoch": epoch,
        "iteration": iteration,
        "train_loss": 1.0,
        "images_per_s": 50.0,
        "seconds": seconds,
    }
    return json.dumps(figures | more) + "\n"


def finish(run: RunDir, outcome: str = "done", **more: Any) -> None:
    figures: dict[str, Any] = {"format": 1, "status": outcome, "roadmap": "convnext_t", "profile": "digits"}
    figures |= {
        "step": run.step,
        "seed": run.seed,
        "hash": run.hash,
        "versions": {},
        "dataset": "digits",
        "hardware": "cpu",
    }
    figures |= dict.fromkeys(
        ["top1", "top5", "val_loss", "train_loss", "ema_top1", "peak_memory_mb", "commit"]
    )
    figures |= {
        "epochs": 10,
        "iterations": 180,
        "global_batch": 64,
        "image_size": 32,
        "params": 1,
        "macs": 1,
        "finished": "now",
    }
    run.result.write_text(
        json.dumps(figures | {"images_per_s": 70.0, "train_seconds": 90.0, "attempts": 2} | more),
        encoding="utf-8",
    )


def test_every_state_with_its_metrics(tmp_path: Path) -> None:
    steps = ["resnet50", "gelu", "kernel_5", "kernel_7", "layer_norm", "fewer_norms", "stage_ratio"]
    done, diverged, failed, running, stale, pending, cancelled = (make(tmp_path, step) for step in steps)
    finish(done, top1=81.25)
    finish(diverged, "diverged", epochs=3)
    attempt(failed, "failed", "OutOfMemory: too much")
    attempt(stale, "stopped")
    attempt(cancelled, "stopped")
    cancelled.cancel()
    attempt(running, "stopped")
    running.metrics.write_text(
        record("epoch", 4, 72, 36, top1=55.5) + record("train", 5, 80, 40), encoding="utf-8"
    )
    process = hold(running)
    try:
        document = status_json(tmp_path)
        shown = call("status", tmp_path).stdout
    finally:
        process.kill()
        process.wait()
    rows = {row["step"]: row for row in document["runs"]}
    assert document["totals"] == dict.fromkeys(
        ["done", "diverged", "failed", "running", "stale", "pending", "cancelled"], 1
    )
    assert {step: row["state"] for step, row in rows.items()} == dict(
        zip(steps, ["done", "diverged", "failed", "running", "stale", "pending", "cancelled"], strict=True)
    )
    assert (rows["resnet50"]["top1"], rows["resnet50"]["epoch"], rows["resnet50"]["attempts"]) == (
        81.25,
        10,
        2,
    )
    assert rows["kernel_5"]["why"] == "OutOfMemory: too much"
    # 4 epochs are 72 iterations, so 10 are 180, of which 100 are left at half a second each
    assert (rows["kernel_7"]["epoch"], rows["kernel_7"]["epochs"], rows["kernel_7"]["top1"]) == (5, 10, 55.5)
    assert (
        rows["kernel_7"]["seconds_left"],
        rows["kernel_7"]["attempts"],
        rows["kernel_7"]["images_per_s"],
    ) == (50.0, 2, 50.0)
    assert rows["kernel_7"]["where"] == os.uname().nodename
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert lines["kernel_7"] == [
        "kernel_7",
        "0",
        "running",
        "5/10",
        "55.50",
        "50",
        "0:00:50",
        os.uname().nodename,
        "2",
    ]
    assert lines["kernel_5"][2:] == ["failed", os.uname().nodename, "1", "OutOfMemory:", "too", "much"]
    assert pending.step in lines


def test_the_forecast_is_reported_only_where_it_is_known(tmp_path: Path) -> None:
    first, second, other = make(tmp_path, "gelu"), make(tmp_path, "gelu", 1), make(tmp_path, "resnet50")
    first.metrics.write_text(record("train", 1, 10, 5), encoding="utf-8")
    process = hold(first)
    try:
        assert status_json(tmp_path)["forecast"] is None
        assert status_json(tmp_path)["runs"][0]["seconds_left"] is None, (
            "how long an epoch is shows at its end"
        )
        finish(second)  # a run of the same configuration tells: 180 iterations
        document = status_json(tmp_path)
        assert document["runs"][0]["seconds_left"] == pytest.approx(85.0)
        assert document["forecast"] == {"seconds": pytest.approx(85.0 + 90.0), "at_once": 1, "guessed": 1}
        assert "1 run of unknown length" in call("status", tmp_path).stdout
        attempt(other, "failed", "of itself")  # nobody is about to go on with that one
        assert status_json(tmp_path)["forecast"] == {
            "seconds": pytest.approx(85.0),
            "at_once": 1,
            "guessed": 0,
        }
    finally:
        process.kill()
        process.wait()
    assert status_json(tmp_path)["forecast"] is None, "nobody is at work"


def test_accuracy_is_the_last_evaluations_however_many_lines_ago(tmp_path: Path) -> None:
    run = make(tmp_path, "gelu")
    lines = [
        record("epoch", 1, 18, 9, top1=11.0),
        *(record("train", 2, 18 + number, 9 + number) for number in range(150)),
    ]
    run.metrics.write_text("".join(lines), encoding="utf-8")
    attempt(run, "stopped")
    found = status_json(tmp_path)["runs"][0]
    assert (found["top1"], found["epoch"]) == (11.0, 1), "it stopped in epoch 2, so it has finished 1"


@pytest.mark.parametrize("torn", ["", '{"kind": "epo', '{"kind": "epoch"\n', "[]\n", "{}\n", "\x00\xff\n"])
def test_truncated_files_are_read_up_to_where_they_end(torn: str, tmp_path: Path) -> None:
    runs = [make(tmp_path, step) for step in ("gelu", "kernel_7", "resnet50", "layer_norm", "stage_ratio")]
    runs[0].metrics.write_text(record("epoch", 2, 36, 18, top1=50.0) + torn, encoding="latin-1")
    attempt(runs[0], "stopped")
    runs[1].result.write_text(torn, encoding="latin-1")
    attempt(runs[2], "stopped")
    attempts(runs[2].path)[0].write_text(torn, encoding="latin-1")
    os.utime(attempts(runs[2].path)[0], (0, 0))  # or it might be somebody's who is alive elsewhere
    runs[3].config.write_text(torn, encoding="latin-1")
    jobs_of(runs[4]).mkdir()
    (jobs_of(runs[4]) / "20260101000000-00000000.json").write_text(torn, encoding="latin-1")
    document = status_json(tmp_path)
    rows = {row["step"]: row for row in document["runs"]}
    assert rows["gelu"]["top1"] == (50.0 if torn != "{}\n" else None)
    assert "result.json" in rows["kernel_7"]["why"]
    assert [rows[step]["state"] for step in ("resnet50", "layer_norm", "stage_ratio")] == [
        "stale",
        "pending",
        "pending",
    ]
    assert rows["layer_norm"]["epochs"] is None
    assert document["said"] == []


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    assert call("status", tmp_path).stdout == "0 runs\n"
    assert status_json(tmp_path) == {"runs": [], "totals": {}, "forecast": None, "said": []}


def test_runs_of_the_same_step_are_distinguished_by_more_columns(tmp_path: Path) -> None:
    make(tmp_path, "gelu")
    header = call("status", tmp_path).stdout.splitlines()[2].split()
    assert not {"hash", "experiment"} & set(header)
    other = make(tmp_path, "gelu", overrides={"recipe.lr": 0.1})
    lines = call("status", tmp_path).stdout.splitlines()
    assert lines[2].split()[:4] == ["step", "seed", "hash", "state"]
    assert any(other.hash in line for line in lines)
    prepare(tmp_path, resolve(load_roadmap(), "gelu", profile="digits_noisy"))
    assert call("status", tmp_path).stdout.splitlines()[2].split()[:2] == ["experiment", "step"]
    assert len(status_json(tmp_path, "--profile", "digits")["runs"]) == 2


def test_what_was_never_submitted_asks_no_slurm(tmp_path: Path) -> None:
    make(tmp_path, "gelu")
    assert status_json(tmp_path, path=str(tmp_path))["said"] == []


def test_where_slurm_cannot_be_asked_the_state_is_unknown(tmp_path: Path) -> None:
    submitted, failed, done, here = (
        make(tmp_path, "gelu"),
        make(tmp_path, "gelu", 1),
        make(tmp_path, "gelu", 2),
        make(tmp_path, "gelu", 3),
    )
    attempt(failed, "failed", "of itself")
    finish(done, top1=50.0)
    groups = tuple((run.name,) for run in (submitted, failed, done))
    jobs_of(submitted).mkdir()
    Submission("20260101000000-00000000", "cluster", "then", groups).write(jobs_of(submitted))
    document = status_json(tmp_path, path=str(tmp_path))
    assert document["said"] == ["squeue does not answer: squeue is not installed"]
    assert [(row["state"], row["why"]) for row in document["runs"]] == [
        ("unknown", None), ("unknown", "of itself"), ("done", None), ("pending", None),
    ]  # fmt: skip
    assert here.seed == 3
    shown = call("status", tmp_path, path=str(tmp_path)).stdout.splitlines()
    assert shown[1] == "squeue does not answer: squeue is not installed"
    refused = call("cancel", tmp_path, "--all", path=str(tmp_path))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr == "Slurm does not answer, so it is unknown what is queued: squeue is not installed\n"
    )
    assert "unknown" in call("logs", "gelu", "0", "--runs", tmp_path, path=str(tmp_path)).stdout


def test_watching_ends_when_all_runs_are_finished(tmp_path: Path) -> None:
    first, second = make(tmp_path, "gelu"), make(tmp_path, "resnet50")
    finish(first, top1=50.0)
    words = [sys.executable, str(ROOT / "slurm/status.py"), str(tmp_path), "--watch", "0.2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "1 done, 1 pending" in process.stdout.readline()
    finish(second, top1=60.0)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "2 runs: 2 done" in rest


def test_watching_ends_quietly_with_an_interrupt(tmp_path: Path) -> None:
    make(tmp_path, "gelu")
    words = [sys.executable, str(ROOT / "slurm/status.py"), str(tmp_path), "--watch"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("status", ["--profile", "digit"], "holds no run of profile 'digit'; did you mean 'digits'?"),
        ("status", ["--roadmap", "moon"], "holds no run of roadmap 'moon'; there are convnext_t"),
        ("status", ["--watch", "0"], "--watch must be more than 0 seconds, not 0"),
        ("cancel", [], "--all, --steps, --seed or --not-in-plan must be given, to select the runs to stop"),
        ("cancel", ["--steps", "gel"], "holds no run of step 'gel'; did you mean 'gelu'?"),
        ("cancel", ["--seed", "7"], "holds no run of seed '7'; there are 0"),
        ("cancel", ["--not-in-plan", "--set", "recipe.epoch=3"], "unknown key 'recipe.epoch'"),
        ("logs", ["gel", "0"], "holds no run of step 'gel'; did you mean 'gelu'?"),
        ("logs", ["gelu", "7"], "holds no run of seed '7'; there are 0"),
    ],
)
def test_bad_words_are_one_clear_line(command: str, words: list[str], said: str, tmp_path: Path) -> None:
    run = make(tmp_path, "gelu")
    process = hold(run)
    try:
        done = call(command, *(["--runs", tmp_path] if command == "logs" else [tmp_path]), *words)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert said in done.stderr


def test_a_worker_is_asked_to_save_and_its_run_resumes_later(tmp_path: Path) -> None:
    run = make(tmp_path, "gelu", overrides={"recipe.epochs": 2000})
    script = "import sys\nfrom slurm.worker import work\nwork(sys.argv[1:])\n"
    worker = commands.Command([sys.executable, "-c", script, str(run.path)], cwd=ROOT)
    try:
        while not any(run.checkpoints.glob("*.pt")):
            assert worker.poll() is None
            time.sleep(0.05)
        rehearsed = call("cancel", tmp_path, "--steps", "gelu", "--dry-run")
        assert f"process {worker.pid} would be asked to save and end: gelu seed 0" in rehearsed.stdout
        assert status(run).state == "running"
        done = call("cancel", tmp_path, "--steps", "gelu")
        assert f"process {worker.pid} was asked to save and end: gelu seed 0" in done.stdout
        assert worker.wait(timeout=60) == 0
    finally:
        worker.kill()
    assert [read_attempt(path)["outcome"] for path in attempts(run.path)] == ["stopped"]
    assert status(run).state == "stale"
    assert "nothing to stop" in call("cancel", tmp_path, "--all").stdout


def test_only_what_is_chosen_is_stopped(tmp_path: Path) -> None:
    runs = [
        make(tmp_path, "gelu"),
        make(tmp_path, "gelu", 1),
        make(tmp_path, "resnet50", 1),
        make(tmp_path, "gelu", 1, overrides={"recipe.lr": 0.1}),
    ]
    processes = [hold(run) for run in runs]
    try:
        assert "process" in call("cancel", tmp_path, "--not-in-plan", *PLAN).stdout
        assert processes[3].wait(timeout=60) == -signal.SIGTERM
        assert call("cancel", tmp_path, "--not-in-plan", *PLAN).stdout.startswith("nothing to stop")
        call("cancel", tmp_path, "--steps", "gelu", "--seed", "1")
        assert processes[1].wait(timeout=60) == -signal.SIGTERM
        assert [process.poll() for process in (processes[0], processes[2])] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_process_elsewhere_is_named_and_left(tmp_path: Path) -> None:
    run = make(tmp_path, "gelu")
    attempt(run, "stopped")
    far = {
        "number": 1,
        "host": "far",
        "pid": os.getpid(),
        "place": "far pid:[1]",
        "process_start": "1",
        "started": "then",
    }
    attempts(run.path)[0].write_text(json.dumps(far), encoding="utf-8")
    done = call("cancel", tmp_path, "--all")
    assert f"gelu seed 0 is trained by process {os.getpid()} on far: stop it there" in done.stdout
    assert done.returncode == 0


def test_the_log_of_a_worker_that_failed(tmp_path: Path) -> None:
    run = make(tmp_path, "gelu")
    run.metrics.mkdir()  # cannot be written to
    words = [
        "--steps",
        "gelu",
        "--seeds",
        "1",
        "--profile",
        "digits",
        "--cluster",
        "local",
        "--workers",
        "1",
        "--runs",
        str(tmp_path),
    ]
    call("submit", *words, *PLAN)
    done = call("logs", "gelu", "0", "--runs", tmp_path)
    first, *rest = done.stdout.splitlines()
    assert Path(first).match("convnext_t/digits/jobs/*_0_log.err")
    assert any("IsADirectoryError" in line for line in rest)
    assert "Starting with JobEnvironment" in call("logs", "gelu", "0", "--runs", tmp_path, "--out").stdout


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are those of a worker that submitit has started as its job 7."""
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")


def write_log(run: RunDir, lines: int) -> Path:
    log = jobs_of(run) / "7_0_log.err"
    log.parent.mkdir(exist_ok=True)
    log.write_text("begins\n" + "".join(f"line {number}\n" for number in range(lines)), encoding="utf-8")
    return log


@pytest.mark.usefixtures("job")
def test_a_log_is_shown_from_its_end(tmp_path: Path) -> None:
    run = make(tmp_path, "gelu")
    log = write_log(run, 100)
    assert call("logs", "gelu", "0", "--runs", tmp_path).stdout == "no log; gelu seed 0: pending\n"
    attempt(run, "stopped")
    assert call("logs", "gelu", "0", "--runs", tmp_path).stdout.splitlines() == [
        str(log),
        *(f"line {number}" for number in range(60, 100)),
    ]
    assert len(call("logs", "gelu", "0", "--runs", tmp_path, "--all").stdout.splitlines()) == 102


def test_of_several_runs_the_last_one_at_work_is_shown(tmp_path: Path) -> None:
    first, second = make(tmp_path, "gelu"), make(tmp_path, "gelu", overrides={"recipe.lr": 0.1})
    attempt(first, "stopped")
    shown = call("logs", "gelu", "0", "--runs", tmp_path).stdout.splitlines()
    assert shown[0].startswith("2 runs of gelu with seed 0")
    assert sorted(line.split(": ")[0].strip() for line in shown[1:3]) == sorted(
        map(str, (first.path, second.path))
    )
    assert shown[3] == "no log; gelu seed 0: stale"


@pytest.mark.usefixtures("job")
def test_following_a_log_ends_with_its_run(tmp_path: Path) -> None:
    run = make(tmp_path, "gelu")
    log = write_log(run, 3)
    holder = hold(run)
    words = [sys.executable, str(ROOT / "slurm/logs.py"), "gelu", "0", "--runs", str(tmp_path), "--follow"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(5)][-1] == "line 2\n"
        with log.open("a", encoding="utf-8") as file:
            file.write("one more\n")
        assert process.stdout.readline() == "one more\n"
        finish(run, top1=50.0)
    finally:
        holder.kill()
        holder.wait()
    rest, said = process.communicate(timeout=60)
    assert (process.returncode, said, rest) == (0, "", "gelu seed 0: done\n")


@pytest.mark.parametrize(
    ("job", "tasks"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-2,7%2]", ["12_0", "12_1", "12_2", "12_7"]),
        ("12_[4]", ["12_4"]),
        ("12_[0-1,9-...]", ["12_0", "12_1"]),
    ],
)
def test_tasks_that_never_started_are_abbreviated(job: str, tasks: list[str]) -> None:
    assert list(tasks_of(job)) == tasks


def test_steps_are_listed_as_they_were_planned(tmp_path: Path) -> None:
    for seed in (0, 1):
        for step in ("resnet50", "kernel_7", "gelu"):
            make(tmp_path, step, seed)
    rows = json.loads(call("status", tmp_path, "--json").stdout)["runs"]
    assert [(row["step"], row["seed"]) for row in rows] == [
        (step, seed) for step in ("resnet50", "kernel_7", "gelu") for seed in (0, 1)
    ]


def test_durations() -> None:
    assert [duration(59.6), duration(90061)] == ["0:01:00", "1 day, 1:01:01"]
