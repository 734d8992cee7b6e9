"""The whole tiny roadmap under random kills ends as one that nothing disturbed; `make slurm-chaos` runs it,
for some minutes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from roadmap.lease import attempts, owner
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from slurm.testbed.bed import Testbed
from tests.slurm.plans import TINY, assert_same, found, outcomes, submit, write_clusters

EPOCHS, KILLS, PAUSE_S = 6, 40, 3.0
PATIENCE_S = 5.0  # scancel and scontrol try for a minute to reach a job that is just coming or going


def strike(bed: Testbed, run: RunDir, how: str) -> bool:
    """Hits a run that is being trained; False if it was over before."""
    working = owner(run.path)
    if working is None:
        return False
    try:
        if how == "kill -9":
            os.kill(working["pid"], signal.SIGKILL)
            return True
    except OSError:
        return False
    job = working["job"]
    words = ["scancel", "--signal=USR2", job] if how == "USR2" else ["scontrol", "requeue", job]
    try:
        return bed.run(*words, check=False, timeout_s=PATIENCE_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def test_a_roadmap_under_random_kills_ends_as_a_quiet_one(testbed: Testbed, tmp_path: Path) -> None:
    roadmap, draw = load_roadmap(), random.Random(11)
    write_clusters(tmp_path, retries=50, parallel=3)
    print(submit(testbed, tmp_path, "--seeds", "1", "--out", "out", epochs=EPOCHS).stdout)
    struck: Counter[str] = Counter()
    started = time.monotonic()

    def left() -> list[RunDir]:
        runs = found(tmp_path)
        return [run for run in runs if not run.result.is_file()]

    while left() and time.monotonic() - started < 1200:
        targets = [run for run in left() if owner(run.path)]
        if targets and sum(struck.values()) < KILLS:
            run, how = draw.choice(targets), draw.choice(["kill -9", "USR2", "requeue"])
            if strike(testbed, run, how):
                struck[how] += 1
                print(
                    f"{time.monotonic() - started:6.1f} s: {how} to {run.step}, attempt"
                    f" {len(attempts(run.path))}; {len(left())} left"
                )
        time.sleep(draw.uniform(0, PAUSE_S))
    assert left() == []
    testbed.wait_for(
        lambda: all(outcomes(run)[-1] == "done" for run in found(tmp_path)), "all attempts to have ended"
    )
    runs = found(tmp_path)
    assert len(runs) == len(roadmap.steps)
    for run in runs:
        assert outcomes(run).count("done") == 1, f"{run.step} was finished more than once"
        quiet = prepare(
            tmp_path / "quiet",
            resolve(roadmap, run.step, profile="digits", overrides=TINY | {"recipe.epochs": EPOCHS}),
        )
        train(
            resolve(roadmap, run.step, profile="digits", overrides=TINY | {"recipe.epochs": EPOCHS}),
            quiet.path,
        )
        assert_same(run, quiet)
        print(f"{run.step}: {len(outcomes(run))} attempts, the same as quiet")
    testbed.wait_for(lambda: (tmp_path / "out/accuracy_vs_gmacs.svg").is_file(), "tables and figures", 200)
    tried = sum(len(outcomes(run)) for run in runs)
    print(f"{sum(struck.values())} kills {dict(struck)}, {tried} attempts, {len(runs)}/{len(runs)} identical")
