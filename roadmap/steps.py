"""The roadmap: a base, a tree of deltas, and the resolution of a step into a run's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from blocks.spec import Count, Spec
from roadmap.recipe import RunConfig, reason
from roadmap.strict_yaml import ConfigError, Mark, Node, Problem, parse_yaml, relative

STEPS_YAML = Path(__file__).resolve().parent.parent / "steps.yaml"
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class PaperFigures(Spec):
    """What a publication prints for a step: top-1 in %, its standard deviation over `n` runs, and GMACs at 224 px."""

    top1: float
    std: Annotated[float, Field(ge=0)] | None = None
    n: Count
    gmacs: float
    gmacs_note: str | None = None


class Reference(Spec):
    """A published network outside the roadmap that a figure is compared with."""

    title: str
    top1: float
    gmacs: float


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


@dataclass(frozen=True)
class Delta:
    """A step or a profile: the leaves that it sets over those of its parent, which is None for a root."""

    name: str
    title: str
    parent: str | None
    settings: Settings
    paper: PaperFigures | None = None


@dataclass(frozen=True)
class Roadmap:
    """A tree of steps over a base, and the profiles that any step can be run with; `path` is the file they come from."""

    name: str
    title: str
    path: Path
    base: Settings
    tree: Mapping[str, Delta]
    profiles: Mapping[str, Delta]
    reference: Reference | None

    @property
    def steps(self) -> tuple[str, ...]:
        """The ids of all steps, in the order of the file."""
        return tuple(self.tree)

    @property
    def trunk(self) -> tuple[str, ...]:
        """The ids from the root to the last step; all other steps are side branches."""
        return tuple(step.name for step in self.lineage(self.steps[-1]))

    def lineage(self, step: str) -> tuple[Delta, ...]:
        """The steps from the root to `step`, both included; ConfigError if there is no such step."""
        return self._ancestry("step", self.tree, step)

    def profile(self, name: str | None) -> tuple[Delta, ...]:
        """The profile with its ancestors, oldest first, or nothing for None; ConfigError if there is no such profile."""
        return () if name is None else self._ancestry("profile", self.profiles, name)

    def _ancestry(self, what: str, known: Mapping[str, Delta], name: str) -> tuple[Delta, ...]:
        if name not in known:
            raise ConfigError([Problem(relative(self.path), f"unknown {what} '{name}'{did_you_mean(name, known)}")])
        path = [known[name]]
        while (parent := path[-1].parent) is not None:
            path.append(known[parent])
        return tuple(reversed(path))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}" if known else ""


def load_roadmap(path: str | Path = STEPS_YAML, name: str = "convnext_t") -> Roadmap:
    """The roadmap `name` of a steps file; ConfigError with every problem of the file, each with its line and column."""
    from roadmap.steps_file import read_roadmap

    return read_roadmap(Path(path), name)


def trace(
    roadmap: Roadmap,
    step: str,
    *,
    profile: str | None = None,
    drop: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Every leaf of a configuration with who set it; the latest set come last. Parameters as in `resolve`."""
    lineage, drop = roadmap.lineage(step), tuple(drop)
    for name in drop:
        if name not in {ancestor.name for ancestor in lineage}:
            raise ConfigError([Problem(relative(roadmap.path), f"'{name}' is not on the way to '{step}', so it cannot be dropped")])
    deltas = [delta for delta in lineage if delta.name not in drop]
    deltas += roadmap.profile(profile)
    return merge(roadmap.base, *(delta.settings for delta in deltas), _override(roadmap.base, overrides or {}))


