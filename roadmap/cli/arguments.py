"""From the options of a command line to a configuration."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roadmap.ablations import FACTORIAL
from roadmap.cli.options import SEEDS, WHOLE_IMAGE
from roadmap.config import RunConfig, TimmSpec, flatten
from roadmap.deltas import (
    Roadmap,
    Setting,
    Settings,
    is_key_of_timm,
    parse_overrides,
    resolve,
    trace,
    validate,
)
from roadmap.errors import ConfigError, Problem, config_error
from roadmap.report.precision import Precision
from roadmap.steps import load_roadmap
from roadmap.training.initial_weights import with_init_digest
from roadmap.weight_files import digest_of, read_class_map, scheme_of


@dataclass(frozen=True)
class Selection:
    """The roadmap that a command line selects, and the profile and overrides that its steps are run with."""

    roadmap: Roadmap
    profile: str | None
    overrides: Mapping[str, Any]

    def resolve(self, step: str, seed: int = 0) -> RunConfig:
        """The configuration of a step."""
        return resolve(self.roadmap, step, profile=self.profile, seed=seed, overrides=self.overrides)

    def trace(self, step: str) -> Settings:
        """The keys of a step with what set each."""
        return trace(self.roadmap, step, profile=self.profile, overrides=self.overrides)


def load_config(arguments: argparse.Namespace) -> RunConfig:
    """The configuration of the run that the command line describes."""
    selection = select(arguments)
    config = selection.resolve(arguments.step, getattr(arguments, "seed", 0))
    check_used(selection.overrides, [config])
    return with_init_digest(config)


def check_used(overrides: Mapping[str, Any], configs: Sequence[RunConfig]) -> None:
    """ConfigError for overrides of our networks' keys where all networks are timm's."""
    names = [config.step for config in configs if isinstance(config.model, TimmSpec)]
    if len(names) < len(configs):
        return
    message = f"is a key of our networks, and has no effect on {', '.join(names)}, of timm; leave it out"
    problems = [Problem(f"--set {key}", message) for key in overrides if not is_key_of_timm(key)]
    if problems:
        raise ConfigError(problems)


def with_references(roadmaps: Sequence[Roadmap]) -> list[Roadmap]:
    """The roadmaps that have references; ConfigError if there are none, for --references."""
    found = [roadmap for roadmap in roadmaps if roadmap.references]
    if not found:
        names = ", ".join(roadmap.name for roadmap in roadmaps)
        raise config_error("--references", f"selects none: {names} has no reference steps")
    return found


def select(arguments: argparse.Namespace) -> Selection:
    """What the command line selects; ConfigError for bad options, or for all that is wrong with the file."""
    profile: str | None = getattr(arguments, "profile", None)
    overrides = read_overrides(arguments) if hasattr(arguments, "overrides") else {}
    roadmap = load_roadmap(
        arguments.steps_file,
        arguments.roadmap,
        ablation=arguments.ablate,
        profile=profile,
        overrides=overrides,
    )
    return Selection(roadmap, profile, overrides)


def read_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values that --set, --init-from, --ema and --raw give, by dotted key."""
    overrides = parse_overrides(arguments.overrides)
    source: str | None = arguments.init_from
    if source is not None:
        if "system.init_from" in overrides:
            raise config_error(
                "--init-from", "and --set system.init_from are both given; one of them is enough"
            )
        source = source if scheme_of(source) else str(Path(source).absolute())
        overrides = {"system.init_from": source, "recipe.init_digest": digest_of(source)} | overrides
    kind: str | None = arguments.kind
    # with --eval and in `weights`, the option chooses what is evaluated or inspected
    chosen_later = getattr(arguments, "eval", False) or getattr(arguments, "command", None) == "weights"
    if kind is not None and not chosen_later:
        if "recipe.init_weights" in overrides:
            raise config_error(
                f"--{kind}", "and --set recipe.init_weights are both given; one of them is enough"
            )
        if "system.init_from" not in overrides:
            raise config_error(f"--{kind}", "chooses between the weights of --init-from, which is not given")
        overrides = {"recipe.init_weights": kind} | overrides
    return overrides


def read_precision(arguments: argparse.Namespace) -> Precision | None:
    """What --precision and --seeds ask for, None without --precision; ConfigError for impossible values."""
    width: float | None = arguments.precision
    if width is None:
        return None
    seeds = SEEDS if arguments.seeds is None else arguments.seeds
    if not 0 < width < math.inf:
        raise config_error("--precision", f"must be more than 0 points, not {width:g}")
    if (arguments.ablate or "").startswith(FACTORIAL):
        message = f"is about differences of a step to its parent; the averages of --ablate {arguments.ablate}"
        raise config_error("--precision", f"{message} gain from more networks instead")
    if seeds < 2:
        message = f"must be at least 2 with --precision, not {seeds}: the first stage measures the spread"
        raise config_error("--seeds", message)
    return Precision(width, seeds)


def eval_options(arguments: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    """How a run of `config` is evaluated, as `evaluate_run` takes it; ConfigError for options that need
    --eval.
    """
    values = {
        name: getattr(arguments, name)
        for name in ("image_size", "crop_pct", "crop_mode", "class_map", "per_class")
    }
    given = [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None]
    if given and not arguments.eval:
        raise config_error(", ".join(given), "cannot be used without --eval")
    class_map = arguments.class_map
    return {
        "view": _view(config, arguments.image_size, arguments.crop_pct, arguments.crop_mode),
        "source": arguments.init_from,
        "kind": arguments.kind,
        "per_class": arguments.per_class,
        "class_map": None if class_map is None else read_class_map(class_map),
    }


def _view(config: RunConfig, size: int | None, crop_pct: float | None, crop_mode: str | None) -> RunConfig:
    """`config` with another resolution or crop of the images that are evaluated."""
    is_larger = size is not None and size != config.data.image_size and size >= WHOLE_IMAGE
    if is_larger and crop_pct is None and crop_mode is None:
        crop_pct, crop_mode = 1.0, "squash"
    settings = {key: Setting(value, "", key) for key, value in flatten(config.model_dump()).items()}
    for key, option, value in (
        ("data.image_size", "--image-size", size),
        ("recipe.eval_crop_pct", "--crop-pct", crop_pct),
        ("recipe.eval_crop_mode", "--crop-mode", crop_mode),
    ):
        if value is not None:
            settings[key] = Setting(value, "", option)
    return validate(settings)
