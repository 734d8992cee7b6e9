"""Slurm's commands: called without a shell's defaults for them, read in formats for machines, and retried
where Slurm is only busy.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from roadmap.lease import now

logger = logging.getLogger(__name__)
SLURM_TIMEOUT_S = 30
SBATCH_TIMEOUT_S = 300  # sbatch itself waits for two minutes where the queue is full
PAUSES_S = (1.0, 3.0, 6.0)  # before each retry; Slurm has waited for its own MessageTimeout then
SEPARATOR = "\x1f"  # occurs in no field
# the comment last, for another job's may have several lines
FORMAT = SEPARATOR.join(["%F", "%K", "%T", "%N", "%S", "%r", "%k"])
SUBMISSION = re.compile(r"\d{14}-[0-9a-f]{8}")  # what `new_submission` makes
MAX_ARRAY_SIZE = 1001  # Slurm's default
# What a shell or a site's modules set for commands typed by hand: it would hide jobs, or have sbatch ask for
# something else.
DEFAULTS = re.compile(r"(SBATCH|SQUEUE|SACCT|SCANCEL|SINFO)_\w+|SLURM_TIME_FORMAT")
# What a job or salloc that submits was given itself; of it, these alone say which Slurm to talk to, and as
# whom.
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
    r"timed? ?out|unable to contact slurm|zero bytes were transmitted|connection (refused|reset)|connect"
    r" failure|not connected|"
    r"not responding|broken pipe|try again",
    re.IGNORECASE,
)


class SlurmUnavailable(RuntimeError):
    """Slurm does not answer, so nobody knows what is queued or running."""

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed a little later, by the words that come with a busy controller."""
        return BUSY.search(str(self)) is not None


class CommandMissing(SlurmUnavailable):
    """A command of Slurm's is not there, or cannot be run: nothing has happened."""


class SbatchRefused(RuntimeError):
    """sbatch has failed, and Slurm has queued nothing; the message is in Slurm's own words."""


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, that Slurm has not done with: `submission` and `index` say which runs are
    its own.
    """

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


def environment() -> dict[str, str]:
    """This process's environment without defaults for Slurm's commands, of which a warning says once which
    are ignored.
    """
    ignored = sorted(filter(DEFAULTS.fullmatch, os.environ))
    if ignored:
        _warn(", ".join(ignored))
    dropped = {name for name in os.environ if INHERITED.fullmatch(name)} - CONNECTION
    return {name: value for name, value in os.environ.items() if name not in dropped.union(ignored)}


@cache
def _warn(names: str) -> None:
    logger.warning("ignored: %s in the environment; what a job gets is set in the cluster file", names)


def ask(*words: str, retry: bool = False) -> str:
    """What a command of Slurm's prints; with `retry`, it is called again after pauses while Slurm is busy.

    SlurmUnavailable if it fails or is not there.
    """
    for pause in (*PAUSES_S, None):
        try:
            return _call(words, SLURM_TIMEOUT_S)
        except SlurmUnavailable as error:
            if not retry or pause is None or not error.is_transient:
                raise
            logger.warning("%s: %s; retrying in %g s", words[0], error, pause)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


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
    """What a command said of its failure: its last two errors, or its last two lines."""
    lines = (error.stderr.strip() or error.stdout.strip()).splitlines() or [f"exit code {error.returncode}"]
    errors = [line.split("error: ", 1)[1].strip() for line in lines if re.match(r"\w+: error: ", line)]
    return "; ".join((errors or lines)[-2:])


def queued(*options: str, retry: bool = False) -> list[Task]:
    """The tasks of this user's submissions that Slurm has not done with; `options` are more of squeue's.

    What does not look like one of them is skipped: other jobs, and lines that a site's wrapper adds.
    SlurmUnavailable if it cannot be asked.
    """
    lines = ask(
        "squeue", "--me", "--noheader", "--array", "--format", FORMAT, *options, retry=retry
    ).splitlines()
    return list(_tasks(lines))


def _tasks(lines: list[str]) -> Iterator[Task]:
    for line in lines:
        fields = line.split(SEPARATOR)
        if (
            len(fields) == FORMAT.count(SEPARATOR) + 1
            and fields[0].isdigit()
            and SUBMISSION.fullmatch(fields[-1])
        ):
            job, index, state, node, starts, reason, comment = fields
            yield Task(job, int(index) if index.isdigit() else -1, state, node, starts, comment, reason)


def new_submission() -> str:
    """A comment that no other submission has: when it was made, and eight random digits."""
    return f"{re.sub(r'[^0-9]', '', now())[:14]}-{uuid4().hex[:8]}"


def submit_once(script: Path, submission: str) -> str:
    """Has sbatch queue a script whose comment is `submission`, and returns the id of its one job, whatever
    sbatch makes of it.

    A failure does not prove that nothing is queued, and a site's wrapper may print other numbers: the queue
    is searched for the comment then. SbatchRefused if nothing is queued; SlurmUnavailable if nobody knows.
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
                logger.warning("sbatch: %s; looking for the job in %g s", error, pause)
                time.sleep(pause)  # first, for the request may still be on its way
        if failed or not jobs:
            jobs |= {task.job for task in queued("--states=all", retry=True) if task.submission == submission}
        if jobs:
            first, *others = sorted(jobs, key=int)
            if others:  # a request that was slow, and its retry
                ask("scancel", *others, retry=True)
            return first
        if failure is None:
            raise SlurmUnavailable("sbatch printed no job id, and the queue has no such job")
        if pause is None or not failure.is_transient:
            raise SbatchRefused(str(failure)) from failure
    raise AssertionError("the last try returns or raises")


def _ids_in(answer: str) -> set[str]:
    """The ids of jobs in what `sbatch --parsable` prints, which are lines of their own: 4711, or
    4711;cluster.
    """
    return {line.partition(";")[0] for line in answer.splitlines() if re.fullmatch(r"\d+(;\S+)?", line)}


def max_array_size() -> int:
    """How many tasks an array of this Slurm may have, 1 where it has no arrays.

    SlurmUnavailable if it cannot be asked.
    """
    for line in ask("scontrol", "show", "config", retry=True).splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))  # an array of one is submitted as a plain job
    return MAX_ARRAY_SIZE
