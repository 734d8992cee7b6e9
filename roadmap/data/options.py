"""The options of `prepare`, of argparse alone."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_prepare_options(options: argparse.ArgumentParser) -> None:
    """Adds what `roadmap.data.prepare.prepare_folder` reads."""
    options.description = (
        "Write an image folder, SOURCE/train/CLASS/*.jpg and SOURCE/val/CLASS/*.jpg, as tar shards for"
        " data.dataset=shards. After a kill, the same command resumes from the last finished shard."
    )
    options.add_argument("source", type=Path, metavar="SOURCE", help="the folder that holds the splits")
    options.add_argument(
        "destination", type=Path, metavar="DESTINATION", help="the folder for the shards; made if need be"
    )
    options.add_argument(
        "--size",
        type=_size,
        default=512,
        metavar="PX",
        help=(
            "largest shorter edge; none or 0 keeps all files as they are (default: 512, which leaves most"
            " of ImageNet alone; 256 decodes faster, but training crops down to 8%% of an image, and enlarges"
            " what it finds there)"
        ),
    )
    options.add_argument(
        "--quality",
        type=int,
        default=90,
        metavar="Q",
        help="of JPEGs that are encoded again, 1 to 100 (default: 90)",
    )
    options.add_argument(
        "--splits",
        nargs="+",
        default=["train", "val"],
        metavar="NAME",
        help="folders of SOURCE (default: train val)",
    )
    options.add_argument(
        "--shard-images",
        type=int,
        metavar="N",
        help="images of a shard at most (default: what makes about 200 MB)",
    )
    options.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    options.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the order in which train is shuffled (default: 0)",
    )
    options.add_argument(
        "--corrupt-images",
        type=int,
        default=0,
        metavar="N",
        help="number of unreadable images to name and leave out (default: 0)",
    )


def _size(text: str) -> int | None:
    """Pixels; None for none or 0."""
    if text == "none":
        return None
    try:
        return int(text) or None
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of pixels nor none") from None
