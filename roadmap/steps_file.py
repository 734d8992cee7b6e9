"""A steps file as it is written: its form, what it adds to the file that it extends, and where errors are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from blocks.layers import did_you_mean
from blocks.spec import Count, Spec
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
from roadmap.strict_yaml import Node, read_yaml

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
StepPath = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*/[a-z][a-z0-9_]*$")]
Percent = Annotated[float, Field(ge=0, le=100)]
Speed = Annotated[float, Field(gt=0)]


class PaperResult(Spec):
    """What a publication prints for a step."""

    top1: Percent = Field(description="Top-1 accuracy in %, the mean of `n` runs.")
    std: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Standard deviation of `top1` over the runs."
    )
    n: Count = Field(description="Number of runs.")
    gmacs: float | None = Field(default=None, description="GMACs, which papers print as FLOPs.")
    gmacs_note: str | None = Field(
        default=None, description="Why the printed GMACs do not follow from the network."
    )


class CountedCost(Spec):
    """A step's cost at its own image size, counted outside this code."""

    params: float = Field(description="Parameters in 10**6.")
    gmacs: float = Field(description="Multiply-adds in 10**9.")


class Reference(Spec):
    """A model outside the roadmap to compare with."""

    title: str = Field(description="Its name in tables and figures.")
    top1: Percent = Field(description="Its published top-1 accuracy in %.")
    gmacs: float | None = Field(
        default=None, description="Its GMACs; a model without them is not drawn over cost."
    )


class ReferenceSpeed(Spec):
    """A model outside the roadmap whose throughput a publication prints."""

    title: str = Field(description="Its name in tables and figures.")
    image_size: Count = Field(description="Height and width of its input in pixels.")
    images_per_s: Speed = Field(description="Images per second in inference.")


class Throughput(Spec):
    """Images per second in inference, as a publication measured them."""

    source: str = Field(description="Where they are printed.")
    on: str = Field(description="The hardware and the settings of the measurement.")
    steps: dict[str, Speed] = Field(description="Images per second of each step.")
    references: tuple[ReferenceSpeed, ...] = Field(default=(), description="Other models of the same table.")


class TimmEntry(Spec):
    """A model of timm, which a reference step trains in place of one of our networks."""

    timm: str = Field(description="timm's name for the model, such as `swin_tiny_patch4_window7_224`.")
    args: dict[str, Any] = Field(
        default_factory=dict, description="More keywords of timm's `create_model` for it."
    )
    batch_norm: bool = Field(
        default=True,
        description="Whether the model has BN, whose batches are then those of `recipe.local_batch`.",
    )
    profiles: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="Keywords in a profile and those that it is the parent of, over `args`.",
    )


class StepEntry(Spec):
    """One step: a change of a few values of its parent.

    In a roadmap that is `like` another one, what is missing comes from the step of the same name there. With
    `model`, it is a reference step: outside the tree, with the recipe of the path's last step.
    """

    name: Name = Field(description="The step's id.")
    title: str | None = Field(default=None, description="The step's name in tables and figures.")
    parent: Name | None = Field(
        default=None, description="The step that this one changes; by default the one before it."
    )
    model: TimmEntry | None = Field(
        default=None, description="A model of timm, which makes this a reference step, without a parent."
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="The keys that the step changes, nested or dotted."
    )
    paper: PaperResult | None = Field(default=None, description="What the publication prints for this step.")
    counted: CountedCost | None = Field(
        default=None, description="The step's cost, counted outside this code."
    )


class ProfileEntry(Spec):
    """One profile: a data set and a budget, as a change that is applied to every step after its own."""

    title: str = Field(description="The profile's name in tables.")
    parent: Name | None = Field(default=None, description="The profile that this one changes.")
    set: dict[str, Any] = Field(description="The keys that the profile changes, nested or dotted.")


def _not_empty(steps: tuple[StepEntry, ...]) -> tuple[StepEntry, ...]:
    if not steps:  # a minimum length would also report a list whose only step is malformed
        raise ValueError("a roadmap needs at least one step")
    return steps


class RoadmapEntry(Spec):
    """One roadmap: a tree of steps over a base. Its path leads from the first step to its end."""

    title: str = Field(description="The roadmap's name in tables and figures.")
    source: str | None = Field(default=None, description="Where the paper's results are printed.")
    base: StepPath | None = Field(
        default=None,
        description="The base, as `roadmap/step` of a roadmap above this one; by default the file's.",
    )
    like: Name | None = Field(
        default=None, description="A roadmap above this one whose deltas the steps of the same names share."
    )
    end: Name | None = Field(
        default=None, description="The last step of the path; by default the last one of the file."
    )
    reference: Reference | None = Field(
        default=None, description="A model outside the roadmap to compare with."
    )
    throughput: Throughput | None = Field(
        default=None, description="Images per second in inference, as a publication measured them."
    )
    steps: Annotated[tuple[StepEntry, ...], AfterValidator(_not_empty)] = Field(
        description="The steps; the first one is the root.", json_schema_extra={"minItems": 1}
    )


class StepsFile(Spec):
    """A steps file: the base of all values, profiles, and roadmaps."""

    base: dict[str, Any] = Field(description="All keys of a configuration, with their defaults.")
    profiles: dict[Name, ProfileEntry] = Field(description="Data sets and budgets, by name.")
    roadmaps: dict[Name, RoadmapEntry] = Field(description="Trees of steps, by name.")


