"""Which runs a command is about: those in a folder, or some of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from roadmap.errors import ConfigError, Problem, one_of_these, relative
from roadmap.records import RunDir, find_runs


def runs_of_experiment(arguments: argparse.Namespace) -> list[RunDir]:
    """The runs in the folder that the command line names; ConfigError if it holds none of the roadmap or
    profile.
    """
    runs = find_runs(arguments.runs)
    for name, key in (("roadmap", _roadmap), ("profile", _profile)):
        if (wanted := getattr(arguments, name)) is not None:
            runs = having(runs, arguments.runs, name, [wanted], key)
    return in_order(runs)


def in_order(runs: Iterable[RunDir]) -> list[RunDir]:
    """The runs of one experiment after the other, its steps as they were planned, which is how their folders
    were made, then by seed.
    """
    runs = list(runs)
    made: dict[Path, float] = {}
    for run in runs:
        made[run.path.parent] = min(made.get(run.path.parent, math.inf), _made(run))
    return sorted(runs, key=lambda run: (run.experiment, made[run.path.parent], run.step, run.seed, run.hash))


def _made(run: RunDir) -> float:
    try:
        return run.config.stat().st_mtime
    except OSError:
        return math.inf


def having(
    runs: Iterable[RunDir], folder: Path, what: str, wanted: Iterable[str], key: Callable[[RunDir], str]
) -> list[RunDir]:
    """The runs whose `key` is one of `wanted`; ConfigError names those that no run has, and what there is."""
    runs, wanted = list(runs), list(wanted)
    there = dict.fromkeys(sorted(map(key, runs)))
    if missing := [name for name in wanted if name not in there]:
        message = f"holds no run of {what} '{{}}'{{}}"
        raise ConfigError(
            [Problem(relative(folder), message.format(name, one_of_these(name, there))) for name in missing]
        )
    return [run for run in runs if key(run) in wanted]


def of_steps(runs: Iterable[RunDir], folder: Path, steps: Iterable[str]) -> list[RunDir]:
    """The runs of `steps`."""
    return having(runs, folder, "step", steps, lambda run: run.step)


def of_seeds(runs: Iterable[RunDir], folder: Path, seeds: Iterable[int]) -> list[RunDir]:
    """The runs with `seeds`."""
    return having(runs, folder, "seed", map(str, seeds), lambda run: str(run.seed))


def _roadmap(run: RunDir) -> str:
    return run.experiment[0]


def _profile(run: RunDir) -> str:
    return run.experiment[1]
