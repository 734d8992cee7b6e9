"""How long a collection of many finished runs takes, and how much memory: python -m tests.benchmark_collect."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from roadmap import ROOT
from roadmap.records import run_dir_of
from roadmap.steps import load_roadmap, resolve
from tests.reports import result_of

PROFILE = "cifar10"  # whose reference is no network that would have to be trained first
TIMES = """
import json, resource, sys, time
from roadmap.options import main_of
import scipy.stats
import roadmap.cli.collect as collect, roadmap.report.check, roadmap.report.collect, roadmap.report.gather
sys.argv = ["collect.py", *sys.argv[1:]]
before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
code = main_of(collect.parser(), collect.run)
seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
figures = {"code": code, "seconds": seconds, "cpu": cpu, "peak_mb": used.ru_maxrss / 1024, "imported_mb": before.ru_maxrss / 1024}
print(json.dumps(figures), file=sys.stderr)
"""


def fill(runs: Path, number: int) -> None:
    """Finished runs of all steps, as many as `number` in all, whose accuracies spread as in a real roadmap; nothing but results."""
    roadmap = load_roadmap()
    hashes = {step: resolve(roadmap, step, profile=PROFILE) for step in roadmap.steps}
    for index in range(number):
        step, seed = roadmap.steps[index % len(roadmap.steps)], index // len(roadmap.steps)
        run = run_dir_of(runs, hashes[step].model_copy(update={"seed": seed}))
        run.path.mkdir(parents=True)
        top1 = 80 + index % len(roadmap.steps) / 2 + (seed * 7919 % 1000) / 1000
        document = result_of(step, seed, run.hash, top1, profile=PROFILE, dataset="cifar10").model_dump(mode="json")
        run.result.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def measure(runs: Path, out: Path) -> dict[str, float]:
    """Seconds after the imports, processor seconds, and megabytes, of a process that collects."""
    words = [str(runs), "--out", str(out), "--profile", PROFILE, "--tables-only"]
    done = subprocess.run([sys.executable, "-c", TIMES, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each number of runs."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", type=int, nargs="*", default=[1_000, 10_000], metavar="N", help="how many runs (default: 1000 10000)")
    options.add_argument("--folder", type=Path, help="where they are made (default: a temporary folder)")
    options.add_argument("--repeat", type=int, default=3, help="collections of each, the fastest of which counts (default: 3)")
    chosen = options.parse_args(arguments)
    for number in chosen.runs:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
            runs = Path(name) / "runs"
            fill(runs, number)
            found = min((measure(runs, Path(name) / "out") for _ in range(chosen.repeat)), key=lambda figures: figures["seconds"])
        print(
            f"{number:6d} runs: {found['seconds']:.2f} s after the imports ({found['cpu']:.2f} s of processor time), "
            f"{found['peak_mb']:.0f} MB at most, {found['imported_mb']:.0f} MB of them after the imports"
        )


if __name__ == "__main__":
    main()
