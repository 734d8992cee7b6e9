"""Tiny plans on a testbed: submitted, waited for, and compared with runs that nobody disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from roadmap import ROOT
from roadmap.lease import attempts, read_attempt
from roadmap.records import RunDir, find_runs, status
from slurm.testbed.bed import Testbed

TINY: dict[str, Any] = {
    "data.copies": 1,
    "model.depths": [1, 1, 1, 1],
    "recipe.epochs": 2,
    "recipe.mixup": 0.8,
    "recipe.ema": 0.9,
    "system.log_every": 2,
    "system.checkpoint_minutes": 0.0001,
    "system.threads": 1,
}
TIMES = {"seconds", "data_seconds", "images_per_s"}


def write_clusters(folder: Path, **values: Any) -> Path:
    """A cluster file with one entry, `bed`."""
    entry = {
        "scheduler": "slurm",
        "partition": "main",
        "memory_gb": 2,
        "time": "00:20:00",
        "signal_seconds": 20,
        **values,
    }
    path = folder / "clusters.yaml"
    path.write_text(json.dumps({"clusters": {"bed": entry}}), encoding="utf-8")
    return path


def submit(
    bed: Testbed,
    folder: Path,
    *words: str,
    epochs: int = 2,
    check: bool = True,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Submits a tiny plan from `folder`, whose cluster file has been written,
    from a shell with `variables`.
    """
    command = ["env", *(f"{name}={value}" for name, value in (variables or {}).items())]
    command += [
        sys.executable,
        str(ROOT / "slurm/submit.py"),
        "--cluster",
        "bed",
        "--cluster-file",
        "clusters.yaml",
        "--profile",
        "digits",
    ]
    command += [
        word
        for key, value in (TINY | {"recipe.epochs": epochs}).items()
        for word in ("--set", f"{key}={json.dumps(value)}")
    ]
    return bed.run(*command, *words, check=check, timeout_s=120, cwd=folder)


def cancel_all(bed: Testbed) -> None:
    """Leaves an empty queue."""
    bed.run("scancel", "--me", check=False)
    bed.wait_for(lambda: not bed.run("squeue", "-h").stdout.strip(), "an empty queue")


def found(folder: Path) -> list[RunDir]:
    return find_runs(folder / "runs") if (folder / "runs").is_dir() else []


def wait(bed: Testbed, folder: Path, runs: int, timeout_s: float = 400) -> list[RunDir]:
    """The runs, all finished."""
    bed.wait_for(
        lambda: sum(run.result.is_file() and outcomes(run)[-1] == "done" for run in found(folder)) >= runs,
        f"{runs} results",
        timeout_s,
    )
    return found(folder)


def wait_for_lines(bed: Testbed, folder: Path, lines: int = 2, timeout_s: float = 120) -> RunDir:
    """The first run that is at work, with so many lines in its metrics."""
    at_work: list[RunDir] = []

    def any_at_work() -> bool:
        at_work[:] = [
            run
            for run in found(folder)
            if run.metrics.exists()
            and run.metrics.read_bytes().count(b"\n") >= lines
            and not run.result.exists()
        ]
        return bool(at_work)

    bed.wait_for(any_at_work, "a run to be at work", timeout_s)
    return at_work[0]


def job_of(bed: Testbed, run: RunDir) -> str:
    """The id of the Slurm job that trains a run now, or is to."""
    lines = bed.run("squeue", "-h", "-r", "-o", "%i|%j|%T").stdout.splitlines()
    mine = [line.split("|")[0] for line in lines if line.split("|")[1] == run.experiment[0]]
    assert len(mine) == 1, lines
    return mine[0]


def outcomes(run: RunDir) -> list[str | None]:
    return [read_attempt(path).get("outcome") for path in attempts(run.path)]


def outcome(run: RunDir) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Everything that must not depend on what a run went through: its metrics but for times, and its final
    weights.
    """
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    engine = torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)["engine"]
    return metrics, {
        f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in engine[part].items()
    }


def assert_same(run: RunDir, quiet: RunDir) -> None:
    (metrics, weights), (expected, tensors) = outcome(run), outcome(quiet)
    assert status(run).state == status(quiet).state == "done"
    assert metrics == expected
    assert weights.keys() == tensors.keys()
    assert all(torch.equal(weights[name], tensors[name]) for name in weights)
