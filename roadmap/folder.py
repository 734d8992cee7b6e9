"""A folder of images, train/<class>/ and val/<class>/, looked at before anything is trained on it."""

from __future__ import annotations

import os
from pathlib import Path

from roadmap.recipe import RunConfig
from roadmap.strict_yaml import ConfigError, Problem


def check_data(config: RunConfig) -> None:
    """ConfigError if the configuration's images are not where it says, or not of as many classes."""
    if config.data.dataset == "folder":
        names = class_names(config.system.data_dir)
        if len(names) != config.model.num_classes:
            what = f"has {len(names)} classes, the model {config.model.num_classes}; --set model.num_classes={len(names)}"
            raise ConfigError([Problem(str(config.system.data_dir), what)])


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
