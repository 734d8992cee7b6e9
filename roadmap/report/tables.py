"""An ablation as files: Markdown, LaTeX and HTML for readers, CSV and JSON in full precision for machines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from roadmap.files import write_atomic, write_errors
from roadmap.records import Status
from roadmap.report.columns import COLUMNS, NONE, chosen, folded, legends
from roadmap.report.marginal import READINGS, Worth
from roadmap.report.render import Grid, markdown, page, to_html, to_latex, to_markdown
from roadmap.report.rows import Ablation, AblationRow
from roadmap.report.stats import Difference, Summary

__all__ = [
    "WORTH_COLUMNS", "Grid", "grid", "markdown", "page", "runs_frame", "to_frame", "to_html", "to_json",
    "to_latex", "to_markdown", "worth_cells", "worth_frame", "write", "write_runs",
]  # fmt: skip
COMMON = ("epochs", "global_batch", "image_size", "hardware")
FIGURES = {
    "seed",
    "status",
    "top1",
    "top5",
    "ema_top1",
    "val_loss",
    "train_loss",
    "images_per_s",
    "train_seconds",
    "peak_memory_mb",
}


def grid(ablation: Ablation, keys: Sequence[str] | None = None) -> Grid:
    """The table of an ablation with the columns named by `keys`, or those that say something; ConfigError for
    an unknown key.
    """
    columns = chosen(ablation, keys)
    rows = [[column.text(row) for column in columns] for row in ablation.rows]
    return Grid(
        ablation.title,
        columns,
        rows,
        [*ablation.notes, *legends(columns, ablation.rows), *folded(ablation, keys)],
    )


def write(ablation: Ablation, out: Path, keys: Sequence[str] | None = None) -> list[Path]:
    """Writes ablation.md, .csv, .json, .tex and .html into `out` and returns their paths; ConfigError where
    that cannot be.

    `keys` choose the columns for readers; CSV and JSON hold all figures.
    """
    table = grid(ablation, keys)
    texts = {
        "md": to_markdown(table),
        "csv": to_frame(ablation).to_csv(index=False),
        "json": to_json(ablation),
        "tex": to_latex(table, _label(ablation)),
        "html": page(table.title, to_html(table)),
    }
    return [_write(out / f"ablation.{kind}", text) for kind, text in texts.items()]


def write_runs(runs: Sequence[Status], ablation: Ablation, out: Path) -> Path:
    """Writes runs.csv, a row a run, into `out` and returns its path; ConfigError where that cannot be."""
    return _write(out / "runs.csv", runs_frame(runs, ablation).to_csv(index=False))


def _write(path: Path, text: str) -> Path:
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return path


def _label(ablation: Ablation) -> str:
    r"""What \ref finds the table by."""
    names = (
        ablation.roadmap.name,
        ablation.roadmap.ablation,
        ablation.profile,
        "paper" if ablation.source == "paper" else None,
    )
    return "tab:" + re.sub(r"[^A-Za-z0-9]+", "-", "-".join(name for name in names if name))


def to_frame(ablation: Ablation) -> pd.DataFrame:
    """The table in full precision, one row a step, `top1_seed0` and so on for the single runs.

    Accuracies and differences are in percentage points. `delta_resolved` is what the table says, by `p_holm`
    where there is one. A `seeds_needed` above `roadmap.report.stats.MOST_SEEDS` says only that it is more.
    """
    found = [row.seeds for row in ablation.rows]
    seeds = sorted(set[int]().union(*found))
    records = [
        _record(row) | {f"top1_seed{seed}": mine.get(seed) for seed in seeds}
        for row, mine in zip(ablation.rows, found, strict=True)
    ]
    return pd.DataFrame(records).convert_dtypes()


def _record(row: AblationRow) -> dict[str, Any]:
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
    figures["delta_resolved"] = row.resolved
    figures |= {
        "macs": row.cost.macs,
        "params": row.cost.params,
        "images_per_s": row.images_per_s,
        "paper_gmacs": row.paper_gmacs,
    }
    return figures | {
        "p": row.delta.p if row.delta else None,
        "p_holm": row.p_holm,
        "seeds_needed": row.delta.needed if row.delta else None,
        "ema_top1_mean": row.ema.mean if row.ema else None,
        "ema_top1_std": row.ema.std if row.ema else None,
        "gap": row.gap,
        "gap_z": row.gap_z,
        "device_hours": row.device_hours,
        "peak_memory_mb": row.peak_memory_mb,
        **{key: COLUMNS[key].value(row) for key in COMMON},
        "states": COLUMNS["status"].value(row),
        "mixed": ", ".join(row.mixed) or None,
        "hash": row.hash,
    }


def to_json(ablation: Ablation) -> str:
    """The ablation in full precision with all that belongs to it; null where there is no figure, or none that
    is finite.

    `seeds_needed` is what `to_frame` says of it.
    """
    document = {
        "title": ablation.title,
        "source": ablation.source,
        "roadmap": ablation.roadmap.name,
        "ablation": ablation.roadmap.ablation,
        "profile": ablation.profile,
        "overrides": dict(ablation.overrides),
        "reference": ablation.reference.model_dump() if ablation.reference else None,
        "agreement": asdict(ablation.agreement) if ablation.agreement else None,
        "notes": ablation.notes,
        "rows": [_tree(row) for row in ablation.rows],
    }
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _tree(row: AblationRow) -> dict[str, Any]:
    delta = _delta(row.delta)
    return {
        **{key: getattr(row, key) for key in ("step", "title", "change", "parent")},
        "side_branch": row.is_side_branch,
        "hash": row.hash,
        **{key: getattr(row, key) for key in ("planned", "diverged", "states", "mixed")},
        "top1": _summary(row.top1),
        "ema_top1": _summary(row.ema),
        "delta": delta and delta | {"p_holm": row.p_holm, "resolved": row.resolved},
        "macs": row.cost.macs,
        "params": row.cost.params,
        **{key: getattr(row, key) for key in ("images_per_s", "device_hours", "peak_memory_mb")},
        **{key: COLUMNS[key].value(row) for key in COMMON},
        "paper": {
            "top1": _summary(row.paper),
            "delta": _delta(row.paper_delta),
            "gmacs": row.paper_gmacs,
            "gmacs_note": row.gmacs_note,
            "gap": row.gap,
            "gap_z": row.gap_z,
        },
        "seeds": [result.model_dump(include=FIGURES) for result in row.results],
    }


def _summary(found: Summary | None) -> dict[str, Any] | None:
    return {"mean": found.mean, "std": found.std, "n": found.n} if found else None


def _delta(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "value": found.value,
        "margin_95": found.margin,
        "p": found.p,
        "seeds_needed": found.needed,
        "resolved": found.resolved,
    }


def _finite(value: Any) -> Any:
    """Without the numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
            record |= result | {
                name.replace("-", "_"): version for name, version in run.result.versions.items()
            }
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
            figures = (
                {"delta": found.value, "delta_margin_95": found.margin, "resolved": found.resolved}
                if found
                else {}
            )
            records.append({"step": worth.step, "reading": reading, "n": worth.n[reading], **figures})
    return pd.DataFrame(
        records, columns=["step", "reading", "n", "delta", "delta_margin_95", "resolved"]
    ).convert_dtypes()
