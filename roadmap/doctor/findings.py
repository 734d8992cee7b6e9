"""What the doctor finds: a value with its bound, whether it is kept, and a suggested fix."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.text import Text

from roadmap.files import write_atomic
from roadmap.terminal import console, count

Status = Literal["ok", "warning", "error", "info"]
SIGNS: dict[str, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "error": ("ERROR", "bold red"),
    "info": ("", "dim"),
}


@dataclass(frozen=True)
class Finding:
    """One result of a check: the `value` of a `quantity` of the `subject`, and what `status` that means.

    `bound` is what the value was held against, as text; without one, the value is only reported. `fix` is
    what to do where the status is not ok.
    """

    check: str
    subject: str
    value: float | str
    quantity: str = ""
    unit: str = ""
    bound: str = ""
    status: Status = "info"
    fix: str = ""

    def __str__(self) -> str:
        value = str(self.value)
        if isinstance(self.value, float | int):
            value = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:.4g}"
        words = f"{self.subject}: {self.quantity} " if self.quantity else f"{self.subject}: "
        return f"{words}{value}{' ' * bool(self.unit)}{self.unit}{f' ({self.bound})' if self.bound else ''}"


def measured(
    check: str,
    subject: str,
    quantity: str,
    value: float,
    unit: str = "",
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    fix: str = "",
) -> Finding:
    """A finding for a number, an error unless it is within its bounds; NaN never is."""
    bounds = [f"at most {at_most:g}"] if at_most is not None else []
    bounds += [f"at least {at_least:g}"] if at_least is not None else []
    kept = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    status: Status = ("ok" if kept and not math.isnan(value) else "error") if bounds else "info"
    kept_fix = fix if status == "error" else ""
    return Finding(check, subject, float(value), quantity, unit, " and ".join(bounds), status, kept_fix)


def is_wrong(findings: Iterable[Finding]) -> bool:
    """Whether one of them is an error."""
    return any(finding.status == "error" for finding in findings)


def show(findings: Iterable[Finding], heading: str | None = None) -> None:
    """Prints a line for each finding, with its fix below."""
    screen = console()
    if heading:
        screen.print(Text(heading, style="bold"))
    for finding in findings:
        sign, style = SIGNS[finding.status]
        line = Text(f"  {sign:<8}", style=style)
        screen.print(line + Text(f"{finding.check:<14}{finding}", style=""), soft_wrap=True)
        if finding.fix:
            screen.print(Text(f"{'':<24}-> {finding.fix}", style=style), soft_wrap=True)


def summary(findings: Sequence[Finding]) -> str:
    """How many findings have each status."""
    counts = Counter(finding.status for finding in findings)
    return f"{counts['ok']} ok, {count(counts['warning'], 'warning')}, {count(counts['error'], 'error')}"


def write_csv(path: Path, findings: Sequence[Finding]) -> None:
    """Writes them as a table, in full precision."""
    columns = ["check", "subject", "quantity", "value", "unit", "bound", "status", "fix"]
    records = [asdict(finding) for finding in findings]
    write_atomic(path, pd.DataFrame(records, columns=columns, dtype=object).to_csv(index=False))


def from_record(record: dict[str, Any]) -> Finding:
    """A finding that a check's process has written as JSON."""
    return Finding(**{field.name: record[field.name] for field in fields(Finding) if field.name in record})
