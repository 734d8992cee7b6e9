"""A worker takes the next unfinished run of a plan, trains it, and goes on until none is left that nobody
works on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from roadmap.config import RunConfig
from roadmap.disk import DiskError
from roadmap.lease import LeaseHeld, LeaseLost, attempts, own_job, read_attempt
from roadmap.records import FINISHED, RunDir, status
from roadmap.signals import Stopped, StopSignals
from roadmap.training.callbacks import Callback, make_trackers

logger = logging.getLogger(__name__)
LOOK_AGAIN_S = 2.0
OPEN = {"pending", "stale", "failed"}


@dataclass(frozen=True)
class Shift:
    """What a worker has done: the number of runs that it `finished`, and whether it was `stopped` by a
    signal.
    """

    finished: int
    stopped: bool


def work(run_dirs: Sequence[str], *, patient: bool = True, retries: int | None = None) -> Shift:
    """Trains the runs in `run_dirs` that are open, in order, each at most once.

    A job that may have died over one of them before says how many `retries` a run has: see `next_open`. Many
    workers may share a plan: the lease of a run decides who trains it, and nobody who is `patient` leaves
    while another might die over one. A run that fails leaves its reason in its attempt, and the worker goes
    on; SIGTERM saves the run at hand and ends the worker, unless that run was cancelled: then the worker goes
    on with others. Several processes that were launched together are one worker, which trains each run on all
    of them.
    """
    finished, tried = 0, set[Path]()
    with StopSignals() as stop, ExitStack() as stack:
        from roadmap.train import train
        from roadmap.training.distributed import joined  # takes seconds, in which a signal must not be lost

        world, left = stack.enter_context(joined(stop)), list(run_dirs)
        while not world.from_rank0(lambda: stop.signal is not None):
            run, waiting = world.from_rank0(lambda: next_open(left, tried, retries))
            if run is None and not (waiting and patient):
                break
            if run is None:
                time.sleep(LOOK_AGAIN_S)
                continue
            try:
                # once, for a submission may replace it
                config = world.from_rank0(partial(RunConfig.read, run.config))
                with make_trackers(config, run.path) if world.first else Callback() as trackers:
                    train(config, run.path, stop=stop, callback=trackers, world=world)
                finished += 1
            except LeaseHeld:
                continue  # somebody was faster; if they die, the run is open again
            except Stopped as reason:
                logger.warning("%s: stopped by %s", run.path, reason)
                if world.from_rank0(partial(status, run)).state != "cancelled":
                    break
                stop.signal = None
                continue
            except LeaseLost as reason:
                logger.warning("%s: %s", run.path, reason)
            except Exception as error:
                # the others may wait for this process in vain: let the launcher end them all
                if world.size > 1:
                    raise
                if isinstance(error, DiskError):  # whose message says all
                    logger.error("%s failed: %s", run.path, error)
                else:
                    logger.exception("%s failed", run.path)
            tried.add(run.path)
    return Shift(finished, stop.signal is not None)


def work_on(device: str, run_dirs: Sequence[str]) -> Shift:
    """Works on the GPU `device` alone, a number or an id: submitit, which hides all of them, would let it see
    numbers only.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    return work(run_dirs)


def next_open(
    run_dirs: list[str], tried: set[Path], retries: int | None = None
) -> tuple[RunDir | None, bool]:
    """The first run that is neither finished, nor being worked on, nor in `tried`; and whether any is being
    worked on.

    Finished runs are taken off `run_dirs`, or a worker would read all of them again before each run of a long
    plan. What others work on may yet become open, for they can die. With `retries`, a run that crashed less
    often in this job comes first, or one that kills the process would keep it from all others, and one that
    crashed more than `retries` times is left.
    """
    waiting, job = False, own_job()
    found: list[tuple[int, RunDir]] = []
    for path in tuple(run_dirs):
        run = RunDir(Path(path))
        state = status(run).state
        waiting |= state == "running"
        if state in FINISHED:
            run_dirs.remove(path)
        if run.path in tried or state not in OPEN:
            continue
        if retries is None:
            return run, waiting
        if (failures := crashes(run, job)) <= retries:
            found.append((failures, run))
    return (min(found, key=lambda one: one[0])[1] if found else None), waiting


def crashes(run: RunDir, job: str | None) -> int:
    """How many attempts of `job` in a row, up to now, have ended unasked and saved nothing new; `attempts`
    keeps why.

    Another job, as of whoever submits again, has all its retries.
    """
    found, furthest = 0, 0
    for record in map(read_attempt, attempts(run.path)):
        saved = int(record.get("saved") or 0)
        asked = record.get("outcome") == "stopped" or record.get("job") != job
        found = 0 if asked or saved > furthest else found + 1
        furthest = max(furthest, saved)
    return found
