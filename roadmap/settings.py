"""The leaves of a configuration, each with who set it: merged, checked, and turned into a RunConfig."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from blocks.layers import did_you_mean
from roadmap.config import RunConfig
from roadmap.errors import ConfigError, Mark, Problem, format_validation_error
from roadmap.strict_yaml import Node, parse_yaml


@dataclass(frozen=True)
class Setting:
    """The value of one leaf of a configuration, who set it, and where."""

    value: Any
    source: str
    where: Mark | str

    def problem(self, message: str) -> Problem:
        """`message` at the place of this setting."""
        return Problem(self.where, f"{self.source}: {message}" if self.source else message)


Settings = dict[str, Setting]


def merge(*layers: Settings) -> Settings:
    """Later layers over earlier ones; a leaf moves to the end when it is set again."""
    merged: Settings = {}
    for layer in layers:
        for path, setting in layer.items():
            merged.pop(path, None)
            merged[path] = setting
    return merged


def validate(settings: Settings, **identity: Any) -> RunConfig:
    """The configuration that `settings` spell out; ConfigError names the setting behind each problem."""
    tree: dict[str, Any] = dict(identity)
    for path, setting in settings.items():
        *sections, leaf = path.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[leaf] = setting.value
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([_blame(settings, item) for item in error.errors()]) from error


def _blame(settings: Settings, error: Any) -> Problem:
    """The setting behind a pydantic error; for a rule over several leaves, the last set that it names."""
    parts, message = [str(part) for part in error["loc"]], format_validation_error(error)
    for end in range(len(parts), -1, -1):
        path = ".".join(parts[:end])
        prefix = f"{path}." if path else ""
        below = {
            leaf.removeprefix(prefix): setting
            for leaf, setting in settings.items()
            if leaf == path or leaf.startswith(prefix)
        }
        if below and (path or not parts):
            named = [setting for leaf, setting in below.items() if leaf in message]
            return (named or list(below.values()))[-1].problem(f"{path}: {message}" if path else message)
    return Problem("", f"{'.'.join(parts)}: {message}")


def settings_of(node: Node, source: str, problems: list[Problem]) -> Settings:
    """The leaves of a delta, each at its key's place; one spelled twice, dotted and nested, is a problem."""
    settings: Settings = {}
    for path, leaf in node.leaves():
        setting = Setting(leaf.plain(), source, leaf.key)
        if path in settings:
            problems.append(setting.problem(f"duplicate key '{path}', first given at {settings[path].where}"))
        settings[path] = setting
    return settings


def unknown_keys(base: Settings, settings: Settings) -> Iterator[Problem]:
    """A problem for each leaf that the base does not have."""
    for path, setting in settings.items():
        if path not in base:
            yield setting.problem(_unknown_key(base, path))


def _unknown_key(base: Settings, path: str) -> str:
    leaves = [leaf for leaf in base if leaf.startswith(f"{path}.")]
    if leaves:
        return f"'{path}' is a section, not a value; set {', '.join(leaves)}"
    section, _, key = path.rpartition(".")
    prefix = f"{section}." if section else ""
    siblings = {leaf.removeprefix(prefix).split(".")[0] for leaf in base if leaf.startswith(prefix)}
    elsewhere = next((f"; did you mean '{leaf}'?" for leaf in base if leaf.endswith(f".{key}")), "")
    return f"unknown key '{path}'" + (
        did_you_mean(key, sorted(siblings)) or elsewhere or did_you_mean(path, base)
    )


def overriding(base: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Overrides as settings; ConfigError for keys that the base does not have."""
    settings = {
        path: Setting(tuple(value) if isinstance(value, list) else value, "", "--set")
        for path, value in overrides.items()
    }
    problems = list(unknown_keys(base, settings))
    if problems:
        raise ConfigError(problems)
    return settings


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`key=value` words of a command line as overrides; values are YAML.

    ConfigError for any that is not one.
    """
    overrides: dict[str, Any] = {}
    problems = []
    for word in assignments:
        path, equals, text = word.partition("=")
        if not equals or not path:
            problems.append(
                Problem(f"--set {word}:", "write it as key=value, such as --set recipe.epochs=10")
            )
        elif path in overrides:
            problems.append(Problem(f"--set {word}:", f"'{path}' is set twice"))
        else:
            overrides[path] = parse_yaml(text, f"--set {path}").plain()
    if problems:
        raise ConfigError(problems)
    return overrides


def same(one: Any, other: Any) -> bool:
    """Equal as configuration: 1 and 1.0 are, 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def changes(before: Settings, after: Settings) -> dict[str, tuple[Any, Any]]:
    """The leaves that differ, with their values before and after."""
    return {
        path: (before[path].value, setting.value)
        for path, setting in after.items()
        if not same(before[path].value, setting.value)
    }
