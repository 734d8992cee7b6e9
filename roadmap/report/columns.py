"""The columns that a table of the ablation can have: their heads, texts, and values for machines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blocks.layers import did_you_mean
from roadmap.errors import config_error
from roadmap.report.ablation import Ablation, AblationRow
from roadmap.report.render import BRANCH, Heading
from roadmap.report.stats import MOST_SEEDS, POWER

NONE = "–"
ALL = "all"  # stands for all columns with content
Value = str | float | None


@dataclass(frozen=True, kw_only=True)
class Column(Heading):
    """`text` is a row's cell; `value` is a number or text to sort by, None where there is none.

    `legend` is the note on the column below a table, `legend_holm` the one where p-values are adjusted. A
    column with `folds`, a phrase with a place for its text, becomes a note unless it is chosen.
    """

    text: Callable[[AblationRow], str]
    value: Callable[[AblationRow], Value]
    legend: str = ""
    legend_holm: str = ""
    folds: str = ""


def chosen(ablation: Ablation, keys: Sequence[str] | None = None) -> list[Column]:
    """The columns named by `keys`; `all` names those with content, and None those of them that most readers
    need. ConfigError for an unknown key.
    """
    if keys is None or ALL in keys:
        default = PUBLISHED if ablation.source == "paper" else MEASURED
        wanted = default if keys is None else list(COLUMNS)
        return [COLUMNS[key] for key in wanted if _has_content(COLUMNS[key], ablation.rows)]
    for key in keys:
        if key not in COLUMNS:
            message = (
                f"unknown column '{key}'{did_you_mean(key, [*COLUMNS, ALL])}; there are"
                f" {', '.join(COLUMNS)}, and {ALL}"
            )
            raise config_error("--columns", message)
    return [COLUMNS[key] for key in dict.fromkeys(keys)]


def folded(ablation: Ablation, keys: Sequence[str] | None = None) -> list[str]:
    """Notes on columns that became one, with the rows that differ; none if columns were chosen."""
    if (keys is not None and ALL not in keys) or ablation.source == "paper":
        return []
    shown = {column.key for column in chosen(ablation, keys)} | {"hardware"}  # in the ablation's own notes
    same, varied = [], []
    for column in COLUMNS.values():
        if not column.folds or column.key in shown:
            continue
        steps = _steps_by_text(column, ablation.rows)
        common, *others = sorted(steps, key=lambda text: -len(steps[text])) or [NONE]
        if others:
            exceptions = "; ".join(f"{', '.join(steps[text])} ({text})" for text in others)
            phrase = _folded(column, common)
            varied.append(f"{phrase[0].upper()}{phrase[1:]}, except {exceptions}.")
        elif steps:
            same.append(_folded(column, common))
    return ([f"The same in all rows: {'; '.join(same)}."] if same else []) + varied


def _folded(column: Column, text: str) -> str:
    """The phrase of a column with a text that rows share, in the singular where it counts one thing."""
    return re.sub(r"^1 (.+)s$", r"1 \1", column.folds.format(text))


def _steps_by_text(column: Column, rows: Sequence[AblationRow]) -> dict[str, list[str]]:
    """The rows that have each text of a column, without those that have none."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(column.text(row), []).append(row.step)
    return {text: steps for text, steps in found.items() if text != NONE}


def legends(columns: Sequence[Column], rows: Sequence[AblationRow]) -> list[str]:
    """A note on the columns whose heads need an explanation."""
    adjusted = any(row.p_holm is not None for row in rows)
    found = [
        words for column in columns if (words := (column.legend_holm if adjusted else "") or column.legend)
    ]
    return [" ".join(found)] if found else []


def _has_content(column: Column, rows: Sequence[AblationRow]) -> bool:
    """Whether a column has any text, and not the same in all rows if it can be folded."""
    texts = _steps_by_text(column, rows)
    return bool(texts) and not (column.folds and len(texts) == 1)


def gmacs(value: float | None) -> str:
    """Two decimals, four for the small networks of small images."""
    if value is None:
        return NONE
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _at(path: str) -> Callable[[AblationRow], Any]:
    """The value at a row's `path` of fields, None where one of them is None."""

    def get(row: AblationRow) -> Any:
        found: Any = row
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return found

    return get


