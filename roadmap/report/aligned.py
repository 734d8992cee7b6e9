"""The rows of several ablations beside each other, where they are the same step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roadmap.report.rows import Ablation, AblationRow

FIRST = ""  # the roots of two roadmaps are different networks in the same place


@dataclass(frozen=True)
class Aligned:
    """A step's row in each ablation, None where one has no such step, and what to call them together."""

    title: str
    rows: tuple[AblationRow | None, ...]


def aligned(ablations: Sequence[Ablation]) -> list[Aligned]:
    """All steps of some ablations in their order; one that only a later ablation has stands behind its
    predecessor there.
    """
    by_key = [{_key(ablation, row): row for row in ablation.rows} for ablation in ablations]
    order: list[str] = []
    for rows in by_key:
        place = 0
        for key in rows:
            if key not in order:
                order.insert(place, key)
            place = order.index(key) + 1
    found = [tuple(rows.get(key) for rows in by_key) for key in order]
    return [Aligned(_joined([row.title for row in rows if row]), rows) for rows in found]


def _key(ablation: Ablation, row: AblationRow) -> str:
    return FIRST if row is ablation.rows[0] and row.parent is None else row.step


def _joined(titles: Sequence[str]) -> str:
    """Different titles with a stroke between them; those that differ in what is in brackets only share the
    rest.
    """
    different = list(dict.fromkeys(titles))
    heads = {title.partition(" (")[0] for title in different}
    if len(different) > 1 and len(heads) == 1 and all(title.endswith(")") for title in different):
        return f"{heads.pop()} ({' / '.join(title.partition(' (')[2][:-1] for title in different)})"
    return " / ".join(different)
