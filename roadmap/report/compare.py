"""Two ablations side by side: whether their steps have the same effects."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from roadmap.report.ablation import Ablation, AblationRow
from roadmap.report.columns import NONE
from roadmap.report.render import Heading, Table, to_html, to_latex, to_markdown
from roadmap.report.stats import (
    CONFIDENCE,
    Correlation,
    Difference,
    Summary,
    rank_correlation,
    same_sign,
    sign_agreement,
    summarize,
)
from roadmap.report.tables import write_texts
from roadmap.terminal import count

AGREE, CONTRADICT, OPEN = "agree", "contradict", "open"
MEANING = (
    "Effects: 'agree' where both Δ are resolved with the same sign, 'contradict' with opposite signs, 'A"
    " only' and 'B only' where one is resolved and the other is not, 'open' where neither is, a dash where"
    " one is missing."
)
MARGIN = (
    "Δ B less Δ A with its 95 % interval (Welch, on the standard errors of the two Δ, which are taken for"
    " independent), * where it excludes zero; without an interval where one of the Δ has none."
)


@dataclass(frozen=True)
class Pair:
    """A step on both sides, None where a side lacks it; `difference` is Δ B less Δ A in points."""

    step: str
    title: str
    a: AblationRow | None
    b: AblationRow | None
    effects: str
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """The steps of A, then those of B alone; `agreement` is the rank correlation of the Δ that both have."""

    a: Ablation
    b: Ablation
    pairs: tuple[Pair, ...]
    agreement: Correlation | None
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"A: {self.a.title}, B: {self.b.title}"


def compare(a: Ablation, b: Ablation) -> Comparison:
    """Compares two ablations, step by step of the same name."""
    ours, theirs = ({row.step: row for row in ablation.rows} for ablation in (a, b))
    pairs = []
    for step in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(step), theirs.get(step)
        title = next(row.title for row in (one, other) if row)
        pairs.append(Pair(step, title, one, other, _effects(one, other), _difference(a, one, b, other)))
    both = [
        (pair.a.delta.value, pair.b.delta.value)
        for pair in pairs
        if pair.a and pair.b and pair.a.delta and pair.b.delta
    ]
    agreement = rank_correlation([one for one, _ in both], [other for _, other in both])
    return Comparison(a, b, tuple(pairs), agreement, tuple(_notes(a, b, pairs, agreement)))


def _effects(a: AblationRow | None, b: AblationRow | None) -> str:
    """Whether a step has the same effect on both sides."""
    if a is None or b is None or a.delta is None or b.delta is None:
        return NONE
    if a.resolved and b.resolved:
        return AGREE if same_sign(a.delta.value, b.delta.value) else CONTRADICT
    return "A only" if a.resolved else "B only" if b.resolved else OPEN


def _difference(
    a: Ablation, one: AblationRow | None, b: Ablation, other: AblationRow | None
) -> Difference | None:
    """Δ B less Δ A, with the standard error and degrees of freedom of Welch and Satterthwaite."""
    if one is None or other is None or one.delta is None or other.delta is None:
        return None
    from scipy import stats

    value, ours, theirs = other.delta.value - one.delta.value, _error(a, one), _error(b, other)
    if ours is None or theirs is None:
        return Difference(value, None)
    error = math.hypot(ours[0], theirs[0])
    freedom = error**4 / (ours[0] ** 4 / ours[1] + theirs[0] ** 4 / theirs[1])
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Difference(value, margin, float(2 * stats.t.sf(abs(value) / error, freedom)))


def _error(ablation: Ablation, row: AblationRow) -> tuple[float, float] | None:
    """The standard error and degrees of freedom of a row's Δ, or None, as in `stats.difference`."""
    if row.delta is None or row.delta.margin is None or row.parent is None or row.top1 is None:
        return None
    parent = ablation.row(row.parent)
    if len(row.seeds) > 1 and row.seeds.keys() == parent.seeds.keys():
        pairs = summarize([row.seeds[seed] - parent.seeds[seed] for seed in row.seeds])
        return (_of_mean(pairs), pairs.n - 1) if pairs else None
    if parent.top1 is None:
        return None
    one, other = _of_mean(row.top1), _of_mean(parent.top1)
    return math.hypot(one, other), (one**2 + other**2) ** 2 / (
        one**4 / (row.top1.n - 1) + other**4 / (parent.top1.n - 1)
    )


def _of_mean(summary: Summary) -> float:
    return (summary.std or 0.0) / math.sqrt(summary.n)


