"""The log of a run's latest attempt: found, shown and followed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from roadmap.errors import relative
from roadmap.lease import attempts, read_attempt
from roadmap.records import RunDir, status
from slurm.choose import of_seeds, of_steps, runs_of_experiment
from slurm.monitor import places, poll
from slurm.submitted import jobs_of

LINES = 40
TAIL_BYTES = 1 << 20
LOOK_AGAIN_S = 0.5
ASK_AGAIN_S = 5.0


def show_log(arguments: argparse.Namespace) -> int:
    """Shows a log, or says why there is none."""
    runs = of_seeds(
        of_steps(runs_of_experiment(arguments), arguments.runs, [arguments.step]),
        arguments.runs,
        [arguments.seed],
    )
    chosen = newest(runs)
    if len(runs) > 1:
        print(
            f"{len(runs)} runs of {arguments.step} with seed {arguments.seed}, of which the last one at work"
            " is shown:"
        )
        for one in runs:
            print(f"  {relative(one.path)}: {status(one).state}")
    try:
        return show(chosen, arguments)
    except KeyboardInterrupt:
        return 0  # the way to end --follow


def newest(runs: Sequence[RunDir]) -> RunDir:
    """The run that was last begun, or made if none was begun."""
    return max(
        runs, key=lambda one: (max(map(_changed, attempts(one.path)), default=0.0), _changed(one.config))
    )


def show(chosen: RunDir, arguments: argparse.Namespace) -> int:
    """Prints the log's path and its lines; what is there comes first, what is added follows."""
    end = "out" if arguments.out else "err"
    if (log := log_of(chosen, end)) is None and arguments.follow:
        print(standing(chosen), flush=True)
        log = wait_for_log(chosen, end)
    if log is None:
        print(standing(chosen))
        return 0
    print(relative(log), flush=True)
    with log.open("rb") as file:
        if not arguments.all:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
        sys.stdout.writelines(lines if arguments.all else lines[-LINES:])
        sys.stdout.flush()
        if arguments.follow:
            follow(chosen, file)
    if arguments.follow or not lines:
        print(("" if lines else "(empty) ") + standing(chosen))
    return 0


def log_of(run: RunDir, end: str = "err") -> Path | None:
    """The log of the job that made the run's latest attempt, or is to make one; None if there is none yet."""
    jobs, files = jobs_of(run), attempts(run.path)
    place = places(jobs).get(run.name)
    found = [place.log(end)] if place else []
    if files and (job := read_attempt(files[-1]).get("job")):
        found += [*jobs.glob(f"{job}_0_log.{end}"), *jobs.glob(f"*/{job}_0_log.{end}")]
    return max((path for path in found if path and path.exists()), key=_changed, default=None)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def standing(run: RunDir) -> str:
    """Where a run stands, for whoever finds no log."""
    board = poll([run])
    row = board.rows[0]
    told = [
        row.state,
        *([f"job {row.job}"] if row.job and row.job not in (row.why or "") else []),
        *([row.why] if row.why else []),
    ]
    return "; ".join([f"{row.run.step} seed {row.run.seed}: {', '.join(told)}", *board.said])


def is_over(run: RunDir) -> bool:
    """Whether nobody is at work on a run, nor will be, as far as Slurm tells."""
    return status(run).state != "running" and not poll([run]).rows[0].goes_on


def wait_for_log(run: RunDir, end: str) -> Path | None:
    """The run's log as soon as there is one; None if the run ends without."""
    while True:
        over = is_over(run)
        if (log := log_of(run, end)) is not None or over:
            return log
        time.sleep(ASK_AGAIN_S)


def follow(run: RunDir, file: BinaryIO) -> None:
    """Prints what is added to a log, until its run is over."""
    over, asked = False, -ASK_AGAIN_S
    while not over:
        time.sleep(LOOK_AGAIN_S)
        if time.monotonic() - asked >= ASK_AGAIN_S:
            over, asked = is_over(run), time.monotonic()
        if more := file.read():  # after the look, so that nothing is missed that was logged before the end
            sys.stdout.write(more.decode(errors="replace"))
            sys.stdout.flush()
