"""The preflight check of the data, before anything is trained on it: it is there, and the model fits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from blocks.layers import did_you_mean
from roadmap.config import DataSpec, RunConfig, SystemSpec
from roadmap.data.digits import CLASSES, TRAIN_IMAGES
from roadmap.data.listing import IMAGE_SUFFIXES
from roadmap.data.locate import (
    STREAMS,
    check_root,
    check_splits,
    choose_classes,
    class_names,
    count_images,
    data_dir,
    find_shards,
    is_image_folder,
    is_remote,
    is_staged,
    kind_of,
    make_stage_dir,
    need_stage_dir,
    some,
    splits_of,
    torch_name,
)
from roadmap.errors import ConfigError, Problem, config_error

PACKAGES = {  # the module that reads a kind of data, and its name for pip
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "wds": ("webdataset", "webdataset"),
    "tfds": ("tensorflow_datasets", "tensorflow-datasets"),
}
TORCH = (  # timm's names for torchvision's
    "cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist", "inaturalist", "inat", "places365",
    "imagenet", "image_folder", "folder",
)  # fmt: skip


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data without reading it; None where finding out would take too long."""

    classes: int | None
    channels: tuple[int, ...] = (1, 3)
    images: int | None = None


def check_data(*configs: RunConfig, here: bool = True) -> None:
    """ConfigError if a configuration's images are not where it has them, or its model does not fit them.

    Data that several configurations share is checked once. `stage_dir` is checked only if they are trained
    `here`: a login node need not have a compute node's disk.
    """
    sharing: dict[tuple[DataSpec, SystemSpec], list[RunConfig]] = {}
    for config in configs:
        check_pipeline(config)
        check_cache(config)
        sharing.setdefault((config.data, config.system), []).append(config)
    for members in sharing.values():
        # images are counted up to a batch
        hungriest = max(members, key=lambda config: config.recipe.global_batch)
        facts = CHECKS.get(kind_of(hungriest.data), _check_other)(hungriest)
        for config in members:
            _check_model(config, facts)
        if here and is_staged(hungriest):
            make_stage_dir(hungriest)


def _check_model(config: RunConfig, facts: DataFacts) -> None:
    """ConfigError if the configuration's model or batch does not fit its data."""
    data, model = config.data, config.model
    problems = []
    if facts.classes is not None and model.num_classes != facts.classes:
        problems.append(
            f"has {facts.classes} classes, the model {model.num_classes}; --set"
            f" model.num_classes={facts.classes}"
        )
    if model.in_chans not in facts.channels:
        problems.append(
            f"has images of {' or '.join(map(str, facts.channels))} channels, model.in_chans is"
            f" {model.in_chans}"
        )
    if facts.images is not None and facts.images < config.recipe.global_batch:
        problems.append(
            f"has {facts.images} training images, less than a batch of {config.recipe.global_batch}"
        )
    if problems:
        raise ConfigError(
            [Problem(config.system.data_dir or f"dataset '{data.dataset}'", problem) for problem in problems]
        )


def check_pipeline(config: RunConfig) -> None:
    """ConfigError if the recipe's pipeline cannot decode the training images."""
    if config.recipe.pipeline == "tensor" and kind_of(config.data) in STREAMS:
        what = f"'tensor' is unavailable for '{config.data.dataset}': timm decodes a stream by Pillow"
        hint = "data.dataset=shards reads tar files as tensors, or --set recipe.pipeline=pillow"
        raise config_error("recipe.pipeline", f"{what}; {hint}")


def check_cache(config: RunConfig) -> None:
    """ConfigError if the images cannot be cached where the configuration has them."""
    cache = config.system.cache
    if cache == "none":
        return
    if kind_of(config.data) in STREAMS:
        what = f"'{cache}' is unavailable for '{config.data.dataset}', a stream, whose images have no numbers"
        raise config_error("system.cache", f"{what}; --set system.cache=none")
    if config.data.fresh_noise:
        what = f"'{cache}' is unavailable with data.fresh_noise, which changes the images in each epoch"
        raise config_error("system.cache", f"{what}; --set system.cache=none (digits are in memory anyway)")
    if cache == "device" and config.recipe.pipeline == "pillow" and config.recipe.augments:
        what = (
            "'device' is unavailable where Pillow transforms images at random, which it does in the workers"
        )
        hint = "--set recipe.pipeline=tensor (another recipe), or --set system.cache=host"
        raise config_error("system.cache", f"{what}; {hint}")


def _check_digits(config: RunConfig) -> DataFacts:
    names = choose_classes(map(str, range(CLASSES)), config.data, "dataset 'digits'")
    return DataFacts(
        len(names), (1,), TRAIN_IMAGES * config.data.copies if config.data.classes is None else None
    )


def _check_folder(config: RunConfig) -> DataFacts:
    names, root, data = class_names(config), data_dir(config), config.data
    empty, images = [], 0
    for name in names:
        found = count_images(root / data.train_split / name, max(1, config.recipe.global_batch - images))
        images += found
        empty += [] if found else [f"{data.train_split}/{name}"]
    empty += [
        f"{data.val_split}/{name}" for name in names if not count_images(root / data.val_split / name, 1)
    ]
    if empty:
        raise config_error(str(root), f"has no images ({', '.join(IMAGE_SUFFIXES)}) in {some(empty)}")
    return DataFacts(len(names), images=images)  # no more than a batch of them


def _check_shards(config: RunConfig) -> DataFacts:
    if not is_remote(config):
        problems: list[Problem] = []
        for pattern in (config.data.train_split, config.data.val_split):
            try:
                find_shards(config, pattern)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
    else:
        need_stage_dir(config)
    return _check_other(config)


def _check_custom(config: RunConfig) -> DataFacts:
    hint = "is passed to roadmap.train.train by a program of yours; the command line cannot know it"
    raise config_error(f"dataset '{config.data.dataset}'", hint)


def _check_other(config: RunConfig) -> DataFacts:
    need_reader(config)
    if kind_of(config.data) in ("torch", "wds", "tfds"):
        root = data_dir(config)
        if is_image_folder(config.data):
            check_splits(root, splits_of(config), synonyms=True)
        elif not config.system.download and not is_remote(config):
            check_root(root)
    return DataFacts(len(set(config.data.classes)) if config.data.classes is not None else None)


CHECKS: dict[str, Callable[[RunConfig], DataFacts]] = {
    "digits": _check_digits,
    "folder": _check_folder,
    "shards": _check_shards,
    # it has as many classes as the model
    "synthetic": lambda config: DataFacts(None, images=config.data.images[0]),
    "custom": _check_custom,
}


def need_reader(config: RunConfig) -> None:
    """ConfigError if the package that reads the data is not installed, or timm knows no such dataset."""
    where, kind = f"dataset '{config.data.dataset}'", kind_of(config.data)
    module, package = PACKAGES.get(kind, ("", ""))
    if module and find_spec(module) is None:
        raise config_error(where, f"is read by a package that is not there: pip install {package}")
    name = torch_name(config.data)
    if kind == "torch" and name not in TORCH:
        known = did_you_mean(name, TORCH) or f": {', '.join(TORCH)}"
        raise config_error(where, f"is none of torchvision's that timm knows{known}")
