"""Shows the log of a run's latest attempt: python slurm/logs.py kernel_7 0 --follow."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from roadmap.cli.options import Parser, add_experiment_options, main_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(description="Show the end of the log of a run's latest attempt.")
    options.add_argument("step", metavar="STEP", help="the run's step")
    options.add_argument("seed", metavar="SEED", type=int, help="the run's seed")
    options.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs live (default: runs)"
    )
    add_experiment_options(options)
    options.add_argument("--follow", action="store_true", help="print new lines until the run ends")
    options.add_argument("--all", action="store_true", help="show all lines")
    options.add_argument(
        "--out", action="store_true", help="show the standard output (default: the standard error)"
    )
    return options


def run(arguments: argparse.Namespace) -> int:
    """Shows a log, or the state of a run that has none."""
    from slurm.logfiles import show_log

    return show_log(arguments)


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
