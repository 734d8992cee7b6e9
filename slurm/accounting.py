"""How Slurm's jobs have ended, from its accounting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slurm.client import SEPARATOR, ask

CRASHED = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
FORMAT = ["JobID", "State", "ExitCode", "NodeList", "End"]
JOBS_A_QUESTION = 500
ARRAY = re.compile(r"(\d+)_\[([\d,-]+)")


@dataclass(frozen=True)
class Ended:
    """How a job ended: its `state` in Slurm's words, and when, in this cluster's time."""

    state: str
    exit_code: str
    node: str
    end: str

    @property
    def crashed(self) -> bool:
        """Whether it ended in another way than by itself or because somebody wanted it to."""
        return self.state in CRASHED

    def __str__(self) -> str:
        code = f" with exit code {self.exit_code.partition(':')[0]}" if self.state == "FAILED" else ""
        return self.state.lower().replace("_", " ") + code


def accounting(jobs: Sequence[str]) -> dict[str, Ended]:
    """How `jobs` ended, by their ids, as far as Slurm keeps account of it.

    SlurmUnavailable if it cannot be asked.
    """
    wanted = sorted({job.partition("_")[0] for job in jobs})
    found: dict[str, Ended] = {}
    for first in range(0, len(wanted), JOBS_A_QUESTION):
        ids = ",".join(wanted[first : first + JOBS_A_QUESTION])
        words = [
            "--noheader",
            "--parsable2",
            f"--delimiter={SEPARATOR}",
            "--allocations",
            "--format",
            ",".join(FORMAT),
            "--jobs",
            ids,
        ]
        for fields in (line.split(SEPARATOR) for line in ask("sacct", *words).splitlines()):
            if len(fields) != len(FORMAT):  # a line that a site's wrapper adds
                continue
            job, state, code, node, end = fields
            ended = Ended(state.partition(" ")[0], code, node, end)  # CANCELLED by 1000
            for task in tasks_of(job):
                if task == job or task not in found:  # a task that was begun has a line of its own
                    found[task] = ended
    return found


def tasks_of(job: str) -> Iterator[str]:
    """The tasks of what sacct writes for those of an array that were never begun, '12_[0-3,7%2]', or `job`
    itself.
    """
    found = ARRAY.match(job)
    if found is None:
        yield job
        return
    for part in filter(None, found[2].split(",")):
        first, _, last = part.partition("-")
        if first and (last or "-" not in part):  # a long list is cut off, anywhere
            yield from (f"{found[1]}_{index}" for index in range(int(first), int(last or first) + 1))
