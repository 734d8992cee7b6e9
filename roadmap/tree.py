"""The roadmap: a tree of steps over a base, and the resolution of a step into a run's configuration.

A step's id may also be a combination of deltas: `resnet50+gelu` is a step with a delta more,
`layer_norm-gelu` one with a delta less, `gelu@order7` is where gelu is added when the path's deltas are added
in the random order 7.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from blocks.spec import Count, Spec
from roadmap.config import RunConfig
from roadmap.errors import ConfigError, config_error, one_of_these, relative
from roadmap.settings import Settings, changes, merge, overriding, validate
from roadmap.strict_yaml import show

NO_PROFILE = "paper"


Percent = Annotated[float, Field(ge=0, le=100)]


class PaperFigures(Spec):
    """What a publication prints for a step: top-1 in %, its standard deviation over `n` runs, and GMACs to
    two decimals.
    """

    top1: Percent
    std: Annotated[float, Field(ge=0)] | None = None
    n: Count
    gmacs: float | None = None
    gmacs_note: str | None = None


class Counted(Spec):
    """A step's cost at its own image size, counted outside this code: parameters in 10**6, multiply-adds in
    10**9.
    """

    params: float
    gmacs: float


class Reference(Spec):
    """A model outside the roadmap that its figures are compared with; without `gmacs` it has no place among
    networks.
    """

    title: str
    top1: Percent
    gmacs: float | None = None


class ReferenceSpeed(Spec):
    """A model outside the roadmap whose throughput a publication prints, at an image size in pixels."""

    title: str
    image_size: Count
    images_per_s: Annotated[float, Field(gt=0)]


class Throughput(Spec):
    """Images per second in inference as a publication measured them, with `on` saying where and how: of
    steps, and of others.
    """

    source: str
    on: str
    steps: dict[str, Annotated[float, Field(gt=0)]]
    references: tuple[ReferenceSpeed, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A step or a profile: the leaves that it sets over those of its parent, which is None for a root."""

    name: str
    title: str
    parent: str | None
    settings: Settings
    paper: PaperFigures | None = None
    counted: Counted | None = None


