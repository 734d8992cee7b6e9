"""A steps file as it is written: its form, what it takes over from the file that it extends, and the place of
what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from blocks.layers import did_you_mean
from blocks.spec import Spec
from roadmap import STEPS_YAML
from roadmap.errors import (
    ConfigError,
    Mark,
    Problem,
    config_error,
    format_validation_error,
    one_of_these,
    relative,
)
from roadmap.strict_yaml import Node, read_yaml, write_yaml
from roadmap.tree import Counted, PaperFigures, Reference, ReferenceSpeed, Throughput

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Place = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*/[a-z][a-z0-9_]*$")]


class StepEntry(Spec):
    """One step: a change of a few values of its parent, which is the step before unless `parent` names
    another.

    In a roadmap that is `like` another one, what is not written comes from the step of the same name there.
    """

    name: Name
    title: str | None = None
    parent: Name | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    paper: PaperFigures | None = None
    counted: Counted | None = None


class ProfileEntry(Spec):
    """One profile: a data set and a budget, as a change that every step gets alike, after its own."""

    title: str
    parent: Name | None = None
    set: dict[str, Any]


def _not_empty(steps: tuple[StepEntry, ...]) -> tuple[StepEntry, ...]:
    if not steps:
        raise ValueError("a roadmap needs at least one step")
    return steps


class RoadmapEntry(Spec):
    """One roadmap: a tree of steps over the file's base, or over a step of a roadmap above it, written
    `roadmap/step`.

    Its path leads from the root to the step `end`, the last one of the file unless it is given.
    """

    title: str
    source: str | None = None
    base: Place | None = None
    like: Name | None = None
    end: Name | None = None
    reference: Reference | None = None
    throughput: Throughput | None = None
    steps: Annotated[tuple[StepEntry, ...], AfterValidator(_not_empty)]


class StepsFile(Spec):
    """A steps file: the base of all values, profiles, and roadmaps."""

    base: dict[str, Any]
    profiles: dict[Name, ProfileEntry]
    roadmaps: dict[Name, RoadmapEntry]


ENTRIES: tuple[type[Spec], ...] = (
    StepsFile, RoadmapEntry, ProfileEntry, StepEntry, PaperFigures, Counted, Reference, Throughput,
    ReferenceSpeed,
)  # fmt: skip
Join = Callable[[str, Node, Node, list[Problem]], Node]


@dataclass(frozen=True)
class Document:
    """A steps file with what it extends: `written` lacks what is wrong in form, which is in `problems`."""

    path: Path
    node: Node
    written: StepsFile
    problems: list[Problem]

    def steps(self, roadmap: str) -> tuple[Node, ...]:
        """The nodes of a roadmap's steps."""
        nodes: tuple[Node, ...] = self.node.value["roadmaps"].value[roadmap].value["steps"].value
        return nodes

    def text(self, ends: Mapping[str, str]) -> str:
        """The file with what it extends in one; `ends` are those of its roadmaps' paths."""
        plain = self.node.plain()
        for name, end in ends.items():
            plain["roadmaps"][name]["end"] = end
        return write_yaml(plain)

    def error(self, problems: list[Problem]) -> ConfigError:
        """All problems, file by file, top to end; what has no place of its own is missing from the base."""
        base = self.node.value["base"].key
        placed = [
            problem if isinstance(problem.where, Mark) else Problem(base, f"base: {problem.message}")
            for problem in problems
        ]
        return ConfigError(sorted(placed, key=_position))


def _position(problem: Problem) -> tuple[str, int, int]:
    return (
        (problem.where.file, problem.where.line, problem.where.column)
        if isinstance(problem.where, Mark)
        else ("", 0, 0)
    )


def read_steps_file(path: Path) -> Document:
    """The file with what it extends; ConfigError if its form leaves nothing to go on with."""
    problems: list[Problem] = []
    node = _extended(path.absolute(), (), problems)
    written, wrong = _check_form(node)
    if written is None:
        raise ConfigError(sorted(problems + wrong, key=_position))
    return Document(path.absolute(), node, written, problems + wrong)


def _extended(path: Path, above: tuple[Path, ...], problems: list[Problem]) -> Node:
    """The document in `path` over the one that it extends; `above` are the files on the way here."""
    node = read_yaml(path)
    if not isinstance(node.value, dict) or "extends" not in node.value:
        return node
    extends = node.value["extends"]
    if not isinstance(extends.value, str):
        raise config_error(
            extends.mark, "extends: name the steps file that this one adds to, such as steps.yaml"
        )
    beside, shipped = path.parent / extends.value, STEPS_YAML.parent / extends.value
    try:
        file = beside if beside.is_file() and not beside.samefile(path) else shipped
        is_there = file.is_file()
    except OSError as error:
        raise config_error(extends.mark, f"extends: {error.strerror}") from error
    if not is_there:
        raise config_error(
            extends.mark,
            f"extends: there is no '{extends.value}' in {relative(path.parent)}, nor in the project",
        )
    if file.resolve() in {other.resolve() for other in (*above, path)}:
        raise config_error(extends.mark, f"extends: '{extends.value}' comes back to this file")
    return _add(_extended(file, (*above, path), problems), node, problems)


