"""Stops runs, which keep what they have saved: python slurm/cancel.py runs --steps kernel_7."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from roadmap import STEPS_YAML
from roadmap.cli.options import Parser, add_experiment_options, main_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(
        description=(
            "Stop runs that are queued or being trained. They keep what they have saved, and submitting again"
            " resumes them. Until then the workers of this machine skip them, too."
        ),
        epilog="--steps, --seed and --not-in-plan together stop the runs that all of them select.",
    )
    options.add_argument(
        "runs",
        type=Path,
        nargs="?",
        default=Path("runs"),
        metavar="RUNS",
        help="a folder of runs (default: runs)",
    )
    add_experiment_options(options)
    options.add_argument("--all", action="store_true", help="stop all runs in the folder")
    options.add_argument("--steps", nargs="+", metavar="STEP", help="stop runs of these steps")
    options.add_argument("--seed", nargs="+", type=int, metavar="N", help="stop runs with these seeds")
    options.add_argument(
        "--not-in-plan",
        action="store_true",
        help="stop runs whose configuration no longer results from the steps file",
    )
    options.add_argument(
        "--steps-file", type=Path, default=STEPS_YAML, metavar="FILE", help="--not-in-plan: the steps file"
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="--not-in-plan: as the plan was submitted",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="print what would be stopped, and stop nothing"
    )
    return options


def run(arguments: argparse.Namespace) -> int:
    """Stops what is chosen; exit code 1 if Slurm does not answer, and then nothing is stopped."""
    from slurm.cancellation import stop_runs

    return stop_runs(arguments)


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
