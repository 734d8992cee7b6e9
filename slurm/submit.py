"""Trains all steps of a roadmap with several seeds, on Slurm or here: python slurm/submit.py --seeds 3."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from roadmap.cli.options import SEEDS, Parser, add_config_options, main_of
from slurm import CLUSTER_YAML


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(
        description=(
            "Train every step with several seeds. Runs that are finished, queued or being trained are"
            " skipped, so submitting again trains only what is missing."
        )
    )
    add_config_options(options)
    options.add_argument("--steps", nargs="+", metavar="STEP", help="train these steps only (default: all)")
    options.add_argument(
        "--references",
        action="store_true",
        help="train the roadmap's reference steps, too: models of timm, with the final recipe",
    )
    options.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        metavar="N",
        help=f"train seeds 0 to N-1 of each step (default: {SEEDS})",
    )
    options.add_argument(
        "--precision",
        type=float,
        metavar="W",
        help=(
            "find every difference of a step to its parent to ± W points: the spread over --seeds decides how"
            " many seeds each step takes, and the same command, given again, trains these"
        ),
    )
    options.add_argument(
        "--max-seeds", type=int, metavar="M", help="with --precision: no more than M seeds of any step"
    )
    options.add_argument(
        "--budget",
        type=float,
        metavar="HOURS",
        help="with --precision: no more device-hours than this for the seeds after the first --seeds",
    )
    options.add_argument("--only", choices=["failed"], help="train only the runs that have failed")
    options.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs live (default: runs)"
    )
    options.add_argument(
        "--cluster",
        metavar="NAME",
        help="an entry of the cluster file (default: slurm if sbatch is installed, else local)",
    )
    options.add_argument(
        "--cluster-file",
        type=Path,
        default=CLUSTER_YAML,
        metavar="FILE",
        help="cluster file (default: slurm/cluster.yaml)",
    )
    options.add_argument(
        "--workers",
        type=int,
        metavar="W",
        help="local: worker processes (default: one per GPU, or per core)",
    )
    options.add_argument(
        "--runs-per-gpu",
        type=int,
        metavar="N",
        help="train N runs on a GPU at a time, for small networks (default: the cluster's runs_per_gpu, 1)",
    )
    options.add_argument(
        "--pack",
        type=int,
        metavar="N",
        help="Slurm: train N runs per job, one after the other (default: 1)",
    )
    options.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Slurm: folder of the tables and figures that are written when the last run has ended",
    )
    options.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, an estimate and the scripts; write and submit nothing",
    )
    return options


def run(arguments: argparse.Namespace) -> int:
    """Plans and submits; returns the exit code."""
    from slurm.submission import submit_runs

    return submit_runs(arguments)


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
