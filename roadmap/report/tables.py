"""The tables of an ablation, as text for readers, and in full precision as CSV and JSON for machines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from roadmap.files import write_atomic, write_errors
from roadmap.report.ablation import DELTA_NOTE, Ablation, AblationRow, origins
from roadmap.report.columns import COLUMNS, NONE, chosen, folded, legends
from roadmap.report.marginal import AVERAGE, MEANING, NAMES, MarginalEffect, readings_of
from roadmap.report.render import Heading, Table, to_html, to_latex, to_markdown
from roadmap.report.stats import Difference, Summary

COMMON = ("epochs", "global_batch", "image_size", "val_images", "hardware")
MARKED = {"†": "top1", "‡": "images_per_s"}  # the columns with a mark that a note begins with
RESULT_FIELDS = {
    "seed",
    "status",
    "top1",
    "top5",
    "ema_top1",
    "val_loss",
    "train_loss",
    "images_per_s",
    "train_seconds",
    "data_seconds",
    "peak_memory_mb",
}


def ablation_table(ablation: Ablation, keys: Sequence[str] | None = None) -> Table:
    """The columns named by `keys`, `all` for all with content, or the default ones; ConfigError for an
    unknown key.
    """
    columns = chosen(ablation, keys)
    rows = [[column.text(row) for column in columns] for row in ablation.rows]
    notes, shown = list(ablation.notes), {column.key for column in columns}
    if not {"delta", "resolved"} & shown:
        notes = [note for note in notes if not note.startswith(DELTA_NOTE)]
    for mark, key in MARKED.items():
        if key not in shown:
            notes = [note.removeprefix(f"{mark} ") for note in notes]
    notes = [*notes, *legends(columns, ablation.rows), *folded(ablation, keys)]
    return Table(ablation.title, columns, rows, notes)


def effects_title(ablation: Ablation) -> str:
    """The title of the table and the figure."""
    end = [effect.title for effect in ablation.effects if not effect.is_interaction][-1]
    return f"Marginal effect of each change on the way to {end} on {ablation.profile or 'ImageNet-1K'}"


def effects_table(ablation: Ablation) -> Table:
    """The marginal effect of each change, in percentage points of top-1."""
    readings = readings_of(ablation.effects)
    columns = [
        Heading("step", "step", is_number=False),
        *(Heading(reading, NAMES[reading]) for reading in readings),
        Heading("n", "n (in this order)" if len(readings) > 1 else "n"),
    ]
    rows = [
        [
            effect.step,
            *(_difference(effect, reading) for reading in readings),
            ", ".join(str(effect.n.get(reading, 0)) for reading in readings),
        ]
        for effect in ablation.effects
    ]
    notes = [f"{NAMES[reading]}: {MEANING[reading]}." for reading in readings]
    adjusted = any(effect.p_holm for effect in ablation.effects)
    notes.append(
        "Percentage points of top-1 with their 95 % interval over n seeds, * where "
        + (
            "the p-value, adjusted over all changes (Holm), is below .05."
            if adjusted
            else "it excludes zero."
        )
    )
    if any(effect.is_interaction for effect in ablation.effects):
        notes.append("A:B is an interaction: the effect of A with B minus the effect of A without B.")
    notes.append(
        "A dash stands for missing runs, and for a change that cannot be left out because a later change sets"
        " the same values."
    )
    if any(any(effect.diverged.values()) for effect in ablation.effects):
        notes.append("Runs that diverged are counted behind the difference, and in no mean.")
    notes += ablation.effects_notes
    notes += origins([result for effect in ablation.effects for result in effect.results])
    return Table(effects_title(ablation), columns, rows, notes)


def _difference(effect: MarginalEffect, reading: str) -> str:
    found, diverged = effect.of.get(reading), effect.diverged.get(reading, 0)
    if found is None:
        return "diverged" if diverged else NONE
    mark = " *" if effect.resolved(reading) else ""
    return f"{found}{mark}{f' ({diverged} diverged)' if diverged else ''}"


def write_tables(ablation: Ablation, out: Path, keys: Sequence[str] | None = None) -> list[Path]:
    """Writes the ablation's tables, runs and marginal effects into `out` and returns the paths.

    `keys` choose the columns for readers; CSV and JSON hold all values. ConfigError if writing fails.
    """
    table = ablation_table(ablation, keys)
    texts = {
        "ablation.md": to_markdown(table),
        "ablation.csv": to_frame(ablation).to_csv(index=False),
        "ablation.json": to_json(ablation),
        "ablation.tex": to_latex(table, _label(ablation)),
        "ablation.html": to_html(table),
    }
    if ablation.folder is not None:
        texts["runs.csv"] = runs_frame(ablation).to_csv(index=False)
    if ablation.effects:
        texts["worth.csv"] = effects_frame(ablation.effects).to_csv(index=False)
        texts["worth.md"] = to_markdown(effects_table(ablation))
    return write_texts(texts, out)


def write_texts(texts: Mapping[str, str], out: Path) -> list[Path]:
    """Writes files by name into `out`; ConfigError where that is impossible."""
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomic(out / name, text)
    return [out / name for name in texts]


def _label(ablation: Ablation) -> str:
    r"""The table's name for \ref."""
    names = (
        ablation.roadmap.name,
        ablation.roadmap.ablation,
        ablation.profile,
        "paper" if ablation.source == "paper" else None,
    )
    return "tab:" + re.sub(r"[^A-Za-z0-9]+", "-", "-".join(name for name in names if name))


