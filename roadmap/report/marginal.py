"""What each change of the path is worth, read in three ways: alone, in place, and last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roadmap.deltas import Roadmap, resolve
from roadmap.errors import ConfigError
from roadmap.records import Status
from roadmap.report.stats import Difference, difference

ALONE, IN_PLACE, LAST = READINGS = ("alone", "in place", "last")
MEANING = {
    ALONE: "the first step with the change minus the first step",
    IN_PLACE: "the change's own step minus the one before it",
    LAST: "the last step minus the last step without the change",
}


@dataclass(frozen=True)
class Worth:
    """A change's worth in percentage points of top-1 for each of `READINGS`, and over how many seeds; None
    where runs are missing.

    `diverged` counts the runs that did, on either side; `hashes` are the configurations that were compared.
    """

    step: str
    title: str
    of: Mapping[str, Difference | None]
    n: Mapping[str, int]
    diverged: Mapping[str, int] = field(default_factory=dict)
    hashes: frozenset[str] = frozenset()


def worths(
    roadmap: Roadmap, end: str, profile: str | None, overrides: Mapping[str, Any], runs: Sequence[Status]
) -> list[Worth]:
    """The worth of each change on the way to `end`, from the finished runs of a roadmap and profile, whatever
    step they are filed under.
    """
    top1: dict[str, dict[int, float]] = {}
    diverged = Counter(run.result.hash for run in runs if run.result is not None and run.result.top1 is None)
    for run in runs:
        if run.result is not None and run.result.top1 is not None:
            top1.setdefault(run.result.hash, {})[run.result.seed] = run.result.top1
    found = []
    root, *deltas = roadmap.lineage(end)
    before = root.name
    for delta in deltas:
        name, of, n, lost, used = delta.name, {}, {}, {}, set()
        pairs = {
            ALONE: (f"{root.name}+{name}", root.name),
            IN_PLACE: (name, before),
            LAST: (end, f"{end}-{name}"),
        }
        for reading, (child, parent) in pairs.items():
            one, other = (_hash(roadmap, step, profile, overrides) for step in (child, parent))
            of[reading], n[reading] = _compare(top1, one, other)
            sides = {hash for hash in (one, other) if hash is not None and one != other}
            lost[reading] = sum(diverged[hash] for hash in sides)
            used |= sides
        found.append(Worth(name, delta.title, of, n, lost, frozenset(used)))
        before = name
    return found


def _hash(roadmap: Roadmap, step: str, profile: str | None, overrides: Mapping[str, Any]) -> str | None:
    try:
        return resolve(roadmap, step, profile=profile, overrides=overrides).hash
    except ConfigError:
        return None  # a combination without meaning; `ablate` says so


def _compare(
    top1: Mapping[str, dict[int, float]], child: str | None, parent: str | None
) -> tuple[Difference | None, int]:
    """Child minus parent, and the seeds that both have at least; nothing if they are one configuration."""
    if child is None or parent is None or child == parent:
        return None, 0
    ours, theirs = top1.get(child, {}), top1.get(parent, {})
    return difference(ours, theirs), min(len(ours), len(theirs))
