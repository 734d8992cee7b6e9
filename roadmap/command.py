"""What all command lines share: options that choose a configuration, and one clear message for bad input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from roadmap.recipe import RunConfig, reason
from roadmap.settings import parse_overrides
from roadmap.sources import digest_of, refusal, scheme_of
from roadmap.steps import STEPS_YAML, load_roadmap
from roadmap.strict_yaml import ConfigError, Problem
from roadmap.training.init_from import named
from roadmap.tree import Roadmap, resolve

BAD_INPUT = 2
WHOLE_IMAGE = 384  # pixels from which the paper evaluates on all of an image
OPTIONS = {"data.image_size": "--image-size", "recipe.eval_crop_pct": "--crop-pct"}


def add_roadmap_options(options: argparse.ArgumentParser) -> None:
    """--steps-file, --roadmap and --ablate."""
    options.add_argument("--steps-file", type=Path, default=STEPS_YAML, metavar="FILE", help="steps file (default: the project's own)")
    options.add_argument("--roadmap", default="convnext_t", metavar="NAME", help="a roadmap of that file (default: convnext_t)")
    options.add_argument(
        "--ablate",
        metavar="HOW",
        help="combine the path's changes in another way: leave-one-out or one-at-a-time (with :STEP for another end), or order:SEED",
    )


def add_config_options(options: argparse.ArgumentParser) -> None:
    """--steps-file, --roadmap, --ablate, --profile, --set and --init-from."""
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
    options.add_argument(
        "--init-from",
        metavar="WEIGHTS",
        help="start from a checkpoint: a path, a URL, or a run's directory; sets system.init_from and recipe.init_digest",
    )


def add_eval_options(options: argparse.ArgumentParser) -> None:
    """What `eval_choices_of` reads."""
    group = options.add_argument_group("with --eval", "evaluates the run's last checkpoint, or the weights of --init-from without any run")
    group.add_argument("--image-size", type=int, metavar="PX", help="resolution (default: the configuration's)")
    group.add_argument("--crop-pct", type=float, metavar="SHARE", help="share of the resized image's edges that is seen")
    group.add_argument(
        "--crop-mode",
        choices=["center", "squash"],
        help="resize the shorter edge and take the centre, or resize both edges (default: the recipe's crop; the whole image, squashed, "
        f"where --image-size asks for another resolution of {WHOLE_IMAGE} or more and no crop is given)",
    )
    group.add_argument("--per-class", type=Path, metavar="FILE", help="write images and accuracies of each class to a CSV file")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--ema", dest="kind", action="store_const", const="ema", help="the moving average alone (default: all there is)")
    which.add_argument("--raw", dest="kind", action="store_const", const="raw", help="the weights as they were trained alone")


def roadmap_of(arguments: argparse.Namespace) -> Roadmap:
    """The roadmap that the command line names."""
    choices = choices_of(arguments) if hasattr(arguments, "profile") else {}
    return load_roadmap(arguments.steps_file, arguments.roadmap, ablation=arguments.ablate, **choices)


def choices_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command line's profile and overrides, as `resolve` takes them."""
    overrides = parse_overrides(arguments.overrides)
    if arguments.init_from is not None:
        if "system.init_from" in overrides:
            raise refusal("--init-from", "and --set system.init_from are both given; one of them is enough")
        source = arguments.init_from if scheme_of(arguments.init_from) else str(Path(arguments.init_from).absolute())
        overrides = {"system.init_from": source, "recipe.init_digest": digest_of(source)} | overrides
    return {"profile": arguments.profile, "overrides": overrides}


def config_of(arguments: argparse.Namespace, step: str, seed: int) -> RunConfig:
    """The configuration that the command line describes."""
    return named(resolve(roadmap_of(arguments), step, seed=seed, **choices_of(arguments)))


def eval_choices_of(arguments: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    """How a run of `config` is to be evaluated, as `evaluate_run` takes it; ConfigError for what has no meaning here."""
    values = {name: getattr(arguments, name) for name in ("image_size", "crop_pct", "crop_mode", "per_class")}
    given = [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None]
    given += [f"--{arguments.kind}"] if arguments.kind else []
    if given and not arguments.eval:
        raise refusal(", ".join(given), "cannot be used without --eval")
    view = _view(config, arguments.image_size, arguments.crop_pct, arguments.crop_mode)
    return {"view": view, "source": arguments.init_from, "kind": arguments.kind, "per_class": arguments.per_class}


def _view(config: RunConfig, size: int | None, crop_pct: float | None, crop_mode: str | None) -> RunConfig:
    """`config` with another resolution or crop of the images that are evaluated."""
    if size is not None and size != config.data.image_size and size >= WHOLE_IMAGE and crop_pct is None and crop_mode is None:
        crop_pct, crop_mode = 1.0, "squash"
    leaves = config.model_dump()
    for path, value in (("data.image_size", size), ("recipe.eval_crop_pct", crop_pct), ("recipe.eval_crop_mode", crop_mode)):
        section, _, key = path.partition(".")
        leaves[section][key] = leaves[section][key] if value is None else value
    try:
        return RunConfig.model_validate(leaves)
    except ValidationError as error:
        lines = [": ".join(filter(None, [".".join(map(str, e["loc"])), reason(e)])).partition(": ") for e in error.errors()]
        raise ConfigError([Problem(OPTIONS.get(path, path), message) for path, _, message in lines]) from error


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
