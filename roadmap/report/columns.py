"""The columns that a table of the ablation can have: what each is called, what it says of a row, and its value for machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blocks.spelling import did_you_mean
from roadmap.report.rows import Ablation, Row
from roadmap.report.stats import MOST_SEEDS
from roadmap.strict_yaml import ConfigError, Problem

NONE = "–"
Value = str | float | None


@dataclass(frozen=True)
class Column:
    """`text` is what a table shows of a row, `value` a number or text to sort by; `tells` is the head in full.

    A column that `can_fold` goes into a note where it says the same in all rows.
    """

    key: str
    head: str
    tells: str
    text: Callable[[Row], str]
    value: Callable[[Row], Value]
    is_number: bool = True
    can_fold: bool = False


def chosen(ablation: Ablation, keys: Sequence[str] | None = None) -> list[Column]:
    """The columns named by `keys`, or those that say something of this ablation; ConfigError for a key that there is not."""
    if keys is None:
        default = PUBLISHED if ablation.source == "paper" else MEASURED
        return [COLUMNS[key] for key in default if _speaks(COLUMNS[key], ablation.rows)]
    for key in keys:
        if key not in COLUMNS:
            message = f"unknown column '{key}'{did_you_mean(key, list(COLUMNS))}; there are {', '.join(COLUMNS)}"
            raise ConfigError([Problem("--columns", message)])
    return [COLUMNS[key] for key in dict.fromkeys(keys)]


def folded(ablation: Ablation, keys: Sequence[str] | None = None) -> list[str]:
    """A sentence for the columns that were left out because they say the same in all rows; none where columns were chosen."""
    if keys is not None or ablation.source == "paper":
        return []
    same = [(column.tells, said) for column in COLUMNS.values() if column.can_fold and (said := _one(column, ablation.rows))]
    return [f"The same in all rows: {'; '.join(f'{tells} {said}' for tells, said in same)}."] if same else []


def _speaks(column: Column, rows: Sequence[Row]) -> bool:
    """Whether a column says anything, and not in all rows the same if it can be folded."""
    said = [column.text(row) for row in rows]
    return any(text != NONE for text in said) and not (column.can_fold and _one(column, rows))


def _one(column: Column, rows: Sequence[Row]) -> str | None:
    """What a column says in all rows of which it says anything."""
    said = {column.text(row) for row in rows if row.results} - {NONE}
    return said.pop() if len(said) == 1 else None


def gmacs(value: float) -> str:
    """Two decimals, four for the small networks of small images."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _at(path: str) -> Callable[[Row], Any]:
    """What is at a row's `path` of fields, None where one of them is."""

    def get(row: Row) -> Any:
        found: Any = row
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return found

    return get


def _said(value: Callable[[Row], Any]) -> Callable[[Row], str]:
    return lambda row: NONE if (found := value(row)) is None else str(found)


def _figure(key: str, head: str, tells: str, form: str) -> Column:
    return Column(key, head, tells, lambda row: _number(getattr(row, key), form), _at(key))


def _common(field: str, head: str, tells: str, *, is_number: bool = True) -> Column:
    """A field of the results, which most often is the same in all of them."""

    def value(row: Row) -> Value:
        found: Value = row.same(field)
        return found

    return Column(field, head, tells, _said(value), value, is_number, can_fold=True)


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _summary(row: Row) -> str:
    return str(row.top1) if row.top1 else "diverged" if row.diverged else NONE


def _n(row: Row) -> str:
    n = row.top1.n if row.top1 else 0
    return str(n) if n == row.planned else f"{n}/{row.planned}"


def _resolved(row: Row) -> str:
    return NONE if row.resolved is None else "yes" if row.resolved else "no"


def _p(row: Row) -> float | None:
    return row.p_holm if row.p_holm is not None else row.delta.p if row.delta else None


