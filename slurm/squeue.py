"""What Slurm says of submitted runs: waiting, at work, or unknown when it does not answer."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from roadmap.files import write_json
from roadmap.records import RunDir

SEPARATOR = "|"
FORMAT = SEPARATOR.join(["%F", "%K", "%T", "%N", "%S", "%k", "%r"])
PATIENCE_S = 30
SUBMITTED = re.compile(r"(\d+)(_\d+)?_submitted\.pkl")


class Unanswered(RuntimeError):
    """Slurm does not answer, so nobody knows what is queued or running."""


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, that Slurm has not done with: `submission` and `index` say which runs are its own."""

    job: str
    index: int
    state: str
    node: str
    starts: str
    submission: str
    reason: str

    @property
    def id(self) -> str:
        """What scancel and scontrol call it."""
        return self.job if self.index < 0 else f"{self.job}_{self.index}"


@dataclass(frozen=True)
class Submission:
    """A job or array: the task at a place trains the runs in `groups` there; Slurm has `name` as its comment."""

    name: str
    cluster: str
    created: str
    groups: tuple[tuple[str, ...], ...]

    def write(self, jobs: Path) -> None:
        """Puts it on record, which is done before Slurm hears of it: a kill in between leaves no job that nobody knows."""
        write_json(jobs / f"{self.name}.json", asdict(self))


def submissions(jobs: Path) -> list[Submission]:
    """What has been submitted from a folder, oldest first; a record that is damaged is left out."""
    found = []
    for path in sorted(jobs.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            submission = Submission(record["name"], record["cluster"], record["created"], tuple(map(tuple, record["groups"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if submission.name == path.stem:  # or it is a copy that somebody has made
            found.append(submission)
    return found


def submitted_jobs(folder: Path) -> list[tuple[str, bool]]:
    """The ids of the jobs of which submitit has left a record in `folder`, and whether each is an array, by its tasks."""
    found = [match for path in folder.iterdir() if (match := SUBMITTED.fullmatch(path.name))] if folder.is_dir() else []
    return [(match[1], match[2] is not None) for match in sorted(found, key=lambda match: match[0])]


def ask(*words: str) -> str:
    """What a command of Slurm's prints; Unanswered if it fails or is not there."""
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE_S, check=True)
    except FileNotFoundError as error:
        raise Unanswered(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"{words[0]} has not answered in {PATIENCE_S} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or [f"exit code {error.returncode}"]
        raise Unanswered(said[-1]) from error
    return done.stdout


def queued() -> list[Task]:
    """All tasks of this user that Slurm has not done with. Unanswered if it cannot be asked."""
    found = []
    for line in ask("squeue", "--me", "--noheader", "--array", "--format", FORMAT).splitlines():
        job, index, state, node, starts, comment, reason = line.split(SEPARATOR, 6)
        found.append(Task(job, int(index) if index.isdigit() else -1, state, node, starts, comment, reason))
    return found


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


def max_array_size() -> int:
    """How many tasks an array of this Slurm may have, 1 where it has no arrays. Unanswered if it cannot be asked."""
    for line in ask("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return max(1, int(value))  # an array of one is submitted as a plain job
    return 1001  # Slurm's default
