"""The states of runs: from their directories, then from Slurm's queue, then from its accounting."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from roadmap.errors import ConfigError, Problem, one_of_these, relative
from roadmap.estimate import Pace, TimeLeft, last_evaluation, paces_of, time_left
from roadmap.files import read_bytes
from roadmap.lease import attempts, read_attempt
from roadmap.records import RunDir, Status, find_runs, status
from slurm.client import Ended, SlurmUnavailable, Task, accounting, queued
from slurm.jobs import SubmittedJob, grouped, job_of_each_run, jobs_of, root_of

SELECTORS: dict[str, Callable[[RunDir], str]] = {
    "roadmap": lambda run: run.experiment[0],
    "profile": lambda run: run.experiment[1],
    "step": lambda run: run.step,
    "seed": lambda run: str(run.seed),
}
QUEUED = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ACTIVE = {"running", "queued", "requeued", "starting"}
ENDING = {"COMPLETING", "STAGE_OUT"}
CLOSING = ("srun: ", "slurmstepd", "exit code ")
TAIL_BYTES = 4096


def select_runs(
    arguments: argparse.Namespace, steps: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[RunDir]:
    """The runs in the folder that the command line names, of its roadmap and profile, `steps` and `seeds`.

    Steps come in the order in which they were planned, which is how their folders were made. ConfigError
    names what no run has.
    """
    runs = find_runs(arguments.runs)
    wanted = {"roadmap": [arguments.roadmap], "profile": [arguments.profile]}
    wanted |= {"step": list(steps), "seed": list(map(str, seeds))}
    for what, names in wanted.items():
        names = [name for name in names if name is not None]
        known = dict.fromkeys(sorted(map(SELECTORS[what], runs)))
        if problems := [
            Problem(relative(arguments.runs), f"holds no run of {what} '{name}'{one_of_these(name, known)}")
            for name in names
            if name not in known
        ]:
            raise ConfigError(problems)
        runs = [run for run in runs if not names or SELECTORS[what](run) in names]
    made: dict[Path, float] = {}
    for run in runs:
        made[run.path.parent] = min(made.get(run.path.parent, math.inf), _made(run))
    return sorted(runs, key=lambda run: (run.experiment, made[run.path.parent], run.step, run.seed, run.hash))


def _made(run: RunDir) -> float:
    try:
        return run.config.stat().st_mtime
    except OSError:
        return math.inf


@dataclass(frozen=True)
class RunState:
    """The state of a run; `seconds_left` are those of training alone, `where` is a node or host, and `why`
    explains the state.
    """

    run: RunDir
    state: str
    epoch: int | None = None
    epochs: int | None = None
    top1: float | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    where: str | None = None
    attempts: int = 0
    job: str | None = None
    why: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether the run is being trained or, as far as is known, will be."""
        return self.state in ACTIVE or (self.state == "pending" and self.job is None)


@dataclass(frozen=True)
class RunStates:
    """The states of all runs, and `notes` about what Slurm did not answer."""

    rows: list[RunState]
    notes: list[str]
    forecast: TimeLeft | None


@dataclass
class SlurmRecords:
    """What Slurm's queue and accounting hold on unfinished runs, by the runs' paths or the jobs' ids."""

    tasks: dict[Path, Task] = field(default_factory=dict)
    submitted: dict[Path, SubmittedJob] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    answers: bool = True


def poll(runs: Iterable[RunDir]) -> RunStates:
    """The states of `runs` now."""
    found = [status(run) for run in runs]
    evaluations = {one.run.path: last_evaluation(one) for one in found if one.result is None}
    slurm, paces = ask_slurm(found), paces_of(found, evaluations)
    rows = [state_of(one, paces[one.run.hash], evaluations.get(one.run.path, {}), slurm) for one in found]
    active = [one for one, row in zip(found, rows, strict=True) if row.is_active]
    running = sum(row.state == "running" for row in rows)
    return RunStates(rows, slurm.notes, time_left(active, paces, running))


