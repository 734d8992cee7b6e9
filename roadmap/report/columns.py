"""The columns that a table of the ablation can have: what each is called, what it says of a row, and its
value for machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blocks.layers import did_you_mean
from roadmap.errors import config_error
from roadmap.report.rows import Ablation, AblationRow
from roadmap.report.stats import MOST_SEEDS, POWER

NONE = "–"
Value = str | float | None


@dataclass(frozen=True)
class Column:
    """`text` is what a table shows of a row, `value` a number or text to sort by, None where there is none;
    `tells` is the head in full.

    `legend` is what the notes below a table must say of the column, `legend_holm` what instead where the
    p-values are adjusted. A column with `folds`, a phrase with a place for what it says, goes into a note
    where it says the same in all rows. `is_code` is true of names that commands and files know.
    """

    key: str
    head: str
    tells: str
    text: Callable[[AblationRow], str]
    value: Callable[[AblationRow], Value]
    is_number: bool = True
    legend: str = ""
    legend_holm: str = ""
    folds: str = ""
    is_code: bool = False

    @property
    def can_fold(self) -> bool:
        """Whether the column goes into a note where it says the same in all rows."""
        return bool(self.folds)


def chosen(ablation: Ablation, keys: Sequence[str] | None = None) -> list[Column]:
    """The columns named by `keys`, or those that say something of this ablation; ConfigError for a key that
    there is not.
    """
    if keys is None:
        default = PUBLISHED if ablation.source == "paper" else MEASURED
        return [COLUMNS[key] for key in default if _speaks(COLUMNS[key], ablation.rows)]
    for key in keys:
        if key not in COLUMNS:
            message = (
                f"unknown column '{key}'{did_you_mean(key, list(COLUMNS))}; there are {', '.join(COLUMNS)}"
            )
            raise config_error("--columns", message)
    return [COLUMNS[key] for key in dict.fromkeys(keys)]


def folded(ablation: Ablation, keys: Sequence[str] | None = None) -> list[str]:
    """A sentence for columns left out because they say the same in all rows; none if columns were chosen."""
    if keys is not None or ablation.source == "paper":
        return []
    same = [
        (column, said)
        for column in COLUMNS.values()
        if column.can_fold and (said := _one(column, ablation.rows))
    ]
    # the hardware is in the ablation's own notes
    new = [
        column.folds.format(said)
        for column, said in same
        if f"{column.head.capitalize()}: {said}." not in ablation.notes
    ]
    return [f"The same in all rows: {'; '.join(new)}."] if new else []


def legends(columns: Sequence[Column], rows: Sequence[AblationRow]) -> list[str]:
    """A note on the columns whose heads do not say enough."""
    adjusted = any(row.p_holm is not None for row in rows)
    found = [
        words for column in columns if (words := (column.legend_holm if adjusted else "") or column.legend)
    ]
    return [" ".join(found)] if found else []


def _speaks(column: Column, rows: Sequence[AblationRow]) -> bool:
    """Whether a column says anything, and not in all rows the same if it can be folded."""
    said = [column.text(row) for row in rows]
    return any(text != NONE for text in said) and not (column.can_fold and _one(column, rows))


def _one(column: Column, rows: Sequence[AblationRow]) -> str | None:
    """What a column says in all rows of which it says anything."""
    said = {column.text(row) for row in rows} - {NONE}
    return said.pop() if len(said) == 1 else None


def gmacs(value: float) -> str:
    """Two decimals, four for the small networks of small images."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _at(path: str) -> Callable[[AblationRow], Any]:
    """What is at a row's `path` of fields, None where one of them is."""

    def get(row: AblationRow) -> Any:
        found: Any = row
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return found

    return get


def _said(value: Callable[[AblationRow], Any]) -> Callable[[AblationRow], str]:
    return lambda row: NONE if (found := value(row)) is None else str(found)


def _figure(key: str, head: str, tells: str, legend: str = "") -> Column:
    return Column(key, head, tells, lambda row: _short(_at(key)(row)), _at(key), legend=legend)


def _common(
    field: str, head: str, tells: str, folds: str, *, is_number: bool = True, of_done: bool = False
) -> Column:
    """A field of the results, or of those that did not diverge, most often the same in all of them."""

    def value(row: AblationRow) -> Value:
        counted = tuple(run for run in row.runs if run.state == "done" or not of_done)
        found: Value = replace(row, runs=counted).same(field)
        return found

    return Column(field, head, tells, _said(value), value, is_number, folds=folds)


def _short(value: float | None) -> str:
    """Three digits, or all before the point: an exponent is no number of hours that a reader expects."""
    return NONE if value is None else f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _summary(row: AblationRow) -> str:
    return str(row.top1) if row.top1 else "diverged" if row.diverged else NONE


def _n(row: AblationRow) -> str:
    n = row.top1.n if row.top1 else 0
    return str(n) if n == row.planned else f"{n}/{row.planned}"


def _resolved(row: AblationRow) -> str | None:
    return None if row.resolved is None else "yes" if row.resolved else "no"


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


