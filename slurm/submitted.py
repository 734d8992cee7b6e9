"""What was submitted from a folder of jobs, on record, and which runs the tasks in the queue are to train."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from roadmap.files import write_json
from roadmap.records import RunDir
from slurm.client import Task

SUBMITTED = re.compile(r"(\d+)(_\d+)?_submitted\.pkl")


@dataclass(frozen=True)
class Submission:
    """A job or array: the task at a place trains the runs in `groups` there; `name` is Slurm's comment."""

    name: str
    cluster: str
    created: str
    groups: tuple[tuple[str, ...], ...]

    def write(self, jobs: Path) -> None:
        """Puts it on record, before Slurm hears of it: a kill in between leaves no job that nobody knows."""
        write_json(jobs / f"{self.name}.json", asdict(self))


def submissions(jobs: Path) -> list[Submission]:
    """What has been submitted from a folder, oldest first; a record that is damaged is left out."""
    found = []
    for path in sorted(jobs.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            submission = Submission(
                record["name"], record["cluster"], record["created"], tuple(map(tuple, record["groups"]))
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if submission.name == path.stem:  # or it is a copy that somebody has made
            found.append(submission)
    return found


def submitted_jobs(folder: Path) -> list[tuple[str, bool]]:
    """Ids of the jobs that submitit recorded in `folder`, and whether each is an array, by its tasks."""
    found = (
        [match for path in folder.iterdir() if (match := SUBMITTED.fullmatch(path.name))]
        if folder.is_dir()
        else []
    )
    return [(match[1], match[2] is not None) for match in sorted(found, key=lambda match: match[0])]


def grouped(jobs: Path, tasks: Iterable[Task]) -> Iterator[tuple[Task, tuple[str, ...]]]:
    """Each task that was submitted from `jobs`, with the names of the runs that it trains."""
    groups = {submission.name: submission.groups for submission in submissions(jobs)}
    for task in tasks:
        mine = groups.get(task.submission, ())
        if max(task.index, 0) < len(mine):
            yield task, mine[max(task.index, 0)]


def runs_in_queue(jobs: Path, tasks: Iterable[Task]) -> dict[str, Task]:
    """The tasks by the names of the runs that they are to train."""
    return {name: task for task, names in grouped(jobs, tasks) for name in names}


def jobs_of(run: RunDir) -> Path:
    """The folder of the jobs of a run's experiment."""
    return run.path.parent.parent / "jobs"
