"""The states of runs as a table, as JSON, or watched."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.table import Table

from roadmap.cli.options import shown
from roadmap.errors import config_error
from roadmap.records import FINISHED, Status
from roadmap.terminal import console, count, live_text, repeat, table, tally
from slurm.monitor import RunState, RunStates, poll, select_runs


def progress_of(run: Status) -> str:
    """The progress of a run, or why it failed."""
    if run.result is not None:
        return (
            f"top-1 {run.result.top1:.2f} %"
            if run.result.top1 is not None
            else f"loss not finite in epoch {run.result.epochs + 1}"
        )
    if run.why or run.record is None:
        return run.why or ""
    metrics = [f"epoch {run.record['epoch']}"]
    metrics += [f"loss {run.record['train_loss']:.3f}"] if run.record.get("train_loss") is not None else []
    metrics += [f"top-1 {run.record['top1']:.2f} %"] if run.record.get("top1") is not None else []
    return ", ".join([*metrics, f"{run.record['images_per_s']:.0f} images/s"])


def overview(runs: Sequence[Status], title: str) -> Table:
    """A table of runs, from their directories alone."""
    return table(
        ["step", ">seed", "state", "progress"],
        [(run.run.step, str(run.run.seed), run.state, progress_of(run)) for run in runs],
        title,
    )


def picture(states: RunStates, height: int | None = None) -> str:
    """Totals, what Slurm did not answer, and a line for each run, without those finished if they exceed
    `height` lines.
    """
    rows = states.rows
    if height is not None and len(rows) + len(states.notes) + 3 >= height:
        rows = [row for row in rows if row.state not in FINISHED]
    runs = [row.run for row in states.rows]
    several = len({run.experiment for run in runs}) > 1
    ambiguous = len({(*run.experiment, run.step, run.seed) for run in runs}) < len(runs)
    columns = ["experiment"] * several + ["step", ">seed"] + ["hash"] * ambiguous
    columns += ["state", ">epoch", ">top-1 (%)", ">images/s", ">time left", "where", ">attempts"]
    columns += ["what happened"]
    lines = [
        ["/".join(row.run.experiment)] * several
        + [row.run.step, str(row.run.seed)]
        + [row.run.hash] * ambiguous
        + _cells(row)
        for row in rows
    ]
    return "\n".join([totals(states), *states.notes, *(["", *aligned(columns, lines)] if lines else [])])


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table as lines, columns that start with '>' to the right; rich would take a second for a thousand
    rows.
    """
    names = [name.removeprefix(">") for name in columns]
    plain = [names, *([" ".join(shown(cell).split()) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    for row in plain:
        cells = zip(columns, row, widths, strict=True)
        yield "  ".join(
            cell.rjust(width) if name.startswith(">") else cell.ljust(width) for name, cell, width in cells
        ).rstrip()


def _cells(row: RunState) -> list[str]:
    """A run's values as text, empty if unknown."""
    return [
        row.state,
        f"{row.epoch}/{row.epochs or '?'}" if row.epoch is not None else "",
        f"{row.top1:.2f}" if row.top1 is not None else "",
        f"{row.images_per_s:.0f}" if row.images_per_s is not None else "",
        duration(row.seconds_left) if row.seconds_left is not None and row.state == "running" else "",
        row.where or "",
        str(row.attempts) if row.attempts else "",
        row.why or "",
    ]


def duration(seconds: float) -> str:
    """'2 days, 3:04:05'."""
    return str(timedelta(seconds=round(seconds)))


def totals(states: RunStates) -> str:
    """How many runs there are, how many in each state, and the time until all are trained."""
    counts = tally(row.state for row in states.rows)
    line = count(len(states.rows), "run") + (f": {counts}" if counts else "")
    if (left := states.forecast) is None:
        return line
    guess = f"; {count(left.guessed, 'run')} of unknown length assumed average" if left.guessed else ""
    return f"{line}; about {duration(left.seconds)} of training left with {left.at_once} at a time{guess}"


def document(states: RunStates) -> dict[str, Any]:
    """The states as JSON."""
    runs = []
    for row in states.rows:
        roadmap, profile = row.run.experiment
        names = {
            "roadmap": roadmap,
            "profile": profile,
            "step": row.run.step,
            "seed": row.run.seed,
            "hash": row.run.hash,
        }
        values = {key: value for key, value in vars(row).items() if key != "run"}
        runs.append(names | {"path": str(row.run.path)} | values)
    return {
        "runs": runs,
        "totals": dict(Counter(row.state for row in states.rows)),
        "forecast": vars(states.forecast) if states.forecast else None,
        "said": states.notes,
    }


def show_status(arguments: argparse.Namespace) -> int:
    """Shows the runs once, or with --watch until they are finished."""
    if arguments.watch is not None:
        if not arguments.watch > 0:
            raise config_error("--watch", f"must be more than 0 seconds, not {arguments.watch:g}")
        watch(arguments)
    elif arguments.json:
        print(json.dumps(document(poll(select_runs(arguments))), indent=2))
    else:
        print(picture(poll(select_runs(arguments))))
    return 0


def watch(arguments: argparse.Namespace) -> None:
    """Shows the runs, also new ones, until all are finished or Ctrl-C."""
    screen = console()

    def step() -> bool:
        states = poll(select_runs(arguments))
        if screen.is_terminal:
            show(picture(states, screen.height))
        else:
            show(f"{picture(states)}\n")
        return bool(states.rows) and all(row.state in FINISHED for row in states.rows)

    with live_text() as show:
        repeat(step, arguments.watch)