def _add(below: Node, above: Node, problems: list[Problem]) -> Node:
    """The extended document `below` with the profiles, roadmaps and steps of `above`."""
    if not isinstance(below.value, dict):
        return below
    added: dict[str, Node] = dict(below.value)
    for key, node in above.value.items():
        if key == "base":
            problems.append(
                Problem(
                    node.key,
                    "base: belongs to the file that is extended; put other values into a profile or a step",
                )
            )
        elif key in ("profiles", "roadmaps") and isinstance(node.value, dict) and key in below.value:
            under = below.value[key]
            if key == "roadmaps":
                added[key] = _union(under, _titled(under, node, problems), _join_roadmap, problems)
            else:
                added[key] = _union(under, node, _refuse_profile, problems)
        elif key != "extends":
            added[key] = node
    return replace(above, value=added)


def _union(below: Node, above: Node, join: Join, problems: list[Problem]) -> Node:
    """Two mappings as one; `join` decides about the names that are in both."""
    if not isinstance(below.value, dict):
        return below
    both = {
        name: join(name, below.value[name], node, problems)
        for name, node in above.value.items()
        if name in below.value
    }
    return replace(above, value={**below.value, **above.value, **both})


def _titled(below: Node, above: Node, problems: list[Problem]) -> Node:
    """`above` without new roadmaps that have no title: the name of another was meant."""
    kept = dict(above.value)
    for name, node in above.value.items():
        if (
            isinstance(below.value, dict)
            and name not in below.value
            and isinstance(node.value, dict)
            and "title" not in node.value
        ):
            message = (
                f"roadmap '{name}': is not in the extended file, and a new one needs a"
                f" title{one_of_these(name, below.value)}"
            )
            problems.append(Problem(node.key, message))
            del kept[name]
    return replace(above, value=kept)


def _refuse_profile(name: str, below: Node, above: Node, problems: list[Problem]) -> Node:
    problems.append(
        Problem(above.key, f"profile '{name}': is defined at {below.key} already; choose another name")
    )
    return below


def _join_roadmap(name: str, below: Node, above: Node, problems: list[Problem]) -> Node:
    """The roadmap of the extended file with more steps."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    for key, node in above.value.items():
        if key != "steps":
            problems.append(
                Problem(
                    node.key,
                    f"roadmap '{name}': is defined at {below.key} already; only its `steps` can be added to",
                )
            )
    steps, more = below.value.get("steps"), above.value.get("steps")
    if (
        steps is None
        or more is None
        or not isinstance(more.value, tuple)
        or not isinstance(steps.value, tuple)
    ):
        return replace(below, value=below.value | ({"steps": more} if more else {}))
    return replace(below, value=below.value | {"steps": replace(steps, value=(*steps.value, *more.value))})


def _check_form(document: Node) -> tuple[StepsFile | None, list[Problem]]:
    """The file as written, without what is wrong in form; None if nothing can be said of the rest."""
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
    """Removes the figures or the key that a form error is about, so that the rest can be checked."""
    for figures in ("paper", "counted"):
        place = place[: place.index(figures) + 1] if figures in place else place
    for part in place[:-1]:
        if not isinstance(plain, dict | tuple) or (isinstance(plain, dict) and part not in plain):
            return
        plain = plain[part]
    if isinstance(plain, dict):
        plain.pop(place[-1] if place else None, None)


def _locate(document: Node, error: Any) -> Problem:
    """A pydantic error at the nearest place of the document."""
    if document.value is None:
        return Problem(document.mark.file, "is empty")
    node, where, inside = document, document.key, []
    for part in error["loc"]:
        children: Any = node.value
        if not (isinstance(children, dict) and part in children) and not (
            isinstance(children, tuple) and isinstance(part, int)
        ):
            break
        node = children[part]
        name = node.value.get("name") if isinstance(node.value, dict) else None
        inside.append(str(name.value) if name else str(part))
        where = node.key
    path = ".".join(inside)
    if error["type"] == "extra_forbidden":
        fields = {"extends", *(field for entry in ENTRIES for field in entry.model_fields)}
        return Problem(where, f"unknown key '{path}'{did_you_mean(inside[-1], sorted(fields))}")
    return Problem(where, f"{path or 'the file'}: {format_validation_error(error)}")