def _needed(row: Row) -> str:
    needed = row.delta.needed if row.delta else None
    return NONE if needed is None else f"> {MOST_SEEDS}" if needed > MOST_SEEDS else str(needed)


def _gap(row: Row) -> str:
    if row.gap is None:
        return NONE
    return f"{round(row.gap, 2) + 0.0:+.2f}" + (f" (z = {row.gap_z:+.1f})" if row.gap_z is not None else "")


def _states(row: Row) -> str:
    return ", ".join(f"{number} {state}" for state, number in row.states.items()) or NONE


def _printed_gmacs(row: Row) -> str:
    return NONE if row.paper_gmacs is None else f"{row.paper_gmacs:.2f}{'*' if row.gmacs_note else ''}"


def _columns() -> Iterator[Column]:
    yield Column("step", "step", "step", lambda row: f"└ {row.step}" if row.is_side_branch else row.step, _at("step"), False)
    yield Column("title", "title", "title", _said(_at("title")), _at("title"), False)
    yield Column("change", "what changed", "what changed", _said(_at("change")), _at("change"), False)
    yield Column("n", "n", "seeds", _n, _at("top1.n"))
    yield Column("top1", "top-1 (%)", "top-1 (%)", lambda row: _summary(row) + ("†" if row.mixed else ""), _at("top1.mean"))
    yield Column("ema", "EMA top-1 (%)", "top-1 of the moving average of the weights (%)", _said(_at("ema")), _at("ema.mean"))
    yield Column("delta", "Δ to parent", "difference to the parent (points)", _said(_at("delta")), _at("delta.value"))
    yield Column("p", "p", "p-value of no difference to the parent", lambda row: _number(_p(row), ".2g"), _p)
    yield Column("resolved", "resolved?", "resolved?", _resolved, _resolved, False)
    yield Column("needed", "seeds needed", "seeds that would resolve the difference", _needed, _at("delta.needed"))
    yield Column("gmacs", "GMACs", "GMACs an image", lambda row: gmacs(row.cost.gmacs), _at("cost.gmacs"))
    yield Column("params", "params (M)", "parameters (M)", lambda row: f"{row.cost.params / 1e6:.3f}", lambda row: row.cost.params / 1e6)
    yield _figure("images_per_s", "images/s", "images/s in training", ".0f")
    yield _figure("device_hours", "device-hours", "device-hours of a run", ".3g")
    yield _figure("peak_memory_mb", "peak memory (MB)", "peak memory (MB)", ".0f")
    yield _common("epochs", "epochs", "epochs")
    yield _common("global_batch", "batch", "global batch")
    yield _common("image_size", "px", "image size (px)")
    yield _common("hardware", "hardware", "hardware", is_number=False)
    yield Column("status", "runs", "runs of a step", _states, _states, False, can_fold=True)
    yield Column("hash", "hash", "hash of the configuration", _said(_at("hash")), _at("hash"), False)
    yield Column("paper_gmacs", "printed GMACs", "GMACs as printed", _printed_gmacs, _at("paper_gmacs"))
    yield Column("paper_top1", "paper's top-1", "the paper's top-1 (%)", _said(_at("paper")), _at("paper.mean"))
    yield Column("paper_delta", "paper's Δ", "the paper's difference (points)", _said(_at("paper_delta")), _at("paper_delta.value"))
    yield Column("gap", "Δ to paper", "top-1 less the paper's (points)", _gap, _at("gap"))


COLUMNS = {column.key: column for column in _columns()}
MEASURED = [
    "step", "change", "n", "top1", "ema", "delta", "resolved", "needed", "gmacs", "params", "images_per_s", "device_hours",
    "peak_memory_mb", "epochs", "global_batch", "hardware", "status", "paper_top1", "paper_delta", "gap",
]  # fmt: skip
PUBLISHED = ["step", "change", "n", "top1", "delta", "resolved", "needed", "gmacs", "params", "paper_gmacs"]
