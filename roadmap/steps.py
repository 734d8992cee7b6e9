"""Roadmaps from a steps file: builds its trees, and checks that every delta does what it states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from roadmap import STEPS_YAML
from roadmap.ablations import ablate
from roadmap.deltas import (
    NO_PROFILE,
    Delta,
    ReferenceStep,
    Roadmap,
    Setting,
    Settings,
    is_key_of_timm,
    merge,
    parse_overrides,
    resolve,
    same,
    settings_of,
    trace,
    unknown_keys,
)
from roadmap.errors import ConfigError, Mark, Problem, config_error, one_of_these, relative
from roadmap.steps_file import Document, RoadmapEntry, StepEntry, read_steps_file
from roadmap.strict_yaml import Node, show, write_yaml

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
        if document.problems:
            raise document.error(document.problems)
        hint = one_of_these(name, document.written.roadmaps)
        raise config_error(relative(Path(path)), f"unknown roadmap '{name}'{hint}")
    roadmap = _build(document, [name])[name]
    return ablate(roadmap, ablation, **choices) if ablation is not None else roadmap


def load_roadmaps(path: str | Path = STEPS_YAML) -> dict[str, Roadmap]:
    """All roadmaps of a steps file by name; ConfigError as in `load_roadmap`."""
    document = read_steps_file(Path(path))
    return _build(document, list(document.written.roadmaps))


def flat_text(path: str | Path) -> str:
    """A steps file with all that it extends in one text, which reads the same in any folder; ConfigError as
    in `load_roadmap`.
    """
    document = read_steps_file(Path(path))
    plain = document.node.plain()
    for name, roadmap in _build(document, list(document.written.roadmaps)).items():
        plain["roadmaps"][name]["end"] = roadmap.trunk[-1]
    return write_yaml(plain)


def _build(document: Document, wanted: Sequence[str]) -> dict[str, Roadmap]:
    """The wanted roadmaps; all steps of the document are checked, and the wanted ones in each profile."""
    builder = _Builder(document)
    roadmaps = builder.roadmaps
    problems = builder.problems + _check_profiles(builder.profiles, list(roadmaps.values()))
    for roadmap in roadmaps.values():
        problems += _check_steps(roadmap)
    if not problems:
        problems = [problem for name in wanted for problem in _check_steps_in_profiles(roadmaps[name])]
    if problems:
        raise document.error(problems)
    return {name: roadmaps[name] for name in wanted}


class _Builder:
    """The profiles and roadmaps of a document, without those that are broken, and what is wrong with it."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems = list(document.problems)
        self.base = settings_of(document.node.at("base"), "base", self.problems)
        self.profiles = self._build_profiles()
        self.roadmaps: dict[str, Roadmap] = {}
        for name, entry in document.written.roadmaps.items():
            roadmap = self._build_roadmap(name, entry)
            if roadmap is not None:
                self.roadmaps[name] = roadmap

    def _build_profiles(self) -> dict[str, Delta]:
        node = self.document.node.at("profiles")
        profiles = {}
        for name, entry in self.document.written.profiles.items():
            if _sets_nothing(node.at(name)):
                self._add(node.at(name).key, f"profile '{name}': changes nothing: `set` is empty")
            settings = self._read_set(node.at(name), f"profile '{name}'")
            profiles[name] = Delta(name, entry.title, entry.parent, settings)
        if NO_PROFILE in profiles:
            message = f"profile '{NO_PROFILE}': the name stands for running without a profile; choose another"
            self._add(node.at(NO_PROFILE).key, message)
        return profiles if self._check_parents(profiles, node.value, "profile") else {}

    def _build_roadmap(self, name: str, entry: RoadmapEntry) -> Roadmap | None:
        """A roadmap; None if what it builds on is missing, or its steps do not form a tree."""
        base = self._base_of(name, entry)
        like = self._earlier(name, "like", entry.like) if entry.like else None
        if base is None or (entry.like and like is None):
            return None
        built = self._build_steps(name, entry, like)
        references = {step.name: step for step in built.values() if isinstance(step, ReferenceStep)}
        steps = {step: delta for step, delta in built.items() if step not in references}
        nodes = self._step_nodes(name)
        if not steps:
            message = "has references only; a roadmap needs a step without `model`"
            self._add(self._at(name).key, f"roadmap '{name}': {message}")
        if not steps or not self._check_parents(steps, nodes, "step"):
            return None
        for step in entry.throughput.steps if entry.throughput else ():
            if step not in steps:
                place = self._at(name, "throughput", "steps", step).key
                message = f"throughput: unknown step '{step}'{one_of_these(step, steps)}"
                self._add(place, f"roadmap '{name}': {message}")
        roadmap = Roadmap(
            name,
            entry.title,
            self.document.path,
            base,
            steps,
            self.profiles,
            entry.reference,
            entry.source,
            entry.throughput,
            references=references,
        )
        return replace(roadmap, end=self._end_of(roadmap, entry, nodes))

    def _at(self, roadmap: str, *path: str) -> Node:
        return self.document.node.at("roadmaps", roadmap, *path)

    def _add(self, place: Mark, message: str) -> None:
        self.problems.append(Problem(place, message))

    def _step_nodes(self, roadmap: str) -> dict[str, Node]:
        """The nodes of a roadmap's steps by name; of two with the same name the first."""
        nodes: tuple[Node, ...] = self._at(roadmap, "steps").value
        return {node.at("name").value: node for node in reversed(nodes)}

    def _end_of(self, roadmap: Roadmap, entry: RoadmapEntry, nodes: Mapping[str, Node]) -> str:
        """The last step of the path: as written, else the last one of the first file, or one that another
        file adds.

        Of the steps that a file adds, the one furthest from the root is the end, the last of several, if it
        is at least as far as the end before: a branch off an earlier step does not change the path.
        """
        files = groupby(roadmap.steps, lambda step: nodes[step].at("name").mark.file)
        by_file = [list(steps) for _, steps in files]
        end = entry.end or by_file[0][-1]
        if end not in roadmap.tree:
            message = f"end: unknown step '{end}'{one_of_these(end, roadmap.tree)}"
            self._add(self._at(roadmap.name, "end").mark, f"roadmap '{roadmap.name}': {message}")
            return by_file[0][-1]
        for added in by_file[1:]:
            end = max([*reversed(added), end], key=lambda step: len(roadmap.lineage(step)))
        return end

    def _base_of(self, name: str, entry: RoadmapEntry) -> Settings | None:
        """The file's base, or a step of a roadmap above; None if there is no such step."""
        if entry.base is None:
            return self.base
        other, step = entry.base.split("/")
        roadmap = self._earlier(name, "base", other)
        if roadmap is None:
            return None
        if step not in roadmap.tree:
            message = f"base: {other} has no step '{step}'{one_of_these(step, roadmap.tree)}"
            self._add(self._at(name, "base").mark, f"roadmap '{name}': {message}")
            return None
        settings = trace(roadmap, step)
        return {path: settings[path] for path in self.base}

    def _earlier(self, name: str, key: str, other: str) -> Roadmap | None:
        """The roadmap `other`, which a key of `name` refers to; None if it is not above, or broken itself."""
        names = list(self.document.written.roadmaps)
        earlier = names[: names.index(name)]
        if other not in earlier:
            why = "is not above it" if other in names else f"is unknown{one_of_these(other, earlier)}"
            self._add(self._at(name, key).mark, f"roadmap '{name}': {key}: '{other}' {why}")
        return self.roadmaps.get(other)

    def _build_steps(self, name: str, entry: RoadmapEntry, like: Roadmap | None) -> dict[str, Delta]:
        steps: dict[str, Delta] = {}
        places: dict[str, Mark] = {}
        for written, node in zip(entry.steps, self._at(name, "steps").value, strict=True):
            place = node.at("name").mark
            if written.name in steps:
                first = places[written.name]
                where = f"in line {first.line}" if first.file == place.file else f"at {first}"
                self._add(place, f"step '{written.name}' is defined twice, first {where}")
                continue
            places[written.name] = place
            if written.model is not None:
                steps[written.name] = self._build_reference(written, node)
                continue
            before = [step.name for step in steps.values() if not isinstance(step, ReferenceStep)]
            steps[written.name] = self._build_step(written, node, like, before)
            is_shared = like is not None and (written.name in like.tree or written.title is None)
            if before and _sets_nothing(node) and not is_shared:
                self._add(place, f"step '{written.name}': changes nothing: `set` is empty")
        return steps

    def _build_step(
        self, written: StepEntry, node: Node, like: Roadmap | None, before: Sequence[str]
    ) -> Delta:
        """A step behind those `before` it; what is not written comes from the step of the same name in the
        roadmap that this one is `like`.
        """
        settings = self._read_set(node, f"step '{written.name}'")
        title = written.title
        parent = written.parent
        if like and written.name in like.tree:
            pattern = like.tree[written.name]
            settings = merge(pattern.settings, settings)
            title = title or pattern.title
            if parent is None and before and like.branches_off(written.name):
                ancestors = [delta.name for delta in reversed(like.lineage(written.name))]
                parent = next((name for name in ancestors if name in before), before[0])
        if title is None:
            hint = one_of_these(written.name, like.tree) if like else ""
            why = f", and {like.name} has no step of this name{hint}" if like else ""
            self._add(node.key, f"step '{written.name}': 'title' is missing{why}")
        parent = parent or (before[-1] if before else None)
        return Delta(written.name, title or written.name, parent, settings, written.paper, written.counted)

    def _build_reference(self, written: StepEntry, node: Node) -> ReferenceStep:
        """A step with a model of timm; of our networks' keys, it can only set those that timm's have, too."""
        source, model = f"step '{written.name}'", written.model
        assert model is not None
        if written.parent is not None:
            message = "has a model of timm, and so no parent: its recipe is that of the path's last step"
            self._add(node.at("parent").key, f"{source}: {message}")
        if written.title is None:
            self._add(node.key, f"{source}: 'title' is missing")
        settings = self._read_set(node, source)
        for path, setting in settings.items():
            if not is_key_of_timm(path):
                message = f"'{path}' is a key of our networks; those of timm's model are in model.args"
                self.problems.append(setting.problem(message))
        place = node.at("model").key
        settings |= {
            f"model.{key}": Setting(getattr(model, key), source, place)
            for key in ("timm", "args", "batch_norm")
        }
        of_profiles = {
            name: Setting(args, source, node.at("model", "profiles", name).key)
            for name, args in model.profiles.items()
        }
        for name in model.profiles.keys() - self.document.written.profiles.keys():
            hint = one_of_these(name, self.document.written.profiles)
            self.problems.append(of_profiles[name].problem(f"unknown profile '{name}'{hint}"))
        title = written.title or written.name
        return ReferenceStep(
            written.name, title, None, settings, written.paper, written.counted, profile_args=of_profiles
        )

    def _read_set(self, node: Node, source: str) -> Settings:
        """What a delta sets; keys that the base does not have become problems, and the rest is checked."""
        if not node.value.get("set") or not node.at("set").value:
            return {}
        settings = settings_of(node.at("set"), source, self.problems)
        self.problems += unknown_keys(self.base, settings)
        return {path: setting for path, setting in settings.items() if path in self.base}

    def _check_parents(self, deltas: Mapping[str, Delta], nodes: Mapping[str, Node], what: str) -> bool:
        """Whether each parent exists, and following them ends at a root."""
        before = len(self.problems)
        for name, delta in deltas.items():
            if delta.parent is None:
                continue
            place = (nodes[name].value.get("parent") or nodes[name]).mark
            chain, here = [name], delta.parent
            if here not in deltas:
                self._add(place, f"{what} '{name}': unknown parent '{here}'{one_of_these(here, deltas)}")
            while here in deltas and here not in chain:
                chain.append(here)
                here = deltas[here].parent or ""
            if here == name:
                self._add(place, f"{what} '{name}': is its own ancestor: {' -> '.join([*chain, name])}")
        return len(self.problems) == before


