"""The command line of `collect.py`: tables, figures and a page from finished runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from roadmap.cli.options import SEEDS, Parser, add_config_options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(
        description=(
            "Make the ablation's tables, figures and page; missing runs are shown as missing. Two folders of"
            " runs, or parts of them such as runs/convnext_t/digits, are compared."
        ),
        conflict_handler="resolve",
    )
    options.add_argument(
        "runs", type=Path, nargs="*", metavar="RUNS", help="a folder of runs, or two to compare"
    )
    options.add_argument(
        "--paper",
        nargs="*",
        metavar="ROADMAP",
        help="the paper's values instead of runs: of --roadmap, or of these",
    )
    options.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder for tables, figures and page"
    )
    add_config_options(options)
    options.add_argument("--roadmap", metavar="NAME", help="the runs' roadmap, where a folder holds several")
    options.add_argument(
        "--profile",
        metavar="NAME",
        help="the runs' profile, where a folder holds several; 'paper' for those without",
    )
    options.add_argument(
        "--as-trained",
        action="store_true",
        help=(
            "take the --set options from the runs, which must share them (default where no run has the"
            " configuration of the steps file)"
        ),
    )
    options.add_argument(
        "--columns",
        metavar="KEY,...",
        help="the tables' columns; 'all' for all with content (default: accuracy, effect and cost)",
    )
    options.add_argument(
        "--holm", action="store_true", help="adjust the p-values of all steps together, after Holm"
    )
    options.add_argument(
        "--precision",
        type=float,
        metavar="W",
        help=(
            "intervals of the two-stage procedure that submit.py --precision W trained for, and which"
            " differences are known to ± W points"
        ),
    )
    options.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"with --precision: the --seeds of that submission (default: {SEEDS})",
    )
    options.add_argument(
        "--interactions",
        metavar="A:B,...",
        help="with --ablate factorial:N: also estimate how the effect of change A depends on change B",
    )
    options.add_argument(
        "--x",
        metavar="KEY,...",
        help="also draw accuracy against these costs, one figure each (always: gmacs)",
    )
    options.add_argument(
        "--records",
        action="store_true",
        help=(
            "also write records.tar.xz: configuration, metrics and result of each finished run of the roadmap"
            " and profile, from which the same report can be made"
        ),
    )
    options.add_argument("--tables-only", action="store_true", help="no figures and no page")
    options.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=30.0,
        metavar="SECONDS",
        help="collect again until all runs are finished (default: 30)",
    )
    options.add_argument(
        "--check",
        type=float,
        metavar="TOLERANCE",
        help="exit with 3 if a mean differs from the paper's by more than this many points",
    )
    options.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the table for --check instead of the paper, such as an earlier ablation.csv",
    )
    return options


def run(arguments: argparse.Namespace) -> int:
    """Reads, writes, and prints the table; returns the exit code."""
    from roadmap.report.command import make_report

    return make_report(arguments)
