"""What all command lines share: options that choose a configuration, and one clear message for bad input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roadmap.recipe import RunConfig
from roadmap.settings import parse_overrides
from roadmap.steps import STEPS_YAML, load_roadmap
from roadmap.strict_yaml import ConfigError
from roadmap.tree import Roadmap, resolve

BAD_INPUT = 2


def add_roadmap_options(options: argparse.ArgumentParser) -> None:
    """--steps, --roadmap and --ablate."""
    options.add_argument("--steps", type=Path, default=STEPS_YAML, metavar="FILE", help="steps file (default: the project's own)")
    options.add_argument("--roadmap", default="convnext_t", metavar="NAME", help="a roadmap of that file (default: convnext_t)")
    options.add_argument(
        "--ablate",
        metavar="HOW",
        help="combine the path's changes in another way: leave-one-out or one-at-a-time (with :STEP for another end), or order:SEED",
    )


def add_config_options(options: argparse.ArgumentParser) -> None:
    """--steps, --roadmap, --ablate, --profile and --set."""
    add_roadmap_options(options)
    options.add_argument("--profile", metavar="NAME", help="data set and budget (default: none, the paper's ImageNet setting)")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="replace one value, such as recipe.epochs=10; may be given again",
    )


def roadmap_of(arguments: argparse.Namespace) -> Roadmap:
    """The roadmap that the command line names."""
    choices = choices_of(arguments) if hasattr(arguments, "profile") else {}
    return load_roadmap(arguments.steps, arguments.roadmap, ablation=arguments.ablate, **choices)


def choices_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command line's profile and overrides, as `resolve` takes them."""
    return {"profile": arguments.profile, "overrides": parse_overrides(arguments.overrides)}


def config_of(arguments: argparse.Namespace, step: str, seed: int) -> RunConfig:
    """The configuration that the command line describes."""
    return resolve(roadmap_of(arguments), step, seed=seed, **choices_of(arguments))


def main_of(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> int:
    """Runs a command and returns its exit code; bad input is one message a problem, without a traceback, and exit code 2."""
    try:
        return run(parser.parse_args())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
