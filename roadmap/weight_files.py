"""Files of weights and their class maps, before the weights are read; local files need no torch.

A class map has the names of a network's classes in the order of its outputs, one per line, as in timm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import file_digest, sha256
from http.client import HTTPException
from pathlib import Path
from urllib.request import url2pathname

from roadmap.data import locate
from roadmap.errors import config_error, relative
from roadmap.files import download
from roadmap.records import RunDir

CLASS_MAP = "--class-map"
CLASS_MAP_HINT = (
    "--class-map FILE matches classes by name: one name per line, in the order of the network's outputs;"
    " `export` writes it, and for weights that were trained on a folder of classes so does `LC_ALL=C ls"
    " FOLDER > FILE`"
)
OTHER_ORDER = "%s has its classes in another order (%s) than the data (%s); they are matched by name"
UNKNOWN_ORDER = (
    "%s does not name its classes, and the order of the data's (%s) is that of torchvision and of this"
    " project, not timm's: if it was trained elsewhere, its outputs may be other classes; --class-map names"
    " them"
)
# iteration and digest; files with other names are the user's
CHECKPOINT = re.compile(r"(\d{9,})-([0-9a-f]{16})\.pt")


def scheme_of(source: str | Path) -> str:
    """The scheme of an address, '' for a path; ConfigError for one that cannot be read."""
    scheme = source.partition("://")[0].lower() if isinstance(source, str) and "://" in source else ""
    if scheme not in ("", "file", "http", "https"):
        raise config_error(
            str(source), f"cannot be read: its scheme '{scheme}' is not one of http, https, file"
        )
    return scheme


def name_of(source: str | Path) -> str:
    """The name of a file in messages."""
    return str(source) if scheme_of(source) else relative(Path(source))


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints that training wrote in `folder`, the latest first."""
    named = [(path, match) for path in folder.glob("*.pt") if (match := CHECKPOINT.fullmatch(path.name))]
    latest_first = sorted(named, key=lambda pair: (int(pair[1][1]), pair[0].name), reverse=True)
    return [path for path, _ in latest_first]


def located(source: str | Path) -> Path:
    """The file that `source` names: a path, an address, or the directory of a run, for its newest checkpoint.

    An http or https address is downloaded once. ConfigError if there is no such file.
    """
    scheme = scheme_of(source)
    if scheme in ("http", "https"):
        return _download(str(source))
    path = Path(url2pathname(str(source).partition("://")[2].removeprefix("localhost")) if scheme else source)
    run = RunDir(path)
    if not run.config.is_file():
        return path
    checkpoints = checkpoint_files(run.checkpoints)
    if not checkpoints:
        raise config_error(relative(path), "has no checkpoint; train it first")
    return checkpoints[0]


def _download(url: str) -> Path:
    """The file at `url`, downloaded to torch.hub's cache if needed; torch.hub accepts truncated files."""
    import torch.hub

    name = (
        re.sub(r"[^\w.-]", "_", re.split("[?#]", url)[0].rpartition("/")[2]).lstrip(".")[-100:] or "weights"
    )
    # a folder for each address, because many files are named checkpoint.pth
    path = Path(torch.hub.get_dir(), "checkpoints", sha256(url.encode()).hexdigest()[:16], name)
    if not path.exists():
        try:
            download(url, path)
        except (OSError, HTTPException, ValueError) as error:
            raise config_error(url, f"cannot be downloaded: {str(error).strip('<>')}") from error
    return path


def digest_of(source: str | Path) -> str:
    """The first 16 hex digits of the SHA-256 of the file that `source` names; ConfigError as in `located`."""
    path = located(source)
    try:
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise config_error(name_of(source), f"cannot be read: {error.strerror}") from error


@lru_cache
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, sha256).hexdigest()[:16]


def class_map_beside(weights: Path) -> Path:
    """The path of the class map of a file of weights."""
    return weights.with_name(f"{weights.stem}.classes.txt")


def to_class_map(names: Sequence[str]) -> str | None:
    """The text of a class map; None for names of several lines, or with whitespace at an end."""
    if any(name.splitlines() != [name] or name.strip() != name for name in names):
        return None
    return "".join(f"{name}\n" for name in names)


def read_class_map(path: Path) -> list[str]:
    """The names in a class map; ConfigError if it cannot be read, or does not name each class once."""
    where = relative(path)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().split("\n")]
    except OSError as error:
        raise config_error(where, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise config_error(
            where, f"is not a class map, a text file of one class name per line: {error}"
        ) from error
    for number, name in enumerate(names, 1):
        if not name:
            raise config_error(
                where, "is empty" if len(names) == 1 else f"has no class name in line {number}"
            )
        if (first := names.index(name) + 1) < number:
            raise config_error(where, f"names '{name}' in line {first} and again in line {number}")
    return names


def outputs_of(data: Sequence[str], network: Sequence[str], where: str) -> list[int]:
    """The network's output for each class of the data, by name.

    ConfigError if the weights at `where` have no class of that name.
    """
    outputs = {name: output for output, name in enumerate(network)}
    if unknown := [name for name in data if name not in outputs]:
        message = (
            f"has no {'class' if len(unknown) == 1 else 'classes'} {some(unknown)} of the data, but"
            f" {some(network)}"
        )
        hint = f"; {CLASS_MAP} FILE renames its classes, one per line in the order of the outputs"
        raise config_error(where, message + (hint if where != CLASS_MAP else ""))
    return [outputs[name] for name in data]


def some(names: Sequence[str]) -> str:
    """The first of many names, quoted, for a message."""
    return locate.some(f"'{name}'" for name in names)


def is_ambiguous(names: Sequence[str]) -> bool:
    """Whether timm sorts these names, 2 before 10, differently than torchvision and this project."""
    from timm.utils.misc import natural_key

    return sorted(names) == list(names) != sorted(names, key=natural_key)
