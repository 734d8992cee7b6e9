"""Whether whole runs, each in processes of its own, give the same again: after kills, and on two devices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roadmap import ROOT
from roadmap.doctor.correctness import (
    ALL_DRAWS,
    FIRST,
    ITERATIONS,
    LAST,
    LOSSES,
    SAME_IMAGES,
    Machine,
    Report,
)
from roadmap.doctor.findings import Finding, measured
from roadmap.files import read_json_lines

KILL_AT = (4, 13)  # lines of metrics
RUN_S = 300.0
RUNNING: set[int] = set()  # process groups of the runs that a check has started, to be ended with it


def resume(machine: Machine) -> None:
    """A deterministic run, the same again, and one that is killed twice: the same metrics and weights."""
    steps = (LAST, FIRST) if machine.is_fast else (LAST,)
    given = ALL_DRAWS | {
        "recipe.epochs": 2,
        "recipe.precision": "bf16" if machine.is_fast else "fp32",
        "system.deterministic": True,
        "system.log_every": 2,
        "system.checkpoint_minutes": 0.005,
        "system.device": machine.device.type,
        "system.workers": 1,
    }
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(6 if machine.is_fast else 1) as pool:
        jobs = []
        for step in steps:
            runs = {name: Path(folder, step, name) for name in ("first", "again", "killed")}
            runs["first"].parent.mkdir()
            for name, kills in (("killed", (*KILL_AT, None)), ("first", (None,)), ("again", (None,))):
                jobs.append(pool.submit(_train_with_kills, step, runs[name], given, kills))
        for job in jobs:
            job.result()
        for step in steps:
            _compare_runs(machine.report, step, Path(folder, step))


def _train_with_kills(step: str, runs: Path, given: dict[str, Any], kills: Sequence[int | None]) -> None:
    for kill_at in kills:
        train(step, runs, given, kill_at=kill_at)


def _compare_runs(report: Report, step: str, folder: Path) -> None:
    attempts = len(list((folder / "killed").glob("**/attempts/*.json")))
    report(measured("resume", step, "attempts of the killed run", attempts, at_least=2))
    expected = trained(folder / "first")
    for name, what in (("again", "a second run"), ("killed", "a run that was killed twice")):
        metrics, tensors = trained(folder / name)
        apart = sum(a != b for a, b in zip(metrics, expected[0], strict=False))
        apart += abs(len(metrics) - len(expected[0]))
        report(
            measured(
                "resume",
                step,
                f"lines of metrics that differ in {what}",
                apart,
                at_most=0,
                fix="something random does not depend on the seed alone, or a kernel is not deterministic",
            )
        )
        differing = [key for key, tensor in expected[1].items() if not torch.equal(tensor, tensors[key])]
        report(
            measured(
                "resume",
                step,
                f"tensors that differ in {what}",
                len(differing),
                at_most=0,
                fix=f"the first of them: {', '.join(differing[:3])}",
            )
        )


def train(
    step: str, runs: Path, given: dict[str, Any], *, kill_at: int | None = None, processes: int = 1
) -> None:
    """Trains a step on the digits in a process of its own, or by torchrun in several.

    With `kill_at`, all are killed once the metrics have so many lines. RuntimeError if training fails.
    """
    words = [word for key, value in given.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "roadmap", "run", step]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile() as errors:
        run = subprocess.Popen(
            [*command, "--profile", "digits", "--runs", str(runs), *words],
            env=environment,
            cwd=runs.parent,
            start_new_session=True,
            stdout=errors,
            stderr=errors,
        )
        RUNNING.add(run.pid)
        deadline = time.monotonic() + RUN_S
        try:
            while run.poll() is None and time.monotonic() < deadline:
                if kill_at is not None and len(metrics_of(runs)) >= kill_at:
                    break
                time.sleep(0.005)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)  # with its data-loading workers
                run.wait()
                if kill_at is None:
                    raise RuntimeError(f"a run of {step} did not end in {RUN_S:g} s")
        RUNNING.discard(run.pid)
        errors.seek(0)
        if kill_at is None and run.returncode:
            raise RuntimeError(errors.read().decode(errors="replace")[-3000:])


def metrics_of(runs: Path) -> list[dict[str, Any]]:
    """The metrics of the only run in a folder."""
    return [record for path in runs.glob("**/metrics.jsonl") for record in read_json_lines(path)]


def trained(runs: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The metrics of the only run in a folder, without times, and its last weights and their EMA."""
    clocks = ("seconds", "images_per_s", "data_seconds")
    metrics = [
        {key: value for key, value in record.items() if key not in clocks} for record in metrics_of(runs)
    ]
    newest = max(runs.glob("**/checkpoint/*.pt"))
    state = torch.load(newest, map_location="cpu", weights_only=True)["engine"]
    return metrics, state["model"] | {f"ema.{name}": tensor for name, tensor in (state["ema"] or {}).items()}


def distributed(machine: Machine) -> None:
    """Two processes train as one does: DDP, and synchronized BN, which only CUDA has."""
    cuda = machine.device.type == "cuda"
    if cuda and torch.cuda.device_count() < 2:
        machine.report(Finding("distributed", "DDP", "not checked: this machine has one GPU"))
        return
    given = SAME_IMAGES | {
        "recipe.epochs": 1,
        "system.log_every": 1,
        "system.device": machine.device.type,
        "system.workers": 0,
        "recipe.precision": "fp32",
    }
    for step, options in ((LAST, {}), *([(FIRST, {"system.sync_bn": True})] if cuda else [])):
        losses = []
        with tempfile.TemporaryDirectory() as folder:
            for processes in (1, 2):
                runs = Path(folder, str(processes))
                train(step, runs, given | (options if processes > 1 else {}), processes=processes)
                losses.append([record["train_loss"] for record in metrics_of(runs)][:ITERATIONS])
        error = max(abs(one - other) / one for one, other in zip(*losses, strict=True))
        what = "DDP with synchronized BN" if options else "DDP"
        machine.report(
            measured(
                "distributed",
                step,
                f"losses of {ITERATIONS} iterations, {what}",
                error,
                at_most=LOSSES,
                fix="two GPUs train otherwise than one: check NCCL (NCCL_DEBUG=INFO) before a run on several",
            )
        )


CHECKS: dict[str, Callable[[Machine], None]] = {"resume": resume, "distributed": distributed}
