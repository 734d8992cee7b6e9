"""Accuracies checked against the paper's, or against an earlier table's."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roadmap.config import RunConfig
from roadmap.deltas import resolve
from roadmap.errors import config_error, relative
from roadmap.report.ablation import Ablation, same_task
from roadmap.report.stats import ROUNDING, Summary
from roadmap.terminal import count


@dataclass(frozen=True)
class Expected:
    """The accuracies to check a table against, by step, and their source."""

    source: str
    top1: Mapping[str, Summary]


@dataclass(frozen=True)
class Verdict:
    """A line for each step that is out of tolerance or has no result, and a summary."""

    lines: list[str]
    summary: str

    @property
    def passed(self) -> bool:
        return not self.lines


def published_top1(ablation: Ablation) -> Expected:
    """The paper's accuracies of steps that are tested on the paper's task; ConfigError without any."""

    def config(step: str) -> RunConfig:
        return resolve(ablation.roadmap, step, profile=ablation.profile, overrides=ablation.overrides)

    printed = {
        row.step: row.paper
        for row in ablation.rows
        if row.paper and same_task(config(row.step), resolve(ablation.roadmap, row.step))
    }
    if not printed:
        data = config(ablation.rows[0].step).data
        message = (
            f"the paper has no accuracies for these runs (data set '{data.dataset}', {data.image_size} px);"
            " give a table to check against, such as --against an earlier ablation.csv"
        )
        raise config_error("--check", message)
    return Expected("the paper", printed)


def read_expected(path: Path) -> Expected:
    """The accuracies in a CSV file such as ablation.csv: `step`, `top1_mean`, and optional `top1_std`, `n`.

    Steps without an accuracy are skipped. ConfigError names the file and the line of an error.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            if missing := [name for name in ("step", "top1_mean") if name not in names]:
                raise config_error(
                    relative(path),
                    f"has no column {' and no column '.join(missing)}; an ablation.csv has both",
                )
            top1: dict[str, Summary] = {}
            for row in reader:
                place = f"line {reader.line_num}"
                if row["step"] in top1:
                    raise config_error(relative(path), f"{place}: {row['step']} is a duplicate")
                if (row["top1_mean"] or "").strip():
                    top1[row["step"]] = _summary(path, place, row)
    except OSError as error:
        raise config_error(relative(path), f"cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise config_error(relative(path), f"is not a CSV file: {error}") from error
    if not top1:
        raise config_error(relative(path), "holds no accuracy to check against")
    return Expected(relative(path), top1)


def _summary(path: Path, place: str, row: Mapping[str, str | None]) -> Summary:
    mean = _number(path, place, "top1_mean", row["top1_mean"])
    if not 0 <= mean <= 100:
        raise config_error(relative(path), f"{place}: top1_mean is a percentage, not {mean:g}")
    std = _number(path, place, "top1_std", row["top1_std"]) if (row.get("top1_std") or "").strip() else None
    n = int(_number(path, place, "n", row["n"])) if (row.get("n") or "").strip() else 1
    return Summary(mean, std, n)


def _number(path: Path, place: str, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise config_error(relative(path), f"{place}: {column} is not a number: '{text}'")
    return value


def check(ablation: Ablation, expected: Expected, tolerance: float) -> Verdict:
    """Compares each step's mean with the expected one; `tolerance` is in percentage points of top-1."""
    rows = {row.step: row for row in ablation.rows}
    lines, within = [], 0
    for step, top1 in expected.top1.items():
        row = rows.get(step)
        there = f"{_shown(top1)} in {expected.source}"
        if row is None or row.top1 is None:
            why = "diverged" if row and row.diverged else "no result" if row else "no such step"
            lines.append(f"{step}: {why} here, {there}")
        elif abs(gap := row.top1.mean - top1.mean) > tolerance + ROUNDING:
            side = "above" if gap > 0 else "below"
            lines.append(f"{step}: {_shown(row.top1)} here, {there}: {abs(gap):.2f} {side}")
        else:
            within += 1
    extra = sum(row.top1 is not None and row.step not in expected.top1 for row in ablation.rows)
    more = f"; {count(extra, 'step')} that {expected.source} does not have" if extra else ""
    return Verdict(
        lines,
        f"{within} of {count(len(expected.top1), 'step')} within {tolerance:g} points of"
        f" {expected.source}{more}",
    )


def _shown(top1: Summary) -> str:
    return f"{top1} (n = {top1.n})"
