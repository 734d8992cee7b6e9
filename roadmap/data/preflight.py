"""Data looked at before anything is trained on it: is it there, and does the model fit it?"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from blocks.spelling import did_you_mean
from roadmap.config import DataSpec, RunConfig, SystemSpec
from roadmap.data.digits import CLASSES, TRAIN_IMAGES
from roadmap.data.listing import IMAGE_SUFFIXES, images_in, is_hidden, printable
from roadmap.data.splits import check_root, check_splits, some, usual_names
from roadmap.strict_yaml import ConfigError, Problem, config_error

PACKAGES = {  # the module that reads a kind of data, and what pip calls it
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "wds": ("webdataset", "webdataset"),
    "tfds": ("tensorflow_datasets", "tensorflow-datasets"),
}
STREAMS = ("wds", "tfds", "hfids")  # what can only be read one image after the other
TORCH = (  # what timm calls torchvision's
    "cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist", "inaturalist", "inat", "places365",
    "imagenet", "image_folder", "folder",
)  # fmt: skip
MOST_SHARDS = 10**6
GROUP = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
SHARD = re.compile(r"(.*?)(\d+)\.tar")


@dataclass(frozen=True)
class Facts:
    """What is known of the data without reading it; None where that would take too long."""

    classes: int | None
    channels: tuple[int, ...] = (1, 3)
    images: int | None = None


def check_data(*configs: RunConfig, here: bool = True) -> None:
    """ConfigError if a configuration's images are not where it says, or its model is made for others.

    Data that several configurations share is looked at once. Unless they are to be trained `here`,
    `stage_dir` is not looked at: whoever hands a run over need not have a node's disk.
    """
    sharing: dict[tuple[DataSpec, SystemSpec], list[RunConfig]] = {}
    for config in configs:
        check_pipeline(config)
        sharing.setdefault((config.data, config.system), []).append(config)
    for members in sharing.values():
        # images are counted up to a batch
        hungriest = max(members, key=lambda config: config.recipe.global_batch)
        facts = LOOK.get(kind_of(hungriest.data), _look_elsewhere)(hungriest)
        for config in members:
            _check_model(config, facts)
        if here and is_staged(hungriest):
            make_stage_dir(hungriest)


def _check_model(config: RunConfig, facts: Facts) -> None:
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
    """ConfigError if the images to train on cannot be tensors, as the recipe wants them."""
    if config.recipe.pipeline == "tensor" and kind_of(config.data) in STREAMS:
        what = f"'tensor' cannot be had of '{config.data.dataset}': timm decodes a stream by Pillow"
        hint = "data.dataset=shards reads tar files as tensors, or --set recipe.pipeline=pillow"
        raise config_error("recipe.pipeline", f"{what}; {hint}")


def kind_of(data: DataSpec) -> str:
    """What kind of data set it is: the name up to the slash."""
    return data.dataset.partition("/")[0]


def is_image_folder(data: DataSpec) -> bool:
    """Whether torchvision's ImageFolder reads it."""
    return kind_of(data) == "torch" and torch_name(data) in ("image_folder", "folder")


def torch_name(data: DataSpec) -> str:
    """What timm calls a data set of torchvision."""
    return data.dataset.split("/", 2)[-1].lower()  # as timm has it


def _look_at_digits(config: RunConfig) -> Facts:
    names = choose_classes(map(str, range(CLASSES)), config.data, "dataset 'digits'")
    return Facts(len(names), (1,), TRAIN_IMAGES * config.data.copies if config.data.classes is None else None)


def _look_at_folder(config: RunConfig) -> Facts:
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
    return Facts(len(names), images=images)  # no more than a batch of them


def _look_at_shards(config: RunConfig) -> Facts:
    if not is_remote(config):
        problems: list[Problem] = []
        for pattern in (config.data.train_split, config.data.val_split):
            try:
                find_shards(config, pattern)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
    elif config.system.stage_dir is None:
        raise config_error(
            "system.stage_dir", f"is not set: where are the shards of {config.system.data_dir} to be put?"
        )
    return _look_elsewhere(config)


