"""How long commands take to answer, a run to its first iteration, and what a run's time goes to: `python -m
tests.benchmark_run`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from roadmap import ROOT

HELP = [
    "run_step.py --help",
    "collect.py --help",
    "-m roadmap --help",
    "slurm/submit.py --help",
    "slurm/status.py --help",
]
LOGIN = [
    "-m roadmap steps",
    "-m roadmap verify",
    "run_step.py gelu --plan --profile digits_noisy",
    "slurm/submit.py --profile imagenet --cluster example --dry-run",
    "slurm/status.py {runs}",
]
PARTS = {  # what an attempt does, by the methods that do it, inner ones before outer ones
    "data": ("roadmap.training.trainer", "Trainer", ["_open_data"]),
    "evaluation": ("roadmap.training.engine", "Engine", ["evaluate"]),
    "writing": ("roadmap.training.trainer", "Trainer", ["_save", "_log"]),
    "training": ("roadmap.training.trainer", "Trainer", ["_train_epoch"]),
}


def seconds_of(command: str, folder: Path) -> float:
    """What one of our commands takes from its launch to its end."""
    began = time.perf_counter()
    words = command.format(runs=folder).split()
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - began


def first_iteration(step: str, folder: Path) -> float:
    """What it takes from the launch of a run to the record of its first iteration."""
    words = [
        "run_step.py",
        step,
        "--profile",
        "digits_noisy",
        "--runs",
        str(folder),
        "--set",
        "system.log_every=1",
    ]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        while not any(log.stat().st_size for log in folder.glob("**/metrics.jsonl")):
            assert run.poll() is None, "the run ended before its first iteration"
            time.sleep(0.01)
        taken = time.perf_counter() - began
        run.kill()
    return taken


def clock(owner: Any, name: str, spent: dict[str, float], part: str) -> None:
    """Adds the time that a method takes to its part, and takes it off the part that it is called in."""
    whole: Callable[..., Any] = getattr(owner, name)

    def timed(*given: Any, **named: Any) -> Any:
        began, inside = time.perf_counter(), sum(spent.values())
        try:
            return whole(*given, **named)
        finally:
            spent[part] += time.perf_counter() - began - (sum(spent.values()) - inside)

    setattr(owner, name, timed)


def split_of(step: str, folder: Path) -> dict[str, float]:
    """Seconds of a run of noisy digits in this process, by what they went to."""
    began, spent = time.perf_counter(), defaultdict[str, float](float)
    from roadmap.records import prepare
    from roadmap.steps import load_roadmap, resolve
    from roadmap.train import train

    imported = time.perf_counter() - began
    for part, (module, owner, names) in PARTS.items():
        for name in names:
            clock(getattr(import_module(module), owner), name, spent, part)
    config = resolve(load_roadmap(), step, profile="digits_noisy")
    train(config, prepare(folder, config).path)
    total = time.perf_counter() - began
    return {"import": imported, **spent, "the rest": total - imported - sum(spent.values()), "all": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="how often each is launched")
    parser.add_argument("--step", default="separate_downsampling", help="the run's step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for title, commands in (("--help", HELP), ("without torch", LOGIN)):
            print(f"{title} (median of {options.times}):")
            for command in commands:
                taken = [seconds_of(command, Path(name)) for _ in range(options.times)]
                print(f"  {median(taken):6.3f} s  {command.format(runs='runs')}", flush=True)
        taken = [first_iteration(options.step, Path(name, str(number))) for number in range(options.times)]
        print(
            f"first iteration of {options.step} on noisy digits: {median(taken):.2f} s after launch (median"
            f" of {options.times})",
            flush=True,
        )
        for part, seconds in split_of(options.step, Path(name, "split")).items():
            print(f"  {seconds:6.2f} s  {part}")


if __name__ == "__main__":
    main()
