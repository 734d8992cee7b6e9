"""The roadmap: a tree of deltas over a base of keys, and how a step becomes a run's configuration.

A step's id may also be a combination of deltas: `resnet50+gelu` is a step with one more delta,
`layer_norm-gelu` one with one delta less, and `gelu@order7` is the step that adds gelu when the path's deltas
are added in random order 7.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blocks.cost import Complexity, complexity
from blocks.layers import did_you_mean
from blocks.spec import ModelSpec
from roadmap.config import RunConfig, TimmSpec
from roadmap.errors import (
    ConfigError,
    Mark,
    Problem,
    config_error,
    format_validation_error,
    keys_of,
    one_of_these,
    relative,
)
from roadmap.steps_file import CountedCost, PaperResult, Reference, Throughput
from roadmap.strict_yaml import Node, parse_yaml, show

NO_PROFILE = "paper"


@dataclass(frozen=True)
class Setting:
    """The value of one key of a configuration, what set it, and where."""

    value: Any
    source: str
    where: Mark | str

    def problem(self, message: str) -> Problem:
        """`message` at the place of this setting."""
        return Problem(self.where, f"{self.source}: {message}" if self.source else message)


Settings = dict[str, Setting]  # by dotted key, such as 'recipe.lr'


@dataclass(frozen=True)
class Delta:
    """A step or a profile: the keys that it sets over those of its parent, which is None for a root."""

    name: str
    title: str
    parent: str | None
    settings: Settings
    paper: PaperResult | None = None
    counted: CountedCost | None = None


@dataclass(frozen=True)
class ReferenceStep(Delta):
    """A step with a model of timm, outside the tree: what it sets over the configuration of the path's end.

    `profile_args` are its keywords in some profiles, over those among its settings.
    """

    profile_args: Mapping[str, Setting] = field(default_factory=dict)

    def args_in(self, profiles: Iterable[Delta]) -> Settings:
        """The model's keywords in a profile, which is given by its ancestors and itself."""
        own = self.settings["model.args"]
        for profile in profiles:
            if more := self.profile_args.get(profile.name):
                own = replace(more, value=own.value | more.value)
        return {"model.args": own}


@dataclass(frozen=True)
class Roadmap:
    """A tree of steps over a base, and the profiles that any step can be run with; `path` is their file.

    `source` names where the paper's results are printed. `ablation` is set where the steps are combinations
    of the path's deltas instead of the path; `notes` are sentences about those that were left out, and
    `whole` is the roadmap that it was made of. `contexts` are the path's changes that are on in each step of
    a screening design. `end` is the last step of the path, by default the file's. `references` are the steps
    outside the tree.
    """

    name: str
    title: str
    path: Path
    base: Settings
    tree: Mapping[str, Delta]
    profiles: Mapping[str, Delta]
    reference: Reference | None
    source: str | None = None
    throughput: Throughput | None = None
    ablation: str | None = None
    notes: tuple[str, ...] = ()
    whole: Roadmap | None = None
    contexts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    end: str | None = None
    references: Mapping[str, ReferenceStep] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[str, ...]:
        """The ids of all steps, in the order of the file."""
        return tuple(self.tree)

    @property
    def trunk(self) -> tuple[str, ...]:
        """The ids of the path from the root to its end; all other steps are side branches, which an ablation
        does not have.
        """
        if self.ablation:
            return self.steps
        return tuple(step.name for step in self.lineage(self.end or self.steps[-1]))

    @property
    def with_references(self) -> tuple[str, ...]:
        """The ids of all steps of the tree, and of the references behind them."""
        return (*self.tree, *self.references)

    def delta(self, step: str) -> Delta:
        """A step of the tree, or a reference; KeyError for others."""
        references = (self.whole or self).references
        return references[step] if step in references else self.tree[step]

    def branches_off(self, step: str) -> bool:
        """Whether the parent of a step is another than the step before it."""
        parent, index = self.tree[step].parent, self.steps.index(step)
        return parent is not None and parent != self.steps[index - 1]

    def lineage(self, step: str) -> tuple[Delta, ...]:
        """The deltas that make up a step from the root on: its ancestors' and its own, or a combination's.

        ConfigError if there is no such step, or the combination is not possible.
        """
        if self.whole is not None and step not in self.tree:
            return self.whole.lineage(step)
        if step in self.references:
            return (*self.lineage(self.trunk[-1]), self.references[step])
        if step in self.tree or not re.search("[+@-]", step):
            return self._ancestry("step", self.tree, step)
        return self._ordered(step) if "@" in step else self._combined(step)

    def knows(self, step: str) -> bool:
        """Whether this is the id of a step or a combination, here or in the roadmap of an ablation."""
        try:
            return bool(self.lineage(step))
        except ConfigError:
            return False

    def _combined(self, combination: str) -> tuple[Delta, ...]:
        """`step+delta-delta`, read from left to right."""
        step, *words = re.split("([+-])", combination)
        deltas = list(self._ancestry("step", self.tree, step))
        for sign, name in zip(words[::2], words[1::2], strict=True):
            delta = self._ancestry("step", self.tree, name)[-1]
            if delta.parent is None:
                why = f"{name} is a root, not a change that could be added or left out"
            elif sign == "+" and delta in deltas:
                why = f"{name} is in it already"
            elif sign == "-" and delta not in deltas:
                why = f"{name} is not on the way to {step}, so it cannot be left out"
            else:
                deltas = (
                    [*deltas, delta] if sign == "+" else [other for other in deltas if other is not delta]
                )
                continue
            raise config_error(relative(self.path), f"'{combination}': {why}")
        return tuple(deltas)

    def _ordered(self, step: str) -> tuple[Delta, ...]:
        """`delta@orderSEED`."""
        name, _, order = step.partition("@")
        seed = re.fullmatch(r"order(0|[1-9]\d{0,8})", order, re.ASCII)
        if seed is None:
            raise config_error(
                relative(self.path), f"'{step}': '{order}' is not an order; write {name}@order7"
            )
        deltas = self.shuffled(int(seed[1]))
        names = [delta.name for delta in deltas]
        if name not in names[1:]:
            why = f"{name} is not a change on the path{one_of_these(name, names[1:])}"
            raise config_error(relative(self.path), f"'{step}': {why}")
        return deltas[: names.index(name) + 1]

    def shuffled(self, seed: int) -> tuple[Delta, ...]:
        """The root and the path's deltas in a random order; a new step does not change that of the others."""
        root, *rest = self.lineage(self.trunk[-1])
        digest = {delta.name: hashlib.sha256(f"{seed}:{delta.name}".encode()).digest() for delta in rest}
        return (root, *sorted(rest, key=lambda delta: digest[delta.name]))

    def profile(self, name: str | None) -> tuple[Delta, ...]:
        """The profile with its ancestors, oldest first; () for None and 'paper', the steps as they are.

        ConfigError if unknown.
        """
        return () if name in (None, NO_PROFILE) else self._ancestry("profile", self.profiles, str(name))

    def _ancestry(self, what: str, known: Mapping[str, Delta], name: str) -> tuple[Delta, ...]:
        if name not in known:
            if what == "step" and name in self.references:
                message = f"'{name}': a reference is a model of timm, which changes cannot be added to"
                raise config_error(relative(self.path), message)
            names = [*known, *self.references] if what == "step" else known
            raise config_error(relative(self.path), f"unknown {what} '{name}'{one_of_these(name, names)}")
        path = [known[name]]
        while (parent := path[-1].parent) is not None:
            path.append(known[parent])
        return tuple(reversed(path))