def _shown(value: Callable[[AblationRow], Any]) -> Callable[[AblationRow], str]:
    return lambda row: NONE if (found := value(row)) is None else str(found)


def _plain(key: str, head: str, title: str, **more: Any) -> Column:
    """A field of the row, shown as it is."""
    return Column(key, head, title, text=_shown(_at(key)), value=_at(key), **more)


def _measured(key: str, head: str, title: str, legend: str = "") -> Column:
    """A measured number of the row, with three digits."""
    return Column(key, head, title, text=lambda row: _short(_at(key)(row)), value=_at(key), legend=legend)


def _result(
    key: str, head: str, title: str, folds: str, *, is_number: bool = True, of_done: bool = False
) -> Column:
    """A field of the results, or of those that did not diverge; most often the same in all of them."""

    def value(row: AblationRow) -> Value:
        counted = tuple(run for run in row.runs if run.state == "done" or not of_done)
        found: Value = replace(row, runs=counted).same(key)
        return found

    return Column(key, head, title, is_number, text=_shown(value), value=value, folds=folds)


def _short(value: float | None) -> str:
    """Three digits, or all before the point, without an exponent."""
    return NONE if value is None else f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _summary(row: AblationRow) -> str:
    return str(row.top1) if row.top1 else "diverged" if row.diverged else NONE


def _n(row: AblationRow) -> str:
    n = row.top1.n if row.top1 else 0
    return str(n) if n == row.planned else f"{n}/{row.planned}"


def _resolved(row: AblationRow) -> str | None:
    return None if row.resolved is None else "yes" if row.resolved else "no"


def _reached(row: AblationRow) -> str | None:
    if (found := row.two_stage) is None:
        return None
    if found.needed is None:
        return "no (first stage)"
    return "yes" if found.reached else f"no ({found.pairs} of {found.needed} pairs)"


def _p(row: AblationRow) -> float | None:
    return row.p_holm if row.p_holm is not None else row.delta.p if row.delta else None


def _p_value(row: AblationRow) -> str:
    p = _p(row)
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:#.2g}"


def _needed(row: AblationRow) -> str:
    needed = row.delta.needed if row.delta else None
    return NONE if needed is None else f"> {MOST_SEEDS}" if needed > MOST_SEEDS else str(needed)


def _gap(row: AblationRow) -> str:
    if row.gap is None:
        return NONE
    z = "" if row.gap_z is None else f" (z = {round(row.gap_z, 1) + 0.0:+.1f})"
    return f"{round(row.gap, 2) + 0.0:+.2f}{z}"


def _states(row: AblationRow) -> str | None:
    return ", ".join(f"{number} {state}" for state, number in row.states.items()) or None


def _printed_gmacs(row: AblationRow) -> str:
    return NONE if row.paper_gmacs is None else f"{row.paper_gmacs:.2f}{'*' if row.gmacs_note else ''}"


