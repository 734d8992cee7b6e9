"""The command line of `python -m roadmap bench`, of argparse alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from roadmap.cli.options import add_config_options

BATCHES = {"cuda": 128}
BATCH = 16  # on other devices
SECONDS = 10.0


def add_bench_options(options: argparse.ArgumentParser) -> None:
    """All that `bench` reads."""
    options.add_argument(
        "steps", nargs="*", metavar="STEP", help="what to measure (default: all steps of the roadmap)"
    )
    add_config_options(options)
    options.add_argument(
        "--mode",
        nargs="+",
        choices=["train", "inference"],
        default=["train", "inference"],
        help="default: both",
    )
    options.add_argument(
        "--against",
        choices=["timm"],
        help="measure timm's network beside ours where it has it: in the same format, and at timm's defaults",
    )
    options.add_argument(
        "--loop", action="store_true", help="measure instead what the data loader costs the training loop"
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
        help=f"for each thing measured (default: {SECONDS:g})",
    )
    out = Path("reports") / "throughput"
    options.add_argument(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="tables and figures (default: reports/throughput)",
    )
    # for steps behind --mode would be taken for modes
    options.usage = f"{options.prog} [STEP ...] [OPTION ...]"
    options.description = (
        "Measure each step's throughput, memory and share of the device's peak, by turns. Without --profile"
        " it computes in bf16 unless --set recipe.precision says otherwise. Training is forward, loss,"
        " backward, optimizer and moving average on one batch, without the recipe's mixup and erasing. No"
        " data is needed but for --loop, and nothing is written to runs/."
    )
