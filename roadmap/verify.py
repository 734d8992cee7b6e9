"""Our networks compared with the published parameters and GMACs, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from blocks import Complexity, complexity
from roadmap.deltas import Roadmap, resolve
from roadmap.steps_file import CountedCost, PaperResult


@dataclass(frozen=True)
class VerifiedStep:
    """A step's cost at its own image size beside the printed GMACs and the cost counted by other code."""

    step: str
    title: str
    cost: Complexity
    paper: PaperResult | None
    counted: CountedCost | None

    @property
    def prints(self) -> bool | None:
        """Whether our GMACs are the printed ones, to the digit; None where none are printed."""
        if self.paper is None or self.paper.gmacs is None:
            return None
        return _agree(self.cost.gmacs, self.paper.gmacs, 2)

    @property
    def counts(self) -> bool | None:
        """Whether our parameters and GMACs are the counted ones, to the digit; None if none were counted."""
        if self.counted is None:
            return None
        return _agree(self.cost.params / 1e6, self.counted.params, 3) and _agree(
            self.cost.gmacs, self.counted.gmacs, 2
        )

    @property
    def is_flagged(self) -> bool:
        """Whether our GMACs are not the printed ones, and the steps file states why."""
        return self.prints is False and self.paper is not None and self.paper.gmacs_note is not None

    @property
    def is_wrong(self) -> bool:
        """Whether the row should match and does not."""
        return self.counts is False or (self.prints is False and not self.is_flagged)

    @property
    def verdict(self) -> str:
        if self.counts is False and self.counted is not None:
            return f"DOES NOT MATCH what was counted: {self.counted.params:g} M, {self.counted.gmacs:g} GMACs"
        if self.is_flagged and self.paper is not None:
            return f"flagged: {self.paper.gmacs_note}"
        if self.prints is False:
            return "DOES NOT MATCH what is printed"
        return "match" if self.prints or self.counts else "nothing to compare with"


def _agree(ours: float, theirs: float, digits: int) -> bool:
    """Whether ours rounds to theirs, to as many decimals as theirs has, at least `digits` (4.1 is 4.10)."""
    digits = max(digits, len(f"{theirs!r}".partition(".")[2]))
    return f"{ours:.{digits}f}" == f"{theirs:.{digits}f}"


def verify(roadmap: Roadmap) -> list[VerifiedStep]:
    """All steps of a roadmap, without a profile."""
    rows = []
    for name, step in roadmap.tree.items():
        config = resolve(roadmap, name)
        cost = complexity(config.ours, config.data.image_size)
        rows.append(VerifiedStep(name, step.title, cost, step.paper, step.counted))
    return rows


def verify_references(roadmap: Roadmap) -> list[VerifiedStep]:
    """All references of a roadmap, without a profile: their cost is counted again in timm's networks."""
    from roadmap.networks import cost_of  # which needs PyTorch

    return [
        VerifiedStep(name, step.title, cost_of(resolve(roadmap, name)), step.paper, step.counted)
        for name, step in roadmap.references.items()
    ]


def summary(rows: list[VerifiedStep]) -> str:
    """One line that counts the verdicts."""
    printed = [row for row in rows if row.prints is not None]
    counted = [row for row in rows if row.counts is not None]
    flagged, wrong = sum(row.is_flagged for row in rows), sum(row.is_wrong for row in rows)
    words = []
    if printed:
        words.append(
            f"{sum(bool(row.prints) for row in printed)} of {len(printed)} published rows match to the"
            " printed digit"
        )
    if counted:
        words.append(
            f"{sum(bool(row.counts) for row in counted)} of {len(counted)} have the parameters and GMACs"
            " counted elsewhere"
        )
    return ", ".join([*words, f"{flagged} flagged, {wrong} wrong"])