def ask_slurm(found: Sequence[Status]) -> SlurmRecords:
    """Slurm's records of the unfinished runs; Slurm is asked only if one of them was ever submitted to it."""
    slurm, left = SlurmRecords(), [one for one in found if one.result is None]
    known = {jobs: job_of_each_run(jobs) for jobs in dict.fromkeys(jobs_of(one.run) for one in left)}
    for one in left:
        if (submitted := known[jobs_of(one.run)].get(one.run.name)) is not None:
            slurm.submitted[one.run.path] = submitted
    if not slurm.submitted:
        return slurm
    try:
        tasks = queued()
    except SlurmUnavailable as error:
        slurm.answers = False
        slurm.notes.append(f"squeue does not answer: {error}")
        return slurm
    for jobs in known:
        slurm.tasks |= {root_of(jobs) / name: task for task, names in grouped(jobs, tasks) for name in names}
    idle = {one.run.path for one in left if one.state != "running"}
    gone = [path for path in slurm.submitted if path in idle and path not in slurm.tasks]
    try:
        slurm.ended = accounting([job for path in gone if (job := slurm.submitted[path].job)])
    except SlurmUnavailable as error:
        slurm.notes.append(f"sacct does not answer: {error}")
    return slurm


def state_of(found: Status, pace: Pace, evaluation: dict[str, Any], slurm: SlurmRecords) -> RunState:
    """A run's state; `evaluation` is the last record of one in its metrics."""
    run, result = found.run, found.result
    if result is not None:
        return RunState(
            run,
            found.state,
            result.epochs,
            pace.epochs,
            result.top1,
            result.images_per_s,
            attempts=result.attempts,
        )
    record, files = found.record or {}, attempts(run.path)
    last = read_attempt(files[-1]) if files else {}
    state, why, job = _unfinished(found, last, slurm)
    task = slurm.tasks.get(run.path)
    return RunState(
        run,
        state,
        _epoch(record, state),
        pace.epochs,
        evaluation.get("top1"),
        record.get("images_per_s"),
        pace.left(record),
        (task.node if task and task.state not in QUEUED else None) or (found.owner or last).get("host"),
        len(files),
        job,
        why,
    )


def _epoch(record: dict[str, Any], state: str) -> int | None:
    """By a run's last record, the epoch that it is in, or if it is stopped, the epochs it has finished."""
    epoch: int | None = record.get("epoch")
    return epoch if epoch is None or state == "running" or record.get("kind") == "epoch" else epoch - 1


def _unfinished(
    found: Status, last: dict[str, Any], slurm: SlurmRecords
) -> tuple[str, str | None, str | None]:
    """An unfinished run's state, its reason, and the job that it concerns; `last` is the last attempt."""
    submitted, task = slurm.submitted.get(found.run.path), slurm.tasks.get(found.run.path)
    if task is not None:
        return (*_in_queue(found, last, task, slurm), task.id)
    if submitted is None or found.state == "running":
        return found.state, found.why, None
    if not slurm.answers:
        return "unknown", found.why, submitted.job
    if submitted.job is None:  # the submission was killed before Slurm received it
        return found.state, found.why, None
    # an array that was canceled before it started has one record for all its tasks, or none
    ended = slurm.ended.get(submitted.job) or slurm.ended.get(submitted.job.partition("_")[0])
    if ended is None:
        return found.state, found.why or f"job {submitted.job} is no longer in the queue", submitted.job
    if _is_since(last.get("started"), ended.end):  # another process has worked on the run since
        return found.state, found.why, None
    words = [f"job {submitted.job}: {ended}"]
    if ended.crashed and (line := last_line(submitted.log(last))):
        words.append(line)
    return ("failed" if ended.crashed else found.state), found.why or "; ".join(words), submitted.job


def _in_queue(found: Status, last: dict[str, Any], task: Task, slurm: SlurmRecords) -> tuple[str, str | None]:
    """The state, and its reason, of an unfinished run whose job is in the queue."""
    if found.state == "running" or task.state in ENDING:
        return found.state, found.why
    if task.state in QUEUED:
        before = found.why or last_line(slurm.submitted[found.run.path].log(last))
        words = [f"waits: {task.reason}"] if task.reason != "None" else []  # not yet considered by Slurm
        words += [f"before: {before}"] if before else []
        return ("requeued" if last or before else "queued"), "; ".join(words) or None
    if _is_since(last.get("started"), task.starts):  # the job has already worked on the run
        return found.state, found.why
    others = [name for name in slurm.submitted[found.run.path].group if name != found.run.name]
    return "starting", f"its job trains {len(others)} more" if others else None


def _is_since(started: object, then: str) -> bool:
    """Whether an attempt `started`, in UTC, at or after `then`, in this cluster's time; False if unknown."""
    try:
        return datetime.fromisoformat(str(started)).timestamp() >= datetime.fromisoformat(then).timestamp()
    except ValueError:
        return False


def last_line(log: Path | None) -> str | None:
    """The last line of a job's log that is not empty or one of those with which Slurm ends every log."""
    if log is None:
        return None
    lines = [line.strip() for line in read_bytes(log, TAIL_BYTES).decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith(CLOSING)), None)
