"""Training a roadmap on this machine, without Slurm: one worker per GPU or core, watched to their end."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.live import Live
from rich.text import Text

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.errors import relative
from roadmap.estimate import last_evaluation, paces_of, time_left
from roadmap.files import write_errors
from roadmap.lease import is_here
from roadmap.provenance import RUNS_PER_GPU, WORKERS_HERE, usable_cores
from roadmap.records import RunDir, Status, status
from roadmap.signals import ignoring_interrupts
from roadmap.terminal import console, count, repeat, tally
from roadmap.training.launch import without_launcher
from slurm.jobs import jobs_of
from slurm.status_table import duration, overview, progress_of
from slurm.worker import OPEN, work, work_on

YEAR_MIN = 365 * 24 * 60


def worker_count(asked: int | None, devices: Sequence[str], runs_per_gpu: int = 1) -> int:
    """The workers at a time on this machine: as many as asked for, else `runs_per_gpu` for each GPU, else one
    per core.
    """
    return asked or len(devices) * runs_per_gpu or usable_cores()


def workers_per_gpu(workers: int, devices: Sequence[str]) -> int:
    """The most workers that share a GPU of this machine; 1 if there is none."""
    return max(1, math.ceil(workers / len(devices))) if devices else 1


def train_here(
    runs: Sequence[RunDir], workers: int | None, devices: Sequence[str], runs_per_gpu: int = 1
) -> int:
    """Starts workers, and watches them until all have ended; exit code 1 if a run is left unfinished."""
    before = [status(found) for found in runs]
    planned = plan_workers(before, workers, devices, runs_per_gpu)
    console().print(planned.text)
    return watch(before, start(runs, planned.workers, devices) if planned.workers else [])


class WorkerPlan(NamedTuple):
    """How many `workers` to start, and the same as a line of text."""

    workers: int
    text: str


def plan_workers(
    runs: Sequence[Status], workers: int | None, devices: Sequence[str], runs_per_gpu: int
) -> WorkerPlan:
    """As many workers as `worker_count` has, besides those that are active here, and no more than open
    runs.
    """
    todo = sum(found.state in OPEN for found in runs)
    alive = sum(found.owner is not None and is_here(found.owner) for found in runs)
    workers = max(0, min(worker_count(workers, devices, runs_per_gpu) - alive, todo))
    share = workers_per_gpu(workers, devices)
    shared = f", {share} on a GPU," if share > 1 else ""
    states = tally(found.state for found in runs)
    wanted = f"{count(workers, 'worker')}{shared} for {count(todo, 'open run')}"
    return WorkerPlan(workers, f"{count(len(runs), 'run')}: {states}; {wanted}")


@dataclass(frozen=True)
class Shares:
    """This machine is shared by so many `workers`, and each of its GPUs by so many."""

    workers: int
    per_gpu: int

    @contextmanager
    def passed_on(self) -> Iterator[None]:
        """Processes that are started inside have one share."""
        before = dict(os.environ)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        os.environ[WORKERS_HERE] = str(self.workers)  # for the data-loading workers of each
        os.environ[RUNS_PER_GPU] = str(self.per_gpu)
        if self.workers > 1:
            threads = max(1, usable_cores() // self.workers)
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # PyTorch's, too
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@dataclass
class Worker:
    """A worker's submitit `job`, and its `device`, None for the CPU; the `shares` of the machine, of which it
    has one; the runs over which it and the workers before it `lost` their GPU, each time that they did; and
    whether it `ended`, and that was dealt with.
    """

    job: Any
    device: str | None
    shares: Shares
    lost: tuple[str, ...] = ()
    ended: bool = False


def start(runs: Sequence[RunDir], workers: int, devices: Sequence[str]) -> list[Worker]:
    """Workers on this machine, each with its share of the cores, and of the GPUs `devices` if any."""
    shares = Shares(workers, workers_per_gpu(workers, devices))
    each = [devices[number % len(devices)] if devices else None for number in range(workers)]
    return [Worker(submit(runs, device, shares), device, shares) for device in each]


def submit(runs: Sequence[RunDir], device: str | None, shares: Shares, skip: Sequence[str] = ()) -> Any:
    """The job of a new worker, which trains none of `skip`."""
    import submitit

    folder = jobs_of(runs[0]).absolute()  # since submitit would expand a leading ~
    paths = [str(run.path.absolute()) for run in runs]
    with ignoring_interrupts(), without_launcher(), shares.passed_on(), write_errors(folder):
        executor = submitit.AutoExecutor(folder=folder, cluster="local")
        executor.update_parameters(timeout_min=YEAR_MIN)
        if device is None:
            return executor.submit(work, paths, skip=skip)
        return executor.submit(work_on, device, paths, skip=skip)


def replace(worker: Worker, found: Sequence[Status]) -> Worker | None:
    """A new worker for one that ended because it had lost its GPU; None for any other, or if no run is left.

    A run over which a GPU was lost is tried once more, after the others: the fault may be its own.
    """
    if worker.ended or not worker.job.done():
        return None
    worker.ended = True
    if worker.job.exception() is not None or (shift := worker.job.result()).lost is None:
        return None
    lost = (*worker.lost, shift.lost)
    skip = {*shift.tried, *(path for path in lost if lost.count(path) > 1)}
    if all(run.state not in OPEN or str(run.run.path.absolute()) in skip for run in found):
        return None
    runs = sorted((run.run for run in found), key=lambda run: str(run.path.absolute()) in lost)
    return Worker(
        submit(runs, worker.device, worker.shares, sorted(skip)), worker.device, worker.shares, lost
    )


def gpus_for(configs: Iterable[RunConfig]) -> list[str]:
    """The GPUs that these runs may train on: none if all are to train on the CPU."""
    return [] if all(config.system.device == "cpu" for config in configs) else gpus()


def gpus() -> list[str]:
    """The GPUs that this process may use, by number or id as in CUDA_VISIBLE_DEVICES, without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        words = [word.strip() for word in visible.split(",")]
        return [word for word in words if word.isdigit() or word.startswith(("GPU-", "MIG-"))]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def watch(found: Sequence[Status], workers: list[Worker]) -> int:
    """Shows the runs, except those finished in `found`, until no worker is left; Ctrl-C stops the workers."""
    announced = {run.run.path for run in found if run.result is not None}
    screen, started, stopping = console(), time.monotonic(), False

    def step() -> bool:
        nonlocal found
        found = [run if run.result is not None else status(run.run) for run in found]
        for worker in () if stopping else tuple(workers):
            if (new := replace(worker, found)) is not None:
                workers.append(new)
                live.console.print(f"worker {worker.job.job_id} lost its GPU; {new.job.job_id} takes over")
        alive = [worker.job for worker in workers if not worker.job.done()]
        if stopping:
            stop(alive)
        announce(live, found, announced)
        live.update(picture(found, time.monotonic() - started), refresh=screen.is_terminal)
        return not alive and (stopping or all(run.state != "running" for run in found))

    def interrupted() -> None:
        nonlocal stopping
        stopping = True
        live.console.print("stopping: the workers started here save their runs; submit again to resume them")

    with Live(console=screen, auto_refresh=False, transient=True) as live:
        repeat(step, 1, interrupted)
    return conclude(found, [worker.job for worker in workers])