POWERED = f"{round(100 * POWER)} % probability"
NEEDED = "Seeds needed: so many on either side would resolve this difference at this spread with"
HOURS = "a run's hours of training times its processes"
ALL_COLUMNS = (
    Column(
        "step",
        "step",
        "step",
        is_number=False,
        is_code=True,
        text=lambda row: f"{BRANCH}{row.step}" if row.is_side_branch else row.step,
        value=_at("step"),
    ),
    _plain("title", "title", "title", is_number=False),
    _plain("change", "what changed", "what changed against the parent", is_number=False),
    Column("n", "n", "seeds", text=_n, value=_at("top1.n")),
    Column(
        "top1",
        "top-1 (%)",
        "top-1 (%)",
        text=lambda row: _summary(row) + ("†" if row.mixed else ""),
        value=_at("top1.mean"),
    ),
    Column(
        "ema",
        "EMA top-1 (%)",
        "top-1 of the EMA of the weights (%)",
        text=_shown(_at("ema")),
        value=_at("ema.mean"),
        legend="EMA top-1 is that of the EMA of the weights.",
    ),
    Column(
        "delta",
        "Δ to parent",
        "difference to the parent (points)",
        text=_shown(_at("delta")),
        value=_at("delta.value"),
    ),
    Column(
        "p",
        "p",
        "two-sided p-value of no difference to the parent",
        text=_p_value,
        value=_p,
        legend="p is two-sided, of no difference to the parent.",
    ),
    Column(
        "resolved",
        "resolved?",
        "whether the difference to the parent is resolved",
        is_number=False,
        text=_shown(_resolved),
        value=_resolved,
    ),
    Column(
        "reached",
        "precision reached?",
        "whether the difference has the precision that was asked for",
        is_number=False,
        text=_shown(_reached),
        value=_reached,
    ),
    Column(
        "needed",
        "seeds needed",
        "seeds that would resolve the difference",
        text=_needed,
        value=_at("delta.needed"),
        legend=f"{NEEDED} {POWERED}.",
        legend_holm=f"{NEEDED} at least {POWERED}, whatever the other p-values are: at 5 % over the number of"
        " differences (Bonferroni).",
    ),
    Column(
        "gmacs",
        "GMACs",
        "GMACs an image",
        text=lambda row: gmacs(_at("cost.gmacs")(row)),
        value=_at("cost.gmacs"),
    ),
    Column(
        "params",
        "params (M)",
        "parameters (M)",
        text=lambda row: f"{row.cost.params / 1e6:.3f}" if row.cost else NONE,
        value=lambda row: row.cost.params / 1e6 if row.cost else None,
    ),
    Column(
        "images_per_s",
        "images/s",
        "images/s in training, all processes together",
        text=lambda row: _short(row.images_per_s) + ("‡" if row.waits else ""),
        value=_at("images_per_s"),
    ),
    # a result does not record whether each process had its own GPU
    _measured(
        "device_hours",
        "device-hours",
        HOURS,
        f"Device-hours: {HOURS}, which are GPU-hours where each has a GPU.",
    ),
    _measured(
        "peak_memory_mb",
        "peak memory (MiB)",
        "peak memory of a GPU (MiB), the largest of any run",
        "Peak memory is a GPU's, the largest of any run.",
    ),
    _result("epochs", "epochs", "epochs", "{} epochs", of_done=True),
    _result("global_batch", "batch", "global batch", "global batch {}"),
    _result("image_size", "px", "image size (px)", "images of {} px"),
    _result("val_images", "test images", "images of the evaluation", "{} test images", of_done=True),
    _result("hardware", "hardware", "hardware", "hardware {}", is_number=False),
    Column(
        "status",
        "runs",
        "runs of a step",
        is_number=False,
        text=_shown(_states),
        value=_states,
        folds="runs of a step: {}",
    ),
    _plain("hash", "hash", "hash of the configuration", is_number=False, is_code=True),
    Column("paper_gmacs", "printed GMACs", "GMACs as printed", text=_printed_gmacs, value=_at("paper_gmacs")),
    Column(
        "paper_top1",
        "paper's top-1",
        "the paper's top-1 (%)",
        text=_shown(_at("paper")),
        value=_at("paper.mean"),
    ),
    Column(
        "paper_delta",
        "paper's Δ",
        "the paper's difference to the parent (points)",
        text=_shown(_at("paper_delta")),
        value=_at("paper_delta.value"),
    ),
    Column(
        "gap",
        "Δ to paper",
        "top-1 less the paper's (points)",
        text=_gap,
        value=_at("gap"),
        legend="Δ to paper is top-1 less the paper's, and z the same in standard errors, Welch's t: with few"
        " seeds, its 95 % bound is above 1.96.",
    ),
)
COLUMNS = {column.key: column for column in ALL_COLUMNS}
# what a reader needs to see what a step changes, whether it is certain, and at what cost
MEASURED = ["step", "change", "n", "top1", "delta", "resolved", "reached", "gmacs", "params", "paper_delta"]
PUBLISHED = ["step", "change", "n", "top1", "delta", "resolved", "gmacs", "params", "paper_gmacs"]