def _look_at_custom(config: RunConfig) -> Facts:
    hint = "is handed to roadmap.train.train by a program of yours; the command line cannot know it"
    raise config_error(f"dataset '{config.data.dataset}'", hint)


def _look_elsewhere(config: RunConfig) -> Facts:
    need_reader(config)
    if kind_of(config.data) in ("torch", "wds", "tfds"):
        root = data_dir(config)
        if is_image_folder(config.data):
            check_splits(root, splits_of(config), synonyms=True)
        elif not config.system.download and not is_remote(config):
            check_root(root)
    return Facts(len(set(config.data.classes)) if config.data.classes is not None else None)


LOOK: dict[str, Callable[[RunConfig], Facts]] = {
    "digits": _look_at_digits,
    "folder": _look_at_folder,
    "shards": _look_at_shards,
    # it has as many classes as the model
    "synthetic": lambda config: Facts(None, images=config.data.images[0]),
    "custom": _look_at_custom,
}


def need_reader(config: RunConfig) -> None:
    """ConfigError if what reads the data is not installed, or torchvision has none of that name."""
    where, kind = f"dataset '{config.data.dataset}'", kind_of(config.data)
    module, package = PACKAGES.get(kind, ("", ""))
    if module and find_spec(module) is None:
        raise config_error(where, f"is read by a package that is not there: pip install {package}")
    name = torch_name(config.data)
    if kind == "torch" and name not in TORCH:
        known = did_you_mean(name, TORCH) or f": {', '.join(TORCH)}"
        raise config_error(where, f"is none of torchvision's that timm knows{known}")


def data_dir(config: RunConfig) -> Path:
    """Where the data lies; ConfigError if the configuration does not say."""
    if config.system.data_dir is None:
        data = config.data
        what = f"where are {data.train_split} and {data.val_split}? --set system.data_dir=/data/imagenet"
        raise config_error("system.data_dir", f"is not set: {what}")
    return Path(config.system.data_dir)


def is_remote(config: RunConfig) -> bool:
    """Whether the data lies at an address of the web."""
    return (config.system.data_dir or "").startswith(("http://", "https://"))


def is_staged(config: RunConfig) -> bool:
    """Whether the data is to be copied to `stage_dir`: what streams from an address, or is yet to be
    downloaded, is not.
    """
    system, kind = config.system, kind_of(config.data)
    if system.data_dir is None or system.stage_dir is None:
        return False
    if is_remote(config):
        return kind != "wds"
    return not system.download or kind in ("folder", "shards") or Path(system.data_dir).is_dir()