def _notes(a: Ablation, b: Ablation, pairs: Sequence[Pair], agreement: Correlation | None) -> Iterator[str]:
    for name, side in (("A", a), ("B", b)):
        what = "published" if side.source == "paper" else f"{sum(row.planned for row in side.rows)} planned"
        runs = count(sum(row.top1.n for row in side.rows if row.top1), "run")
        yield f"{name}: {side.title}, {runs} with an accuracy ({what})."
    yield MEANING
    counts = {
        word: sum(pair.effects == word for pair in pairs)
        for word in (AGREE, CONTRADICT, "A only", "B only", OPEN)
    }
    words = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    yield f"Of {count(sum(counts.values()), 'step')} with both Δ: {words or 'none'}."
    both = [
        (pair.a.delta, pair.b.delta) for pair in pairs if pair.a and pair.b and pair.a.delta and pair.b.delta
    ]
    signs = sign_agreement([one.value for one, _ in both], [other.value for _, other in both])
    yield f"Resolved or not, {signs or '0 of 0'} have the same sign."
    for name, bare in (
        ("A", sum(one.margin is None for one, _ in both)),
        ("B", sum(other.margin is None for _, other in both)),
    ):
        if bare:
            yield (
                f"{name}: {bare} of {len(both)} Δ have no interval (too few seeds, or no spread is"
                " published), and cannot be resolved."
            )
    yield MARGIN
    if agreement:
        yield f"Spearman's rank correlation of the two Δ: {agreement} (n = {agreement.n} steps)."
    for pair in pairs:
        if (
            pair.a
            and pair.b
            and pair.a.parent != pair.b.parent
            and (first := _against(a, pair.a)) != (second := _against(b, pair.b))
        ):
            yield f"{pair.step}: Δ is against {first} in A, against {second} in B."


def _against(ablation: Ablation, row: AblationRow) -> str:
    """The parent of a row; the first steps of two roadmaps are counterparts under any name."""
    if row.parent is None:
        return "nothing"
    return "the first step" if row.parent == ablation.roadmap.steps[0] else row.parent


def comparison_table(comparison: Comparison) -> Table:
    """A row per step, with accuracies and differences of both sides."""
    heads = [
        ("step", "step", False),
        ("a_top1", "top-1 A (%)", True),
        ("a_delta", "Δ A", True),
        ("b_top1", "top-1 B (%)", True),
        ("b_delta", "Δ B", True),
        ("effects", "effects", False),
        ("delta_difference", "Δ B − Δ A", True),
    ]
    columns = [Heading(key, head, head, is_number, key == "step") for key, head, is_number in heads]
    return Table(comparison.title, columns, [_cells(pair) for pair in comparison.pairs], comparison.notes)


def _cells(pair: Pair) -> list[str]:
    sides = [
        text
        for row in (pair.a, pair.b)
        for text in (_top1(row), _starred(row.delta if row else None, bool(row and row.resolved)))
    ]
    return [
        pair.step,
        *sides,
        pair.effects,
        _starred(pair.difference, bool(pair.difference and pair.difference.resolved)),
    ]


def _top1(row: AblationRow | None) -> str:
    if row and row.top1:
        return f"{row.top1} (n = {row.top1.n})"
    return "diverged" if row and row.diverged else NONE


def _starred(found: Difference | None, resolved: bool) -> str:
    return NONE if found is None else f"{found}{' *' * resolved}"


def _record(pair: Pair) -> dict[str, Any]:
    """A step in full precision."""
    values: dict[str, Any] = {"step": pair.step, "title": pair.title}
    for name, row in (("a", pair.a), ("b", pair.b)):
        top1, delta = (row.top1, row.delta) if row else (None, None)
        values |= {
            f"{name}_top1_mean": top1.mean if top1 else None,
            f"{name}_top1_std": top1.std if top1 else None,
            f"{name}_n": top1.n if top1 else 0,
            f"{name}_delta": delta.value if delta else None,
            f"{name}_delta_margin_95": delta.margin if delta else None,
            f"{name}_delta_resolved": row.resolved if row else None,
        }
    found = pair.difference
    return values | {
        "effects": None if pair.effects == NONE else pair.effects,
        "delta_difference": found.value if found else None,
        "delta_difference_margin_95": found.margin if found else None,
        "delta_difference_p": found.p if found else None,
    }


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Writes comparison.md, .csv, .json, .tex and .html into `out`; returns the paths."""
    table, rows = comparison_table(comparison), [_record(pair) for pair in comparison.pairs]
    sides = {
        name: {
            "title": side.title,
            "roadmap": side.roadmap.name,
            "profile": side.profile,
            "source": side.source,
        }
        for name, side in (("a", comparison.a), ("b", comparison.b))
    }
    agreement = asdict(comparison.agreement) if comparison.agreement else None
    document = {**sides, "rank_correlation": agreement, "notes": comparison.notes, "rows": rows}
    texts = {
        "comparison.md": to_markdown(table),
        "comparison.csv": pd.DataFrame(rows, dtype=object).to_csv(index=False),
        "comparison.json": json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "comparison.tex": to_latex(table, "tab:comparison"),
        "comparison.html": to_html(table),
    }
    return write_texts(texts, out)