def resolve(
    roadmap: Roadmap,
    step: str,
    *,
    profile: str | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of one run: base, the deltas from the root to `step`, profile, overrides.

    `overrides` maps dotted keys ('recipe.lr') to values. ConfigError reports what is wrong and what set it.
    """
    settings = trace(roadmap, step, profile=profile, overrides=overrides)
    return validate(settings, roadmap=roadmap.name, step=step, profile=profile, seed=seed)


def known_cost(roadmap: Roadmap, config: RunConfig) -> Complexity | None:
    """The cost of a configuration's network by arithmetic.

    That of a reference is as counted in the steps file, if the network is the one there; None if it is not.
    """
    if isinstance(config.model, ModelSpec):
        return complexity(config.model, config.data.image_size)
    step = (roadmap.whole or roadmap).references.get(config.step)
    if step is None or step.counted is None:
        return None
    own = resolve(roadmap, config.step)
    model = config.model.model_copy(update={"drop_path": own.model.drop_path})
    if (model, config.data.image_size) != (own.model, own.data.image_size):
        return None
    return Complexity(round(step.counted.params * 1e6), round(step.counted.gmacs * 1e9))


def known_training_macs(roadmap: Roadmap, config: RunConfig) -> int | None:
    """Multiply-adds of a forward and backward pass for one image, where the cost is known."""
    cost = known_cost(roadmap, config)
    return None if cost is None else config.training_macs(cost)


def trace(
    roadmap: Roadmap, step: str, *, profile: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Every key of a configuration with what set it, the latest set last; parameters as in `resolve`.

    Of the keys of our networks, a reference step has those that a model of timm has, too.
    """
    deltas, profiles = roadmap.lineage(step), roadmap.profile(profile)
    given = overriding(roadmap.base, overrides or {})
    layers = [roadmap.base, *(delta.settings for delta in (*deltas, *profiles)), given]
    if isinstance(reference := deltas[-1], ReferenceStep):
        layers.append(reference.args_in(profiles))
    merged = merge(*layers)
    if isinstance(reference, ReferenceStep):
        merged = {path: setting for path, setting in merged.items() if is_key_of_timm(path)}
    return merged


def is_key_of_timm(path: str) -> bool:
    """Whether a key is one of a configuration whose model is timm's."""
    section, _, key = path.partition(".")
    return section != "model" or key in TimmSpec.model_fields


def change_of(
    roadmap: Roadmap, step: str, *, profile: str | None = None, overrides: Mapping[str, Any] | None = None
) -> str:
    """What a step changes against its parent, in one line; a profile may revert some of it.

    A side branch names its parent where that is not the step before it. In a screening design, these are the
    names of the changes that are on.
    """
    if step in roadmap.references:
        return f"a reference: timm's {roadmap.references[step].settings['model.timm'].value}"
    parent = roadmap.tree[step].parent
    if parent is None:
        there = (roadmap.whole or roadmap).tree.get(step)
        return "the base" if there is None or there.parent is None else "all changes"
    if step in roadmap.contexts:
        return ", ".join(roadmap.contexts[step])
    before, after = (trace(roadmap, name, profile=profile, overrides=overrides) for name in (parent, step))
    differences = changes(before, after)
    recipe = [path for path in differences if path.startswith("recipe.")]
    words = [
        f"{path.removeprefix('model.').removeprefix('block.')} {show(old)} → {show(new)}"
        for path, (old, new) in differences.items()
        if path not in recipe
    ]
    if recipe:
        words.append(f"{len(recipe)} value{'s' * (len(recipe) > 1)} of the recipe")
    branch = f"from {parent}: " if step not in roadmap.trunk and roadmap.branches_off(step) else ""
    return branch + (", ".join(words) or "nothing here: the profile sets the same")


def merge(*layers: Settings) -> Settings:
    """Later layers over earlier ones; a key that is set again moves to the end."""
    merged: Settings = {}
    for layer in layers:
        for path, setting in layer.items():
            merged.pop(path, None)
            merged[path] = setting
    return merged


def validate(settings: Settings, **identity: Any) -> RunConfig:
    """The configuration with these settings; ConfigError names the setting behind each problem."""
    tree: dict[str, Any] = dict(identity)
    for path, setting in settings.items():
        *sections, key = path.split(".")
        reduce(lambda section, part: section.setdefault(part, {}), sections, tree)[key] = setting.value
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([_blame(settings, item) for item in error.errors()]) from error


def _blame(settings: Settings, error: Any) -> Problem:
    """The setting behind a pydantic error; for a rule over several keys, the last set of those it names."""
    parts, message = keys_of(error), format_validation_error(error)
    for end in range(len(parts), -1, -1):
        path = ".".join(parts[:end])
        prefix = f"{path}." if path else ""
        below = {
            key.removeprefix(prefix): setting
            for key, setting in settings.items()
            if key == path or key.startswith(prefix)
        }
        if below and (path or not parts):
            named = [setting for key, setting in below.items() if key in message]
            return (named or list(below.values()))[-1].problem(f"{path}: {message}" if path else message)
    return Problem("", f"{'.'.join(parts)}: {message}")


def settings_of(node: Node, source: str, problems: list[Problem]) -> Settings:
    """The keys that a section of a file sets; one that is spelled twice, dotted and nested, is a problem."""
    settings: Settings = {}
    for path, value in node.flatten():
        setting = Setting(value.plain(), source, value.key)
        if path in settings:
            problems.append(setting.problem(f"duplicate key '{path}', first given at {settings[path].where}"))
        settings[path] = setting
    return settings


def unknown_keys(base: Settings, settings: Settings) -> Iterator[Problem]:
    """A problem for each key that the base does not have."""
    for path, setting in settings.items():
        if path not in base:
            yield setting.problem(_unknown_key(base, path))


def _unknown_key(base: Settings, path: str) -> str:
    if keys := [key for key in base if key.startswith(f"{path}.")]:
        return f"'{path}' is a section, not a value; set {', '.join(keys)}"
    section, _, name = path.rpartition(".")
    prefix = f"{section}." if section else ""
    siblings = {key.removeprefix(prefix).split(".")[0] for key in base if key.startswith(prefix)}
    # of the keys of this name in other sections, the one whose path is nearest
    elsewhere = [key for key in base if key.endswith(f".{name}")]
    nearest = did_you_mean(path, elsewhere) or (f"; did you mean '{elsewhere[0]}'?" if elsewhere else "")
    hint = did_you_mean(name, sorted(siblings), prefix) or nearest or did_you_mean(path, base)
    return f"unknown key '{path}'{hint}"


def overriding(base: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Overrides as settings; ConfigError for keys that the base does not have."""
    settings = {
        path: Setting(tuple(value) if isinstance(value, list) else value, "", "--set")
        for path, value in overrides.items()
    }
    if problems := list(unknown_keys(base, settings)):
        raise ConfigError(problems)
    return settings


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """The `key=value` words of a command line as overrides; values are YAML, and ConfigError if not."""
    overrides: dict[str, Any] = {}
    problems = []
    for word in assignments:
        path, equals, text = word.partition("=")
        if not equals or not path:
            message = "write it as key=value, such as --set recipe.epochs=10"
            problems.append(Problem(f"--set {word}:", message))
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
    """The keys that differ, with their values before and after."""
    return {
        path: (before[path].value, setting.value)
        for path, setting in after.items()
        if not same(before[path].value, setting.value)
    }
