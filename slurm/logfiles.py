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
from roadmap.terminal import repeat
from slurm.jobs import job_of_each_run, jobs_of
from slurm.monitor import poll, select_runs

LINES = 40
TAIL_BYTES = 1 << 20
READ_S = 0.5  # between two reads of a log that is followed
POLL_S = 5.0  # between two polls of Slurm


def show_log(arguments: argparse.Namespace) -> int:
    """Prints the path of a run's log and its lines, and with --follow new ones until the run ends."""
    runs = select_runs(arguments, [arguments.step], [arguments.seed])
    run = latest(runs)
    if len(runs) > 1:
        print(f"{len(runs)} runs of {arguments.step} with seed {arguments.seed}; the latest one is shown:")
        for one in runs:
            print(f"  {relative(one.path)}: {status(one).state}")
    end = "out" if arguments.out else "err"
    if log_of(run, end) is None and arguments.follow:
        print(f"no log yet; {describe_state(run)}", flush=True)
        if not repeat(lambda: is_over(run) or log_of(run, end) is not None, POLL_S):
            return 0
    if (log := log_of(run, end)) is None:
        print(f"no log; {describe_state(run)}")
        return 0
    print(relative(log), flush=True)
    with log.open("rb") as file:
        if not arguments.all:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
        sys.stdout.writelines(lines if arguments.all else lines[-LINES:])
        sys.stdout.flush()
        if arguments.follow and not follow(run, file):
            return 0
    if arguments.follow or not lines:
        print(("" if lines else "(empty) ") + describe_state(run))
    return 0


def follow(run: RunDir, file: BinaryIO) -> bool:
    """Prints what is added to a log until its run is over, or returns False after Ctrl-C."""
    polled = -POLL_S

    def step() -> bool:
        nonlocal polled
        over = False
        if time.monotonic() - polled >= POLL_S:
            over, polled = is_over(run), time.monotonic()
        if more := file.read():  # after the poll, so that nothing is missed that was logged before the end
            sys.stdout.write(more.decode(errors="replace"))
            sys.stdout.flush()
        return over

    return repeat(step, READ_S)


def latest(runs: Sequence[RunDir]) -> RunDir:
    """The run with the latest attempt, or the newest if none has any."""
    return max(
        runs, key=lambda one: (max(map(_changed, attempts(one.path)), default=0.0), _changed(one.config))
    )


def log_of(run: RunDir, end: str = "err") -> Path | None:
    """The log of the job of the run's latest attempt, or of the next one; None if there is none yet."""
    jobs, files = jobs_of(run), attempts(run.path)
    last = read_attempt(files[-1]) if files else {}
    submitted = job_of_each_run(jobs).get(run.name)
    found = [submitted.log(last, end)] if submitted else []
    if last.get("job"):
        name = f"{last['job']}_{last.get('task', 0)}_log.{end}"
        found += [*jobs.glob(name), *jobs.glob(f"*/{name}")]
    return max((path for path in found if path and path.exists()), key=_changed, default=None)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def describe_state(run: RunDir) -> str:
    """The state of a run, its job and the reason, and what Slurm did not answer."""
    states = poll([run])
    row = states.rows[0]
    parts = [row.state]
    if row.job and row.job not in (row.why or ""):
        parts.append(f"job {row.job}")
    if row.why:
        parts.append(row.why)
    return "; ".join([f"{row.run.step} seed {row.run.seed}: {', '.join(parts)}", *states.notes])


def is_over(run: RunDir) -> bool:
    """Whether the run is neither being trained nor, as far as Slurm knows, will be."""
    return status(run).state != "running" and not poll([run]).rows[0].is_active
