"""How long runs take: from their own metrics, or from those of other runs of the same configuration."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from roadmap.records import RunDir, Status

EPOCHS = re.compile(r"^recipe:\n(?:  .*\n)*?  epochs: (\d+)$", re.MULTILINE)
EVALUATION = re.compile(rb'"kind": *"epoch"')
TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Pace:
    """What runs of one configuration have in common: `epochs` of `iterations` each, and the seconds that a
    `whole` one trains.
    """

    epochs: int | None = None
    iterations: float | None = None
    whole: float | None = None

    def left(self, record: dict[str, Any]) -> float | None:
        """The seconds of training that are left after `record`, at its run's own speed so far; None if that
        cannot be told.
        """
        done, seconds = record.get("iteration"), record.get("seconds")
        if not done or not seconds or self.epochs is None or self.iterations is None:
            return None
        return float(max(0.0, self.epochs * self.iterations - done) * seconds / done)


def paces_of(found: Iterable[Status], evaluations: dict[Path, dict[str, Any]]) -> dict[str, Pace]:
    """The pace of each configuration, by its hash; what no run of it tells is None."""
    members: dict[str, list[Status]] = defaultdict(list)
    for one in found:
        members[one.run.hash].append(one)
    return {
        name: _pace(runs, [evaluations.get(one.run.path, {}) for one in runs])
        for name, runs in members.items()
    }


def _pace(runs: list[Status], evaluations: list[dict[str, Any]]) -> Pace:
    done = [
        one.result
        for one in runs
        if one.result is not None and one.result.status == "done" and one.result.epochs
    ]
    if done:
        return Pace(
            done[0].epochs,
            done[0].iterations / done[0].epochs,
            fmean(result.train_seconds for result in done),
        )
    epochs = next(filter(None, (epochs_of(one.run) for one in runs)), None)
    told = [
        record
        for record in evaluations
        if record.get("iteration") and record.get("epoch") and record.get("seconds")
    ]
    if epochs is None or not told:
        return Pace(epochs)
    return Pace(
        epochs,
        told[0]["iteration"] / told[0]["epoch"],
        fmean(record["seconds"] / record["epoch"] for record in told) * epochs,
    )


def epochs_of(run: RunDir) -> int | None:
    """The epochs of a run's budget; PyYAML would take longer over one file than all the rest over a hundred
    runs.
    """
    try:
        found = EPOCHS.search(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return int(found[1]) if found else None


def last_evaluation(found: Status) -> dict[str, Any]:
    """The last `epoch` record of a run; empty if there is none near the end of its metrics."""
    record = found.record or {}
    if record.get("kind") == "epoch" or record.get("epoch", 1) == 1:
        return record if record.get("kind") == "epoch" else {}
    for line in reversed(tail(found.run.metrics, TAIL_BYTES).split(b"\n")):
        if EVALUATION.search(line):  # parsing all lines would take most of the time that all runs take
            try:
                evaluation = json.loads(line)
            except ValueError:
                continue
            return evaluation if isinstance(evaluation, dict) else {}
    return {}


def tail(path: Path, size: int) -> bytes:
    """The last `size` bytes of a file, as many as there are; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read()
    except OSError:
        return b""