def _sets_nothing(node: Node) -> bool:
    """Whether a step or a profile has no `set`, or one without a value."""
    return "set" not in node.value or not any(True for _ in node.at("set").flatten())


def _check_steps(roadmap: Roadmap) -> list[Problem]:
    """Each step changes every key that it sets, and is valid."""
    problems: list[Problem] = []
    for step in roadmap.tree.values():
        before = trace(roadmap, step.parent) if step.parent else roadmap.base
        problems += _check_changes(step, [before])
        problems += _check_values(roadmap, step.name, None)
    for reference in roadmap.references.values():
        problems += _check_changes(reference, [trace(roadmap, roadmap.trunk[-1])])
        problems += _check_values(roadmap, reference.name, None)
    return problems


def _check_profiles(profiles: Mapping[str, Delta], roadmaps: Sequence[Roadmap]) -> list[Problem]:
    """Each profile changes every key that it sets, in some step of some roadmap."""
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
        for step in roadmap.with_references
        for problem in _check_values(roadmap, step, name)
    ]


def _check_changes(delta: Delta, before: list[Settings]) -> list[Problem]:
    return [
        setting.problem(f"'{path}' changes nothing: it already is {show(setting.value)}")
        for path, setting in delta.settings.items()
        if all(path in settings and same(settings[path].value, setting.value) for settings in before)
    ]


def _check_values(roadmap: Roadmap, step: str, profile: str | None) -> list[Problem]:
    try:
        resolve(roadmap, step, profile=profile)
    except ConfigError as error:
        return error.problems
    return []
