"""Calls of Slurm's commands: with parsable output, and retried while Slurm is busy."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from roadmap.lease import now

logger = logging.getLogger(__name__)
SLURM_TIMEOUT_S = 30
SBATCH_TIMEOUT_S = 300  # sbatch itself waits for two minutes where the queue is full
PAUSES_S = (1.0, 3.0, 6.0)  # before each retry; Slurm has waited for its own MessageTimeout by then
SEPARATOR = "\x1f"  # occurs in no field
# the comment last, since another job's may have several lines
QUEUE_FORMAT = ["%F", "%K", "%T", "%N", "%S", "%r", "%k"]
ACCOUNTING_FORMAT = ["JobID", "State", "ExitCode", "NodeList", "End"]
JOBS_PER_QUERY = 500
CRASHED = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
ARRAY = re.compile(r"(\d+)_\[([\d,-]+)")
SUBMISSION = re.compile(r"\d{14}-[0-9a-f]{8}")  # names made by `new_submission`
MAX_ARRAY_SIZE = 1001  # Slurm's default
# Defaults of a shell or a site's modules for commands typed by hand, which would hide jobs or change requests
DEFAULTS = re.compile(r"(SBATCH|SQUEUE|SACCT|SCANCEL|SINFO)_\w+|SLURM_TIME_FORMAT")
# Variables of the job or salloc around this process; only those in CONNECTION select a Slurm and a user
INHERITED = re.compile(r"(SLURM|SRUN|SALLOC)_\w+")
CONNECTION = {
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_CLUSTERS",
    "SLURM_JWT",
    "SLURM_SACK_KEY",
    "SLURM_SACK_JWKS",
}
BUSY = re.compile(
    r"timed? ?out|unable to contact slurm|zero bytes were transmitted|connection (refused|reset)|"
    r"connect failure|not connected|not responding|broken pipe|try again",
    re.IGNORECASE,
)


class SlurmUnavailable(RuntimeError):
    """Slurm does not answer, so it is unknown what is queued or running."""

    @property
    def is_transient(self) -> bool:
        """Whether the message is one of a busy controller, so that the same call may soon succeed."""
        return BUSY.search(str(self)) is not None


class CommandMissing(SlurmUnavailable):
    """A command of Slurm's is missing or cannot be run: nothing has happened."""


class SbatchRefused(RuntimeError):
    """sbatch has failed with this message, and Slurm has queued nothing."""


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, in the queue; `submission` and `index` identify its runs."""

    job: str
    index: int
    state: str
    node: str
    starts: str
    submission: str
    reason: str

    @property
    def id(self) -> str:
        """The id for scancel and scontrol."""
        return self.job if self.index < 0 else f"{self.job}_{self.index}"


@dataclass(frozen=True)
class Ended:
    """How a job ended: its `state` as Slurm names it, and when, in this cluster's time."""

    state: str
    exit_code: str
    node: str
    end: str

    @property
    def crashed(self) -> bool:
        """Whether it neither completed nor was canceled."""
        return self.state in CRASHED

    def __str__(self) -> str:
        code = f" with exit code {self.exit_code.partition(':')[0]}" if self.state == "FAILED" else ""
        return self.state.lower().replace("_", " ") + code


def environment() -> dict[str, str]:
    """This process's environment without defaults for Slurm's commands; a warning names those ignored."""
    ignored = sorted(filter(DEFAULTS.fullmatch, os.environ))
    if ignored:
        _warn(", ".join(ignored))
    dropped = {name for name in os.environ if INHERITED.fullmatch(name)} - CONNECTION
    return {name: value for name, value in os.environ.items() if name not in dropped.union(ignored)}


@cache
def _warn(names: str) -> None:
    logger.warning("ignored: %s in the environment; what a job gets is set in the cluster file", names)


