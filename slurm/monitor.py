"""Where runs stand: what their directories say, then what Slurm has queued, then how the jobs of the others
have ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from roadmap.lease import attempts, read_attempt
from roadmap.records import RunDir, Status, status
from slurm.accounting import Ended, accounting
from slurm.client import SlurmUnavailable, Task, queued
from slurm.eta import Pace, last_evaluation, paces_of, tail
from slurm.submitted import grouped, jobs_of, submissions, submitted_jobs

QUEUED = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
GOES_ON = {"running", "queued", "requeued", "starting"}
ENDING = {"COMPLETING", "STAGE_OUT"}
CLOSING = ("srun: ", "slurmstepd", "exit code ")
TAIL_BYTES = 4096


@dataclass(frozen=True)
class SubmittedJob:
    """A run's place in what was submitted: the job `job` in `folder`, which Slurm may never have heard of,
    trains all of `group`.
    """

    folder: Path
    job: str | None
    group: tuple[str, ...]

    def log(self, end: str = "err") -> Path | None:
        """Where the first process of the job writes its standard error, or output."""
        return self.folder / f"{self.job}_0_log.{end}" if self.job else None


@dataclass(frozen=True)
class RunState:
    """Where a run stands; `seconds_left` are those of training alone, `where` is a node or host, `why` says
    what went wrong.
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
    def goes_on(self) -> bool:
        """Whether somebody is at work on the run or, as far as is known, will be."""
        return self.state in GOES_ON or (self.state == "pending" and self.job is None)


@dataclass(frozen=True)
class Forecast:
    """The `seconds` of training until the end with `at_once` runs at a time, `guessed` of which were taken
    for average ones.
    """

    seconds: float
    at_once: int
    guessed: int


@dataclass(frozen=True)
class Snapshot:
    """Where all runs stand; `said` are lines about what could not be asked."""

    rows: list[RunState]
    said: list[str]
    forecast: Forecast | None


@dataclass
class Slurm:
    """What Slurm says of unfinished runs, by their paths."""

    tasks: dict[Path, Task] = field(default_factory=dict)
    places: dict[Path, SubmittedJob] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    answers: bool = True


def poll(runs: Iterable[RunDir]) -> Snapshot:
    """Where `runs` stand now."""
    return board_of([status(run) for run in runs])


def board_of(found: Sequence[Status]) -> Snapshot:
    """What is known of runs whose directories say what `found` holds."""
    evaluations = {one.run.path: last_evaluation(one) for one in found if one.result is None}
    slurm, paces = ask_slurm(found), paces_of(found, evaluations)
    rows = [row_of(one, paces[one.run.hash], evaluations.get(one.run.path, {}), slurm) for one in found]
    return Snapshot(rows, slurm.said, forecast(rows, paces))


def places(jobs: Path) -> dict[str, SubmittedJob]:
    """The latest place of each run in what was submitted from the folder `jobs`, by the runs' names."""
    found: dict[str, SubmittedJob] = {}
    for submission in submissions(jobs):
        folder = jobs / submission.name
        job, array = next(iter(submitted_jobs(folder)), ("", False))
        for index, group in enumerate(submission.groups):
            place = SubmittedJob(folder, (f"{job}_{index}" if array else job) or None, group)
            found |= dict.fromkeys(group, place)
    return found


def ask_slurm(found: Sequence[Status]) -> Slurm:
    """What Slurm says of the runs that are not finished; it is asked only if one of them was ever submitted
    to it.
    """
    slurm, left = Slurm(), [one for one in found if one.result is None]
    known = {jobs: places(jobs) for jobs in dict.fromkeys(jobs_of(one.run) for one in left)}
    slurm.places = {
        one.run.path: known[jobs_of(one.run)][one.run.name]
        for one in left
        if one.run.name in known[jobs_of(one.run)]
    }
    if not slurm.places:
        return slurm
    try:
        tasks = queued()
    except SlurmUnavailable as error:
        slurm.answers = False
        slurm.said.append(f"squeue does not answer: {error}")
        return slurm
    for jobs in known:
        slurm.tasks |= {root_of(jobs) / name: task for task, names in grouped(jobs, tasks) for name in names}
    idle = {one.run.path for one in left if one.state != "running"}
    gone = [path for path in slurm.places if path in idle and path not in slurm.tasks]
    try:
        slurm.ended = accounting([job for path in gone if (job := slurm.places[path].job)])
    except SlurmUnavailable as error:
        slurm.said.append(f"sacct does not answer: {error}")
    return slurm


