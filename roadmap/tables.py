"""From results to the ablation: one row a step, as data, as CSV, as Markdown and at a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from blocks import Complexity, complexity
from roadmap.recipe import RunConfig
from roadmap.records import Result, Status
from roadmap.stats import Difference, Summary, difference, rank_correlation, summarize, welch
from roadmap.terminal import count
from roadmap.tree import Reference, Roadmap, change_of, resolve

NONE = "–"


@dataclass(frozen=True)
class Row:
    """A step in the ablation. `top1` is percent; `delta` is against the parent; `planned` counts the runs there should be."""

    step: str
    hash: str
    title: str
    change: str
    parent: str | None
    is_side_branch: bool
    planned: int
    diverged: int
    top1: Summary | None
    delta: Difference | None
    cost: Complexity
    images_per_s: float | None
    paper: Summary | None
    paper_delta: Difference | None
    paper_gmacs: float | None
    gmacs_note: str | None


@dataclass(frozen=True)
class Ablation:
    """The rows of a roadmap, a title, and the sentences that belong under its table."""

    title: str
    rows: tuple[Row, ...]
    source: str
    notes: list[str] = field(default_factory=list)

    def row(self, step: str) -> Row:
        """The row of a step."""
        return next(row for row in self.rows if row.step == step)


def published(roadmap: Roadmap) -> Ablation:
    """The ablation that the paper prints; GMACs and parameters are ours, the printed GMACs stand beside."""
    rows = [_printed(roadmap, name) for name, step in roadmap.tree.items() if step.paper]
    unresolved = [row.step for row in rows if row.delta and row.delta.resolved is False]
    notes = ["As printed in arXiv 2201.03545, Table 10; GMACs and parameters are computed from our plans at 224 px."]
    notes += [f"{row.step}: prints {row.paper_gmacs:.2f} GMACs; {row.gmacs_note}." for row in rows if row.gmacs_note]
    notes.append(f"Not resolved by the published spread (Welch, 95 %): {', '.join(unresolved) or 'none'}.")
    return Ablation(f"{roadmap.title} as published", tuple(rows), "paper", notes)


def measured(
    roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any], runs: Sequence[Status], reference: Reference | None = None
) -> Ablation:
    """The ablation of our own runs; those of another configuration than the roadmap's present one are left out, and named."""
    configs = {name: resolve(roadmap, name, profile=profile, overrides=overrides) for name in roadmap.steps}
    present = {name: [run for run in runs if run.run.step == name and run.run.hash == config.hash] for name, config in configs.items()}
    results = {name: [run.result for run in found if run.result is not None] for name, found in present.items()}
    planned = max(map(len, present.values()))
    rows = [
        replace(_measured(roadmap, config, results, planned), change=change_of(roadmap, name, profile=profile, overrides=overrides))
        for name, config in configs.items()
    ]
    notes = []
    for name, config in configs.items():
        if others := sum(run.run.step == name for run in runs) - len(present[name]):
            notes.append(f"{name}: {count(others, 'run')} of another configuration left out (the present one is {config.hash}).")
    strangers = sorted({run.run.step for run in runs} - set(roadmap.steps))
    notes += [f"{name}: not a step of {roadmap.path.name}, left out." for name in strangers]
    notes += [f"{run.why}." for run in runs if run.why and run.result is None]
    used = [result for found in results.values() for result in found]
    title = f"{roadmap.title} on {profile or 'ImageNet-1K'}"
    return Ablation(title, tuple(rows), "measured", [*_honest(rows, used, reference), *_agreement(roadmap, rows), *notes])


def _printed(roadmap: Roadmap, name: str) -> Row:
    """A step with the publication's figures."""
    step, config = roadmap.tree[name], resolve(roadmap, name)
    figures, before = _paper(roadmap, name), _paper(roadmap, step.parent)
    delta = welch(figures, before) if figures and before else None
    return Row(
        step=name,
        hash=config.hash,
        title=step.title,
        change=change_of(roadmap, name),
        parent=step.parent,
        is_side_branch=name not in roadmap.trunk,
        planned=figures.n if figures else 0,
        diverged=0,
        top1=figures,
        delta=delta,
        cost=complexity(config.model, config.data.image_size),
        images_per_s=None,
        paper=figures,
        paper_delta=delta,
        paper_gmacs=step.paper.gmacs if step.paper else None,
        gmacs_note=step.paper.gmacs_note if step.paper else None,
    )


