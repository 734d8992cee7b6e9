"""Estimates of training time: before training, from finished runs or from FLOP/s; during training, from the
runs' own speed.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from roadmap.config import RunConfig
from roadmap.data.digits import TRAIN_IMAGES
from roadmap.data.locate import (
    class_folders,
    count_images,
    find_shards,
    is_remote,
    kind_of,
    torch_name,
)
from roadmap.errors import ConfigError
from roadmap.files import read_bytes
from roadmap.records import (
    DamagedResult,
    NewerResult,
    Result,
    RunDir,
    Status,
    find_runs,
    read_result,
    run_dir_of,
)

EPOCHS = re.compile(r"^recipe:\n(?:  .*\n)*?  epochs: (\d+)$", re.MULTILINE)
EVALUATION = re.compile(rb'"kind": *"epoch"')
TAIL_BYTES = 65_536
PUBLISHED = {  # training images of torchvision's data sets, which need not be downloaded to plan
    "cifar10": 50_000,
    "cifar100": 50_000,
    "mnist": 60_000,
    "kmnist": 60_000,
    "fashion_mnist": 60_000,
    "imagenet": 1_281_167,
}


def training_images(config: RunConfig) -> int | None:
    """The images of an epoch; None if the data is unavailable or would have to be read to count them."""
    data, kind = config.data, kind_of(config.data)
    if kind == "synthetic":
        return data.images[0]
    if kind == "digits":
        return TRAIN_IMAGES * data.copies if data.classes is None else None
    if kind == "torch" and data.classes is None and data.train_split == "train":
        return PUBLISHED.get(torch_name(data))
    if config.system.data_dir is None or is_remote(config) or kind not in ("folder", "shards"):
        return None
    root = Path(config.system.data_dir)
    try:
        if kind == "folder":
            folder = root / data.train_split
            return sum(count_images(folder / name) for name in data.classes or class_folders(folder)) or None
        names = find_shards(config, data.train_split)
    except ConfigError:
        return None
    from roadmap.data.shards import class_names_of, known_index  # which need NumPy

    index = known_index(root, names, data)
    if index is None:
        return None
    if data.classes is None:
        return len(index.label)
    called = class_names_of(index) or [str(label) for label in range(int(index.label.max()) + 1)]
    return sum(called[label] in data.classes for label in index.label.tolist())


def finished_results(config: RunConfig, runs: Path) -> Iterator[Result]:
    """The readable results below `runs` of this configuration with any seed."""
    mine = run_dir_of(runs, config)
    folder = mine.path.parent
    for run in find_runs(folder) if folder.is_dir() else []:
        if run.hash != mine.hash:
            continue
        with suppress(DamagedResult, NewerResult):
            if (result := read_result(run)) is not None:
                yield result


def training_seconds(images: int, results: Iterable[Result]) -> float | None:
    """The seconds that training on `images` takes at the mean speed of finished runs, waits for data
    included; None without any.
    """
    speeds = [
        result.images_per_s * (1 - (result.data_seconds or 0) / result.train_seconds)
        for result in results
        if result.images_per_s
    ]
    return images / fmean(speeds) if speeds else None


def makespan(arrays: Iterable[Sequence[float]], at_once: int) -> float:
    """The time until all arrays of jobs, each given as its jobs' durations, have ended, `at_once` jobs at a
    time; an array starts when enough jobs of the arrays before it have ended.
    """
    slots = [0.0] * at_once
    for durations in arrays:
        taken, others = slots[: len(durations)], slots[len(durations) :]
        end = max(taken) + max(sum(durations) / len(taken), max(durations))
        slots = others + [end] * len(taken)
    return max(slots)


@dataclass(frozen=True)
class Pace:
    """The `epochs` of a configuration's runs, the `iterations` of an epoch, and the seconds that a run trains
    in `total`; None where unknown.
    """

    epochs: int | None = None
    iterations: float | None = None
    total: float | None = None

    def left(self, record: Mapping[str, Any]) -> float | None:
        """The seconds of training after the metrics' `record`, at its run's own speed."""
        done, seconds = record.get("iteration"), record.get("seconds")
        if not done or not seconds or self.epochs is None or self.iterations is None:
            return None
        return float(max(0.0, self.epochs * self.iterations - done) * seconds / done)


def paces_of(found: Iterable[Status], evaluations: Mapping[Path, dict[str, Any]]) -> dict[str, Pace]:
    """The pace of each configuration by its hash, given the last evaluation of each unfinished run."""
    members: dict[str, list[Status]] = defaultdict(list)
    for one in found:
        members[one.run.hash].append(one)
    return {
        name: _pace(runs, [evaluations.get(one.run.path, {}) for one in runs])
        for name, runs in members.items()
    }


def _pace(runs: list[Status], evaluations: list[dict[str, Any]]) -> Pace:
    results = [one.result for one in runs if one.result is not None]
    if done := [result for result in results if result.status == "done" and result.epochs]:
        total = fmean(result.train_seconds for result in done)
        return Pace(done[0].epochs, done[0].iterations / done[0].epochs, total)
    epochs = next(filter(None, (epochs_of(one.run) for one in runs)), None)
    timed = [record for record in evaluations if all(map(record.get, ("iteration", "epoch", "seconds")))]
    if epochs is None or not timed:
        return Pace(epochs)
    total = fmean(record["seconds"] / record["epoch"] for record in timed) * epochs
    return Pace(epochs, timed[0]["iteration"] / timed[0]["epoch"], total)


def epochs_of(run: RunDir) -> int | None:
    """The epochs in a run's config.yaml; parsing it as YAML would take longer than all else together."""
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
    for line in reversed(read_bytes(found.run.metrics, TAIL_BYTES).split(b"\n")):
        if EVALUATION.search(line):  # parsing all lines would take most of the time
            try:
                evaluation = json.loads(line)
            except ValueError:
                continue
            return evaluation if isinstance(evaluation, dict) else {}
    return {}


@dataclass(frozen=True)
class TimeLeft:
    """The `seconds` until all runs are trained, `at_once` at a time; `guessed` runs are assumed average."""

    seconds: float
    at_once: int
    guessed: int


def time_left(runs: Iterable[Status], paces: Mapping[str, Pace], at_once: int) -> TimeLeft | None:
    """The time until `runs` are trained, `at_once` at a time; None if it cannot be estimated."""
    left = []
    for one in runs:
        record, pace = one.record or {}, paces[one.run.hash]
        left.append(pace.left(record) if record.get("epoch") else pace.total)
    known = [seconds for seconds in left if seconds is not None]
    totals = [pace.total for pace in paces.values() if pace.total is not None]
    guessed = len(left) - len(known)
    if not at_once or not (known or totals) or (guessed and not totals):
        return None
    known += [fmean(totals)] * guessed if guessed else []
    return TimeLeft(max(sum(known) / at_once, *known), at_once, guessed)
