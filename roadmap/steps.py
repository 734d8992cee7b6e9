"""Reading a steps file: its form, its tree, and that every delta does what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from blocks.spec import Spec
from blocks.spelling import did_you_mean
from roadmap.recipe import reason
from roadmap.settings import Settings, one_of_these, parse_overrides, same, settings_of, unknown_keys
from roadmap.strict_yaml import ConfigError, Mark, Node, Problem, read_yaml, relative, show
from roadmap.tree import NO_PROFILE, Delta, PaperFigures, Reference, Roadmap, resolve, trace

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


def _not_empty(steps: tuple[StepEntry, ...]) -> tuple[StepEntry, ...]:
    if not steps:
        raise ValueError("a roadmap needs at least one step")
    return steps


class RoadmapEntry(Spec):
    """One roadmap as it is written."""

    title: str
    reference: Reference | None = None
    steps: Annotated[tuple[StepEntry, ...], AfterValidator(_not_empty)]


class StepsFile(Spec):
    """A steps file as it is written."""

    base: dict[str, Any]
    profiles: dict[Name, ProfileEntry]
    roadmaps: dict[Name, RoadmapEntry]


def load_roadmap(path: str | Path = STEPS_YAML, name: str = "convnext_t") -> Roadmap:
    """The roadmap `name` of a steps file; ConfigError holds all that is wrong with the file at once, with lines and columns."""
    path = Path(path)
    document = read_yaml(path)
    written, problems = _check_form(document)
    if written is None:
        raise ConfigError(problems)
    if name not in written.roadmaps:
        raise ConfigError([Problem(relative(path), f"unknown roadmap '{name}'{one_of_these(name, written.roadmaps)}")])
    entry = written.roadmaps[name]
    nodes = document.value["roadmaps"].value[name].value["steps"].value
    base = settings_of(document.value["base"], "base", problems)
    steps = _read_steps(entry, nodes, base, problems)
    profiles = _read_profiles(written.profiles, document.value["profiles"], base, problems)
    roadmap = Roadmap(name, entry.title, path.absolute(), base, steps, profiles, entry.reference)
    if NO_PROFILE in profiles:
        place = document.value["profiles"].value[NO_PROFILE].key
        problems.append(Problem(place, f"profile '{NO_PROFILE}': the name stands for running without a profile; choose another"))
    lost = _check_parents(steps, {node.value["name"].value: node for node in reversed(nodes)}, "step")
    lost += _check_parents(profiles, document.value["profiles"].value, "profile")
    problems += lost or _check_deltas(roadmap)
    if problems:
        raise ConfigError(_in_order(problems, document.value["base"].key))
    return roadmap


def _in_order(problems: list[Problem], base: Mark) -> list[Problem]:
    """Problems from the top of the file to its end; what has no place of its own is missing from the base."""
    placed = [problem if isinstance(problem.where, Mark) else Problem(base, f"base: {problem.message}") for problem in problems]
    return sorted(placed, key=lambda problem: (problem.where.line, problem.where.column) if isinstance(problem.where, Mark) else (0, 0))


def _check_form(document: Node) -> tuple[StepsFile | None, list[Problem]]:
    """The file as it is written, without what is wrong with its form, or None if nothing can be said of the rest."""
    plain = document.plain()
    try:
        return StepsFile.model_validate(plain), []
    except ValidationError as error:
        problems = [_locate(document, item) for item in error.errors()]
        for item in error.errors():
            _forget(plain, item["loc"])
    try:
        return StepsFile.model_validate(plain), problems
    except ValidationError:
        return None, problems


def _forget(plain: Any, place: tuple[Any, ...]) -> None:
    """Removes the paper's figures, or the key, that a form error is about, so that the rest of the file can be checked."""
    place = place[: place.index("paper") + 1] if "paper" in place else place
    for part in place[:-1]:
        if not isinstance(plain, dict | tuple) or (isinstance(plain, dict) and part not in plain):
            return
        plain = plain[part]
    if isinstance(plain, dict):
        plain.pop(place[-1] if place else None, None)


def _locate(document: Node, error: Any) -> Problem:
    """A pydantic error at the nearest place of the document."""
    node, where, inside = document, document.key, []
    for part in error["loc"]:
        children: Any = node.value
        if not (isinstance(children, dict) and part in children) and not (isinstance(children, tuple) and isinstance(part, int)):
            break
        node = children[part]
        name = node.value.get("name") if isinstance(node.value, dict) else None
        inside.append(str(name.value) if name else str(part))
        where = node.key
    path = ".".join(inside)
    if error["type"] == "extra_forbidden":
        fields = {
            field for entry in (StepsFile, RoadmapEntry, ProfileEntry, StepEntry, PaperFigures, Reference) for field in entry.model_fields
        }
        return Problem(where, f"unknown key '{path}'{did_you_mean(inside[-1], sorted(fields))}")
    return Problem(where, f"{path or 'the file'}: {reason(error)}")


def _read_steps(entry: RoadmapEntry, nodes: tuple[Node, ...], base: Settings, problems: list[Problem]) -> dict[str, Delta]:
    steps: dict[str, Delta] = {}
    places: dict[str, Mark] = {}
    previous: str | None = None
    for written, node in zip(entry.steps, nodes, strict=True):
        place = node.value["name"].mark
        if written.name in steps:
            problems.append(Problem(place, f"step '{written.name}' is defined twice, first in line {places[written.name].line}"))
            continue
        if previous is not None and not written.set:
            problems.append(Problem(place, f"step '{written.name}': changes nothing: `set` is empty"))
        settings = _read_set(node, f"step '{written.name}'", base, problems)
        steps[written.name] = Delta(written.name, written.title, written.parent or previous, settings, written.paper)
        places[written.name] = place
        previous = written.name
    return steps


def _read_profiles(entries: Mapping[str, ProfileEntry], node: Node, base: Settings, problems: list[Problem]) -> dict[str, Delta]:
    return {
        name: Delta(name, entry.title, entry.parent, _read_set(node.value[name], f"profile '{name}'", base, problems))
        for name, entry in entries.items()
    }


def _read_set(node: Node, source: str, base: Settings, problems: list[Problem]) -> Settings:
    """What a delta sets; keys that the base does not have become problems and are left out, so that the rest can be checked."""
    if not node.value.get("set") or not node.value["set"].value:
        return {}
    settings = settings_of(node.value["set"], source, problems)
    problems += unknown_keys(base, settings)
    return {path: setting for path, setting in settings.items() if path in base}


def _check_parents(deltas: Mapping[str, Delta], nodes: Mapping[str, Node], what: str) -> list[Problem]:
    """Each parent exists, and following them ends at a root."""
    problems = []
    for name, delta in deltas.items():
        if delta.parent is None or "parent" not in nodes[name].value:
            continue
        place, chain, here = nodes[name].value["parent"].mark, [name], delta.parent
        if here not in deltas:
            problems.append(Problem(place, f"{what} '{name}': unknown parent '{here}'{one_of_these(here, deltas)}"))
        while here in deltas and here not in chain:
            chain.append(here)
            here = deltas[here].parent or ""
        if here == name:
            problems.append(Problem(place, f"{what} '{name}': is its own ancestor: {' -> '.join([*chain, name])}"))
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
        if all(same(settings[path].value, setting.value) for settings in before)
    ]


def _check_values(roadmap: Roadmap, step: str, profile: str | None) -> list[Problem]:
    try:
        resolve(roadmap, step, profile=profile)
    except ConfigError as error:
        return error.problems
    return []
