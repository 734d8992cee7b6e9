"""YAML with the place of each value in its file, and errors where plain YAML would accept a mistake.

Unlike PyYAML's, a duplicate key is an error, `1e-6` is a number, `on` and `off` are text (YAML 1.2's core
schema), and aliases are errors, because a delta states its own values. What is written here reads back equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from roadmap.errors import ConfigError, Mark, Problem, config_error, relative

SCALARS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?[0-9]{1,18}"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
]


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

    def at(self, *path: str | int) -> Node:
        """The node at the end of a path of keys and indices."""
        node = self
        for part in path:
            node = node.value[part]
        return node

    def walk(self, path: Iterable[str | int]) -> Iterator[tuple[str | int, Node]]:
        """Each part of a path with its node, as far as the document has them."""
        node = self
        for part in path:
            inside: Any = node.value
            is_key = isinstance(inside, dict) and part in inside
            if not is_key and not (isinstance(inside, tuple) and isinstance(part, int)):
                return
            node = inside[part]
            yield part, node

    def flatten(self, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """Each value that is not a mapping, with its dotted key: 'a.b' for both `a.b: 1` and `a: {b: 1}`."""
        if not isinstance(self.value, dict):
            yield prefix, self
        else:
            for key, node in self.value.items():
                yield from node.flatten(f"{prefix}.{key}" if prefix else key)


def read_yaml(path: Path) -> Node:
    """The document in `path`; ConfigError with file, line and column of all that is wrong with its form."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise config_error(relative(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise config_error(
            relative(path), f"is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    return parse_yaml(text, relative(path))


def parse_yaml(text: str, name: str) -> Node:
    """The document in `text`; `name` stands for the file in messages."""
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark
        where = Mark(name, place.line + 1, place.column + 1) if place else name
        raise config_error(where, f"is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = Mark(name, before.count("\n") + 1, error.position - before.rfind("\n"))
        raise config_error(where, f"is not YAML: {error.reason}") from error
    except UnicodeEncodeError as error:  # of a surrogate in an argument of the command line
        raise config_error(
            name,
            f"character {error.start + 1} is not UTF-8, or not in this locale; PYTHONUTF8=1 reads"
            " UTF-8 in any",
        ) from error
    except RecursionError as error:
        raise config_error(name, "is nested too deep") from error
    except yaml.YAMLError as error:
        raise config_error(name, f"is not YAML: {' '.join(str(error).split())}") from error
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
    """Converts a composed document; `seen` holds the nodes visited, so that an alias is a second visit."""

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
        # only quoted scalars and blocks have a style
        return node.value if node.style else _plain_value(node.value)


def _plain_value(text: str) -> Any:
    """What an unquoted scalar means."""
    return next((convert(text) for pattern, convert in SCALARS if pattern.fullmatch(text)), text)


class _Writer(yaml.SafeDumper):
    """PyYAML's writer without aliases, which also quotes each string that `_plain_value` would convert."""

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
    """A value on one line, as `--set` accepts it; `parse_yaml` reads it back equal, lists as tuples."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {show(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return _shown_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=4096)
def _shown_text(text: str) -> str:
    """Quoted where necessary, also as an item of a list."""
    written: str = yaml.dump(
        [text], Dumper=_Writer, default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return written.strip()[1:-1]
