"""Our networks against the publication's figures, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from blocks import Complexity, complexity
from roadmap.tree import PaperFigures, Roadmap, resolve


@dataclass(frozen=True)
class Row:
    """A step's cost at its own image size beside the printed one."""

    step: str
    title: str
    cost: Complexity
    paper: PaperFigures | None

    @property
    def matches(self) -> bool:
        """Whether our GMACs round to the printed digits."""
        return self.paper is not None and f"{self.cost.gmacs:.2f}" == f"{self.paper.gmacs:.2f}"

    @property
    def is_wrong(self) -> bool:
        """Whether the row should match and does not."""
        return self.paper is not None and not self.matches and self.paper.gmacs_note is None

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        if self.paper is None:
            return "not in the paper"
        if self.matches:
            return "match"
        return f"flagged: {self.paper.gmacs_note}" if self.paper.gmacs_note else "DOES NOT MATCH"


def verify(roadmap: Roadmap) -> list[Row]:
    """All steps of a roadmap, without a profile."""
    rows = []
    for name, step in roadmap.tree.items():
        config = resolve(roadmap, name)
        rows.append(Row(name, step.title, complexity(config.model, config.data.image_size), step.paper))
    return rows


def summary(rows: list[Row]) -> str:
    """One line that counts the verdicts."""
    published = [row for row in rows if row.paper is not None]
    matching, wrong = sum(row.matches for row in published), sum(row.is_wrong for row in published)
    flagged = len(published) - matching - wrong
    return f"{matching} of {len(published)} published rows match to the printed digit, {flagged} flagged, {wrong} wrong"