def _columns() -> Iterator[Column]:
    yield from _what_it_is()
    yield from _what_came_out()
    yield from _what_it_cost()
    yield from _how_it_ran()
    yield Column("paper_gmacs", "printed GMACs", "GMACs as printed", _printed_gmacs, _at("paper_gmacs"))
    yield Column(
        "paper_top1", "paper's top-1", "the paper's top-1 (%)", _said(_at("paper")), _at("paper.mean")
    )
    yield Column(
        "paper_delta",
        "paper's Δ",
        "the paper's difference to the parent (points)",
        _said(_at("paper_delta")),
        _at("paper_delta.value"),
    )
    legend = "Δ to paper is top-1 less the paper's, and z the same in standard errors."
    yield Column("gap", "Δ to paper", "top-1 less the paper's (points)", _gap, _at("gap"), legend=legend)


def _what_it_is() -> Iterator[Column]:
    yield Column(
        "step",
        "step",
        "step",
        lambda row: f"└ {row.step}" if row.is_side_branch else row.step,
        _at("step"),
        False,
        is_code=True,
    )
    yield Column("title", "title", "title", _said(_at("title")), _at("title"), False)
    yield Column(
        "change",
        "what changed",
        "what changed against the parent",
        _said(_at("change")),
        _at("change"),
        False,
    )


def _what_came_out() -> Iterator[Column]:
    yield Column("n", "n", "seeds", _n, _at("top1.n"))
    yield Column(
        "top1",
        "top-1 (%)",
        "top-1 (%)",
        lambda row: _summary(row) + ("†" if row.mixed else ""),
        _at("top1.mean"),
    )
    tells = "top-1 of the moving average of the weights (%)"
    yield Column(
        "ema",
        "EMA top-1 (%)",
        tells,
        _said(_at("ema")),
        _at("ema.mean"),
        legend="EMA top-1 is that of the moving average of the weights.",
    )
    yield Column(
        "delta", "Δ to parent", "difference to the parent (points)", _said(_at("delta")), _at("delta.value")
    )
    tells, legend = (
        "two-sided p-value of no difference to the parent",
        "p is two-sided, of no difference to the parent.",
    )
    yield Column("p", "p", tells, _p_value, _p, legend=legend)
    yield Column(
        "resolved",
        "resolved?",
        "whether the difference to the parent is resolved",
        _said(_resolved),
        _resolved,
        False,
    )
    tells = "seeds that would resolve the difference"
    power, says = (
        f"{round(100 * POWER)} % probability",
        "Seeds needed: so many on either side would resolve this difference at this spread with",
    )
    holm = (
        f"{says} at least {power}, whatever the other p-values are: at 5 % over the number of differences"
        " (Bonferroni)."
    )
    yield Column(
        "needed",
        "seeds needed",
        tells,
        _needed,
        _at("delta.needed"),
        legend=f"{says} {power}.",
        legend_holm=holm,
    )


def _what_it_cost() -> Iterator[Column]:
    yield Column("gmacs", "GMACs", "GMACs an image", lambda row: gmacs(row.cost.gmacs), _at("cost.gmacs"))
    yield Column(
        "params",
        "params (M)",
        "parameters (M)",
        lambda row: f"{row.cost.params / 1e6:.3f}",
        lambda row: row.cost.params / 1e6,
    )
    yield _figure("images_per_s", "images/s", "images/s in training, all processes together")
    # Whether each process had a GPU of its own, a result does not say.
    hours = "a run's hours of training times its processes"
    yield _figure(
        "device_hours",
        "device-hours",
        hours,
        f"Device-hours: {hours}, which are GPU-hours where each has a GPU.",
    )
    legend = "Peak memory is a GPU's, the largest of any run."
    yield _figure(
        "peak_memory_mb", "peak memory (MiB)", "peak memory of a GPU (MiB), the largest of any run", legend
    )


def _how_it_ran() -> Iterator[Column]:
    yield _common("epochs", "epochs", "epochs", "{} epochs", of_done=True)
    yield _common("global_batch", "batch", "global batch", "global batch {}")
    yield _common("image_size", "px", "image size (px)", "images of {} px")
    yield _common("hardware", "hardware", "hardware", "hardware {}", is_number=False)
    yield Column(
        "status", "runs", "runs of a step", _said(_states), _states, False, folds="runs of a step: {}"
    )
    yield Column(
        "hash", "hash", "hash of the configuration", _said(_at("hash")), _at("hash"), False, is_code=True
    )


COLUMNS = {column.key: column for column in _columns()}
MEASURED = [
    "step", "change", "n", "top1", "ema", "delta", "resolved", "needed", "gmacs", "params", "images_per_s",
    "device_hours", "peak_memory_mb", "epochs", "global_batch", "image_size", "hardware", "status",
    "paper_top1", "paper_delta", "gap",
]  # fmt: skip
PUBLISHED = ["step", "change", "n", "top1", "delta", "resolved", "needed", "gmacs", "params", "paper_gmacs"]
