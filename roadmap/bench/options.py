"""The command line of `python -m roadmap bench`, which imports nothing but argparse."""

from __future__ import annotations

import argparse
from pathlib import Path

from roadmap.cli.options import add_config_options

BATCHES = {"cuda": 128}
BATCH = 16  # on other devices
SECONDS = 10.0
MODES = ("train", "inference")


def add_bench_options(options: argparse.ArgumentParser) -> None:
    """Adds the options of `bench`."""
    options.add_argument(
        "steps", nargs="*", metavar="STEP", help="steps to measure (default: all of the roadmap)"
    )
    add_config_options(options)
    options.add_argument(
        "--mode",
        nargs="+",
        choices=MODES,
        help="what to measure (default: both)",
    )
    options.add_argument(
        "--against",
        choices=["timm"],
        help="also measure timm's network, if it has one: in the same format, and at timm's defaults",
    )
    options.add_argument(
        "--loop",
        action="store_true",
        help="measure the training loop with its data loader instead, and the same steps without",
    )
    options.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help=(
            f"images at a time, halved where memory is short (default: {BATCHES['cuda']} on CUDA, else"
            f" {BATCH}; with --loop the recipe's)"
        ),
    )
    options.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help=f"for each measurement (default: {SECONDS:g})",
    )
    out = Path("reports") / "throughput"
    options.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="tables and figures (default: reports/throughput)",
    )
    # the steps come first: after --mode they would be parsed as modes
    options.usage = f"{options.prog} [STEP ...] [OPTION ...]"
    options.description = (
        "Measure each step's throughput, memory and % of peak FLOP/s, all interleaved. Without --profile, the"
        " precision is bf16 unless --set recipe.precision is given. Training is forward, loss, backward,"
        " optimizer and EMA on one batch, without the recipe's mixup and erasing. Only --loop needs data, and"
        " nothing is written to runs/."
    )
