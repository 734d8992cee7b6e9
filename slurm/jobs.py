"""The folder of an experiment's jobs: the record of each submission, and the snapshot of the source and steps
that its jobs run, so that later edits do not affect them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roadmap import ROOT, STEPS_YAML
from roadmap.disk import reason
from roadmap.errors import config_error, relative
from roadmap.files import sync_folder, write_atomic, write_errors, write_json
from roadmap.provenance import SNAPSHOT_COMMIT, commit
from roadmap.records import RunDir
from roadmap.steps import flat_text
from slurm.client import Task

SUBMITTED = re.compile(r"(\d+)(_\d+)?_submitted\.pkl")
SUFFIXES = {".py", ".yaml", ".json", ".j2", ".css", ".js"}
PARTS = ("blocks", "roadmap", "slurm", "steps.yaml")


@dataclass(frozen=True)
class Submission:
    """A job or array, whose task at an index trains the runs in `groups` there; `name` is Slurm's comment."""

    name: str
    cluster: str
    created: str
    groups: tuple[tuple[str, ...], ...]

    def write(self, jobs: Path) -> None:
        """Records the submission before Slurm receives it: a kill in between then leaves no unknown job."""
        write_json(jobs / f"{self.name}.json", asdict(self))


@dataclass(frozen=True)
class SubmittedJob:
    """The latest job for a run: `job` in `folder`, None if Slurm never received it, trains all of `group`."""

    folder: Path
    job: str | None
    group: tuple[str, ...]

    def log(self, last: dict[str, Any], end: str = "err") -> Path | None:
        """The file of the standard error, or output, of the task of the run's `last` attempt; that of rank 0
        if another job made it.
        """
        task = last.get("task", 0) if last.get("job") == self.job else 0
        return self.folder / f"{self.job}_{task}_log.{end}" if self.job else None


def jobs_of(run: RunDir) -> Path:
    """The folder of the jobs of a run's experiment."""
    return run.path.parent.parent / "jobs"


def root_of(jobs: Path) -> Path:
    """The folder of runs that contains a folder of jobs; the names of runs are relative to it."""
    return jobs.parent.parent.parent


def submissions(jobs: Path) -> list[Submission]:
    """The submissions from a folder, oldest first; damaged records are skipped."""
    found = []
    for path in sorted(jobs.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            submission = Submission(
                record["name"], record["cluster"], record["created"], tuple(map(tuple, record["groups"]))
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if submission.name == path.stem:  # otherwise it is a user's copy
            found.append(submission)
    return found


def submitted_jobs(folder: Path) -> list[tuple[str, bool]]:
    """The ids of the jobs that submitit recorded in `folder`, each with whether it is an array, by tasks."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = sorted(filter(None, map(SUBMITTED.fullmatch, names)), key=lambda match: match[0])
    return [(match[1], match[2] is not None) for match in found]


def job_of_each_run(jobs: Path) -> dict[str, SubmittedJob]:
    """The latest job for each run that was submitted from the folder `jobs`, by the runs' names."""
    found: dict[str, SubmittedJob] = {}
    for submission in submissions(jobs):
        folder = jobs / submission.name
        job, is_array = next(iter(submitted_jobs(folder)), ("", False))
        for index, group in enumerate(submission.groups):
            submitted = SubmittedJob(folder, (f"{job}_{index}" if is_array else job) or None, group)
            found |= dict.fromkeys(group, submitted)
    return found


def grouped(jobs: Path, tasks: Iterable[Task]) -> Iterator[tuple[Task, tuple[str, ...]]]:
    """Each task that was submitted from `jobs`, with the names of the runs that it trains."""
    groups = {submission.name: submission.groups for submission in submissions(jobs)}
    for task in tasks:
        mine = groups.get(task.submission, ())
        if max(task.index, 0) < len(mine):
            yield task, mine[max(task.index, 0)]


def runs_in_queue(jobs: Path, tasks: Iterable[Task]) -> dict[str, Task]:
    """The tasks in the queue by the names of the runs that they train."""
    return {name: task for task, names in grouped(jobs, tasks) for name in names}


def sources(root: Path) -> Iterator[Path]:
    """The files that a job needs, sorted, relative to `root`."""
    for part in PARTS:
        found = [root / part] if (root / part).is_file() else sorted((root / part).rglob("*"))
        yield from (path.relative_to(root) for path in found if path.is_file() and path.suffix in SUFFIXES)


def tree_hash(root: Path = ROOT) -> str:
    """Sixteen hex digits over the names and contents of the sources under `root`."""
    digest = hashlib.sha256()
    for path in sources(root):
        digest.update(f"{path.as_posix()}\0".encode() + hashlib.sha256((root / path).read_bytes()).digest())
    return digest.hexdigest()[:16]


def take_snapshot(jobs: Path) -> Path:
    """A copy of this project's sources in `jobs`, named by its hash, or the one that exists.

    It records the commit that it was first taken from, which the hash does not cover.
    """
    target = jobs / f"source-{tree_hash()}"
    if target.is_dir():
        return target
    temporary = jobs / f".{target.name}.{os.uname().nodename}.{os.getpid()}"
    try:
        for path in sources(ROOT):
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, temporary / path)
        (temporary / SNAPSHOT_COMMIT).write_text(f"{commit() or ''}\n", encoding="utf-8")
        temporary.rename(target)
    except OSError as error:
        if not target.is_dir():  # another process may have been faster
            raise config_error(relative(target), f"cannot be written: {reason(error, target)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def keep_steps(steps_file: Path, jobs: Path, snapshot: Path) -> Path:
    """A copy in `jobs` of a steps file with what it extends; the snapshot's for the project's own."""
    if steps_file.resolve() == STEPS_YAML:
        return snapshot / STEPS_YAML.relative_to(ROOT)
    text = flat_text(steps_file)
    kept = jobs / f"steps-{hashlib.sha256(text.encode()).hexdigest()[:16]}" / steps_file.name
    with write_errors(kept):
        kept.parent.mkdir(exist_ok=True)
        write_atomic(kept, text)
        sync_folder(jobs)
    return kept


def verify_snapshot(snapshot: Path) -> None:
    """ConfigError unless this process runs the code in `snapshot`, and it is unchanged since it was taken."""
    if ROOT.resolve() != snapshot.resolve():
        message = f"is the code that was imported, not {snapshot}; is PYTHONPATH set by the job's setup?"
        raise config_error(str(ROOT), message)
    found, wanted = tree_hash(snapshot), snapshot.name.rpartition("-")[2]
    if found != wanted:
        raise config_error(str(snapshot), f"was changed after it was taken ({found}); submit again")
