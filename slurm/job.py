"""What a Slurm job does: trains its runs one after the other, and says by its exit code whether it is to be
queued again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from roadmap.cli.options import Parser, print_anywhere
from roadmap.lease import attempts, own_job, read_attempt
from roadmap.records import FINISHED, RunDir, status
from slurm.client import SlurmUnavailable, ask
from slurm.snapshot import verify
from slurm.worker import OPEN, crashes, work

STOPPED = 75  # EX_TEMPFAIL: saved, to go on in another job
FAILED = 1


def train_runs(run_dirs: Sequence[str], snapshot: str, retries: int) -> None:
    """Trains `run_dirs` with the code in `snapshot`, each again after up to `retries` crashes of this job.

    SystemExit with STOPPED or FAILED if one of them is left open.
    """
    print_anywhere()
    verify(Path(snapshot))
    stopped = work(run_dirs, patient=False, retries=retries).stopped
    if any(status(RunDir(Path(run))).state in OPEN for run in run_dirs):
        raise SystemExit(STOPPED if stopped else FAILED)


def is_to_go_on(runs: Sequence[RunDir], code: int, retries: int, restarts: int = 0) -> bool:
    """Whether this job, which ended with `code` after so many `restarts`, is to be queued again.

    It is if one of its runs is worth another try, for it was stopped, or has crashed not too often in this
    job.
    """
    left, job = [run for run in runs if status(run).state not in FINISHED], own_job()
    if code in (128 + 15, 128 + 2):  # cancelled: Slurm itself queues what it has preempted
        return False
    if all(crashes(run, job) > retries for run in left):
        return False
    begun = sum(read_attempt(path).get("job") == job for run in runs for path in attempts(run.path))
    # or a job that cannot begin would be queued for ever
    return code == STOPPED or restarts < begun + retries * (begun + 1)


def main() -> int:
    """The last line of a job's script: queues the job again if it is to go on.

    Passes on the code it is given.
    """
    options = Parser(description="Queue this job again if its runs are not finished.")
    options.add_argument("code", type=int)
    options.add_argument("retries", type=int)
    options.add_argument("runs", nargs="+", type=Path)
    arguments = options.parse_args()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if is_to_go_on([RunDir(path) for path in arguments.runs], arguments.code, arguments.retries, restarts):
        print(f"exit code {arguments.code}: queued again", file=sys.stderr)
        try:
            ask("scontrol", "requeue", str(own_job()), retry=True)
        except SlurmUnavailable as error:
            print(f"scontrol requeue: {error}", file=sys.stderr)
    return int(arguments.code)


if __name__ == "__main__":
    sys.exit(main())
