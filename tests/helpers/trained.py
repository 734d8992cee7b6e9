"""Ablations of runs that were never trained, with metrics on disk, for the tests of curves and figures."""

from __future__ import annotations

import atexit
import json
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from roadmap.deltas import Roadmap, resolve
from roadmap.records import RunDir, Status
from roadmap.report.ablation import Ablation, measured
from roadmap.steps import load_roadmap
from tests.helpers.reports import result_of

ROADMAP, OTHER = load_roadmap(), load_roadmap(name="convnext_b")
FEW = ("resnet50", "enhanced_recipe", "kernel_7", "kernel_9", "gelu")
ALL_LOST = [("no_downsampling_norms", seed) for seed in range(5)]


def trained(
    root: Path,
    steps: Sequence[str] = ROADMAP.steps,
    seeds: int = 3,
    epochs: int = 5,
    lost: Sequence[tuple[str, int]] = (),
    slow: Sequence[str] = (),
    profile: str | None = "digits_noisy",
    roadmap: Roadmap = ROADMAP,
    overrides: Mapping[str, Any] | None = None,
) -> Ablation:
    """Runs that were never trained, with metrics on disk: the `lost` ones diverge half-way, the seeds of
    `slow` steps are still at work.
    """
    runs = []
    for index, step in enumerate(steps):
        draws, hash = (
            random.Random(step),
            resolve(roadmap, step, profile=profile, overrides=overrides or {}).hash,
        )
        for seed in range(seeds):
            run = RunDir(root / roadmap.name / (profile or "paper") / step / f"seed{seed}-{hash}")
            run.path.mkdir(parents=True)
            top = 76 + 0.3 * index + draws.gauss(0, 0.4)
            done = epochs // 2 if (step, seed) in lost else epochs - 2 + seed if step in slow else epochs
            tops = [top * (1 - math.exp(-epoch)) for epoch in range(1, done + 1)]
            run.metrics.write_text(
                "".join(record(epoch, top, 3 - epoch / 9 - index / 50) for epoch, top in enumerate(tops, 1)),
                "utf-8",
            )
            end = None if (step, seed) in lost else tops[-1]
            result = (
                None
                if step in slow
                else result_of(step, seed, hash, end, roadmap=roadmap.name, profile=profile)
            )
            runs.append(Status(run, result.status if result else "running", result))
    return measured(roadmap, profile, overrides or {}, runs)


def record(epoch: int, top1: float | None, loss: float = 1.0, **more: Any) -> str:
    found = {
        "kind": "epoch",
        "epoch": epoch,
        "train_loss": loss,
        "val_loss": loss,
        "top1": top1,
        "ema_top1": None,
        **more,
    }
    return json.dumps(found) + "\n"


def messy(root: Path) -> Ablation:
    steps = [step for step in ROADMAP.steps if step != "stage_ratio"]
    return trained(root, steps, 5, lost=[("gelu", 1), *ALL_LOST], slow=["layer_norm", "kernel_7"])


def long_titles(root: Path) -> Ablation:
    found = trained(root, seeds=2)
    rows = [
        replace(row, title=f"{row.title}, which is a change that has very many words in its title")
        for row in found.rows
    ]
    return replace(found, rows=tuple(rows), title="a title that goes on and on, " * 4 + "to its end")


CASES: dict[str, Callable[[Path], list[Ablation]]] = {
    "all": lambda root: [trained(root)],
    "few": lambda root: [trained(root, FEW)],
    "golden": lambda root: [trained(root, lost=[("gelu", 1)], slow=["layer_norm"])],
    "messy": lambda root: [messy(root)],
    "one seed": lambda root: [trained(root, FEW, seeds=1, epochs=2)],
    "two roadmaps": lambda root: [
        trained(root / "t"),
        trained(root / "b", OTHER.steps, roadmap=OTHER, profile=None),
    ],
    "long titles": lambda root: [long_titles(root)],
}


FOLDER = tempfile.TemporaryDirectory(prefix="trained-")
atexit.register(FOLDER.cleanup)


@cache
def case(name: str) -> list[Ablation]:
    return CASES[name](Path(FOLDER.name) / name)
