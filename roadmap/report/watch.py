"""Collecting while runs are trained, whenever a result or a state has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from roadmap.report.runs import Experiment, LoadedRuns
from roadmap.terminal import count, live_text, repeat, tally


def watch(
    experiments: Sequence[Experiment], write: Callable[[Sequence[LoadedRuns]], object], seconds: float
) -> None:
    """Calls `write` with the loaded runs, now and whenever they have changed, until all runs are finished or
    Ctrl-C.
    """
    before = ""

    def step() -> bool:
        nonlocal before
        found = [experiment.look() for experiment in experiments]
        if (now := fingerprint(found)) != before:
            write(found)
            show(totals(found))
            before = now
        return all(each.finished for each in found)

    with live_text() as show:
        repeat(step, seconds)


def fingerprint(found: Sequence[LoadedRuns]) -> str:
    """A digest of the runs and of their states and results."""
    digest = hashlib.sha256()
    for run in (run for each in found for run in each.all):
        result = run.result.model_dump_json() if run.result else None
        digest.update(f"{run.run.path}\0{run.state}\0{run.why}\0{result}\n".encode())
    return digest.hexdigest()


def totals(found: Sequence[LoadedRuns]) -> str:
    """'57 runs: 40 done, 2 running, 15 pending'."""
    states = [run.state for each in found for run in each.all]
    return f"{count(len(states), 'run')}: {tally(states)}"