def stop(jobs: Sequence[Any]) -> None:
    """Asks workers to save and end; it is repeated, since a worker that is starting does not listen yet."""
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(job.job_id), signal.SIGTERM)


def announce(live: Live, found: Sequence[Status], announced: set[Path]) -> None:
    """Prints a line for each run that has ended, once."""
    for run in found:
        if (run.result is not None or run.state == "failed") and run.run.path not in announced:
            announced.add(run.run.path)
            live.console.print(
                f"[{len(announced)}/{len(found)}] {run.run.step} seed {run.run.seed}: {run.state},"
                f" {progress_of(run)}"
            )


def picture(found: Sequence[Status], seconds: float) -> Group:
    """The runs in training, above a line of totals and an estimate of the time left."""
    running = [run for run in found if run.state == "running"]
    open_runs = [run for run in found if run.state in ("running", "pending", "stale")]
    evaluations = {run.run.path: last_evaluation(run) for run in found if run.result is None}
    left = time_left(open_runs, paces_of(found, evaluations), len(running))
    totals = f"{tally(run.state for run in found)}; {duration(seconds)} so far"
    if left is not None:
        totals += f", about {duration(left.seconds)} of training left"
    return Group(overview(running, ""), Text(totals))


def conclude(found: Sequence[Status], jobs: Sequence[Any]) -> int:
    """Prints what is unfinished, and the paths of the workers' logs."""
    left = [run for run in found if run.result is None]
    screen = console()
    screen.print(tally(run.state for run in found))
    if not left:
        return 0
    screen.print(overview(left, f"{count(len(left), 'unfinished run')}; submit again to resume"))
    for job in jobs:
        screen.print(f"log of worker {job.job_id}: {relative(job.paths.stderr)}")
    return 1
