"""Results that were never trained, for the tests of tables, figures and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roadmap.records import Result, RunDir, Status

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEEDS = (1000.0, 1100.0, 1200.0)


def result_of(step: str, seed: int, hash: str, top1: float | None, **more: Any) -> Result:
    """What a run would leave; None is a divergence."""
    figures: dict[str, Any] = {
        "format": 1,
        "status": "diverged" if top1 is None else "done",
        "roadmap": "convnext_t",
        "step": step,
        "profile": "digits_noisy",
        "seed": seed,
        "hash": hash,
        "top1": top1,
        "top5": None if top1 is None else 99.0,
        "val_loss": None if top1 is None else 0.5,
        "train_loss": None if top1 is None else 0.25,
        "ema_top1": None,
        "epochs": 1 if top1 is None else 3,
        "iterations": 222,
        "global_batch": 64,
        "dataset": "digits",
        "image_size": 32,
        "params": 400_000,
        "macs": 6_000_000,
        "images_per_s": SPEEDS[seed % len(SPEEDS)],
        "train_seconds": 12.5,
        "peak_memory_mb": None,
        "hardware": "one core",
        "versions": {"python": "3.11.7", "scikit-learn": "1.7.0"},
        "commit": COMMIT,
        "attempts": 1,
        "finished": "2026-01-02T03:04:05+00:00",
    }
    return Result.model_validate(figures | more)


def finished(step: str, seed: int, hash: str, top1: float | None, **more: Any) -> Status:
    """A finished run whose folder nobody has made."""
    run = RunDir(Path("runs/convnext_t/digits_noisy") / step / f"seed{seed}-{hash}")
    result = result_of(step, seed, hash, top1, **more)
    return Status(run, result.status, result)
