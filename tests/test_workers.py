"""Real workers on one plan: no run is trained twice, none is forgotten, and a killed worker's run goes on
elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from roadmap import ROOT
from roadmap.lease import attempts, owner, read_attempt
from roadmap.provenance import RUNS_PER_GPU, WORKERS_HERE, usable_cores
from roadmap.records import RunDir, prepare, status
from roadmap.steps import load_roadmap, resolve
from roadmap.terminal import count
from roadmap.training.device import is_lost
from slurm.local import gpus, gpus_for, start, train_here, worker_count
from slurm.worker import FAILED, must_requeue, work
from tests.helpers import commands
from tests.helpers.images import TINY as IMAGES
from tests.helpers.images import write_folder
from tests.slurm.plans import outcomes

TINY = {
    "data.copies": 1,
    "model.depths": [1, 1, 1, 1],
    "recipe.epochs": 1,
    "system.log_every": 3,
    "system.checkpoint_minutes": 0.0001,
}
WORK = "import sys\nfrom slurm.worker import work\nwork(sys.argv[1:])\n"
OPTIONS = [
    "--profile",
    "digits",
    *(word for key, value in TINY.items() for word in ("--set", f"{key}={value}")),
]


def plan(runs: Path, steps: list[str], seeds: int, epochs: int = 1) -> list[RunDir]:
    roadmap, overrides = load_roadmap(), TINY | {"recipe.epochs": epochs}
    return [
        prepare(runs, resolve(roadmap, step, profile="digits", seed=seed, overrides=overrides))
        for seed in range(seeds)
        for step in steps
    ]


def worker(runs: list[RunDir]) -> commands.Command:
    return commands.Command([sys.executable, "-c", WORK, *(str(run.path) for run in runs)], cwd=ROOT)


def test_two_workers_never_train_the_same_run(tmp_path: Path) -> None:
    runs = plan(tmp_path, ["resnet50", "kernel_7", "layer_norm"], seeds=2)
    workers = [worker(runs), worker(runs)]
    assert [process.wait(timeout=300) for process in workers] == [0, 0]
    assert [outcomes(run) for run in runs] == [["done"]] * len(runs)
    pids = {read_attempt(attempts(run.path)[0])["pid"] for run in runs}
    assert pids == {process.pid for process in workers}, "both workers took a share"


def test_the_run_of_a_killed_worker_resumes_in_another(tmp_path: Path) -> None:
    runs = plan(tmp_path, ["resnet50", "gelu"], seeds=1, epochs=3)
    victim = worker(runs)
    while not runs[0].checkpoints.exists() or not any(runs[0].checkpoints.glob("*.pt")):
        assert victim.poll() is None
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    assert status(runs[0]).state == "stale"
    assert worker(runs).wait(timeout=300) == 0
    assert outcomes(runs[0]) == [None, "done"]
    assert outcomes(runs[1]) == ["done"]


def test_a_run_that_fails_reports_why_and_stops_no_other(tmp_path: Path) -> None:
    runs = plan(tmp_path, ["resnet50", "gelu"], seeds=1)
    runs[0].metrics.mkdir()
    assert worker(runs).wait(timeout=300) == 0
    assert [status(run).state for run in runs] == ["failed", "done"]
    assert "IsADirectoryError" in str(status(runs[0]).why)
    runs[0].metrics.rmdir()
    assert worker(runs).wait(timeout=300) == 0
    assert outcomes(runs[0]) == ["failed", "done"]


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("0, 3", ["0", "3", "0"]),
        ("GPU-8932f937,MIG-2f1c", ["GPU-8932f937", "MIG-2f1c"]),
        ("7", ["7"] * 2),
    ],
)
def test_each_worker_has_a_gpu_by_number_or_id(
    visible: str, devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def given(device: str, run_dirs: list[str], skip: list[str]) -> tuple[str, int]:
        """In a worker's place; defined here, it is pickled whole, and no worker imports this module."""
        return device, len(run_dirs)

    monkeypatch.setattr("slurm.local.work_on", given)
    workers = start(plan(tmp_path, ["gelu"], seeds=1), workers=len(devices), devices=gpus())
    assert [worker.job.result() for worker in workers] == [(device, 1) for device in devices]