def to_frame(ablation: Ablation) -> pd.DataFrame:
    """The table in full precision: one row per step, with `top1_seed0` and so on for the single runs.

    Accuracies and differences are in percentage points. `delta_resolved` is by `p_holm` where there is one.
    A `seeds_needed` above `roadmap.report.stats.MOST_SEEDS` is a lower bound.
    """
    found = [row.seeds for row in ablation.rows]
    seeds = sorted(set[int]().union(*found))
    records = [
        _record(row) | {f"top1_seed{seed}": mine.get(seed) for seed in seeds}
        for row, mine in zip(ablation.rows, found, strict=True)
    ]
    return pd.DataFrame(records).convert_dtypes()


def _record(row: AblationRow) -> dict[str, Any]:
    values: dict[str, Any] = {
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
        values |= {
            f"{name}top1_mean": summary.mean if summary else None,
            f"{name}top1_std": summary.std if summary else None,
            f"{name}delta": delta.value if delta else None,
            f"{name}delta_margin_95": delta.margin if delta else None,
            f"{name}delta_resolved": delta.resolved if delta else None,
        }
    values["delta_resolved"] = row.resolved
    values |= _pairs(row)
    values |= {
        "macs": row.cost and row.cost.macs,
        "params": row.cost and row.cost.params,
        "images_per_s": row.images_per_s,
        "paper_gmacs": row.paper_gmacs,
    }
    values |= {"reference": True} if row.is_reference else {}
    return values | {
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
    """The ablation in full precision, with its notes and runs; null where a value is missing or not finite.

    `seeds_needed` is as in `to_frame`.
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
        **({"reference": True} if row.is_reference else {}),
        "hash": row.hash,
        **{key: getattr(row, key) for key in ("planned", "diverged", "states", "mixed")},
        "top1": _summary(row.top1),
        "ema_top1": _summary(row.ema),
        "delta": delta and delta | {"p_holm": row.p_holm, "resolved": row.resolved} | _pairs(row),
        "macs": row.cost and row.cost.macs,
        "params": row.cost and row.cost.params,
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
        "seeds": [result.model_dump(include=RESULT_FIELDS) for result in row.results],
    }


def _pairs(row: AblationRow) -> dict[str, Any]:
    """The pairs of runs that the two-stage procedure has and needs; empty where it was not asked for."""
    if (found := row.two_stage) is None:
        return {}
    return {"pairs": found.pairs, "pairs_needed": found.needed, "reached": found.reached}


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
    """The value with null for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def runs_frame(ablation: Ablation) -> pd.DataFrame:
    """One row per run, finished or not; `in_table` is true of runs that are part of the ablation."""
    hashes = {row.hash for row in ablation.rows}
    records = []
    for run in ablation.runs:
        record: dict[str, Any] = {"run": run.run.name, "state": run.state, "why": run.why}
        record |= {"step": run.run.step, "seed": run.run.seed, "hash": run.run.hash}
        record["in_table"] = run.result is not None and run.run.hash in hashes
        if run.result is not None:
            record |= run.result.model_dump(exclude={"format", "status", "versions"})
            record |= {name.replace("-", "_"): version for name, version in run.result.versions.items()}
        records.append(record)
    return pd.DataFrame(records).convert_dtypes()  # integers stay integers beside missing ones


def effects_frame(effects: Sequence[MarginalEffect]) -> pd.DataFrame:
    """The marginal effects in full precision: one row per change and reading.

    `resolved` is by `p_holm` where there is one. `relative_variance` is that of an average, relative to an
    orthogonal design.
    """
    records = []
    for effect in effects:
        for reading in effect.of:
            record: dict[str, Any] = {"step": effect.step, "reading": reading, "n": effect.n[reading]}
            if found := effect.of[reading]:
                record |= {
                    "delta": found.value,
                    "delta_margin_95": found.margin,
                    "resolved": effect.resolved(reading),
                    "p": found.p,
                    "p_holm": effect.p_holm.get(reading),
                    "relative_variance": effect.variance if reading == AVERAGE else None,
                }
            records.append(record)
    columns = ["step", "reading", "n", "delta", "delta_margin_95", "resolved", "p", "p_holm"]
    return pd.DataFrame(records, columns=[*columns, "relative_variance"]).convert_dtypes()
