"""A worker trains the unfinished runs of a plan one after the other, here or in a Slurm job."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from roadmap.cli.options import Parser, print_anywhere
from roadmap.config import RunConfig
from roadmap.disk import DiskError
from roadmap.lease import LeaseHeld, LeaseLost, attempts, own_job, read_attempt
from roadmap.provenance import runs_per_gpu
from roadmap.records import FINISHED, RunDir, status
from roadmap.signals import Stopped, StopSignals
from roadmap.training.callbacks import Callback, make_trackers
from slurm.client import SlurmUnavailable, ask
from slurm.jobs import verify_snapshot

logger = logging.getLogger(__name__)
POLL_S = 2.0
OPEN = {"pending", "stale", "failed"}
STOPPED = 75  # EX_TEMPFAIL: saved, to be resumed by another job
FAILED = 1


@dataclass(frozen=True)
class Shift:
    """The number of runs that a worker `finished`, and whether a signal `stopped` it; the run over which it
    `lost` its GPU, if it did, and the other ones that it `tried`.
    """

    finished: int
    stopped: bool
    lost: str | None = None
    tried: tuple[str, ...] = ()


def work(
    run_dirs: Sequence[str], *, patient: bool = True, retries: int | None = None, skip: Sequence[str] = ()
) -> Shift:
    """Trains the open runs of `run_dirs`, in order, each at most once, and none of `skip`.

    Many workers may share a plan: the lease of a run decides which of them trains it, and a `patient` worker
    waits while another might die over one. `retries` is for a job that may have crashed over a run before:
    see `next_open`. A run that fails leaves its reason in its attempt, and the worker continues, unless it
    cannot use its GPU any more: then it ends, and another process trains the rest. SIGTERM saves the
    current run and ends the worker, unless that run was canceled: then the worker continues with the
    others. Processes that were launched together are one worker, which trains each run on all of them,
    unless they are to share a GPU.
    """
    finished, tried, lost = 0, set(map(Path, skip)), None
    with StopSignals() as stop, ExitStack() as stack:
        # takes seconds, in which a signal must not be lost
        from roadmap.train import train
        from roadmap.training.device import is_lost
        from roadmap.training.distributed import Distributed, joined

        # the tasks of a job whose runs share a GPU are workers of their own
        world = Distributed() if runs_per_gpu() > 1 else stack.enter_context(joined(stop))
        left = list(run_dirs)
        while not world.from_rank0(lambda: stop.signal is not None):
            run, waiting = world.from_rank0(lambda: next_open(left, tried, retries))
            if run is None and not (waiting and patient):
                break
            if run is None:
                time.sleep(POLL_S)
                continue
            try:
                # on rank 0 only, since a submission may replace it
                config = world.from_rank0(partial(RunConfig.read, run.config))
                with make_trackers(config, run.path) if world.first else Callback() as trackers:
                    train(config, run.path, stop=stop, callback=trackers, world=world)
                finished += 1
            except LeaseHeld:
                continue  # another worker was faster; if it dies, the run is open again
            except Stopped as reason:
                logger.warning("%s: stopped by %s", run.path, reason)
                if world.from_rank0(partial(status, run)).state != "cancelled":
                    break
                stop.signal = None
                continue
            except LeaseLost as reason:
                logger.warning("%s: %s", run.path, reason)
            except Exception as error:
                # the other processes may wait for this one in vain: the launcher ends them all
                if world.size > 1:
                    raise
                if isinstance(error, DiskError):  # its message needs no traceback
                    logger.error("%s failed: %s", run.path, error)
                else:
                    logger.exception("%s failed", run.path)
                if is_lost():
                    logger.error("%s left a GPU that this process cannot use; the worker ends", run.path)
                    lost = str(run.path)
                    break
            tried.add(run.path)
    return Shift(finished, stop.signal is not None, lost, tuple(map(str, tried)))


def work_on(device: str, run_dirs: Sequence[str], *, skip: Sequence[str] = ()) -> Shift:
    """Works on one GPU, given by number or id; submitit's own option takes numbers only."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    return work(run_dirs, skip=skip)


def next_open(
    run_dirs: list[str], tried: set[Path], retries: int | None = None
) -> tuple[RunDir | None, bool]:
    """The first run that is open and not in `tried`; and whether another worker is training any.

    Finished runs are removed from `run_dirs`, so that they are not read again before each run of a long plan.
    With `retries`, the run that crashed least often in this job comes first, so that one that kills the
    process does not keep it from the others, and one that crashed more than `retries` times is skipped.
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
    """How many of the latest attempts, all of `job`, crashed in a row without saving anything new.

    A later submission is another job and has all its retries.
    """
    found, furthest = 0, 0
    for record in map(read_attempt, attempts(run.path)):
        saved = int(record.get("saved") or 0)
        asked = record.get("outcome") == "stopped" or record.get("job") != job
        found = 0 if asked or saved > furthest else found + 1
        furthest = max(furthest, saved)
    return found


def train_runs(run_dirs: Sequence[str], snapshot: str, retries: int) -> None:
    """What a task of a Slurm job runs: trains `run_dirs` with the code in `snapshot`, each with up to
    `retries`.

    SystemExit with STOPPED or FAILED if one of them is left open.
    """
    print_anywhere()
    verify_snapshot(Path(snapshot))
    stopped = work(run_dirs, patient=False, retries=retries).stopped
    if any(status(RunDir(Path(run))).state in OPEN for run in run_dirs):
        raise SystemExit(STOPPED if stopped else FAILED)


def must_requeue(runs: Sequence[RunDir], code: int, retries: int, restarts: int = 0) -> bool:
    """Whether this job, which ended with `code` after so many `restarts`, is to be requeued: one of its runs
    was stopped, or has retries left.
    """
    left, job = [run for run in runs if status(run).state not in FINISHED], own_job()
    if code in (128 + 15, 128 + 2):  # canceled: Slurm itself requeues a job that it has preempted
        return False
    if all(crashes(run, job) > retries for run in left):
        return False
    begun = sum(read_attempt(path).get("job") == job for run in runs for path in attempts(run.path))
    # otherwise a job that cannot start would be requeued forever
    return code == STOPPED or restarts < begun + retries * (begun + 1)


def main() -> int:
    """The last line of a job's script: requeues the job if needed, and passes on the exit code."""
    options = Parser(description="Queue this job again if its runs are not finished.")
    options.add_argument("code", type=int)
    options.add_argument("retries", type=int)
    options.add_argument("runs", nargs="+", type=Path)
    arguments = options.parse_args()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if must_requeue([RunDir(path) for path in arguments.runs], arguments.code, arguments.retries, restarts):
        print(f"exit code {arguments.code}: queued again", file=sys.stderr)
        try:
            ask("scontrol", "requeue", str(own_job()), retry=True)
        except SlurmUnavailable as error:
            print(f"scontrol requeue: {error}", file=sys.stderr)
    return int(arguments.code)


if __name__ == "__main__":
    sys.exit(main())
