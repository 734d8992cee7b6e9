"""From the options of a command line to a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from roadmap.class_map import read_class_map
from roadmap.cli.options import WHOLE_IMAGE
from roadmap.config import RunConfig
from roadmap.errors import ConfigError, Problem, config_error, format_validation_error
from roadmap.settings import parse_overrides
from roadmap.steps import load_roadmap
from roadmap.training.initial_weights import with_init_digest
from roadmap.tree import Roadmap, resolve
from roadmap.weight_files import digest_of, scheme_of

OPTIONS = {"data.image_size": "--image-size", "recipe.eval_crop_pct": "--crop-pct"}


def roadmap_of(arguments: argparse.Namespace) -> Roadmap:
    """The roadmap that the command line names."""
    choices = choices_of(arguments) if hasattr(arguments, "profile") else {}
    return load_roadmap(arguments.steps_file, arguments.roadmap, ablation=arguments.ablate, **choices)


def choices_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command line's profile and overrides, as `resolve` takes them."""
    overrides = parse_overrides(arguments.overrides)
    if arguments.init_from is not None:
        if "system.init_from" in overrides:
            raise config_error(
                "--init-from", "and --set system.init_from are both given; one of them is enough"
            )
        source = (
            arguments.init_from
            if scheme_of(arguments.init_from)
            else str(Path(arguments.init_from).absolute())
        )
        overrides = {"system.init_from": source, "recipe.init_digest": digest_of(source)} | overrides
    if arguments.kind is not None and not _chooses_itself(arguments):
        overrides = {"recipe.init_weights": _init_weights(arguments, overrides)} | overrides
    return {"profile": arguments.profile, "overrides": overrides}


def _chooses_itself(arguments: argparse.Namespace) -> bool:
    """Whether --ema and --raw choose what is evaluated or inspected, and not what training starts from."""
    return getattr(arguments, "eval", False) or getattr(arguments, "command", None) == "weights"


def _init_weights(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> str:
    """The weights that --ema or --raw choose; ConfigError where there are none to choose from, or they are
    chosen twice.
    """
    kind: str = arguments.kind
    if "recipe.init_weights" in overrides:
        raise config_error(f"--{kind}", "and --set recipe.init_weights are both given; one of them is enough")
    if "system.init_from" not in overrides:
        raise config_error(f"--{kind}", "chooses between the weights of --init-from, which is not given")
    return kind


def config_of(arguments: argparse.Namespace, step: str, seed: int) -> RunConfig:
    """The configuration that the command line describes."""
    return with_init_digest(resolve(roadmap_of(arguments), step, seed=seed, **choices_of(arguments)))


def eval_choices_of(arguments: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    """How a run of `config` is to be evaluated, as `evaluate_run` takes it; ConfigError for what has no
    meaning here.
    """
    values = {
        name: getattr(arguments, name)
        for name in ("image_size", "crop_pct", "crop_mode", "class_map", "per_class")
    }
    given = [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None]
    if given and not arguments.eval:
        raise config_error(", ".join(given), "cannot be used without --eval")
    view = _view(config, arguments.image_size, arguments.crop_pct, arguments.crop_mode)
    names = read_class_map(arguments.class_map) if arguments.class_map is not None else None
    return {
        "view": view,
        "source": arguments.init_from,
        "kind": arguments.kind,
        "per_class": arguments.per_class,
        "class_map": names,
    }


def _view(config: RunConfig, size: int | None, crop_pct: float | None, crop_mode: str | None) -> RunConfig:
    """`config` with another resolution or crop of the images that are evaluated."""
    if (
        size is not None
        and size != config.data.image_size
        and size >= WHOLE_IMAGE
        and crop_pct is None
        and crop_mode is None
    ):
        crop_pct, crop_mode = 1.0, "squash"
    leaves = config.model_dump()
    for path, value in (
        ("data.image_size", size),
        ("recipe.eval_crop_pct", crop_pct),
        ("recipe.eval_crop_mode", crop_mode),
    ):
        section, _, key = path.partition(".")
        leaves[section][key] = leaves[section][key] if value is None else value
    try:
        return RunConfig.model_validate(leaves)
    except ValidationError as error:
        lines = [
            ": ".join(filter(None, [".".join(map(str, e["loc"])), format_validation_error(e)])).partition(
                ": "
            )
            for e in error.errors()
        ]
        raise ConfigError(
            [Problem(OPTIONS.get(path, path), message) for path, _, message in lines]
        ) from error
