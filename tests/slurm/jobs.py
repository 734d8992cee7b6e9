"""Jobs on a testbed, as the tests submit and watch them."""

from __future__ import annotations

from pathlib import Path

from slurm.testbed.bed import Testbed


def submit(bed: Testbed, script: str, *options: str) -> str:
    return bed.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script).stdout.strip()


def wait_for_state(bed: Testbed, job: str, state: str) -> None:
    bed.wait_for(
        lambda: bed.state_of_job(job) == state, f"job {job}, {bed.state_of_job(job)} at first, to be {state}"
    )


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
