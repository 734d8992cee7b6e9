"""Where a dataset is: its folders, classes and shards, and a suggested setting where they are elsewhere."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from blocks.layers import did_you_mean
from roadmap.config import DataSpec, RunConfig
from roadmap.data.listing import images_in, is_hidden, printable, readable
from roadmap.errors import ConfigError, Problem, config_error

# timm takes one for the other
SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
USUAL = (SYNONYMS[0], (*SYNONYMS[1], "test", "dev"))  # folder names in use
MAX_LISTED = 5  # names in a message
STREAMS = ("wds", "tfds", "hfids")  # what can only be read one image after the other
MOST_SHARDS = 10**6
GROUP = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
SHARD = re.compile(r"(.*?)(\d+)\.tar")


@dataclass(frozen=True)
class DataOptions:
    """How a command line sets where the data is: its name for the folder, and the words that set another
    folder, or a split by its key.
    """

    where: str
    root: Callable[[Path], str]
    split: Callable[[str, str], str]


SET = DataOptions(
    "system.data_dir",
    lambda root: f"--set {shlex.quote(f'system.data_dir={root}')}",
    lambda key, name: f"--set {shlex.quote(f'{key}={name}')}",
)


def kind_of(data: DataSpec) -> str:
    """The kind of a dataset: its name up to the slash."""
    return data.dataset.partition("/")[0]


def is_image_folder(data: DataSpec) -> bool:
    """Whether torchvision's ImageFolder reads it."""
    return kind_of(data) == "torch" and torch_name(data) in ("image_folder", "folder")


def torch_name(data: DataSpec) -> str:
    """timm's name for a dataset of torchvision."""
    return data.dataset.split("/", 2)[-1].lower()  # as timm has it


def data_dir(config: RunConfig) -> Path:
    """The folder of the data; ConfigError if the configuration names none."""
    if config.system.data_dir is None:
        data = config.data
        if kind_of(data) == "torch" and not is_image_folder(data):
            fetch = "--set system.data_dir=FOLDER, and --set system.download=true to fetch it once"
            raise config_error("system.data_dir", f"is not set: where is {data.dataset}? {fetch}")
        what = f"where are {data.train_split} and {data.val_split}? --set system.data_dir=/data/imagenet"
        raise config_error("system.data_dir", f"is not set: {what}")
    return Path(config.system.data_dir)


def is_remote(config: RunConfig) -> bool:
    """Whether the data is at a URL."""
    return (config.system.data_dir or "").startswith(("http://", "https://"))


def is_staged(config: RunConfig) -> bool:
    """Whether the data is copied to `stage_dir`: not if it streams from a URL, or is yet to be downloaded."""
    system, kind = config.system, kind_of(config.data)
    if system.data_dir is None or system.stage_dir is None:
        return False
    if is_remote(config):
        return kind != "wds"
    return not system.download or kind in ("folder", "shards") or Path(system.data_dir).is_dir()


def need_stage_dir(config: RunConfig) -> None:
    """ConfigError if there is no `stage_dir` for shards at a URL."""
    if config.system.stage_dir is None:
        raise config_error(
            "system.stage_dir",
            f"is not set: where are the shards of {config.system.data_dir} to be put?",
        )


def make_stage_dir(config: RunConfig) -> Path:
    """The folder of `stage_dir` on this machine, made if need be; ConfigError if data
    cannot be copied there.
    """
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


def some(names: Iterable[str]) -> str:
    """The first few of names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:MAX_LISTED]) + (
        f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    )


def find_split(root: Path, name: str) -> Path | None:
    """A split's folder in `root`, by its name or a synonym, as timm finds it; None if there is none."""
    return next((root / each for each in (name, *_group(name, SYNONYMS)) if (root / each).is_dir()), None)


def _group(name: str, groups: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The group that a name is in, empty if it is in none."""
    return next((group for group in groups if name in group), ())


def usual_names(name: str) -> tuple[str, ...]:
    """The name of a split, and other usual names of its folder."""
    return (name, *_group(name, USUAL))


def splits_of(config: RunConfig) -> dict[str, str]:
    """The configuration's names for the splits, by the keys that set them."""
    return {"data.train_split": config.data.train_split, "data.val_split": config.data.val_split}


def check_splits(
    root: Path, splits: Mapping[str, str], options: DataOptions = SET, *, synonyms: bool = False
) -> None:
    """ConfigError where `root` lacks the folder of a split, with what is there and the option that takes it.

    `splits` are names of folders by the keys that set them. With `synonyms`, synonymous names count, too.
    """
    check_root(root, options)
    with readable():
        missing = {
            key: name
            for key, name in splits.items()
            if not (find_split(root, name) if synonyms else (root / name).is_dir())
        }
        if not missing:
            return
        there = _folders(root)
        for better in (root.absolute().parent, *(root / name for name in there)):
            if all(any((better / each).is_dir() for each in usual_names(name)) for name in splits.values()):
                what = (
                    f"has no folder {' or '.join(dict.fromkeys(missing.values()))}, but {better} has;"
                    f" {options.root(better)}"
                )
                raise config_error(str(root), what)
    free = [name for name in there if name not in splits.values()]
    raise ConfigError(
        [Problem(str(root), _missing(key, name, there, free, options)) for key, name in missing.items()]
    )


def _missing(key: str, name: str, there: list[str], free: list[str], options: DataOptions) -> str:
    other = next((each for each in usual_names(name) if each in free), None)
    hint = f"; {options.split(key, other)}" if other else did_you_mean(name, free)
    return f"has no folder {name}, but {some(there)}{hint}" if there else "has no folders"


def check_root(root: Path, options: DataOptions = SET) -> None:
    """ConfigError where there is no folder `root`."""
    if not root.is_dir():
        near = did_you_mean(root.name, _folders(root.parent)) if root.parent.is_dir() else ""
        what = "is a file" if root.exists() else "does not exist"
        raise config_error(str(root), f"{what}; {options.where} is the folder that holds the data{near}")


def _folders(root: Path) -> list[str]:
    with readable(), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def choose_classes(known: Iterable[str], data: DataSpec, where: str) -> list[str]:
    """The classes to learn, sorted: all that are `known`, or those that `data.classes` names; ConfigError
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


def class_names(config: RunConfig) -> list[str]:
    """A folder's classes, sorted, in the order of their labels; ConfigError unless both
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
    """The names of the class folders in a split's folder, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)}
    except OSError as error:
        raise config_error(
            str(folder), f"cannot be read: {error.strerror}; it should have one folder per class"
        ) from error
    # tables could not hold them
    if foreign := sorted(printable(name) for name in names if printable(name) != name):
        raise config_error(
            str(folder), f"has class folders whose names are not UTF-8: {some(foreign)}; rename them"
        )
    return names


def count_images(folder: Path, most: int | None = None) -> int:
    """The number of images in a class's folder, without folders below; the count ends at `most`."""
    return sum(1 for _ in islice(images_in(folder), most))


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern with braces stands for, as in a shell: `a-{00..02}.tar` is a-00.tar to
    a-02.tar, `{a,b}` a and b.
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
    """The shards of a pattern with braces or wildcards, by their paths in `data_dir`; ConfigError
    names missing ones.
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
    """The files of a pattern with wildcards, sorted; hidden ones only if the pattern is hidden."""
    found = [str(path.relative_to(root)) for path in root.glob(pattern)]
    return sorted(name for name in found if is_hidden(pattern) or not is_hidden(name))


def _instead(root: Path, pattern: str, key: str) -> str:
    """What to set where `key` names no shard, by the shards that are there; empty if there are none."""
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