@dataclass(frozen=True)
class Roadmap:
    """A tree of steps over a base, and the profiles that any step can be run with; `path` is the file they
    come from.

    `source` says where the paper's figures are printed. `ablation` is set where the steps are not the path
    but combinations of its deltas; `notes` are the sentences on those that were left out, and `whole` is the
    roadmap that it was made of. `end` is the step in which the path ends, the last one if it is None.
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
    end: str | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The ids of all steps, in the order of the file."""
        return tuple(self.tree)

    @property
    def trunk(self) -> tuple[str, ...]:
        """The path, the ids from the root to its end; all other steps are side branches.

        An ablation has none of those.
        """
        return (
            self.steps
            if self.ablation
            else tuple(step.name for step in self.lineage(self.end or self.steps[-1]))
        )

    def branches_off(self, step: str) -> str | None:
        """The parent of a step if it is another than the step before."""
        parent, place = self.tree[step].parent, self.steps.index(step)
        return parent if parent is not None and parent != self.steps[place - 1] else None

    def lineage(self, step: str) -> tuple[Delta, ...]:
        """The deltas that make up a step, from the root on: its ancestors' and its own, or those of a
        combination.

        ConfigError if there is no such step, or if the combination has no meaning.
        """
        if self.whole is not None and step not in self.tree:
            return self.whole.lineage(step)
        if step in self.tree or not re.search("[+@-]", step):
            return self._ancestry("step", self.tree, step)
        return self._ordered(step) if "@" in step else self._combined(step)

    def knows(self, step: str) -> bool:
        """Whether this is the id of a step or a combination, here or in the whole roadmap."""
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
                raise self._no_combination(
                    combination, f"{name} is a root, and no change that could be added or left out"
                )
            if sign == "+" and delta in deltas:
                raise self._no_combination(combination, f"{name} is in it already")
            if sign == "-" and delta not in deltas:
                raise self._no_combination(
                    combination, f"{name} is not on the way to {step}, so it cannot be left out"
                )
            deltas = [*deltas, delta] if sign == "+" else [other for other in deltas if other is not delta]
        return tuple(deltas)

    def _ordered(self, place: str) -> tuple[Delta, ...]:
        """`delta@orderSEED`."""
        name, _, order = place.partition("@")
        seed = re.fullmatch(r"order(0|[1-9]\d{0,8})", order, re.ASCII)
        if seed is None:
            raise self._no_combination(place, f"'{order}' is no order; write {name}@order7")
        deltas = self.shuffled(int(seed[1]))
        names = [delta.name for delta in deltas]
        if name not in names[1:]:
            raise self._no_combination(
                place, f"{name} is no change on the path{one_of_these(name, names[1:])}"
            )
        return deltas[: names.index(name) + 1]

    def _no_combination(self, combination: str, why: str) -> ConfigError:
        return config_error(relative(self.path), f"'{combination}': {why}")

    def shuffled(self, seed: int) -> tuple[Delta, ...]:
        """The path's deltas in a random order, behind the root; a new step does not change the order of the
        others.
        """
        root, *rest = self.lineage(self.trunk[-1])
        return (
            root,
            *sorted(rest, key=lambda delta: hashlib.sha256(f"{seed}:{delta.name}".encode()).digest()),
        )

    def profile(self, name: str | None) -> tuple[Delta, ...]:
        """The profile with its ancestors, oldest first; none for None and 'paper', the steps as they are.

        ConfigError if unknown.
        """
        return () if name in (None, NO_PROFILE) else self._ancestry("profile", self.profiles, str(name))

    def _ancestry(self, what: str, known: Mapping[str, Delta], name: str) -> tuple[Delta, ...]:
        if name not in known:
            raise config_error(relative(self.path), f"unknown {what} '{name}'{one_of_these(name, known)}")
        path = [known[name]]
        while (parent := path[-1].parent) is not None:
            path.append(known[parent])
        return tuple(reversed(path))


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
            raise config_error(
                relative(roadmap.path),
                f"'{name}' is not on the way to '{step}', so it cannot be dropped",
            )
    deltas = [delta for delta in lineage if delta.name not in drop]
    deltas += roadmap.profile(profile)
    return merge(
        roadmap.base, *(delta.settings for delta in deltas), overriding(roadmap.base, overrides or {})
    )


def resolve(
    roadmap: Roadmap,
    step: str,
    *,
    profile: str | None = None,
    seed: int = 0,
    drop: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of one run: base, the deltas from the root to `step` but for those in `drop`,
    profile, overrides.

    `overrides` maps dotted leaves ('recipe.lr') to values. ConfigError says what is wrong and who set it.
    """
    settings = trace(roadmap, step, profile=profile, drop=drop, overrides=overrides)
    return validate(settings, roadmap=roadmap.name, step=step, profile=profile, seed=seed)


def change_of(
    roadmap: Roadmap, step: str, *, profile: str | None = None, overrides: Mapping[str, Any] | None = None
) -> str:
    """What a step changes against its parent, in one line; a profile may take back some of it."""
    parent = roadmap.tree[step].parent
    if parent is None:
        return "the base"
    words = []
    before, after = (trace(roadmap, name, profile=profile, overrides=overrides) for name in (parent, step))
    differences = changes(before, after)
    recipe = [path for path in differences if path.startswith("recipe.")]
    for path, (old, new) in differences.items():
        if path not in recipe:
            words.append(f"{path.removeprefix('model.').removeprefix('block.')} {show(old)} → {show(new)}")
    return (
        ", ".join(words + ([f"{len(recipe)} value{'s' * (len(recipe) > 1)} of the recipe"] if recipe else []))
        or "nothing here: the profile sets the same"
    )
