"""The overrides of the steps file that runs were trained with: the `--set` options that collect them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from roadmap.config import RunConfig, TimmSpec
from roadmap.deltas import Roadmap, is_key_of_timm, resolve, same
from roadmap.errors import ConfigError, config_error, relative
from roadmap.records import RunDir
from roadmap.strict_yaml import show
from roadmap.terminal import count

MAX_LISTED = 3  # steps that are named one by one
TrainedAlike = tuple[str, str]  # the step and the hash of runs of one configuration
Overrides = Mapping[str, Any]  # values by key


@dataclass(frozen=True)
class TrainedVariant:
    """Runs that have the configuration of the steps file with `overrides`.

    `edited` holds the keys in which the one step of these runs was edited since, with the values then and
    now. `why` is set where the configuration is unknown.
    """

    runs: tuple[RunDir, ...]
    overrides: Overrides = field(default_factory=dict)
    edited: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    why: str | None = None

    @property
    def options(self) -> str:
        """The command line options for the overrides, quoted for a shell."""
        words = [f"{key}={show(value)}" for key, value in self.overrides.items()]
        return " ".join(f"--set {shlex.quote(word)}" for word in words)

    @property
    def note(self) -> str:
        """Why the runs are left out, and which options include them."""
        runs, steps = count(len(self.runs), "run"), list(dict.fromkeys(run.step for run in self.runs))
        of = ", ".join(steps[:MAX_LISTED]) + (
            f" and {count(len(steps) - MAX_LISTED, 'more step')}" if len(steps) > MAX_LISTED else ""
        )
        if self.why is not None:
            return f"{runs} of an unknown configuration left out ({of}): {self.why}."
        if self.edited:
            keys = ", ".join(
                f"{key} was {show(then)}, is {show(now)} now" for key, (then, now) in self.edited.items()
            )
            return (
                f"{runs} left out, for {of} was edited since:"
                f" {keys}{f' (trained with {self.options})' * bool(self.options)}."
            )
        how = f"add {self.options}" if self.options else "leave --set out"
        return (
            f"{runs} of another configuration left out ({of}); {how} to collect"
            f" {'it' if len(self.runs) == 1 else 'them'}."
        )


def variants(roadmap: Roadmap, profile: str | None, runs: Iterable[RunDir]) -> list[TrainedVariant]:
    """Runs grouped by overrides, in as few groups as possible, the largest first.

    Runs of unknown steps are ignored. Only runs that differ from the steps file have their config.yaml read.
    """
    groups: dict[TrainedAlike, list[RunDir]] = {}
    for run in runs:
        if roadmap.knows(run.step):
            groups.setdefault((run.step, run.hash), []).append(run)
    now = _StepsFile(roadmap, profile)
    differ: dict[TrainedAlike, Overrides] = {}
    found = []
    for group, members in groups.items():
        try:
            differ[group] = now.differences(group, members[0])
        except ConfigError as error:
            found.append(TrainedVariant(tuple(members), why=str(error)))
    several = len({step for step, _ in groups}) > 1
    for values, mine in now.sets(differ):
        edited = now.edited(mine[0][0], values) if several and len(mine) == 1 else {}
        given = {key: values[key] for key in roadmap.base if key in values and key not in edited}
        found.append(TrainedVariant(tuple(run for group in mine for run in groups[group]), given, edited))
    return sorted(found, key=lambda variant: -len(variant.runs))


@dataclass(frozen=True)
class _StepsFile:
    """The present steps file, which configurations of runs are compared with."""

    roadmap: Roadmap
    profile: str | None

    def config(self, step: str, overrides: Overrides) -> RunConfig:
        return resolve(self.roadmap, step, profile=self.profile, overrides=overrides)

    def differences(self, group: TrainedAlike, run: RunDir) -> Overrides:
        """The runs' values of keys that differ from the step's present ones; ConfigError if unknown."""
        step, digest = group
        now = self.config(step, {})
        if now.hash == digest:
            return {}
        then = RunConfig.read(run.config)
        is_timm = isinstance(now.model, TimmSpec)
        keys = [
            key
            for key in self.roadmap.base
            if not key.startswith("system.") and (is_key_of_timm(key) or not is_timm)
        ]
        if isinstance(then.model, TimmSpec) != is_timm:
            raise config_error(relative(run.config), "is of another kind of network")
        values = {key: _value(then, key) for key in keys if not same(_value(then, key), _value(now, key))}
        if not self._given_by(values, [group]):
            raise config_error(relative(run.config), f"gives another hash than {digest}")
        return values

    def sets(
        self, differ: Mapping[TrainedAlike, Overrides]
    ) -> Iterator[tuple[Overrides, list[TrainedAlike]]]:
        """Overrides with the groups whose configurations they produce, each group once."""
        together = {key: value for values in differ.values() for key, value in values.items()}
        candidates, left = [together, *differ.values()], list(differ)
        while left:
            found = [(values, self._given_by(values, left)) for values in candidates]
            values, mine = max(found, key=lambda one: (len(one[1]), -len(one[0])))
            yield values, mine
            left = [group for group in left if group not in mine]

    def _given_by(self, values: Overrides, groups: Sequence[TrainedAlike]) -> list[TrainedAlike]:
        """Those of `groups` whose configurations `values` produce."""
        found = []
        for step, digest in groups:
            with suppress(ConfigError):  # of values that are impossible for another step
                found += [(step, digest)] if self.config(step, values).hash == digest else []
        return found

    def edited(self, step: str, values: Overrides) -> dict[str, tuple[Any, Any]]:
        """The values of keys that the step itself sets, with the present values."""
        own = self.roadmap.tree[step].settings if step in self.roadmap.tree else {}
        now = self.config(step, {})
        return {key: (value, _value(now, key)) for key, value in values.items() if key in own}


def _value(config: RunConfig, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def left_out(
    roadmap: Roadmap, profile: str | None, runs: Sequence[RunDir], present: Collection[str]
) -> Iterator[str]:
    """A note on each variant of `runs` with hashes that are not `present`."""
    if all(run.hash in present for run in runs):
        return
    for variant in variants(roadmap, profile, runs):
        if others := tuple(run for run in variant.runs if run.hash not in present):
            yield replace(variant, runs=others).note


def as_trained(
    roadmap: Roadmap, profile: str | None, folder: Path, runs: Iterable[RunDir]
) -> TrainedVariant | None:
    """The variant of all runs; None where they have the configurations of the steps file.

    Runs of steps edited since are ignored. ConfigError where runs differ, or all are unknown.
    """
    found = [variant for variant in variants(roadmap, profile, runs) if not variant.edited]
    if len(found) == 1 and found[0].why is None:
        return found[0] if found[0].overrides else None
    lines = [
        f"{variant.why or variant.options or 'no --set'} ({count(len(variant.runs), 'run')})"
        for variant in found
    ]
    message = (
        f"the runs in {relative(folder)} do not share one configuration; choose one with --set:"
        f" {'; '.join(lines) or 'none is known'}"
    )
    raise config_error("--as-trained", message)
