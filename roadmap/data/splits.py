"""The folders of a data set's splits: where they are, and what to set where they are not."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from blocks.spelling import did_you_mean
from roadmap.data.listing import is_hidden, readable
from roadmap.strict_yaml import ConfigError, Problem, config_error

# timm takes one for the other
SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
USUAL = (SYNONYMS[0], (*SYNONYMS[1], "test", "dev"))  # what people call the folders
MAX_LISTED = 5  # names in a message


@dataclass(frozen=True)
class Options:
    """How a command is told where the data is: what it calls the folder, and words that set another one, or a
    split by its key.
    """

    where: str
    root: Callable[[Path], str]
    split: Callable[[str, str], str]


SET = Options(
    "system.data_dir",
    lambda root: f"--set {shlex.quote(f'system.data_dir={root}')}",
    lambda key, name: f"--set {shlex.quote(f'{key}={name}')}",
)


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
    """The name of a split, and what else its folder may be called."""
    return (name, *_group(name, USUAL))


def check_splits(
    root: Path, splits: Mapping[str, str], options: Options = SET, *, synonyms: bool = False
) -> None:
    """ConfigError where `root` lacks the folder of a split; it names what is there and the option that takes
    it.

    `splits` are names of folders by the keys that set them. With `synonyms` a folder of a synonymous name
    will do.
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


def _missing(key: str, name: str, there: list[str], free: list[str], options: Options) -> str:
    other = next((each for each in usual_names(name) if each in free), None)
    hint = f"; {options.split(key, other)}" if other else did_you_mean(name, free)
    return f"has no folder {name}, but {some(there) if there else 'no folders at all'}{hint}"


def check_root(root: Path, options: Options = SET) -> None:
    """ConfigError where there is no folder `root`."""
    if not root.is_dir():
        near = did_you_mean(root.name, _folders(root.parent)) if root.parent.is_dir() else ""
        what = "is a file" if root.exists() else "does not exist"
        raise config_error(str(root), f"{what}; {options.where} is the folder that holds the data{near}")


def _folders(root: Path) -> list[str]:
    with readable(), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
