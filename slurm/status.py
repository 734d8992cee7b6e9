"""Shows the states of the runs of a roadmap: python slurm/status.py runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from roadmap.cli.options import Parser, add_experiment_options, main_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(
        description=(
            "Show the states of runs: from their directories, and from Slurm if they were submitted to it."
            " Times are those of training; evaluation comes on top."
        )
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
    how = options.add_mutually_exclusive_group()
    how.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=5.0,
        metavar="SECONDS",
        help="poll at this interval until all are finished (default: 5)",
    )
    how.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")
    return options


def run(arguments: argparse.Namespace) -> int:
    """Shows the runs, once or until they are finished."""
    from slurm.status_table import show_status

    return show_status(arguments)


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
