"""Where runs stand, as a picture, as JSON, or watched."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol

from rich.live import Live
from rich.table import Table
from rich.text import Text

from roadmap.cli.options import shown
from roadmap.errors import config_error
from roadmap.records import FINISHED, Status
from roadmap.terminal import console, count, table, tally
from slurm.choose import runs_of_experiment
from slurm.monitor import RunState, Snapshot, poll


class HasState(Protocol):
    """A run's status, or its row."""

    @property
    def state(self) -> str: ...


def progress_of(run: Status) -> str:
    """How far a run is, or why it failed, in a few words."""
    if run.result is not None:
        return (
            f"top-1 {run.result.top1:.2f} %"
            if run.result.top1 is not None
            else f"loss not finite in epoch {run.result.epochs + 1}"
        )
    if run.why or run.record is None:
        return run.why or ""
    figures = [f"epoch {run.record['epoch']}"]
    figures += [f"loss {run.record['train_loss']:.3f}"] if run.record.get("train_loss") is not None else []
    figures += [f"top-1 {run.record['top1']:.2f} %"] if run.record.get("top1") is not None else []
    return ", ".join([*figures, f"{run.record['images_per_s']:.0f} images/s"])


def counts(runs: Iterable[HasState]) -> str:
    """How many runs are in which state: '12 done, 2 running, 40 pending'."""
    return tally(run.state for run in runs)


def overview(runs: Sequence[Status], title: str) -> Table:
    """A line for each run, from their directories alone."""
    return table(
        ["step", ">seed", "state", "progress"],
        [(run.run.step, str(run.run.seed), run.state, progress_of(run)) for run in runs],
        title,
    )


def picture(board: Snapshot, roomy: bool = True) -> str:
    """Totals, what could not be asked, and a line for each run; without room for all runs, those that are
    finished are left out.
    """
    rows = [row for row in board.rows if roomy or row.state not in FINISHED]
    several = len({row.run.experiment for row in board.rows}) > 1
    ambiguous = len({(*row.run.experiment, row.run.step, row.run.seed) for row in board.rows}) < len(
        board.rows
    )
    columns = ["experiment"] * several + ["step", ">seed"] + ["hash"] * ambiguous
    columns += [
        "state",
        ">epoch",
        ">top-1 (%)",
        ">images/s",
        ">time left",
        "where",
        ">attempts",
        "what happened",
    ]
    cells = [
        ["/".join(row.run.experiment)] * several
        + [row.run.step, str(row.run.seed)]
        + [row.run.hash] * ambiguous
        for row in rows
    ]
    lines = [first + _cells(row) for first, row in zip(cells, rows, strict=True)]
    return "\n".join([totals(board), *board.said, *(["", *aligned(columns, lines)] if lines else [])])


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table as lines, columns that start with '>' to the right; rich would take a second over a thousand
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
    """A run's figures, empty where nothing is known."""
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


def totals(board: Snapshot) -> str:
    """How many runs there are, how many in which state, and when the last will be done."""
    line = count(len(board.rows), "run") + (f": {counts(board.rows)}" if board.rows else "")
    if board.forecast is None:
        return line
    guess = (
        f"; {count(board.forecast.guessed, 'run')} of unknown length taken for average ones"
        if board.forecast.guessed
        else ""
    )
    return (
        f"{line}; about {duration(board.forecast.seconds)} of training left with {board.forecast.at_once} at"
        f" a time{guess}"
    )


def document(board: Snapshot) -> dict[str, Any]:
    """All of it, for scripts."""
    runs = []
    for row in board.rows:
        roadmap, profile = row.run.experiment
        names = {
            "roadmap": roadmap,
            "profile": profile,
            "step": row.run.step,
            "seed": row.run.seed,
            "hash": row.run.hash,
        }
        figures = {key: value for key, value in vars(row).items() if key != "run"}
        runs.append(names | {"path": str(row.run.path)} | figures)
    forecast = vars(board.forecast) if board.forecast else None
    return {
        "runs": runs,
        "totals": dict(Counter(row.state for row in board.rows)),
        "forecast": forecast,
        "said": board.said,
    }


def show_status(arguments: argparse.Namespace) -> int:
    """Shows the runs, once or until they are finished."""
    if arguments.watch is not None:
        if not arguments.watch > 0:
            raise config_error("--watch", f"must be more than 0 seconds, not {arguments.watch:g}")
        return watch(arguments)
    board = poll(runs_of_experiment(arguments))
    if arguments.json:
        print(json.dumps(document(board), indent=2))
    else:
        print(picture(board))
    return 0


def boards(arguments: argparse.Namespace) -> Iterator[Snapshot]:
    """Looks again and again, at runs that are made meanwhile, too, until all are finished."""
    while True:
        board = poll(runs_of_experiment(arguments))
        yield board
        if board.rows and all(row.state in FINISHED for row in board.rows):
            return
        time.sleep(arguments.watch)


def watch(arguments: argparse.Namespace) -> int:
    """Shows the runs until all are finished; Ctrl-C is a way to end it like any other."""
    screen = console()
    try:
        if not screen.is_terminal:
            for board in boards(arguments):
                print(picture(board), end="\n\n", flush=True)
            return 0
        with Live(console=screen, auto_refresh=False) as live:
            for board in boards(arguments):
                text = picture(board, roomy=len(board.rows) + len(board.said) + 3 < screen.height)
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
    except KeyboardInterrupt:
        pass
    return 0
