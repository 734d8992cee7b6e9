"""YAML that keeps each value's place in the file and refuses what YAML would let slip.

Unlike PyYAML: a duplicate key is an error, `1e-6` is a number, `on` and `off` are text (YAML 1.2's core
schema), and aliases are refused, for a delta says its own values. What is written here reads back equal.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

SCALARS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?[0-9]{1,18}"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
]


@dataclass(frozen=True)
class Mark:
    """A place in a file; `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where."""

    where: Mark | str
    message: str

    def __str__(self) -> str:
        return f"{self.where} {self.message}" if str(self.where) else self.message


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line a problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(dict.fromkeys(map(str, problems))))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Problem]]]:
        return type(self), (self.problems,)  # for the way to another process


def config_error(where: Mark | str, message: str) -> ConfigError:
    """A ConfigError with one problem."""
    return ConfigError([Problem(where, message)])


@dataclass(frozen=True)
class Node:
    """A value with its place: a scalar, a tuple of nodes or a dict of nodes; `key` is its key's place."""

    value: Any
    mark: Mark
    key: Mark

    def plain(self) -> Any:
        """The value without its places; sequences are tuples."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return tuple(node.plain() for node in self.value)
        return self.value

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """Each value that is not a mapping, with its dotted path, which `a.b: 1` and `a: {b: 1}` share."""
        if not isinstance(self.value, dict):
            yield prefix, self
        else:
            for key, node in self.value.items():
                yield from node.leaves(f"{prefix}.{key}" if prefix else key)


def relative(path: Path) -> str:
    """A path as a user in the current folder would name it."""
    path = path.absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def read_yaml(path: Path) -> Node:
    """The document in `path`; ConfigError with file, line and column of all that is wrong with its form."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem(relative(path), f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            [Problem(relative(path), f"is not UTF-8 text: {error.reason} at byte {error.start}")]
        ) from error
    return parse_yaml(text, relative(path))


def parse_yaml(text: str, name: str) -> Node:
    """The document in `text`; `name` stands for the file in messages."""
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark
        where = Mark(name, place.line + 1, place.column + 1) if place else name
        raise ConfigError([Problem(where, f"is not YAML: {error.problem}")]) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = Mark(name, before.count("\n") + 1, error.position - before.rfind("\n"))
        raise ConfigError([Problem(where, f"is not YAML: {error.reason}")]) from error
    except UnicodeEncodeError as error:  # in the words of a command line
        raise ConfigError(
            [
                Problem(
                    name,
                    f"character {error.start + 1} is not UTF-8, or not in this locale; PYTHONUTF8=1 reads"
                    " UTF-8 in any",
                )
            ]
        ) from error
    except RecursionError as error:
        raise ConfigError([Problem(name, "is not YAML that anybody wrote: it is nested too deep")]) from error
    except yaml.YAMLError as error:
        raise ConfigError([Problem(name, f"is not YAML: {' '.join(str(error).split())}")]) from error
    if root is None:
        return Node(None, Mark(name, 1, 1), Mark(name, 1, 1))
    problems: list[Problem] = []
    node = _Reader(name, problems, set()).read(root, _mark(name, root))
    if problems:
        raise ConfigError(problems)
    return node


def _mark(name: str, node: yaml.Node) -> Mark:
    return Mark(name, node.start_mark.line + 1, node.start_mark.column + 1)


@dataclass(frozen=True)
class _Reader:
    """A walk over a composed document; `seen` holds the nodes met, so an alias shows as a second visit."""

    name: str
    problems: list[Problem]
    seen: set[int]

    def read(self, node: yaml.Node, key: Mark) -> Node:
        mark = _mark(self.name, node)
        if id(node) in self.seen:
            self.problems.append(
                Problem(mark, "is used again by an alias; write the value out, or make it a parent step")
            )
            return Node(None, mark, key)
        self.seen.add(id(node))
        if not node.tag.startswith("tag:yaml.org,2002:"):
            self.problems.append(Problem(mark, f"has a tag, '{node.tag}', which is not supported"))
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node), mark, key)
        if isinstance(node, yaml.SequenceNode):
            return Node(tuple(self.read(item, _mark(self.name, item)) for item in node.value), mark, key)
        assert isinstance(node, yaml.MappingNode)
        return Node(self._mapping(node), mark, key)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = _mark(self.name, key_node)
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            if not key or key == "<<":
                self.problems.append(Problem(place, "a key must be plain text, and `<<` is not supported"))
            elif key in found:
                self.problems.append(
                    Problem(place, f"duplicate key '{key}', first given in line {found[key].key.line}")
                )
            else:
                found[key] = self.read(value_node, place)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        # a style is that of a quoted scalar, or of a block
        return node.value if node.style else _plain_value(node.value)


def _plain_value(text: str) -> Any:
    """What an unquoted scalar means."""
    return next((convert(text) for pattern, convert in SCALARS if pattern.fullmatch(text)), text)


class _Writer(yaml.SafeDumper):
    """PyYAML's writer, which also quotes each string that `_plain_value` would not return as it is, and never
    writes an alias.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if not text.isprintable() else None if _plain_value(text) is text else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Writer.add_representer(str, _Writer.represent_text)


def write_yaml(document: Any) -> str:
    """`document` as a YAML file, which `parse_yaml` reads back equal, lists as tuples."""
    text: str = yaml.dump(document, Dumper=_Writer, sort_keys=False)
    return text


def show(value: Any) -> str:
    """A value on one line, which `parse_yaml` reads back equal, lists as tuples; `--set` takes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, str):
        return _shown_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=4096)
def _shown_text(text: str) -> str:
    """Quoted where it must be, in a list, too."""
    written: str = yaml.dump(
        [text], Dumper=_Writer, default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return written.strip()[1:-1]
