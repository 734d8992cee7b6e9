"""Reading a steps file: its trees, and that every delta does what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from roadmap import STEPS_YAML
from roadmap.ablations import ablate
from roadmap.errors import ConfigError, Mark, Problem, one_of_these, relative
from roadmap.settings import Settings, merge, parse_overrides, same, settings_of, unknown_keys
from roadmap.steps_file import Document, RoadmapEntry, StepEntry, read_steps_file
from roadmap.strict_yaml import Node, show
from roadmap.tree import NO_PROFILE, Delta, Roadmap, resolve, trace

__all__ = ["Roadmap", "flat_text", "load_roadmap", "load_roadmaps", "parse_overrides", "resolve"]


def load_roadmap(
    path: str | Path = STEPS_YAML, name: str = "convnext_t", *, ablation: str | None = None, **choices: Any
) -> Roadmap:
    """The roadmap `name` of a steps file, or an ablation of it such as 'leave-one-out'; `choices` are those
    of `ablations.ablate`.

    ConfigError holds all that is wrong with the file at once, with lines and columns.
    """
    document = read_steps_file(Path(path))
    if name not in document.written.roadmaps:
        unknown = Problem(
            relative(Path(path)), f"unknown roadmap '{name}'{one_of_these(name, document.written.roadmaps)}"
        )
        raise document.error(document.problems) if document.problems else ConfigError([unknown])
    roadmap = _checked(document, [name])[name]
    return ablate(roadmap, ablation, **choices) if ablation is not None else roadmap


def load_roadmaps(path: str | Path = STEPS_YAML) -> dict[str, Roadmap]:
    """All roadmaps of a steps file by name; ConfigError as in `load_roadmap`."""
    document = read_steps_file(Path(path))
    return _checked(document, list(document.written.roadmaps))


def flat_text(path: str | Path) -> str:
    """A steps file with all that it extends in one, which reads the same wherever it is put; ConfigError as
    in `load_roadmap`.
    """
    document = read_steps_file(Path(path))
    return document.text(
        {
            name: roadmap.trunk[-1]
            for name, roadmap in _checked(document, list(document.written.roadmaps)).items()
        }
    )


def _checked(document: Document, wanted: Sequence[str]) -> dict[str, Roadmap]:
    """The wanted roadmaps; all steps of the document are checked, the wanted ones in each profile, too."""
    trees = _Trees(document)
    problems = trees.problems + _check_profiles(trees.profiles, list(trees.roadmaps.values()))
    for roadmap in trees.roadmaps.values():
        problems += _check_steps(roadmap)
    if not problems:
        problems = [problem for name in wanted for problem in _check_steps_in_profiles(trees.roadmaps[name])]
    if problems:
        raise document.error(problems)
    return {name: trees.roadmaps[name] for name in wanted}


class _Trees:
    """One pass over a document: its profiles and roadmaps, without those that have no root, and what is wrong
    with it.
    """

    def __init__(self, document: Document) -> None:
        self.document, self.problems = document, list(document.problems)
        self.base = settings_of(document.node.value["base"], "base", self.problems)
        self.profiles = self._read_profiles()
        self.roadmaps: dict[str, Roadmap] = {}
        for name, entry in document.written.roadmaps.items():
            base, like = self._base_of(name, entry), self._like(name, entry)
            if base is None or (entry.like and not like):
                continue
            steps = self._read_steps(name, entry, like)
            nodes = {node.value["name"].value: node for node in reversed(document.steps(name))}
            if self._check_parents(steps, nodes, "step"):
                self._check_throughput(name, entry, steps)
                printed = entry.reference, entry.source, entry.throughput
                roadmap = Roadmap(name, entry.title, document.path, base, steps, self.profiles, *printed)
                self.roadmaps[name] = replace(roadmap, end=self._end_of(roadmap, entry, nodes))

    def _end_of(self, roadmap: Roadmap, entry: RoadmapEntry, nodes: Mapping[str, Node]) -> str:
        """The step in which the path ends: as written, else the last one of the file that has the roadmap, or
        one that another adds.

        Of the steps that a file adds, the one furthest from the root is the end, the last of several, if it
        is at least as far as the end before: a branch off an earlier step leaves the path as it is.
        """
        by_file = [
            list(steps)
            for _, steps in groupby(roadmap.steps, lambda step: nodes[step].value["name"].mark.file)
        ]
        end = entry.end or by_file[0][-1]
        if end not in roadmap.tree:
            place = self.document.node.value["roadmaps"].value[roadmap.name].value["end"].mark
            self.problems.append(
                Problem(
                    place,
                    f"roadmap '{roadmap.name}': end: unknown step '{end}'{one_of_these(end, roadmap.tree)}",
                )
            )
            return by_file[0][-1]
        for added in by_file[1:]:
            end = max([*reversed(added), end], key=lambda step: len(roadmap.lineage(step)))
        return end

    def _check_throughput(self, name: str, entry: RoadmapEntry, steps: Mapping[str, Delta]) -> None:
        """Whether each step whose throughput is printed exists."""
        for step in entry.throughput.steps if entry.throughput else ():
            if step not in steps:
                place = (
                    self.document.node.value["roadmaps"]
                    .value[name]
                    .value["throughput"]
                    .value["steps"]
                    .value[step]
                    .key
                )
                self.problems.append(
                    Problem(
                        place,
                        f"roadmap '{name}': throughput: unknown step '{step}'{one_of_these(step, steps)}",
                    )
                )

    def _read_profiles(self) -> dict[str, Delta]:
        node = self.document.node.value["profiles"]
        for name, entry in node.value.items():
            if name in self.document.written.profiles and _sets_nothing(entry):
                self.problems.append(Problem(entry.key, f"profile '{name}': changes nothing: `set` is empty"))
        profiles = {
            name: Delta(
                name, entry.title, entry.parent, self._read_set(node.value[name], f"profile '{name}'")
            )
            for name, entry in self.document.written.profiles.items()
        }
        if NO_PROFILE in profiles:
            message = f"profile '{NO_PROFILE}': the name stands for running without a profile; choose another"
            self.problems.append(Problem(node.value[NO_PROFILE].key, message))
        return profiles if self._check_parents(profiles, node.value, "profile") else {}

    def _base_of(self, name: str, entry: RoadmapEntry) -> Settings | None:
        """What a roadmap starts from: the file's base, or a step of a roadmap above it; None if there is no
        such step.
        """
        if entry.base is None:
            return self.base
        place = self.document.node.value["roadmaps"].value[name].value["base"].mark
        other, step = entry.base.split("/")
        roadmap = self._above(name, other, place, "base")
        if roadmap is None:
            return None
        if step not in roadmap.tree:
            self.problems.append(
                Problem(
                    place,
                    f"roadmap '{name}': base: {other} has no step '{step}'{one_of_these(step, roadmap.tree)}",
                )
            )
            return None
        settings = trace(roadmap, step)
        return {path: settings[path] for path in self.base}

    def _like(self, name: str, entry: RoadmapEntry) -> Roadmap | None:
        """The roadmap whose deltas a roadmap shares, if it shares any."""
        if entry.like is None:
            return None
        place = self.document.node.value["roadmaps"].value[name].value["like"].mark
        return self._above(name, entry.like, place, "like")

    def _above(self, name: str, other: str, place: Mark, key: str) -> Roadmap | None:
        """The roadmap `other`, which must stand above `name`; None if it does not, or is broken itself."""
        if other not in self.roadmaps:
            written = list(self.document.written.roadmaps)
            earlier = written[: written.index(name)]
            if other not in earlier:
                why = (
                    "stands below it, or is itself"
                    if other in written
                    else f"is unknown{one_of_these(other, earlier)}"
                )
                self.problems.append(Problem(place, f"roadmap '{name}': {key}: '{other}' {why}"))
            return None
        return self.roadmaps[other]

    def _read_steps(self, name: str, entry: RoadmapEntry, like: Roadmap | None) -> dict[str, Delta]:
        steps: dict[str, Delta] = {}
        places: dict[str, Mark] = {}
        for written, node in zip(entry.steps, self.document.steps(name), strict=True):
            place = node.value["name"].mark
            if written.name in steps:
                first = places[written.name]
                where = f"in line {first.line}" if first.file == place.file else f"at {first}"
                self.problems.append(Problem(place, f"step '{written.name}' is defined twice, first {where}"))
                continue
            steps[written.name] = self._read_step(written, node, like, list(steps))
            places[written.name] = place
            is_shared = like is not None and (written.name in like.tree or written.title is None)
            if len(steps) > 1 and _sets_nothing(node) and not is_shared:
                self.problems.append(
                    Problem(place, f"step '{written.name}': changes nothing: `set` is empty")
                )
        return steps

    def _read_step(
        self, written: StepEntry, node: Node, like: Roadmap | None, before: Sequence[str]
    ) -> Delta:
        """A step behind those `before` it; in a roadmap that is like another, the step of the same name there
        gives what is not written.
        """
        settings, title, parent = (
            self._read_set(node, f"step '{written.name}'"),
            written.title,
            written.parent,
        )
        if like and written.name in like.tree:
            pattern = like.tree[written.name]
            settings, title = merge(pattern.settings, settings), title or pattern.title
            # from its nearest ancestor that is here, too
            if parent is None and before and like.branches_off(written.name):
                parent = next(
                    (delta.name for delta in reversed(like.lineage(written.name)) if delta.name in before),
                    before[0],
                )
        if title is None:
            why = (
                f", and {like.name} has no step of this name{one_of_these(written.name, like.tree)}"
                if like
                else ""
            )
            self.problems.append(Problem(node.key, f"step '{written.name}': 'title' is missing{why}"))
        parent = parent or (before[-1] if before else None)
        return Delta(written.name, title or written.name, parent, settings, written.paper, written.counted)

    def _read_set(self, node: Node, source: str) -> Settings:
        """What a delta sets; keys that the base does not have become problems and are left out, so that the
        rest can be checked.
        """
        if not node.value.get("set") or not node.value["set"].value:
            return {}
        settings = settings_of(node.value["set"], source, self.problems)
        self.problems += unknown_keys(self.base, settings)
        return {path: setting for path, setting in settings.items() if path in self.base}

    def _check_parents(self, deltas: Mapping[str, Delta], nodes: Mapping[str, Node], what: str) -> bool:
        """Whether each parent exists, and following them ends at a root."""
        problems = []
        for name, delta in deltas.items():
            if delta.parent is None:
                continue
            written = nodes[name].value.get("parent")
            place, chain, here = (written or nodes[name]).mark, [name], delta.parent
            if here not in deltas:
                problems.append(
                    Problem(place, f"{what} '{name}': unknown parent '{here}'{one_of_these(here, deltas)}")
                )
            while here in deltas and here not in chain:
                chain.append(here)
                here = deltas[here].parent or ""
            if here == name:
                problems.append(
                    Problem(place, f"{what} '{name}': is its own ancestor: {' -> '.join([*chain, name])}")
                )
        self.problems += problems
        return not problems


def _sets_nothing(node: Node) -> bool:
    """Whether a step or a profile has no `set`, or one without a value."""
    return "set" not in node.value or not any(True for _ in node.value["set"].leaves())


def _check_steps(roadmap: Roadmap) -> list[Problem]:
    """Each step changes every leaf that it sets, and is valid."""
    problems: list[Problem] = []
    for step in roadmap.tree.values():
        before = trace(roadmap, step.parent) if step.parent else roadmap.base
        problems += _check_changes(step, [before])
        problems += _check_values(roadmap, step.name, None)
    return problems


def _check_profiles(profiles: Mapping[str, Delta], roadmaps: Sequence[Roadmap]) -> list[Problem]:
    """Each profile changes every leaf that it sets, in some step of some roadmap."""
    problems: list[Problem] = []
    for profile in profiles.values():
        before = [
            trace(roadmap, step, profile=profile.parent) for roadmap in roadmaps for step in roadmap.steps
        ]
        problems += _check_changes(profile, before) if before else []
    return problems


def _check_steps_in_profiles(roadmap: Roadmap) -> list[Problem]:
    return [
        problem
        for name in roadmap.profiles
        for step in roadmap.steps
        for problem in _check_values(roadmap, step, name)
    ]


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