def test_workers_share_the_gpus_and_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", WORKERS_HERE, RUNS_PER_GPU):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr("slurm.local.usable_cores", lambda: 12)

    def given(device: str, run_dirs: list[str], skip: list[str]) -> tuple[str, int, int, str]:
        """In a worker's place; defined here, it is pickled whole, and no worker imports this module."""
        import os

        from roadmap import provenance

        provenance.usable_cores = lambda: 12
        threads = os.environ["OMP_NUM_THREADS"]
        return device, provenance.cores_per_process(), provenance.runs_per_gpu(), threads

    monkeypatch.setattr("slurm.local.work_on", given)
    before = dict(os.environ)
    devices = gpus()
    workers = start(plan(tmp_path, ["gelu"], seeds=1), worker_count(None, devices, 2), devices)
    assert dict(os.environ) == before
    assert [worker.job.result() for worker in workers] == [("5", 3, 2, "3"), ("7", 3, 2, "3")] * 2


@pytest.mark.parametrize(
    ("visible", "more", "problem"),
    [
        ("", [], "needs a GPU, and this machine has none; choose --workers"),
        ("0", ["--workers", "3"], "decides how many --workers there are; give one of the two"),
    ],
)
def test_runs_per_gpu_decides_the_number_of_workers(
    visible: str, more: list[str], problem: str, tmp_path: Path
) -> None:
    command = [*submit(tmp_path), "--runs-per-gpu", "2", "--dry-run", *more]
    done = commands.run(command, timeout=60, env=os.environ | {"CUDA_VISIBLE_DEVICES": visible})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"--runs-per-gpu {problem}\n")


