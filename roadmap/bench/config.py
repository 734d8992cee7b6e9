"""The checked options of `python -m roadmap bench`, and the configuration of each step."""

from __future__ import annotations

import argparse
import tempfile
from functools import reduce

from roadmap.batches import plan_batches
from roadmap.cli.arguments import Selection
from roadmap.config import RunConfig
from roadmap.deltas import parse_overrides, resolve
from roadmap.errors import config_error
from roadmap.files import write_errors
from roadmap.strict_yaml import show

# a step of the network alone: images are not augmented, and weights hardly change
BARE_STEP = {
    "recipe.pipeline": "pillow",
    "recipe.random_erasing": 0.0,
    "recipe.mixup": 0.0,
    "recipe.cutmix": 0.0,
    "recipe.lr": 1e-6,
    "system.micro_batch": None,
}
# keys with their own columns
IN_COLUMNS = {"recipe.precision", "recipe.global_batch", "data.image_size", "system.device", "system.threads"}
PATHS = {
    "system.data_dir",
    "system.stage_dir",
    "system.init_from",
    "recipe.init_digest",
    "recipe.init_weights",
}


def check_options(arguments: argparse.Namespace) -> None:
    """ConfigError for invalid options, or a folder that cannot be written to."""
    if arguments.batch is not None and arguments.batch < 1:
        raise config_error("--batch", f"must be at least 1, not {arguments.batch}")
    if not 0 < arguments.seconds < float("inf"):
        raise config_error("--seconds", f"must be more than 0, not {arguments.seconds:g}")
    if arguments.loop and arguments.against:
        raise config_error("--against", "cannot be used with --loop, since timm has no such loop")
    if arguments.loop and arguments.mode:
        raise config_error("--mode", "cannot be used with --loop, which measures the training loop")
    with write_errors(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.out):
            pass


def config_of(selection: Selection, step: str, arguments: argparse.Namespace, batch: int | None) -> RunConfig:
    """The configuration to measure a step with, with `batch` images, or the recipe's for None.

    ConfigError for an unknown step or an impossible batch.
    """
    overrides = dict(selection.overrides)
    if arguments.profile is None:
        overrides = {"recipe.precision": "bf16"} | overrides
    if not arguments.loop:
        overrides = overrides | BARE_STEP
    if batch is not None:
        overrides = overrides | {"recipe.global_batch": batch, "recipe.local_batch": batch}
    config = resolve(selection.roadmap, step, profile=selection.profile, overrides=overrides)
    plan_batches(config)
    return config


def overrides_of(config: RunConfig, arguments: argparse.Namespace) -> str | None:
    """The keys of `--set` without a column, sorted, as 'key=value;key=value'; None without any."""
    left_out = IN_COLUMNS | PATHS
    if not arguments.loop:
        left_out |= BARE_STEP.keys()
    if not arguments.loop or arguments.batch is not None:
        left_out |= {"recipe.local_batch"}
    given = sorted(path for path in parse_overrides(arguments.overrides) if path not in left_out)
    return ";".join(f"{path}={show(reduce(getattr, path.split('.'), config))}" for path in given) or None
