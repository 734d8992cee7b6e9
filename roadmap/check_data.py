"""Data looked at before anything is trained on it: is it there, and does the model fit it?"""

from __future__ import annotations

import os
from pathlib import Path

from roadmap.digits import CLASSES, TRAIN_IMAGES
from roadmap.recipe import RunConfig
from roadmap.strict_yaml import ConfigError, Problem


def check_data(config: RunConfig) -> None:
    """ConfigError if the configuration's images are not where it says, or its model is made for others."""
    data, model = config.data, config.model
    if data.dataset == "digits":
        classes, channels, images = CLASSES, {1}, TRAIN_IMAGES * data.copies
    else:
        classes, channels, images = len(class_names(config.system.data_dir)), {1, 3}, config.recipe.global_batch
    problems = []
    if model.num_classes != classes:
        problems.append(f"has {classes} classes, the model {model.num_classes}; --set model.num_classes={classes}")
    if model.in_chans not in channels:
        problems.append(f"has images of {' or '.join(map(str, channels))} channels, model.in_chans is {model.in_chans}")
    if images < config.recipe.global_batch:
        problems.append(f"has {images} training images, less than a batch of {config.recipe.global_batch}")
    if problems:
        raise ConfigError([Problem(config.system.data_dir or f"dataset '{data.dataset}'", problem) for problem in problems])


def class_names(root: str | None) -> list[str]:
    """The classes, sorted: an image's label is the place of its folder's name; ConfigError unless train/ and val/ have the same."""
    if root is None:
        raise ConfigError([Problem("system.data_dir", "is not set: where are train/ and val/? --set system.data_dir=/data/imagenet")])
    train, val = (_folders(Path(root) / split) for split in ("train", "val"))
    if train != val:
        lines = [
            f"only {split}/ has {', '.join(sorted(names)[:5])}" for split, names in (("train", train - val), ("val", val - train)) if names
        ]
        raise ConfigError([Problem(root, f"train/ and val/ must have the same classes: {'; '.join(lines)}")])
    return sorted(train)


def _folders(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    except OSError as error:
        raise ConfigError([Problem(str(folder), f"cannot be read: {error.strerror}; it should have one folder a class")]) from error
