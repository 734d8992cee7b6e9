"""A roadmap on this machine, without Slurm: a worker a GPU or a core, watched to the end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from roadmap import ROOT
from roadmap.files import write_errors
from roadmap.lease import is_here
from roadmap.provenance import usable_cores
from roadmap.records import RunDir, Status, status
from roadmap.strict_yaml import relative
from roadmap.terminal import console, count
from roadmap.training.launch import without_launcher
from slurm.status_table import counts, overview, progress_of
from slurm.submitted import jobs_of
from slurm.worker import OPEN, work, work_on

YEAR_MIN = 365 * 24 * 60


def train_here(runs: Sequence[RunDir], workers: int | None) -> int:
    """Starts workers, and watches them to the end; exit code 1 if a run is left unfinished."""
    before = [status(found) for found in runs]
    todo = sum(found.state in OPEN for found in before)
    alive = sum(found.owner is not None and is_here(found.owner) for found in before)
    workers = max(0, min((workers or len(gpus()) or usable_cores()) - alive, todo))
    console().print(
        f"{count(len(runs), 'run')}: {counts(before)}; {count(workers, 'worker')} for"
        f" {count(todo, 'open run')}"
    )
    jobs = start(runs, workers) if workers else []
    return watch(before, jobs)


def start(runs: Sequence[RunDir], workers: int) -> list[Any]:
    """Workers on this machine, as submitit jobs; each gets a GPU of its own where there are any."""
    import submitit

    folder = jobs_of(runs[0]).absolute()  # or submitit would read a leading ~ as a home folder
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    devices = gpus()
    jobs = []
    with ignoring_interrupts(), without_launcher(), write_errors(folder):
        for number in range(workers):
            executor = submitit.AutoExecutor(folder=folder, cluster="local")
            executor.update_parameters(timeout_min=YEAR_MIN)
            paths = [str(run.path.absolute()) for run in runs]
            jobs.append(
                executor.submit(work_on, devices[number % len(devices)], paths)
                if devices
                else executor.submit(work, paths)
            )
    return jobs


def gpus() -> list[str]:
    """The GPUs that this process may use, by number or id, as CUDA_VISIBLE_DEVICES has them; told without
    importing torch.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        words = [word.strip() for word in visible.split(",")]
        return [word for word in words if word.isdigit() or word.startswith(("GPU-", "MIG-"))]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started inside do not die of the terminal's Ctrl-C; `watch` tells them to save and stop
    instead.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def watch(found: Sequence[Status], jobs: Sequence[Any]) -> int:
    """Shows the runs until no worker is left, but not those that are finished in `found`; Ctrl-C has the
    workers save and stop.
    """
    said = {run.run.path for run in found if run.result is not None}
    screen, started, before, stopping = console(), time.monotonic(), len(said), False
    with Live(console=screen, auto_refresh=False, transient=True) as live:
        while True:
            try:
                found = [run if run.result is not None else status(run.run) for run in found]
                alive = [job for job in jobs if not job.done()]
                if stopping:
                    stop(alive)
                working = bool(alive) or (not stopping and any(run.state == "running" for run in found))
                announce(live, found, said)
                live.update(
                    picture(found, time.monotonic() - started, len(said) - before), refresh=screen.is_terminal
                )
                if not working:
                    break
                time.sleep(1)
            except KeyboardInterrupt:
                stopping = True
                live.console.print(
                    "stopping: the workers started here save what they are at; submit again to go on"
                )
    return conclude(found, jobs)


def stop(jobs: Sequence[Any]) -> None:
    """Asks workers to save and end; they may be asked again, for one that is only starting does not listen
    yet.
    """
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(job.job_id), signal.SIGTERM)


def announce(live: Live, found: Sequence[Status], said: set[Path]) -> None:
    """A line for each run that has ended since the last look; its path goes into `said`."""
    for run in found:
        if (run.result is not None or run.state == "failed") and run.run.path not in said:
            said.add(run.run.path)
            live.console.print(
                f"[{len(said)}/{len(found)}] {run.run.step} seed {run.run.seed}: {run.state},"
                f" {progress_of(run)}"
            )


def picture(found: Sequence[Status], seconds: float, ended: int) -> Group:
    """The runs that are being trained, over a line of totals; `ended` runs have ended in these `seconds`."""
    running = [run for run in found if run.state == "running"]
    left = sum(run.result is None for run in found)
    forecast = f", about {timedelta(seconds=round(seconds / ended * left))} left" if ended else ""
    return Group(
        overview(running, ""), Text(f"{counts(found)}; {timedelta(seconds=round(seconds))} so far{forecast}")
    )


def conclude(found: Sequence[Status], jobs: Sequence[Any]) -> int:
    """What is left to do, and where to look."""
    left = [run for run in found if run.result is None]
    screen = console()
    screen.print(counts(found))
    if not left:
        return 0
    screen.print(overview(left, f"{count(len(left), 'unfinished run')}; submit again to go on"))
    for job in jobs:
        screen.print(f"log of worker {job.job_id}: {relative(job.paths.stderr)}")
    return 1