def resolve(
    roadmap: Roadmap,
    step: str,
    *,
    profile: str | None = None,
    seed: int = 0,
    drop: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of one run: base, the deltas from the root to `step` but for those in `drop`, profile, overrides.

    `overrides` maps dotted leaves ('recipe.lr') to values. ConfigError says what is wrong and who set it.
    """
    settings = trace(roadmap, step, profile=profile, drop=drop, overrides=overrides)
    return validate(settings, roadmap=roadmap.name, step=step, profile=profile, seed=seed)


def merge(*layers: Settings) -> Settings:
    """Later layers over earlier ones; a leaf moves to the end when it is set again."""
    merged: Settings = {}
    for layer in layers:
        for path, setting in layer.items():
            merged.pop(path, None)
            merged[path] = setting
    return merged


def validate(settings: Settings, **identity: Any) -> RunConfig:
    """The configuration that `settings` spell out; ConfigError names the setting to blame for each problem."""
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
    """The setting behind a pydantic error; for a rule over several leaves, the one of them that was set last."""
    parts = [str(part) for part in error["loc"]]
    for end in range(len(parts), -1, -1):
        path = ".".join(parts[:end])
        below = [setting for leaf, setting in settings.items() if leaf == path or leaf.startswith(f"{path}.") or not path]
        if below and (path or not parts):
            return below[-1].problem(f"{path}: {reason(error)}" if path else reason(error))
    return Problem("", f"{'.'.join(parts)}: {reason(error)}")


def settings_of(node: Node, source: str, problems: list[Problem]) -> Settings:
    """The leaves of a delta, each at the place of its key; one that is spelled twice, dotted and nested, is a problem."""
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
            yield setting.problem(f"{_unknown_key(base, path)}")


def _unknown_key(base: Settings, path: str) -> str:
    leaves = [leaf for leaf in base if leaf.startswith(f"{path}.")]
    if leaves:
        return f"'{path}' is a section, not a value; set {', '.join(leaves)}"
    section, _, key = path.rpartition(".")
    prefix = f"{section}." if section else ""
    siblings = {leaf.removeprefix(prefix).split(".")[0] for leaf in base if leaf.startswith(prefix)}
    near = get_close_matches(key, sorted(siblings), n=1)
    elsewhere = [leaf for leaf in base if leaf.endswith(f".{key}")] or get_close_matches(path, base, n=1)
    hint = near or elsewhere
    return f"unknown key '{path}'" + (f"; did you mean '{hint[0]}'?" if hint else "")


def _override(base: Settings, overrides: Mapping[str, Any]) -> Settings:
    settings = {
        path: Setting(tuple(value) if isinstance(value, list) else value, "", f"--set {path}:") for path, value in overrides.items()
    }
    problems = list(unknown_keys(base, settings))
    if problems:
        raise ConfigError(problems)
    return settings


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`key=value` words of a command line as overrides; values are YAML. ConfigError for any that is not one."""
    overrides: dict[str, Any] = {}
    problems = []
    for word in assignments:
        path, equals, text = word.partition("=")
        if not equals or not path:
            problems.append(Problem(f"--set {word}:", "write it as key=value, such as --set recipe.epochs=10"))
        elif path in overrides:
            problems.append(Problem(f"--set {word}:", f"'{path}' is set twice"))
        else:
            overrides[path] = parse_yaml(text, f"--set {path}").plain()
    if problems:
        raise ConfigError(problems)
    return overrides


def show(value: Any) -> str:
    """A leaf's value as YAML would write it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def changes(before: Settings, after: Settings) -> dict[str, tuple[Any, Any]]:
    """The leaves that differ, with their values before and after."""
    return {path: (before[path].value, setting.value) for path, setting in after.items() if before[path].value != setting.value}


def change_of(roadmap: Roadmap, step: str) -> str:
    """What a step changes against its parent, in one line."""
    parent = roadmap.tree[step].parent
    if parent is None:
        return "the base"
    words = []
    differences = changes(trace(roadmap, parent), trace(roadmap, step))
    recipe = [path for path in differences if path.startswith("recipe.")]
    for path, (before, after) in differences.items():
        if path not in recipe:
            words.append(f"{path.removeprefix('model.').removeprefix('block.')} {show(before)} → {show(after)}")
    return ", ".join(words + ([f"{len(recipe)} values of the recipe"] if recipe else []))
