"""Where the runs of a roadmap stand, read from their directories: python slurm/status.py runs."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from roadmap.command import main_of
from roadmap.records import Status, find_runs, status
from roadmap.terminal import console, count, table


def progress_of(run: Status) -> str:
    """How far a run is, or why it failed, in a few words."""
    if run.result is not None:
        return f"top-1 {run.result.top1:.2f} %" if run.result.top1 is not None else f"loss not finite in epoch {run.result.epochs + 1}"
    if run.why or run.record is None:
        return run.why or ""
    figures = [f"epoch {run.record['epoch']}"]
    figures += [f"loss {run.record['train_loss']:.3f}"] if run.record.get("train_loss") is not None else []
    figures += [f"top-1 {run.record['top1']:.2f} %"] if run.record.get("top1") is not None else []
    return ", ".join([*figures, f"{run.record['images_per_s']:.0f} images/s"])


def counts(runs: Iterable[Status]) -> str:
    """How many runs are in which state: '12 done, 2 running, 40 pending'."""
    return ", ".join(f"{number} {state}" for state, number in Counter(run.state for run in runs).most_common())


def overview(runs: Sequence[Status], title: str) -> Table:
    """A line for each run."""
    return table(
        ["step", ">seed", "state", "progress"], [(run.run.step, str(run.run.seed), run.state, progress_of(run)) for run in runs], title
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description="Show where runs stand.")
    options.add_argument("runs", type=Path, nargs="?", default=Path("runs"), metavar="RUNS", help="a folder of runs (default: runs)")
    return options


def run(arguments: argparse.Namespace) -> int:
    """Prints every run below the folder."""
    runs = [status(found) for found in find_runs(arguments.runs)]
    console().print(overview(runs, f"{count(len(runs), 'run')}: {counts(runs)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
