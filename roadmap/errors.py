"""What is wrong with a configuration, and where: every problem at once, one line each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.layers import did_you_mean

# pydantic's names for the two kinds of models in the places of errors; the spaces keep them from being keys
MODEL_TAGS = ("model of ours", "model of timm")
NOT_FINITE = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}  # from JSON to YAML


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
    """What is wrong, and where: a place in a file, a path, or an option.

    A colon follows a place in a file, as compilers print it, and any place of an unknown name. Otherwise the
    place is the subject of the message, as in '--seeds must be at least 1'.
    """

    where: Mark | str
    message: str

    def __str__(self) -> str:
        where = str(self.where)
        if isinstance(self.where, Mark) or self.message.startswith("unknown "):
            where = f"{where.removesuffix(':')}:"
        return f"{where} {self.message}" if str(self.where) else self.message


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line per problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(dict.fromkeys(map(str, problems))))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Problem]]]:
        return type(self), (self.problems,)  # pickle would pass the message in place of the problems


def config_error(where: Mark | str, message: str) -> ConfigError:
    """A ConfigError with one problem."""
    return ConfigError([Problem(where, message)])


def relative(path: Path) -> str:
    """A path as a user in the current folder would name it."""
    path = path.absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def one_of_these(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    return did_you_mean(name, known) or (f"; there are {', '.join(known)}" if known else "")


def keys_of(error: Any) -> list[str]:
    """The keys that lead to the place of one of pydantic's errors."""
    return [str(part) for part in error["loc"] if part not in MODEL_TAGS]


def keyed_message(error: Any) -> str:
    """The message of one of pydantic's errors, after the key that it is about."""
    key = ".".join(keys_of(error))
    return f"{key}: {format_validation_error(error)}" if key else format_validation_error(error)


def format_validation_error(error: Any) -> str:
    """The message of one of pydantic's errors in plain words, with the value that it is about."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        key = error["loc"][-1]
        return f"'{key}' is missing" if isinstance(key, str) else f"value {key + 1} is missing"
    if error["type"] == "extra_forbidden":
        return "unknown key"
    given = error["input"]
    if error["type"] in ("too_short", "too_long"):
        message = message.partition(" after validation")[0]  # the number follows, and the value shows it
    message = message.partition(" or instance of ")[0]  # a class of ours cannot be written in a file
    if isinstance(given, str):
        value = repr(given)
    else:
        value = json.dumps(given, ensure_ascii=False, default=repr)
        value = NOT_FINITE.get(value, value)
    if error["type"] == "string_type" and isinstance(given, int | float):
        value += f"; write it in quotes, '{value}'"
    return f"{(message[0].lower() + message[1:]).replace('tuple', 'list')}, not {value}"