def root_of(jobs: Path) -> Path:
    """The folder of runs that a folder of jobs is in; names of runs start there."""
    return jobs.parent.parent.parent


def row_of(found: Status, pace: Pace, evaluation: dict[str, Any], slurm: Slurm) -> RunState:
    """A run's row; `evaluation` is the last record of one."""
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
    state, why, job = verdict(found, last, slurm)
    task = slurm.tasks.get(run.path)
    return RunState(
        run,
        state,
        record.get("epoch"),
        pace.epochs,
        evaluation.get("top1"),
        record.get("images_per_s"),
        pace.left(record),
        (task.node if task and task.state not in QUEUED else None) or (found.owner or last).get("host"),
        len(files),
        job,
        why,
    )


def verdict(found: Status, last: dict[str, Any], slurm: Slurm) -> tuple[str, str | None, str | None]:
    """An unfinished run's state, what is to be said of it, and its job, if one has to do with it; `last` is
    its last attempt.
    """
    place, task = slurm.places.get(found.run.path), slurm.tasks.get(found.run.path)
    if task is not None:
        return (*_in_queue(found, last, task, slurm), task.id)
    if place is None or found.state == "running":
        return found.state, found.why, None
    if not slurm.answers:
        return "unknown", found.why, place.job
    if place.job is None:  # the submission was killed before Slurm heard of it
        return found.state, found.why, None
    # of an array that was cancelled before it began, Slurm keeps account as a whole, or not at all
    ended = slurm.ended.get(place.job) or slurm.ended.get(place.job.partition("_")[0])
    if ended is None:
        return found.state, found.why or f"job {place.job} is not in the queue any more", place.job
    if _since(last.get("started"), ended.end):  # somebody else has been at it since
        return found.state, found.why, None
    words = [f"job {place.job}: {ended}"]
    if ended.crashed and (line := last_line(place.log())):
        words.append(line)
    return ("failed" if ended.crashed else found.state), found.why or "; ".join(words), place.job


def _in_queue(found: Status, last: dict[str, Any], task: Task, slurm: Slurm) -> tuple[str, str | None]:
    """The state of an unfinished run that a job in the queue is to train."""
    if found.state == "running" or task.state in ENDING:
        return found.state, found.why
    if task.state in QUEUED:
        before = found.why or last_line(slurm.places[found.run.path].log())
        words = [f"waits: {task.reason}"] if task.reason != "None" else []  # Slurm has not looked at it yet
        words += [f"before: {before}"] if before else []
        return ("requeued" if last or before else "queued"), "; ".join(words) or None
    if _since(last.get("started"), task.starts):  # the job has had its turn
        return found.state, found.why
    mates = [name for name in slurm.places[found.run.path].group if name != found.run.name]
    return "starting", f"in turn with {len(mates)} more" if mates else None


def _since(started: object, then: str) -> bool:
    """Whether an attempt was `started`, in UTC, at or after `then`, in this cluster's time; False if either
    is unknown.
    """
    try:
        return datetime.fromisoformat(str(started)).timestamp() >= datetime.fromisoformat(then).timestamp()
    except ValueError:
        return False


def last_line(log: Path | None) -> str | None:
    """The last line of a job's log that tells something, or None; Slurm closes every log with words of its
    own.
    """
    lines = (
        [line.strip() for line in tail(log, TAIL_BYTES).decode(errors="replace").splitlines()] if log else []
    )
    return next((line for line in reversed(lines) if line and not line.startswith(CLOSING)), None)


def forecast(rows: Sequence[RunState], paces: dict[str, Pace]) -> Forecast | None:
    """When what is being trained and what waits will be done, if as many as now go on being trained; None if
    that cannot be told.
    """
    at_once = sum(row.state == "running" for row in rows)
    left = [row.seconds_left if row.epoch else paces[row.run.hash].whole for row in rows if row.goes_on]
    known = [seconds for seconds in left if seconds is not None]
    wholes = [pace.whole for pace in paces.values() if pace.whole is not None]
    guessed = len(left) - len(known)
    if not at_once or not (known or wholes) or (guessed and not wholes):
        return None
    known += [fmean(wholes)] * guessed if guessed else []
    return Forecast(max(sum(known) / at_once, *known), at_once, guessed)
