"""The marginal effect of each change: added to the base, along the path, and left out of the final model.

A screening design adds the average over its networks, and interactions of two changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from roadmap.deltas import Roadmap, resolve
from roadmap.errors import ConfigError
from roadmap.records import Result, Status, accuracies
from roadmap.report.factorial import AverageEffects
from roadmap.report.stats import CONFIDENCE, Difference, difference, holm

ResultsOf = Callable[[str], tuple[str | None, list[Result]]]  # a step's or combination's hash and results
# as in the CSV file
ALONE, IN_PLACE, LAST = READINGS = ("alone", "in place", "last")
AVERAGE = "average"  # of a screening design
NAMES = {
    ALONE: "added to the base",
    IN_PLACE: "along the path",
    LAST: "left out of the final model",
    AVERAGE: "average",
}
MEANING = {
    ALONE: "the first step with the change minus the first step",
    IN_PLACE: "the change's own step minus the one before it",
    LAST: "the last step minus the last step without the change",
    AVERAGE: "the networks of a screening design with the change minus those without it, adjusted for the"
    " other changes by least squares; n are networks, each with its mean over seeds",
}


@dataclass(frozen=True)
class MarginalEffect:
    """A change's effect on top-1 in percentage points for each of `READINGS`; None where runs are missing.

    A screening design has the reading `AVERAGE`, too, and interactions of two changes have only this one. `n`
    counts the seeds that both sides have at least, or the networks of an average, `diverged` the runs of
    either side that diverged. `results` are those of all configurations that were compared. `p_holm` are
    p-values adjusted over all changes, if requested. `variance` is that of the average, relative to an
    orthogonal design.
    """

    step: str
    title: str
    of: Mapping[str, Difference | None]
    n: Mapping[str, int]
    diverged: Mapping[str, int] = field(default_factory=dict)
    results: Sequence[Result] = ()
    p_holm: Mapping[str, float] = field(default_factory=dict)
    variance: float | None = None

    @property
    def is_interaction(self) -> bool:
        return ":" in self.step

    def resolved(self, reading: str) -> bool | None:
        """Whether a reading is resolved, by `p_holm` if there is one; None without an interval."""
        if reading in self.p_holm:
            return self.p_holm[reading] < 1 - CONFIDENCE
        found = self.of.get(reading)
        return found.resolved if found else None


def marginal_effects(roadmap: Roadmap, end: str, results_of: ResultsOf) -> list[MarginalEffect]:
    """The effect of each change on the way to `end`, from what `results_by_step` finds."""
    effects = []
    root, *deltas = roadmap.lineage(end)
    before = root.name
    for delta in deltas:
        name, of, n, diverged = delta.name, {}, {}, {}
        used: list[Result] = []
        pairs = {
            ALONE: (f"{root.name}+{name}", root.name),
            IN_PLACE: (name, before),
            LAST: (end, f"{end}-{name}"),
        }
        for reading, steps in pairs.items():
            (child, ours), (parent, theirs) = map(results_of, steps)
            if child == parent:
                ours, theirs = [], []
            both = [*ours, *theirs]
            diverged[reading] = sum(result.top1 is None for result in both)
            of[reading], n[reading] = _compare(ours, theirs) if child and parent else (None, 0)
            used += both
        effects.append(MarginalEffect(name, delta.title, of, n, diverged, used))
        before = name
    return effects


def results_by_step(
    roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any], runs: Sequence[Status]
) -> ResultsOf:
    """A function from a step or combination to its hash and results, which may be filed under any step.

    The hash is None for a combination without meaning, which `ablate` reports.
    """
    by_hash: dict[str, list[Result]] = {}
    for run in runs:
        if run.result is not None:
            by_hash.setdefault(run.result.hash, []).append(run.result)

    def results_of(step: str) -> tuple[str | None, list[Result]]:
        try:
            hash = resolve(roadmap, step, profile=profile, overrides=overrides).hash
        except ConfigError:
            return None, []
        return hash, by_hash.get(hash, [])

    return results_of


def with_average(
    effects: Sequence[MarginalEffect], average: AverageEffects, results: Sequence[Result]
) -> list[MarginalEffect]:
    """The effects with the reading `AVERAGE`, estimated from `results`, followed by the interactions."""
    titles = {effect.step: effect.title for effect in effects}
    found = [
        replace(
            effect,
            of={**effect.of, AVERAGE: average.of.get(effect.step)},
            n={**effect.n, AVERAGE: average.n if effect.step in average.of else 0},
            results=[*effect.results, *results],
            variance=average.variances.get(effect.step),
        )
        for effect in effects
    ]
    for pair, value in average.of.items():
        if pair not in titles:
            title = " × ".join(titles[change] for change in pair.split(":"))
            variance = average.variances[pair]
            found.append(
                MarginalEffect(pair, title, {AVERAGE: value}, {AVERAGE: average.n}, variance=variance)
            )
    return found


def adjust(effects: Sequence[MarginalEffect]) -> list[MarginalEffect]:
    """The effects with the p-values of each reading adjusted over all of them (Holm)."""
    adjusted: list[dict[str, float]] = [{} for _ in effects]
    for reading in (*READINGS, AVERAGE):
        ps = {
            place: found.p
            for place, effect in enumerate(effects)
            if (found := effect.of.get(reading)) and found.p is not None
        }
        for place, p in zip(ps, holm(list(ps.values())), strict=True):
            adjusted[place][reading] = p
    return [replace(effect, p_holm=ps) for effect, ps in zip(effects, adjusted, strict=True)]


def readings_of(effects: Sequence[MarginalEffect]) -> list[str]:
    """The readings to show: all of a path, or the average of a screening design and those with a value."""
    if not any(AVERAGE in effect.of for effect in effects):
        return list(READINGS)
    return [reading for reading in READINGS if any(effect.of.get(reading) for effect in effects)] + [AVERAGE]


def _compare(child: Sequence[Result], parent: Sequence[Result]) -> tuple[Difference | None, int]:
    """Child minus parent, and the number of seeds that both have at least."""
    ours, theirs = accuracies(child), accuracies(parent)
    return difference(ours, theirs), min(len(ours), len(theirs))
