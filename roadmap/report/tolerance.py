"""Whether accuracies are what the paper, or an earlier table, says they are."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roadmap.deltas import resolve
from roadmap.errors import config_error, relative
from roadmap.report.rows import Ablation, AblationRow
from roadmap.report.stats import ROUNDING, Summary
from roadmap.terminal import count


@dataclass(frozen=True)
class Expected:
    """The accuracies to hold a table against, by step, and who says them."""

    source: str
    figures: Mapping[str, Summary]


@dataclass(frozen=True)
class Verdict:
    """A line for each step that is out of tolerance or has no result, and a summary."""

    lines: list[str]
    summary: str

    @property
    def passed(self) -> bool:
        """Whether every figure was found, and in tolerance."""
        return not self.lines


def published_figures(ablation: Ablation) -> Expected:
    """The paper's accuracies of the steps that are tested on the paper's own images and classes; ConfigError
    where none is.
    """
    printed = {row.step: row.paper for row in ablation.rows if row.paper and _same_task(ablation, row)}
    if not printed:
        data = resolve(
            ablation.roadmap, ablation.rows[0].step, profile=ablation.profile, overrides=ablation.overrides
        ).data
        message = f"the paper has no figures for these runs (data set '{data.dataset}', {data.image_size} px)"
        raise config_error(
            "--check",
            f"{message}; give a table to check against, such as --against an earlier ablation.csv",
        )
    return Expected("the paper", printed)


def _same_task(ablation: Ablation, row: AblationRow) -> bool:
    mine = resolve(ablation.roadmap, row.step, profile=ablation.profile, overrides=ablation.overrides)
    plain = resolve(ablation.roadmap, row.step)
    return (mine.data, mine.model.num_classes) == (plain.data, plain.model.num_classes)


def read_expected(path: Path) -> Expected:
    """The columns `step` and `top1_mean`, and `top1_std` and `n` where they are there, of a CSV file such as
    an ablation.csv.

    Steps without a figure are left out. ConfigError names the file and the line of what is wrong.
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
            figures: dict[str, Summary] = {}
            for row in reader:
                place = f"line {reader.line_num}"
                if row["step"] in figures:
                    raise config_error(relative(path), f"{place}: {row['step']} is there twice")
                if (row["top1_mean"] or "").strip():
                    figures[row["step"]] = _summary(path, place, row)
    except OSError as error:
        raise config_error(relative(path), f"cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise config_error(relative(path), f"is no CSV file: {error}") from error
    if not figures:
        raise config_error(relative(path), "holds no accuracy to check against")
    return Expected(relative(path), figures)


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
        raise config_error(relative(path), f"{place}: {column} is no number: '{text}'")
    return value


def check(ablation: Ablation, expected: Expected, tolerance: float) -> Verdict:
    """Holds each step's mean against what is expected, `tolerance` in percentage points of top-1."""
    rows = {row.step: row for row in ablation.rows}
    lines, within = [], 0
    for step, figure in expected.figures.items():
        row = rows.get(step)
        there = f"{_said(figure)} in {expected.source}"
        if row is None or row.top1 is None:
            why = "diverged" if row and row.diverged else "no result" if row else "no such step"
            lines.append(f"{step}: {why} here, {there}")
        elif abs(gap := row.top1.mean - figure.mean) > tolerance + ROUNDING:
            side = "above" if gap > 0 else "below"
            lines.append(f"{step}: {_said(row.top1)} here, {there}: {abs(gap):.2f} {side}")
        else:
            within += 1
    extra = sum(row.top1 is not None and row.step not in expected.figures for row in ablation.rows)
    more = f"; {count(extra, 'step')} that {expected.source} does not have" if extra else ""
    return Verdict(
        lines,
        f"{within} of {count(len(expected.figures), 'step')} within {tolerance:g} points of"
        f" {expected.source}{more}",
    )


def _said(figure: Summary) -> str:
    return f"{figure} (n = {figure.n})"
