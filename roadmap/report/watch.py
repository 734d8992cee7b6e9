"""Collecting again and again while runs go on, and only when something has changed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.text import Text

from roadmap.report.runs import Experiment, LoadedRuns
from roadmap.terminal import console, count, tally


def watch(
    experiments: Sequence[Experiment], write: Callable[[Sequence[LoadedRuns]], object], seconds: float
) -> Sequence[LoadedRuns]:
    """Calls `write` with what it finds, now and whenever that has changed, until all runs are finished;
    returns the last it found.
    """
    before = ""
    with _line() as say:
        while True:
            found = [experiment.look() for experiment in experiments]
            if (now := fingerprint(found)) != before:
                write(found)
                say(totals(found))
                before = now
            if all(each.finished for each in found):
                return found
            del found  # or two looks would be in memory at once
            time.sleep(seconds)


def fingerprint(found: Sequence[LoadedRuns]) -> str:
    """The same for two looks between which no run has changed its state or its result, and none was added or
    removed.
    """
    digest = hashlib.sha256()
    for run in (run for each in found for run in each.all):
        result = run.result.model_dump_json() if run.result else None
        digest.update(f"{run.run.path}\0{run.state}\0{run.why}\0{result}\n".encode())
    return digest.hexdigest()


def totals(found: Sequence[LoadedRuns]) -> str:
    """'57 runs: 40 done, 2 running, 15 pending'."""
    states = [run.state for each in found for run in each.all]
    return f"{count(len(states), 'run')}: {tally(states)}"


@contextmanager
def _line() -> Iterator[Callable[[str], None]]:
    """Shows a line: the last one alone at a terminal, one below the other elsewhere."""
    screen = console()
    if not screen.is_terminal:
        yield lambda words: print(words, flush=True)
        return
    with Live(console=screen, auto_refresh=False) as live:
        yield lambda words: live.update(Text(words, no_wrap=True, overflow="ellipsis"), refresh=True)