def ask(*words: str, retry: bool = False) -> str:
    """The output of a command of Slurm's; with `retry`, it is called again after pauses while Slurm is busy.

    SlurmUnavailable if it fails or is missing.
    """
    for pause in (*PAUSES_S, None):
        try:
            return _call(words, SLURM_TIMEOUT_S)
        except SlurmUnavailable as error:
            if not retry or pause is None or not error.is_transient:
                raise
            logger.warning("%s: %s; retrying in %g s", words[0], error, pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _call(words: tuple[str, ...], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            words,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=True,
        )
    except FileNotFoundError as error:
        raise CommandMissing(f"{words[0]} is not installed") from error
    except OSError as error:
        raise CommandMissing(f"{words[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailable(f"{words[0]} timed out after {timeout_s:g} s") from error
    except subprocess.CalledProcessError as error:
        raise SlurmUnavailable(_reason(error)) from error
    return done.stdout


def _reason(error: subprocess.CalledProcessError) -> str:
    """The last two errors that a command printed, or its last two lines."""
    lines = (error.stderr.strip() or error.stdout.strip()).splitlines() or [f"exit code {error.returncode}"]
    errors = [line.split("error: ", 1)[1].strip() for line in lines if re.match(r"\w+: error: ", line)]
    return "; ".join((errors or lines)[-2:])


def queued(*options: str, retry: bool = False) -> list[Task]:
    """The tasks of this user's submissions in the queue; `options` are further ones of squeue.

    Other jobs, and lines that a site's wrapper adds, are skipped.
    """
    words = ["squeue", "--me", "--noheader", "--array", "--format", SEPARATOR.join(QUEUE_FORMAT), *options]
    tasks = []
    for fields in (line.split(SEPARATOR) for line in ask(*words, retry=retry).splitlines()):
        if len(fields) == len(QUEUE_FORMAT) and fields[0].isdigit() and SUBMISSION.fullmatch(fields[-1]):
            job, index, state, node, starts, reason, comment = fields
            number = int(index) if index.isdigit() else -1
            tasks.append(Task(job, number, state, node, starts, comment, reason))
    return tasks


def accounting(jobs: Sequence[str]) -> dict[str, Ended]:
    """How `jobs` ended, by their ids, as far as Slurm's accounting knows."""
    wanted = sorted({job.partition("_")[0] for job in jobs})
    found: dict[str, Ended] = {}
    options = ["--noheader", "--parsable2", f"--delimiter={SEPARATOR}", "--allocations"]
    for first in range(0, len(wanted), JOBS_PER_QUERY):
        ids = ",".join(wanted[first : first + JOBS_PER_QUERY])
        output = ask("sacct", *options, "--format", ",".join(ACCOUNTING_FORMAT), "--jobs", ids)
        for fields in (line.split(SEPARATOR) for line in output.splitlines()):
            if len(fields) != len(ACCOUNTING_FORMAT):  # a line that a site's wrapper adds
                continue
            job, state, code, node, end = fields
            ended = Ended(state.partition(" ")[0], code, node, end)  # CANCELLED by 1000
            for task in tasks_of(job):
                if task == job or task not in found:  # a task that started has its own line
                    found[task] = ended
    return found


def tasks_of(job: str) -> Iterator[str]:
    """The ids in '12_[0-3,7%2]', as sacct prints an array's tasks that never started; or `job` itself."""
    found = ARRAY.match(job)
    if found is None:
        yield job
        return
    for part in filter(None, found[2].split(",")):
        first, _, last = part.partition("-")
        if first and (last or "-" not in part):  # sacct truncates a long list, anywhere
            yield from (f"{found[1]}_{index}" for index in range(int(first), int(last or first) + 1))


def new_submission() -> str:
    """A unique comment for a submission: the time, and eight random digits."""
    return f"{re.sub(r'[^0-9]', '', now())[:14]}-{uuid4().hex[:8]}"


def submit_once(script: Path, submission: str) -> str:
    """Submits a script whose comment is `submission` exactly once, and returns its job's id.

    If sbatch fails, the job may still be queued, and a site's wrapper may print other numbers: then the queue
    is searched for the comment. SbatchRefused if nothing is queued; SlurmUnavailable if that is unknown.
    """
    failed = False
    for pause in (*PAUSES_S, None):
        failure = None
        try:
            printed = _ids_in(_call(("sbatch", "--parsable", str(script)), SBATCH_TIMEOUT_S))
            jobs = printed if len(printed) == 1 else set()
        except CommandMissing as error:
            raise SbatchRefused(str(error)) from error
        except SlurmUnavailable as error:
            failed, failure, jobs = True, error, set()
            if error.is_transient and pause is not None:
                logger.warning("sbatch: %s; searching the queue for the job in %g s", error, pause)
                time.sleep(pause)  # since the request may still be on its way
        if failed or not jobs:
            jobs |= {task.job for task in queued("--states=all", retry=True) if task.submission == submission}
        if jobs:
            first, *others = sorted(jobs, key=int)
            if others:  # a slow request and its retry
                ask("scancel", *others, retry=True)
            return first
        if failure is None:
            raise SlurmUnavailable("sbatch printed no job id, and the queue has no such job")
        if pause is None or not failure.is_transient:
            raise SbatchRefused(str(failure)) from failure
    raise AssertionError("the last attempt returns or raises")


def _ids_in(answer: str) -> set[str]:
    """The job ids that `sbatch --parsable` prints, each on a line: 4711, or 4711;cluster."""
    return {line.partition(";")[0] for line in answer.splitlines() if re.fullmatch(r"\d+(;\S+)?", line)}


def max_array_size() -> int:
    """How many tasks an array may have; 1 if this Slurm has no arrays."""
    for line in ask("scontrol", "show", "config", retry=True).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))  # an array of one is submitted as a plain job
    return MAX_ARRAY_SIZE
