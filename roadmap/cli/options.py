"""What all command lines share, with only argparse, so that --help starts as fast as Python."""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roadmap import STEPS_YAML

FAILED, BAD_INPUT = 1, 2
SEEDS = 3  # of each step, by default
LOOKALIKES = {
    "Δ": "Delta",
    "ρ": "rho",
    "±": "+-",
    "−": "-",
    "–": "-",
    "→": "->",
    "…": "...",
    "└": "`",
    "†": "+",
    "‘": "'",
    "’": "'",
}
LOOKALIKES |= dict.fromkeys(map(chr, range(0x2800, 0x2900)), "*")  # Braille, which draws spinners
EVALUATES = (
    "evaluates the run's last checkpoint, or without a run the weights of --init-from: the weights and"
    " their EMA, or only one of them with --raw or --ema"
)
WHOLE_IMAGE = 384  # pixels; from this size on the paper evaluates without a crop


class Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations: --steps is not --steps-file."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | how)


def add_roadmap_options(options: argparse.ArgumentParser) -> None:
    """--steps-file, --roadmap and --ablate."""
    options.add_argument(
        "--steps-file",
        type=Path,
        default=STEPS_YAML,
        metavar="FILE",
        help="steps file (default: the project's)",
    )
    options.add_argument(
        "--roadmap", default="convnext_t", metavar="NAME", help="a roadmap of that file (default: convnext_t)"
    )
    options.add_argument(
        "--ablate",
        metavar="HOW",
        help=(
            "combine the path's changes in another way: leave-one-out or one-at-a-time (with :STEP for"
            " another end), order:SEED, or factorial:N[:SEED], a screening design of N networks for the"
            " average effects"
        ),
    )


def add_config_options(options: argparse.ArgumentParser) -> None:
    """--steps-file, --roadmap, --ablate, --profile, --set, --init-from, --ema and --raw."""
    add_roadmap_options(options)
    options.add_argument(
        "--profile", metavar="NAME", help="data set and budget (default: none, the paper's ImageNet setting)"
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="replace one value, such as recipe.epochs=10; may be given again",
    )
    options.add_argument(
        "--init-from",
        metavar="WEIGHTS",
        help=(
            "start from a checkpoint: a path, a URL, or a run's directory; sets system.init_from and"
            " recipe.init_digest"
        ),
    )
    add_kind_options(options)


def add_kind_options(options: argparse.ArgumentParser) -> None:
    """--ema and --raw, of weights that come with their EMA."""
    which = options.add_mutually_exclusive_group()
    which.add_argument(
        "--ema",
        dest="kind",
        action="store_const",
        const="ema",
        help="of a checkpoint with both, use the EMA of the weights",
    )
    which.add_argument(
        "--raw",
        dest="kind",
        action="store_const",
        const="raw",
        help="of a checkpoint with both, use the weights, not their EMA (default)",
    )


def add_eval_options(options: argparse.ArgumentParser) -> None:
    """The options that need --eval."""
    group = options.add_argument_group("with --eval", EVALUATES)
    group.add_argument(
        "--image-size", type=int, metavar="PX", help="resolution (default: the configuration's)"
    )
    group.add_argument(
        "--crop-pct", type=float, metavar="SHARE", help="fraction of the resized image's edges that is used"
    )
    group.add_argument(
        "--crop-mode",
        choices=["center", "squash"],
        help=(
            "resize the shorter edge and take the center, or resize both edges (default: the recipe's crop;"
            f" the whole image, squashed, where --image-size asks for another resolution of {WHOLE_IMAGE} or"
            " more and no crop is given)"
        ),
    )
    group.add_argument(
        "--class-map",
        type=Path,
        metavar="FILE",
        help=(
            "names of the network's classes, one per line in the order of its outputs (default: those that"
            " the weights come with); the data may have only some of them"
        ),
    )
    group.add_argument(
        "--per-class",
        type=Path,
        metavar="FILE",
        help="write images and accuracies of each class to a CSV file",
    )


def add_experiment_options(options: argparse.ArgumentParser) -> None:
    """--roadmap and --profile, which select among existing runs."""
    options.add_argument("--roadmap", metavar="NAME", help="runs of this roadmap only")
    options.add_argument(
        "--profile", metavar="NAME", help="runs of this profile only; 'paper' are those without one"
    )


def _lookalike(error: UnicodeError) -> tuple[str | bytes, int]:
    """The replacement of a character that an encoding lacks: a similar one, a raw byte, or an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter, after = error.object[error.start], error.start + 1
    if "\udc80" <= letter <= "\udcff":  # a byte that is no text, as Python reads names of files
        return bytes([ord(letter) - 0xDC00]), after
    return LOOKALIKES.get(letter) or letter.encode("ascii", "backslashreplace").decode(), after


codecs.register_error("lookalike", _lookalike)


class _Log(io.FileIO):
    """The standard error, which drops output on a full disk instead of ending the run."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return len(data)


def print_anywhere() -> None:
    """Makes printing never fail: replaces characters that an encoding lacks, and ignores a full disk."""
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        log = io.BufferedWriter(_Log(sys.stderr.fileno(), "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(log, sys.stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="lookalike")


def shown(text: str) -> str:
    """Text as the standard output will show it, for the width of columns."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "lookalike").decode(encoding, "surrogateescape")


def main_of(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> int:
    """Runs a command and returns its exit code.

    For bad input, it prints one message per problem without a traceback, and returns 2; for a full disk, 1.
    """
    print_anywhere()
    # before matplotlib is imported, which fails on the backend of a notebook
    os.environ["MPLBACKEND"] = "agg"
    try:
        return run(parser.parse_args())
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        from roadmap.disk import disk_error
        from roadmap.errors import ConfigError

        if isinstance(error, ConfigError):
            print(error, file=sys.stderr)
            return BAD_INPUT
        if (full := disk_error(error)) is None:
            raise
        print(full, file=sys.stderr)
        return FAILED
