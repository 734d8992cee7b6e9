"""How long it takes to plan, list, and collect many finished runs, and how much memory: python -m
tests.benchmark_collect.
"""

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
from tests.helpers.reports import result_of

PROFILE = "cifar10"  # whose reference is no network that would have to be trained first
TIMES = """
import json, resource, sys, time
from importlib import import_module
from roadmap.cli.options import main_of
script, *others = (import_module(name) for name in sys.argv[1].split(","))
sys.argv = ["benchmark", *sys.argv[2:]]
before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
code = main_of(script.parser(), script.run)
seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
figures = {"code": code, "seconds": seconds, "cpu": cpu, "peak_mb": used.ru_maxrss / 1024, \
"imported_mb": before.ru_maxrss / 1024}
print(json.dumps(figures), file=sys.stderr)
"""
STEPS = len(load_roadmap().steps)
REPORT = "roadmap.cli.collect,roadmap.report.tolerance,roadmap.report.write,roadmap.report.runs,scipy.stats"
FIGURES = ",".join(
    f"roadmap.report.figures.{name}"
    for name in ("accuracy_vs_cost", "measured_vs_paper", "roadmap_bars", "seed_strip", "training_curves")
)
COMMANDS = {  # the module of the script and what else it imports, and the words that it is given
    "dry run": (
        "slurm.submit,slurm.submission",
        "--cluster local --dry-run --profile {profile} --runs {runs} --seeds {seeds}",
    ),
    "status": ("slurm.status,slurm.status_table", "{runs} --profile {profile}"),
    "tables": (REPORT, "{runs} --profile {profile} --out {out} --tables-only"),
    "everything": (
        f"{REPORT},{FIGURES},roadmap.report.page.page",
        "{runs} --profile {profile} --out {out}",
    ),
}


def fill(runs: Path, number: int) -> None:
    """Finished runs of all steps, as many as `number` in all, whose accuracies spread as in a real roadmap;
    nothing but results.
    """
    roadmap = load_roadmap()
    hashes = {step: resolve(roadmap, step, profile=PROFILE) for step in roadmap.steps}
    for index in range(number):
        step, seed = roadmap.steps[index % len(roadmap.steps)], index // len(roadmap.steps)
        run = run_dir_of(runs, hashes[step].model_copy(update={"seed": seed}))
        run.path.mkdir(parents=True)
        top1 = 80 + index % len(roadmap.steps) / 2 + (seed * 7919 % 1000) / 1000
        document = result_of(step, seed, run.hash, top1, profile=PROFILE, dataset="cifar10").model_dump(
            mode="json"
        )
        run.result.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def measure(command: str, folder: Path, number: int) -> dict[str, float]:
    """Seconds after the imports, processor seconds, and megabytes,
    of a process that is given `number` runs.
    """
    modules, words = COMMANDS[command]
    given = {"runs": folder / "runs", "out": folder / "out", "profile": PROFILE, "seeds": -(-number // STEPS)}
    line = [sys.executable, "-c", TIMES, modules, *words.format(**given).split()]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each number of runs and command."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "runs",
        type=int,
        nargs="*",
        default=[1_000, 10_000],
        metavar="N",
        help="how many runs (default: 1000 10000)",
    )
    options.add_argument("--folder", type=Path, help="where they are made (default: a temporary folder)")
    options.add_argument(
        "--repeat",
        type=int,
        default=3,
        help="how often each is done, the fastest of which counts (default: 3)",
    )
    options.add_argument(
        "--commands",
        nargs="+",
        choices=COMMANDS,
        default=["tables"],
        metavar="C",
        help=f"what is done: {', '.join(COMMANDS)}",
    )
    chosen = options.parse_args(arguments)
    for number in chosen.runs:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
            fill(Path(name) / "runs", number)
            for command in chosen.commands:
                times = [measure(command, Path(name), number) for _ in range(chosen.repeat)]
                found = min(times, key=lambda figures: figures["seconds"])
                print(
                    f"{command} of {number} runs: {found['seconds']:.2f} s after the imports"
                    f" ({found['cpu']:.2f} s of processor time), {found['peak_mb']:.0f} MB at most,"
                    f" {found['imported_mb']:.0f} MB of them after the imports",
                    flush=True,
                )


if __name__ == "__main__":
    main()