def make_stage_dir(config: RunConfig) -> Path:
    """The folder that `stage_dir` stands for here, made if need be; ConfigError if it cannot be copied to."""
    name = config.system.stage_dir or ""
    folder = Path(os.path.expandvars(name)).expanduser()
    if "$" in str(folder):
        raise config_error("system.stage_dir", f"'{name}' names an environment variable that is not set")
    if not is_remote(config) and folder.resolve().is_relative_to(data_dir(config).resolve()):
        raise config_error(
            "system.stage_dir", f"{folder} lies in system.data_dir, which would be copied into itself"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise config_error(f"system.stage_dir {folder}", f"cannot be made: {error.strerror}") from error
    return folder.resolve()


def choose_classes(known: Iterable[str], data: DataSpec, where: str) -> list[str]:
    """The classes to learn, sorted: all `known` ones, or those of them that `data.classes` names; ConfigError
    where it names others.
    """
    names = list(known)
    if data.classes is None:
        return sorted(names)
    there = set(names)
    problems = [
        f"has no class '{name}'{did_you_mean(name, names)}" for name in data.classes if name not in there
    ]
    if len(set(data.classes)) < len(data.classes):
        problems.append("is to give a class twice: data.classes repeats itself")
    if problems:
        raise ConfigError([Problem(where, problem) for problem in problems])
    return sorted(data.classes)


def splits_of(config: RunConfig) -> dict[str, str]:
    """What the configuration calls the splits, by the keys that set them."""
    return {"data.train_split": config.data.train_split, "data.val_split": config.data.val_split}


def class_names(config: RunConfig) -> list[str]:
    """A folder's classes, sorted: an image's label is the place of its folder's name; ConfigError unless both
    splits have the same.
    """
    root, data = data_dir(config), config.data
    check_splits(root, splits_of(config))
    train, val = (class_folders(root / split) for split in (data.train_split, data.val_split))
    if data.classes is not None:
        return [choose_classes(there, data, str(root / data.train_split)) for there in (val, train)][-1]
    if train != val:
        sides = ((data.train_split, train - val), (data.val_split, val - train))
        lines = [f"only {split}/ has {some(sorted(names))}" for split, names in sides if names]
        both = f"{data.train_split}/ and {data.val_split}/ must have the same classes"
        raise config_error(str(root), f"{both}: {'; '.join(lines)}")
    return sorted(train)


def class_folders(folder: Path) -> set[str]:
    """The names of the folders in a split's, one a class; hidden ones are none."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)}
    except OSError as error:
        raise config_error(
            str(folder), f"cannot be read: {error.strerror}; it should have one folder a class"
        ) from error
    # it could not be written into a table
    if foreign := sorted(printable(name) for name in names if printable(name) != name):
        raise config_error(
            str(folder), f"has class folders whose names are not UTF-8: {some(foreign)}; rename them"
        )
    return names


def count_images(folder: Path, most: int | None = None) -> int:
    """How many images a class's folder has, whatever lies in folders below; it looks for at most `most`."""
    return sum(1 for _ in islice(images_in(folder), most))


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern with braces stands for: `a-{00..02}.tar` is a-00.tar, a-01.tar and a-02.tar,
    `{a,b}` a and b.
    """
    group = GROUP.search(pattern)
    if group is None:
        yield pattern
        return
    span = RANGE.fullmatch(group[1])
    if span and int(span[2]) - int(span[1]) >= MOST_SHARDS:
        raise config_error(f"pattern '{pattern}'", f"stands for more than {MOST_SHARDS} shards")
    choices: Iterable[str] = group[1].split(",")
    if span:
        choices = (f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2]) + 1))
    for choice in choices:
        yield from expand(pattern[: group.start()] + choice + pattern[group.end() :])


def find_shards(config: RunConfig, pattern: str) -> list[str]:
    """The shards that a pattern of braces or wildcards stands for, by their paths in `data_dir`; ConfigError
    names those missing.
    """
    root = data_dir(config)
    found: list[str] = []
    missing = []
    for name in expand(pattern):
        wild = re.search(r"[*?\[]", name)
        there = _matching(root, name) if wild else [name] * (root / name).is_file()
        found += there
        missing += [] if there else [name]
    if missing or not found:
        check_root(root)
        key = "data.train_split" if pattern == config.data.train_split else "data.val_split"
        hint = "" if found else _instead(root, pattern, key)
        raise config_error(
            str(root), f"has no {some(missing or [pattern])}, which {key} names as shards{hint}"
        )
    return list(dict.fromkeys(found))


def _matching(root: Path, pattern: str) -> list[str]:
    """The files that a pattern with wildcards stands for, sorted; hidden ones where it says so itself."""
    found = [str(path.relative_to(root)) for path in root.glob(pattern)]
    return sorted(name for name in found if is_hidden(pattern) or not is_hidden(name))


def _instead(root: Path, pattern: str, key: str) -> str:
    """What to set where `key` names no shard at all, by what is there; empty if nothing is."""
    there = sorted(name for each in ("*.tar", "*/*.tar") for name in _matching(root, each))
    numbered = [name for each in there if (name := SHARD.fullmatch(each))]
    for split in usual_names(key.removeprefix("data.").removesuffix("_split")):
        prefix = next((name[1] for name in numbered if split in name[1]), None)
        if prefix is not None:
            alike = [name[2] for name in numbered if name[1] == prefix]
            return (
                f"; --set {shlex.quote(f'{key}={prefix}{{{alike[0]}..{alike[-1]}}}.tar')} names those that"
                " are there"
            )
    if (root / pattern).is_dir():
        return "; it has a folder of that name: --set data.dataset=folder reads images in folders"
    return f", but {some(there)}" if there else ""