@pytest.mark.parametrize(
    ("more", "why", "workers"),
    [
        ([], "no run uses a GPU of this machine", min(4, usable_cores())),
        (["--workers", "3"], "--workers is 3", 3),
    ],
)
def test_a_dry_run_here_names_its_workers_and_what_has_no_effect(
    more: list[str], why: str, workers: int, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("clusters: {mine: {scheduler: local, runs_per_gpu: 4}}", "utf-8")
    entry = ["--cluster", "mine", "--cluster-file", str(tmp_path / "c.yaml")]
    command = [*submit(tmp_path / "runs"), *entry, "--dry-run", *more]
    done = commands.run(command, timeout=60, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.stdout.splitlines()[:2] == [
        f"cluster 'mine': runs_per_gpu 4 is ignored: {why}",
        f"4 runs: 4 pending; {count(workers, 'worker')} for 4 open runs",
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_hidden_gpus_are_none(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == []


def work_on_a_gpu_that_fails(run_dirs: list[str], skip: list[str]) -> Any:
    """A worker whose GPU fails in each run of kernel_7, and after that in whatever else its process does."""
    from roadmap.training import device
    from roadmap.training.engine import Engine
    from slurm.worker import work

    step: Any = Engine.train_step
    dead: list[bool] = []

    def train_step(engine: Engine, batches: Any) -> Any:
        if dead or engine.config.step == "kernel_7":
            dead.append(True)
            raise RuntimeError("CUDA error: device-side assert triggered")
        return step(engine, batches)

    Engine.train_step = train_step  # type: ignore[method-assign,assignment]
    device.is_lost = lambda: bool(dead)
    return work(run_dirs, skip=skip)


def test_a_worker_that_lost_its_gpu_is_replaced_and_harms_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("slurm.local.work", work_on_a_gpu_that_fails)
    runs = plan(tmp_path, ["kernel_7", "gelu"], seeds=1)
    assert train_here(runs, workers=1, devices=[]) == 1
    assert [outcomes(run) for run in runs] == [["failed", "failed"], ["done"]]
    assert status(runs[0]).why == "RuntimeError: CUDA error: device-side assert triggered"
    first, second = (read_attempt(path)["pid"] for path in attempts(runs[0].path))
    assert first != second == read_attempt(attempts(runs[1].path)[0])["pid"]
    assert len(re.findall(r"worker \d+ lost its GPU; \d+ takes over", capsys.readouterr().out)) == 1


def test_a_job_whose_gpu_was_lost_leaves_the_other_runs_to_its_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("roadmap.training.engine.Engine.train_step", fail)
    monkeypatch.setattr("roadmap.training.device.is_lost", lambda: True)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    runs = plan(tmp_path, ["kernel_7", "resnet50", "gelu"], seeds=1)
    shift = work([str(run.path) for run in runs], patient=False, retries=1)
    assert (shift.finished, shift.stopped, shift.lost) == (0, False, str(runs[0].path))
    assert [status(run).state for run in runs] == ["failed", "pending", "pending"]
    assert must_requeue(runs, FAILED, retries=1)


def test_a_run_that_fails_without_a_gpu_has_lost_none() -> None:
    assert not is_lost()


def test_runs_on_the_cpu_take_no_gpu_and_a_worker_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    anywhere, cpu = (
        resolve(load_roadmap(), "gelu", profile="digits", overrides={"system.device": device})
        for device in ("auto", "cpu")
    )
    assert len(gpus_for([anywhere])) == worker_count(None, gpus_for([cpu, anywhere])) == 8
    assert gpus_for([cpu, cpu]) == []
    assert worker_count(None, gpus_for([cpu])) == usable_cores()
    assert worker_count(3, gpus_for([anywhere])) == 3


def test_a_worker_sees_its_gpu_alone() -> None:
    code = (
        "import os\nfrom slurm.worker import work_on\nwork_on('MIG-2f1c',"
        " [])\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    words = [sys.executable, "-c", code]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    assert commands.run(words, cwd=ROOT, env=environment, check=True).stdout == "MIG-2f1c\n"


def submit(runs: Path, *more: str) -> list[str]:
    steps = ["resnet50", "separate_downsampling"]
    command = [sys.executable, str(ROOT / "slurm/submit.py"), "--cluster", "local", "--steps", *steps]
    return [*command, *OPTIONS, "--seeds", "2", "--runs", str(runs), *more]


def test_submit_collect_and_submit_again(tmp_path: Path) -> None:
    runs, out = tmp_path / '100% [x] [/b] :x: it\'s "ü" $HOME', tmp_path / "out"
    named = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}  # but it need not be there: workers use the CPU
    words = submit(runs, "--runs-per-gpu", "2")
    first = commands.run(words, timeout=300, check=True, cwd=tmp_path, env=named)
    assert "4 runs: 4 pending; 2 workers, 2 on a GPU, for 4 open runs" in first.stdout
    assert "[4/4]" in first.stdout
    again = commands.run(submit(runs), timeout=60, check=True, cwd=tmp_path)
    assert "4 runs: 4 done; 0 workers for 0 open runs" in again.stdout
    command = [sys.executable, str(ROOT / "collect.py"), str(runs), "--out", str(out), *OPTIONS]
    commands.run(command, timeout=120, check=True, cwd=tmp_path)
    assert {path.name for path in out.iterdir()} >= {
        "ablation.csv", "ablation.md", "runs.csv", "roadmap.png", "roadmap.svg",
        "accuracy_vs_gmacs.png", "report.html",
    }  # fmt: skip
    more = commands.run([*words, "--seeds", "3", "--dry-run"], check=True, cwd=tmp_path, env=named)
    assert "GPU-hours for 2 runs" in more.stdout
    assert "4 of 38 runs" in (out / "ablation.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"100% [x] [", "out"}
    assert [path.name for path in runs.parent.iterdir()] == [runs.name]


def test_a_system_value_that_is_given_later_reaches_the_workers(tmp_path: Path) -> None:
    """As the message about an image that is torn proposes."""
    torn = write_folder(tmp_path / "data") / "train/ant/0.jpg"
    torn.write_bytes(torn.read_bytes()[:-200])
    given = IMAGES | {"system.data_dir": str(tmp_path / "data")}
    command = [
        sys.executable,
        str(ROOT / "slurm/submit.py"),
        "--cluster",
        "local",
        "--steps",
        "gelu",
        "--seeds",
        "1",
    ]
    command += [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    first = commands.run(command, timeout=120, cwd=tmp_path)
    assert first.returncode == 1
    assert "failed, CorruptImages" in first.stdout
    (config,) = tmp_path.glob("runs/*/*/*/*/config.yaml")
    more = [*command, "--set", "system.corrupt_images=1"]
    commands.run([*more, "--dry-run"], timeout=60, check=True, cwd=tmp_path)
    assert "corrupt_images: 0" in config.read_text(encoding="utf-8")
    commands.run([*more, "--only", "failed"], timeout=120, check=True, cwd=tmp_path)
    assert json.loads(config.with_name("result.json").read_text(encoding="utf-8"))["corrupt_images"] == 1


def cancel(runs: Path, *words: str) -> str:
    command = [sys.executable, str(ROOT / "slurm/cancel.py"), str(runs), *words]
    return commands.run(command, timeout=60, check=True).stdout


def test_workers_leave_what_is_cancelled_until_it_is_submitted_again(tmp_path: Path) -> None:
    gelu, kernel, resnet = plan(tmp_path, ["gelu", "kernel_7", "resnet50"], seeds=1, epochs=4)
    command = [
        sys.executable,
        str(ROOT / "slurm/submit.py"),
        "--cluster",
        "local",
        "--seeds",
        "1",
        "--runs",
        str(tmp_path),
    ]
    command += [*(word.replace("epochs=1", "epochs=4") for word in OPTIONS), "--steps", "gelu"]
    process = commands.Command([*command, "kernel_7", "resnet50", "--workers", "1"], cwd=tmp_path)
    while not any(gelu.checkpoints.glob("*.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    chosen = ("--steps", "gelu", "kernel_7")
    assert "would be skipped by all workers until submitted again: gelu seed 0, kernel_7 seed 0" in cancel(
        tmp_path, *chosen, "--dry-run"
    )
    assert [status(run).state for run in (gelu, kernel)] == ["running", "pending"]
    said = cancel(tmp_path, *chosen)
    assert (
        "was asked to save and continue with other runs: gelu seed 0\nskipped by all workers until submitted"
        " again: gelu seed 0, kernel_7 seed 0\n" in said
    )
    assert (
        process.communicate(timeout=300)[0].splitlines()[0] == "3 runs: 3 pending; 1 worker for 3 open runs"
    )
    assert process.returncode == 1
    assert [status(run).state for run in (gelu, kernel, resnet)] == ["cancelled", "cancelled", "done"]
    assert [outcomes(run) for run in (gelu, kernel, resnet)] == [["stopped"], [], ["done"]]
    assert read_attempt(attempts(gelu.path)[0])["pid"] == read_attempt(attempts(resnet.path)[0])["pid"], (
        "the worker went on"
    )
    assert cancel(tmp_path, "--all") == "nothing to stop: none of these runs is queued or being trained\n"
    rehearsed = commands.run([*command, "resnet50", "--dry-run"], check=True, cwd=tmp_path).stdout
    assert "2 runs: 1 cancelled, 1 done" in rehearsed
    assert gelu.cancelled.exists()
    commands.run(command, check=True, timeout=300, cwd=tmp_path)
    assert (outcomes(gelu), status(kernel).state) == (["stopped", "done"], "cancelled")


def test_a_cancelled_run_is_trained_by_name(tmp_path: Path) -> None:
    run = plan(tmp_path, ["gelu"], seeds=1)[0]
    run.cancel()
    assert worker([run]).wait(timeout=120) == 0
    assert (status(run).state, outcomes(run)) == ("cancelled", [])
    command = [sys.executable, str(ROOT / "run_step.py"), "gelu", *OPTIONS, "--runs", str(tmp_path)]
    commands.run(command, check=True, timeout=120)
    assert status(run).state == "done"


@pytest.mark.parametrize("everything", [False, True])
def test_killing_and_submitting_again_finishes_what_is_missing(everything: bool, tmp_path: Path) -> None:
    process = commands.Command(submit(tmp_path, "--workers", "2"), cwd=tmp_path, start_new_session=True)
    running: list[int] = []
    while not running:
        assert process.poll() is None
        held = [owner(path.parent) for path in tmp_path.glob("*/*/*/*/attempts")]
        running = [int(record["pid"]) for record in held if record]
        time.sleep(0.01)
    victims = [f"-{process.pid}"] if everything else [str(running[0])]
    subprocess.run(["kill", "-9", "--", *victims], check=True)
    process.wait(timeout=300)
    commands.run(submit(tmp_path, "--workers", "1"), check=True, cwd=tmp_path)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/*/*/*/result.json")]
    assert [result["status"] for result in results] == ["done"] * 4
