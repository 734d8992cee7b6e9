"""The marginal effect of each change: added to the base, along the path, and left out of the final model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roadmap.deltas import Roadmap, resolve
from roadmap.errors import ConfigError
from roadmap.records import Result, Status
from roadmap.report.stats import Difference, difference

# as in the CSV file
ALONE, IN_PLACE, LAST = READINGS = ("alone", "in place", "last")
NAMES = {ALONE: "added to the base", IN_PLACE: "along the path", LAST: "left out of the final model"}
MEANING = {
    ALONE: "the first step with the change minus the first step",
    IN_PLACE: "the change's own step minus the one before it",
    LAST: "the last step minus the last step without the change",
}


@dataclass(frozen=True)
class MarginalEffect:
    """A change's effect on top-1 in percentage points for each of `READINGS`; None where runs are missing.

    `n` counts the seeds that both sides have at least, `diverged` the runs of either side that diverged.
    `results` are those of all configurations that were compared.
    """

    step: str
    title: str
    of: Mapping[str, Difference | None]
    n: Mapping[str, int]
    diverged: Mapping[str, int] = field(default_factory=dict)
    results: Sequence[Result] = ()


def marginal_effects(
    roadmap: Roadmap, end: str, profile: str | None, overrides: Mapping[str, Any], runs: Sequence[Status]
) -> list[MarginalEffect]:
    """The effect of each change on the way to `end`, from finished runs filed under any step."""
    by_hash: dict[str, list[Result]] = {}
    for run in runs:
        if run.result is not None:
            by_hash.setdefault(run.result.hash, []).append(run.result)

    def results_of(step: str) -> tuple[str | None, list[Result]]:
        try:
            hash = resolve(roadmap, step, profile=profile, overrides=overrides).hash
        except ConfigError:
            return None, []  # a combination without meaning, which `ablate` reports
        return hash, by_hash.get(hash, [])

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


def _compare(child: Sequence[Result], parent: Sequence[Result]) -> tuple[Difference | None, int]:
    """Child minus parent, and the number of seeds that both have at least."""
    ours, theirs = (
        {result.seed: result.top1 for result in results if result.top1 is not None}
        for results in (child, parent)
    )
    return difference(ours, theirs), min(len(ours), len(theirs))
