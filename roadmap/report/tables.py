"""The ablation as text and as data: Markdown, CSV, and lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from roadmap.records import Status
from roadmap.report.rows import Ablation, Row
from roadmap.report.stats import Difference
from roadmap.report.worth import READINGS, Worth

NONE = "–"
COLUMNS = ["step", "what changed", ">n", ">top-1 (%)", ">Δ to parent", "resolved?", ">GMACs", ">params (M)", ">images/s"]
PAPER_COLUMNS = [">paper's top-1", ">paper's Δ"]


def columns(ablation: Ablation) -> list[str]:
    """The column heads of `cells`; those that start with '>' are aligned to the right."""
    return [*COLUMNS[:-1], ">printed GMACs"] if ablation.source == "paper" else COLUMNS + PAPER_COLUMNS


def cells(ablation: Ablation, row: Row) -> list[str]:
    """A row as text, in the order of `columns`."""
    n = row.top1.n if row.top1 else 0
    resolved = row.delta.resolved if row.delta else None
    found = [
        f"└ {row.step}" if row.is_side_branch else row.step,
        row.change,
        str(n) if n == row.planned else f"{n}/{row.planned}",
        str(row.top1) if row.top1 else "diverged" if row.diverged else NONE,
        str(row.delta) if row.delta else NONE,
        NONE if resolved is None else "yes" if resolved else "no",
        f"{row.cost.gmacs:.2f}" if row.cost.gmacs >= 1 else f"{row.cost.gmacs:.4f}",
        f"{row.cost.params / 1e6:.3f}",
    ]
    if ablation.source == "paper":
        return [*found, NONE if row.paper_gmacs is None else f"{row.paper_gmacs:.2f}{'*' if row.gmacs_note else ''}"]
    speed = f"{row.images_per_s:.0f}" if row.images_per_s else NONE
    return [*found, speed, str(row.paper) if row.paper else NONE, str(row.paper_delta) if row.paper_delta else NONE]


def to_markdown(ablation: Ablation) -> str:
    """The table with its notes."""
    return markdown(ablation.title, columns(ablation), [cells(ablation, row) for row in ablation.rows], ablation.notes)


def markdown(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A table under its title and over its notes; heads that start with '>' are aligned to the right."""
    lines = [f"# {title}", "", _line([head.removeprefix(">") for head in heads])]
    lines.append(_line(["---:" if head.startswith(">") else "---" for head in heads]))
    return "\n".join([*lines, *map(_line, rows), "", *(f"- {note}" for note in notes)]) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def to_frame(ablation: Ablation) -> pd.DataFrame:
    """The table in full precision, one row a step."""
    return pd.DataFrame([_record(row) for row in ablation.rows]).convert_dtypes()


def _record(row: Row) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "step": row.step,
        "title": row.title,
        "change": row.change,
        "parent": row.parent,
        "side_branch": row.is_side_branch,
        "n": row.top1.n if row.top1 else 0,
        "planned": row.planned,
        "diverged": row.diverged,
    }
    for name, summary, delta in (("", row.top1, row.delta), ("paper_", row.paper, row.paper_delta)):
        figures |= {
            f"{name}top1_mean": summary.mean if summary else None,
            f"{name}top1_std": summary.std if summary else None,
            f"{name}delta": delta.value if delta else None,
            f"{name}delta_margin_95": delta.margin if delta else None,
            f"{name}delta_resolved": delta.resolved if delta else None,
        }
    costs = {"macs": row.cost.macs, "params": row.cost.params, "images_per_s": row.images_per_s, "paper_gmacs": row.paper_gmacs}
    return figures | costs


def runs_frame(runs: Sequence[Status], ablation: Ablation) -> pd.DataFrame:
    """The long form: one row a run, finished or not; `in_table` says whether it is part of the ablation."""
    hashes = {row.hash for row in ablation.rows}
    records = []
    for run in runs:
        record: dict[str, Any] = {"run": run.run.name, "state": run.state, "why": run.why}
        record |= {"step": run.run.step, "seed": run.run.seed, "hash": run.run.hash}
        record["in_table"] = run.result is not None and run.run.hash in hashes
        if run.result is not None:
            result = run.result.model_dump(exclude={"format", "status", "versions"})
            record |= result | {name.replace("-", "_"): version for name, version in run.result.versions.items()}
        records.append(record)
    return pd.DataFrame(records).convert_dtypes()  # whole numbers stay whole beside missing ones


WORTH_COLUMNS = ["step", ">alone", ">in place", ">last", ">n (alone, in place, last)"]


def worth_cells(worth: Worth) -> list[str]:
    """A change's worth as text, in the order of `WORTH_COLUMNS`."""
    return [
        worth.step,
        *(_difference(worth.of[reading], worth.diverged.get(reading, 0)) for reading in READINGS),
        ", ".join(str(worth.n[reading]) for reading in READINGS),
    ]


def _difference(found: Difference | None, diverged: int) -> str:
    if found is None:
        return "diverged" if diverged else NONE
    return f"{found}{' *' if found.resolved else ''}{f' ({diverged} diverged)' if diverged else ''}"


def worth_frame(worths: Sequence[Worth]) -> pd.DataFrame:
    """The worths in full precision: one row a change and reading."""
    records = []
    for worth in worths:
        for reading in READINGS:
            found = worth.of[reading]
            figures = {"delta": found.value, "delta_margin_95": found.margin, "resolved": found.resolved} if found else {}
            records.append({"step": worth.step, "reading": reading, "n": worth.n[reading], **figures})
    return pd.DataFrame(records, columns=["step", "reading", "n", "delta", "delta_margin_95", "resolved"]).convert_dtypes()
