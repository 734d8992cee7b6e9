"""Reading a steps file: its form, its tree, and that every delta does what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from blocks.spec import Spec
from roadmap.recipe import reason
from roadmap.settings import Settings, did_you_mean, parse_overrides, settings_of, show, unknown_keys
from roadmap.strict_yaml import ConfigError, Mark, Node, Problem, read_yaml, relative
from roadmap.tree import Delta, PaperFigures, Reference, Roadmap, resolve, trace

__all__ = ["Roadmap", "load_roadmap", "parse_overrides", "resolve"]

STEPS_YAML = Path(__file__).resolve().parent.parent / "steps.yaml"
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class StepEntry(Spec):
    """One step as it is written."""

    name: Name
    title: str
    parent: Name | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    paper: PaperFigures | None = None


class ProfileEntry(Spec):
    """One profile as it is written."""

    title: str
    parent: Name | None = None
    set: dict[str, Any]


class RoadmapEntry(Spec):
    """One roadmap as it is written."""

    title: str
    reference: Reference | None = None
    steps: tuple[StepEntry, ...]


class StepsFile(Spec):
    """A steps file as it is written."""

    base: dict[str, Any]
    profiles: dict[Name, ProfileEntry]
    roadmaps: dict[Name, RoadmapEntry]


def load_roadmap(path: str | Path = STEPS_YAML, name: str = "convnext_t") -> Roadmap:
    """The roadmap `name` of a steps file; ConfigError holds all that is wrong with the file at once, with lines and columns."""
    path = Path(path)
    document = read_yaml(path)
    written = _check_form(document)
    if name not in written.roadmaps:
        raise ConfigError([Problem(relative(path), f"unknown roadmap '{name}'{did_you_mean(name, written.roadmaps)}")])
    entry = written.roadmaps[name]
    nodes = document.value["roadmaps"].value[name].value["steps"].value
    problems: list[Problem] = []
    base = settings_of(document.value["base"], "base", problems)
    steps = _read_steps(entry, nodes, problems)
    profiles = _read_profiles(written.profiles, document.value["profiles"], base, problems)
    for step in steps.values():
        problems += unknown_keys(base, step.settings)
    roadmap = Roadmap(name, entry.title, path.absolute(), base, steps, profiles, entry.reference)
    problems = problems or _check_deltas(roadmap)
    if problems:
        raise ConfigError(problems)
    return roadmap


def _check_form(document: Node) -> StepsFile:
    try:
        return StepsFile.model_validate(document.plain())
    except ValidationError as error:
        raise ConfigError([_locate(document, item) for item in error.errors()]) from error


def _locate(document: Node, error: Any) -> Problem:
    """A pydantic error at the nearest place of the document."""
    node, where, inside = document, document.key, []
    for part in error["loc"]:
        children: Any = node.value
        if not (isinstance(children, dict) and part in children) and not (isinstance(children, tuple) and isinstance(part, int)):
            break
        node = children[part]
        inside.append(str(part))
        where = node.key
    path = ".".join(inside)
    if error["type"] == "extra_forbidden":
        return Problem(where, f"unknown key '{path}'")
    return Problem(where, f"{path or 'the file'}: {reason(error)}")


def _read_steps(entry: RoadmapEntry, nodes: tuple[Node, ...], problems: list[Problem]) -> dict[str, Delta]:
    steps: dict[str, Delta] = {}
    places: dict[str, Mark] = {}
    previous: str | None = None
    for written, node in zip(entry.steps, nodes, strict=True):
        place = node.value["name"].mark
        if written.name in steps:
            problems.append(Problem(place, f"step '{written.name}' is defined twice, first in line {places[written.name].line}"))
            continue
        places[written.name] = place
        settings = settings_of(node.value["set"], f"step '{written.name}'", problems) if written.set else {}
        if previous is not None and not settings:
            problems.append(Problem(place, f"step '{written.name}': changes nothing: `set` is empty"))
        steps[written.name] = Delta(written.name, written.title, written.parent or previous, settings, written.paper)
        previous = written.name
    parents = {node.value["name"].value: node.value["parent"].mark for node in nodes if "parent" in node.value}
    problems += _check_parents({step.name: step.parent for step in steps.values()}, parents, "step")
    return steps


def _read_profiles(entries: Mapping[str, ProfileEntry], node: Node, base: Settings, problems: list[Problem]) -> dict[str, Delta]:
    parents = {name: entry.parent for name, entry in entries.items()}
    marks = {name: child.value["parent"].mark for name, child in node.value.items() if "parent" in child.value}
    own = {name: settings_of(child.value["set"], f"profile '{name}'", problems) for name, child in node.value.items()}
    for settings in own.values():
        problems += unknown_keys(base, settings)
    wrong = _check_parents(parents, marks, "profile")
    if wrong:
        problems += wrong
        return {}
    return {name: Delta(name, entry.title, entry.parent, own[name]) for name, entry in entries.items()}


def _check_parents(parents: Mapping[str, str | None], marks: Mapping[str, Mark], what: str) -> list[Problem]:
    """Each parent exists, and following them ends at a root."""
    problems = []
    for name, parent in parents.items():
        if parent is not None and parent not in parents:
            problems.append(Problem(marks[name], f"{what} '{name}': unknown parent '{parent}'{did_you_mean(parent, parents)}"))
    for name in marks:
        chain, here = [name], parents.get(name)
        while here is not None and here not in chain and here in parents:
            chain.append(here)
            here = parents[here]
        if here == name:
            problems.append(Problem(marks[name], f"{what} '{name}': is its own ancestor: {' -> '.join([*chain, name])}"))
    return problems


def _check_deltas(roadmap: Roadmap) -> list[Problem]:
    """Each delta changes every leaf that it sets (a profile's in some step at least), and every step is valid in every profile."""
    problems: list[Problem] = []
    for step in roadmap.tree.values():
        before = trace(roadmap, step.parent) if step.parent else roadmap.base
        problems += _check_changes(step, [before])
        problems += _check_values(roadmap, step.name, None)
    for profile in roadmap.profiles.values():
        before_all = [trace(roadmap, step, profile=profile.parent) for step in roadmap.steps]
        problems += _check_changes(profile, before_all)
    if not problems:
        for name in roadmap.profiles:
            for step_name in roadmap.steps:
                problems += _check_values(roadmap, step_name, name)
    return problems


def _check_changes(delta: Delta, before: list[Settings]) -> list[Problem]:
    return [
        setting.problem(f"'{path}' changes nothing: it already is {show(setting.value)}")
        for path, setting in delta.settings.items()
        if all(_same(settings[path].value, setting.value) for settings in before)
    ]


def _check_values(roadmap: Roadmap, step: str, profile: str | None) -> list[Problem]:
    try:
        resolve(roadmap, step, profile=profile)
    except ConfigError as error:
        return error.problems
    return []


def _same(one: Any, other: Any) -> bool:
    """Equal as configuration: 1 and 1.0 are, 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
