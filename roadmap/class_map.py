"""The names of a network's classes in the order of its outputs, beside its weights: one per line of a text
file, as timm has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roadmap.data import locate
from roadmap.strict_yaml import relative
from roadmap.weight_files import refusal

CLASS_MAP = "--class-map"
WAY_OUT = (
    "--class-map FILE matches classes by name: one name per line, in the order of the network's outputs;"
    " `export` writes it, and for weights that were trained on a folder of classes so does `LC_ALL=C ls"
    " FOLDER > FILE`"
)
OTHER_ORDER = "%s has its classes in another order (%s) than the data (%s); they are matched by name"
UNKNOWN_ORDER = (
    "%s does not name its classes, and the order of the data's (%s) is that of torchvision and of this"
    " project, not timm's: if it was trained elsewhere, its outputs may stand for other classes; a class map"
    " settles it"
)


def class_map_beside(weights: Path) -> Path:
    """Where the class map of a file of weights is."""
    return weights.with_name(f"{weights.stem}.classes.txt")


def to_class_map(names: Sequence[str]) -> str | None:
    """The text of a class map; None for names that are not the same without the whitespace around them, or
    fill more than a line.
    """
    if any(name.splitlines() != [name] or name.strip() != name for name in names):
        return None
    return "".join(f"{name}\n" for name in names)


def read_class_map(path: Path) -> list[str]:
    """The names in a class map; ConfigError if it cannot be read, or does not name each class once."""
    where = relative(path)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().split("\n")]
    except OSError as error:
        raise refusal(where, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refusal(where, f"is no class map, a text file of one class name per line: {error}") from error
    for number, name in enumerate(names, 1):
        if not name:
            raise refusal(where, "is empty" if len(names) == 1 else f"has no class name in line {number}")
        if (first := names.index(name) + 1) < number:
            raise refusal(where, f"names '{name}' in line {first} and again in line {number}")
    return names


def outputs_of(data: Sequence[str], network: Sequence[str], where: str) -> list[int]:
    """For each class of the data the output of the network that stands for it, by name.

    ConfigError if the weights at `where` have no class of that name.
    """
    places = {name: output for output, name in enumerate(network)}
    if unknown := [name for name in data if name not in places]:
        message = (
            f"has no {'class' if len(unknown) == 1 else 'classes'} {some(unknown)} of the data, but"
            f" {some(network)}"
        )
        hint = f"; {CLASS_MAP} FILE gives its classes other names, one per line in the order of the outputs"
        raise refusal(where, message + (hint if where != CLASS_MAP else ""))
    return [places[name] for name in data]


def some(names: Sequence[str]) -> str:
    """The first of many names in quotes, for a message."""
    return locate.some(f"'{name}'" for name in names)


def is_ambiguous(names: Sequence[str]) -> bool:
    """Whether folders of these names have another order for timm, where 2 comes before 10, than here and in
    torchvision.
    """
    from timm.utils.misc import natural_key

    return sorted(names) == list(names) != sorted(names, key=natural_key)