def _measured(roadmap: Roadmap, config: RunConfig, results: Mapping[str, Sequence[Result]], planned: int) -> Row:
    """A step with our figures beside the publication's."""
    name, parent = config.step, roadmap.tree[config.step].parent
    mine = _accuracies(results[name])
    speed = summarize([result.images_per_s for result in results[name]])
    return replace(
        _printed(roadmap, name),
        hash=config.hash,
        planned=planned,
        diverged=sum(result.status == "diverged" for result in results[name]),
        top1=summarize(list(mine.values())),
        delta=difference(mine, _accuracies(results[parent])) if parent else None,
        cost=complexity(config.model, config.data.image_size),
        images_per_s=speed.mean if speed else None,
    )


def _accuracies(results: Sequence[Result]) -> dict[int, float]:
    """Top-1 in % by seed, of the runs that have one."""
    return {result.seed: result.top1 for result in results if result.top1 is not None}


def _paper(roadmap: Roadmap, step: str | None) -> Summary | None:
    figures = roadmap.tree[step].paper if step else None
    return Summary(figures.top1, figures.std, figures.n) if figures else None


def _honest(rows: Sequence[Row], used: Sequence[Result], reference: Reference | None) -> list[str]:
    """What a reader must know to judge the figures: n, missing runs, hardware, versions, code."""
    finished, planned = sum(row.top1.n if row.top1 else 0 for row in rows), sum(row.planned for row in rows)
    notes = [
        f"{finished} of {planned} runs; top-1 in % of the last epoch, mean ± sample standard deviation over n seeds.",
        "Δ is against the parent, with its 95 % interval (t, in pairs where the seeds are the same, else Welch); "
        "'yes' means that the interval excludes zero; of many steps that change nothing, one in twenty would say so, too.",
    ]
    notes += [f"Reference on the same images: {reference.title}, {reference.top1:.2f} %."] if reference else []
    diverged = [f"{row.step} ({row.diverged})" for row in rows if row.diverged]
    notes += [f"Diverged, and in no mean: {', '.join(diverged)}."] if diverged else []
    for what, values in (
        ("Hardware", {result.hardware for result in used}),
        ("Versions", {", ".join(f"{name} {version}" for name, version in result.versions.items()) for result in used}),
        ("Code", {result.commit or "no commit" for result in used}),
    ):
        notes += [f"{what}: {'; '.join(sorted(values))}." + (" MIXED." if len(values) > 1 else "")] if values else []
    return notes


def _agreement(roadmap: Roadmap, rows: Sequence[Row]) -> list[str]:
    """Whether the measured path orders the steps as the paper's does."""
    both = [(row.top1.mean, row.paper.mean) for row in rows if row.step in roadmap.trunk and row.top1 and row.paper]
    correlation = rank_correlation([ours for ours, _ in both], [theirs for _, theirs in both])
    if correlation is None:
        return []
    return [f"Spearman's rank correlation with the paper's top-1 along the path: {correlation:+.2f} (n = {len(both)} steps)."]


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
        return [*found, f"{row.paper_gmacs:.2f}{'*' if row.gmacs_note else ''}"]
    speed = f"{row.images_per_s:.0f}" if row.images_per_s else NONE
    return [*found, speed, str(row.paper) if row.paper else NONE, str(row.paper_delta) if row.paper_delta else NONE]


def to_markdown(ablation: Ablation) -> str:
    """The table with its notes."""
    heads = columns(ablation)
    lines = [f"# {ablation.title}", "", _line([head.removeprefix(">") for head in heads])]
    lines.append(_line(["---:" if head.startswith(">") else "---" for head in heads]))
    lines += [_line(cells(ablation, row)) for row in ablation.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in ablation.notes)]) + "\n"


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
    hashes = {row.step: row.hash for row in ablation.rows}
    records = []
    for run in runs:
        record: dict[str, Any] = {"run": run.run.name, "state": run.state, "why": run.why}
        record |= {"step": run.run.step, "seed": run.run.seed, "hash": run.run.hash}
        record["in_table"] = run.result is not None and hashes.get(run.run.step) == run.run.hash
        if run.result is not None:
            result = run.result.model_dump(exclude={"format", "status", "versions"})
            record |= result | {name.replace("-", "_"): version for name, version in run.result.versions.items()}
        records.append(record)
    return pd.DataFrame(records).convert_dtypes()  # whole numbers stay whole beside missing ones
