"""Rows that belong beside each other: of one roadmap, profile, precision and `--set`, an entry for each
network, image size and batch.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from roadmap.bench.results import BARE, LOOP, OURS, TIMM, TIMM_DEFAULTS, Measurement
from roadmap.deltas import Roadmap

SAME = {"train": TIMM, "inference": TIMM, "loop": BARE}
LONGEST = 80  # letters of overrides in a file's name


@dataclass(frozen=True)
class Comparison:
    """A step's rows in a mode: `ours` is the network or the training loop, `beside` timm's network in the
    same format, or the bare step.
    """

    title: str
    ours: Measurement
    beside: Measurement | None
    defaults: Measurement | None


@dataclass(frozen=True)
class MeasurementGroup:
    """One roadmap in one profile and precision, with the same `overrides` as in a row; `entries` by mode, in
    the order of the path.
    """

    roadmap: str
    title: str
    profile: str | None
    precision: str
    overrides: str | None
    entries: Mapping[str, Sequence[Comparison]]

    @property
    def rows(self) -> list[Measurement]:
        """All rows, of timm's networks, too."""
        found = [
            row
            for entries in self.entries.values()
            for entry in entries
            for row in (entry.ours, entry.beside, entry.defaults)
        ]
        return [row for row in found if row is not None]

    @property
    def name(self) -> str:
        """What its figure is called."""
        return "-".join(
            filter(None, [self.roadmap, self.profile, _file_name(self.overrides or ""), self.precision])
        )

    @property
    def heading(self) -> str:
        """What was measured, but for the precision."""
        return ", ".join(filter(None, [self.title, self.profile, *(self.overrides or "").split(";")]))


def groups_of(rows: Sequence[Measurement], roadmaps: Mapping[str, Roadmap]) -> list[MeasurementGroup]:
    """All groups of a file; a step that no roadmap knows keeps its name for a title."""
    found: dict[tuple[str, str | None, str, str | None], list[Measurement]] = {}
    for row in rows:
        found.setdefault((row.roadmap, row.profile, row.against, row.overrides), []).append(row)
    return [_group(*key, same, roadmaps.get(key[0])) for key, same in found.items()]


def _group(
    name: str,
    profile: str | None,
    precision: str,
    overrides: str | None,
    rows: Sequence[Measurement],
    roadmap: Roadmap | None,
) -> MeasurementGroup:
    modes: dict[str, list[Comparison]] = {}
    of = {(row.step, row.mode, row.batch, row.image_size, row.subject): row for row in rows}
    for row in rows:
        if row.subject in (OURS, LOOP):
            place = (row.step, row.mode, row.batch, row.image_size)
            title = roadmap.tree[row.step].title if roadmap and row.step in roadmap.tree else row.step
            entry = Comparison(title, row, of.get((*place, SAME[row.mode])), of.get((*place, TIMM_DEFAULTS)))
            modes.setdefault(row.mode, []).append(entry)
    return MeasurementGroup(name, roadmap.title if roadmap else name, profile, precision, overrides, modes)


def _file_name(overrides: str) -> str:
    """Overrides as a short part of a file's name; its end tells apart what is cut or has the same letters."""
    if not overrides:
        return ""
    words = re.sub(r"[^a-z0-9]+", "-", overrides.lower()).strip("-")
    return f"{words[:LONGEST]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def usual(rows: Sequence[Measurement], get: Callable[[Measurement], int]) -> int:
    """What most rows have."""
    return Counter(map(get, rows)).most_common(1)[0][0]