ENTRIES: tuple[type[Spec], ...] = (
    StepsFile, RoadmapEntry, ProfileEntry, StepEntry, TimmEntry, PaperResult, CountedCost, Reference,
    Throughput, ReferenceSpeed,
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A steps file with what it extends: `written` lacks what is malformed, which is in `problems`."""

    path: Path
    node: Node
    written: StepsFile
    problems: list[Problem]

    def error(self, problems: list[Problem]) -> ConfigError:
        """All problems in the order of the files; a problem without a place is a key that the base lacks."""
        base = self.node.at("base").key
        placed = [
            problem if isinstance(problem.where, Mark) else Problem(base, f"base: {problem.message}")
            for problem in problems
        ]
        return ConfigError(sorted(placed, key=_position))


def _position(problem: Problem) -> tuple[str, int, int]:
    where = problem.where
    return (where.file, where.line, where.column) if isinstance(where, Mark) else ("", 0, 0)


def read_steps_file(path: Path) -> Document:
    """The file with what it extends; ConfigError if it is too malformed to check the rest."""
    problems: list[Problem] = []
    node = _extended(path.absolute(), (), problems)
    written, malformed = _check_form(node)
    if written is None:
        raise ConfigError(sorted(problems + malformed, key=_position))
    return Document(path.absolute(), node, written, problems + malformed)


def _extended(path: Path, above: tuple[Path, ...], problems: list[Problem]) -> Node:
    """The document in `path` over the one that it extends; `above` are the files that led to it."""
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
    join = {"profiles": _add_profiles, "roadmaps": _add_roadmaps}
    added: dict[str, Node] = dict(below.value)
    for key, node in above.value.items():
        if key == "base":
            message = "belongs to the file that is extended; put other values into a profile or a step"
            problems.append(Problem(node.key, f"base: {message}"))
        elif key in join and isinstance(node.value, dict) and key in below.value:
            if isinstance(below.value[key].value, dict):
                added[key] = join[key](below.value[key], node, problems)
        elif key != "extends":
            added[key] = node
    return replace(above, value=added)


def _add_profiles(below: Node, above: Node, problems: list[Problem]) -> Node:
    added = dict(below.value)
    for name, node in above.value.items():
        if name in below.value:
            message = f"is defined at {below.value[name].key} already; choose another name"
            problems.append(Problem(node.key, f"profile '{name}': {message}"))
        else:
            added[name] = node
    return replace(above, value=added)


def _add_roadmaps(below: Node, above: Node, problems: list[Problem]) -> Node:
    """More roadmaps, and more steps of those that are there; one without a title is a misspelled name."""
    added = dict(below.value)
    for name, node in above.value.items():
        if name in below.value:
            added[name] = _add_steps(name, below.value[name], node, problems)
        elif isinstance(node.value, dict) and "title" not in node.value:
            message = (
                f"is not in the extended file, and a new one needs a title{one_of_these(name, below.value)}"
            )
            problems.append(Problem(node.key, f"roadmap '{name}': {message}"))
        else:
            added[name] = node
    return replace(above, value=added)


def _add_steps(name: str, below: Node, above: Node, problems: list[Problem]) -> Node:
    """The roadmap of the extended file with more steps."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    for key, node in above.value.items():
        if key != "steps":
            message = f"is defined at {below.key} already; only its `steps` can be added to"
            problems.append(Problem(node.key, f"roadmap '{name}': {message}"))
    if "steps" not in above.value:
        return below
    steps, more = below.value.get("steps"), above.value["steps"]
    if steps is not None and isinstance(steps.value, tuple) and isinstance(more.value, tuple):
        more = replace(steps, value=(*steps.value, *more.value))
    return replace(below, value=below.value | {"steps": more})


def _check_form(document: Node) -> tuple[StepsFile | None, list[Problem]]:
    """The file as written, without what is malformed; None if the rest cannot be checked without it."""
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


def _forget(plain: Any, loc: tuple[Any, ...]) -> None:
    """Removes the key that a form error is about, or the paper's results, so that the rest can be checked."""
    for section in ("paper", "counted"):
        loc = loc[: loc.index(section) + 1] if section in loc else loc
    for part in loc[:-1]:
        if not isinstance(plain, dict | tuple) or (isinstance(plain, dict) and part not in plain):
            return
        plain = plain[part]
    if isinstance(plain, dict):
        plain.pop(loc[-1] if loc else None, None)


def _locate(document: Node, error: Any) -> Problem:
    """A pydantic error at the nearest place of the document; steps are named, not counted."""
    if document.value is None:
        return Problem(document.mark.file, "is empty")
    where, names = document.key, []
    for part, node in document.walk(error["loc"]):
        name = node.value.get("name") if isinstance(node.value, dict) else None
        names.append(str(name.value) if name else str(part))
        where = node.key
    path = ".".join(names)
    if error["type"] == "extra_forbidden":
        fields = {"extends", *(field for entry in ENTRIES for field in entry.model_fields)}
        return Problem(where, f"unknown key '{path}'{did_you_mean(names[-1], sorted(fields))}")
    return Problem(where, f"{path or 'the file'}: {format_validation_error(error)}")
