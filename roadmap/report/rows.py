"""From results to the ablation: one row a step, with its spread, its difference to its parent, and the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blocks import Complexity, complexity
from roadmap.recipe import RunConfig
from roadmap.records import Result, Status
from roadmap.report.stats import Difference, Summary, difference, rank_correlation, summarize, welch
from roadmap.terminal import count
from roadmap.tree import Reference, Roadmap, change_of, resolve


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
    notes = [f"As printed{f' in {roadmap.source}' if roadmap.source else ''}; GMACs and parameters are computed from our plans."]
    notes += [f"{row.step}: prints {row.paper_gmacs:.2f} GMACs; {row.gmacs_note}." for row in rows if row.gmacs_note]
    if any(row.top1 and row.top1.std is not None for row in rows):
        unresolved = [row.step for row in rows if row.delta and row.delta.resolved is False]
        notes.append(f"Not resolved by the published spread (Welch, 95 %): {', '.join(unresolved) or 'none'}.")
    else:
        notes.append("No spread is published: no step is resolved or unresolved.")
    return Ablation(f"{roadmap.title} as published", tuple(rows), "paper", notes)


def measured(
    roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any], runs: Sequence[Status], reference: Reference | None = None
) -> Ablation:
    """The ablation of our own runs; those of another configuration than the roadmap's present one are left out, and named."""
    configs = {name: resolve(roadmap, name, profile=profile, overrides=overrides) for name in roadmap.steps}
    present = {name: _one_a_seed(name, [run for run in runs if run.run.hash == config.hash]) for name, config in configs.items()}
    results = {name: [run.result for run in found if run.result is not None] for name, found in present.items()}
    planned = max(map(len, present.values()))
    rows = [
        replace(_measured(roadmap, config, results, planned), change=change_of(roadmap, name, profile=profile, overrides=overrides))
        for name, config in configs.items()
    ]
    notes = []
    for name, config in configs.items():
        if others := sum(run.run.step == name and run.run.hash != config.hash for run in runs):
            notes.append(f"{name}: {count(others, 'run')} of another configuration left out (the present one is {config.hash}).")
    strangers = sorted({run.run.step for run in runs if not roadmap.knows(run.run.step)})
    notes += [f"{name}: not a step of {roadmap.path.name}, left out." for name in strangers]
    notes += [f"{run.why}." for run in runs if run.why and run.result is None]
    used = [result for found in results.values() for result in found]
    title = f"{roadmap.title} on {profile or 'ImageNet-1K'}"
    return Ablation(title, tuple(rows), "measured", [*_honest(rows, used, reference), *_agreement(roadmap, rows), *roadmap.notes, *notes])


def _one_a_seed(step: str, runs: Sequence[Status]) -> list[Status]:
    """A run for each seed of those with one configuration: a finished one before others, one that is filed under `step` before others."""
    best = sorted(runs, key=lambda run: (run.result is None, run.run.step != step))
    return list({run.run.seed: run for run in reversed(best)}.values())


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
    return notes + origins(used)


def origins(results: Sequence[Result]) -> list[str]:
    """On what hardware, with which versions and from which commit results come, a sentence each."""
    notes = []
    for what, values in (
        ("Hardware", {result.hardware for result in results}),
        ("Versions", {", ".join(f"{name} {version}" for name, version in result.versions.items()) for result in results}),
        ("Code", {result.commit or "no commit" for result in results}),
    ):
        notes += [f"{what}: {'; '.join(sorted(values))}." + (" MIXED." if len(values) > 1 else "")] if values else []
    return notes


def _agreement(roadmap: Roadmap, rows: Sequence[Row]) -> list[str]:
    """Whether the measured path orders the steps as the paper's does."""
    both = [(row.top1.mean, row.paper.mean) for row in rows if row.step in roadmap.trunk and row.top1 and row.paper]
    correlation = rank_correlation([ours for ours, _ in both], [theirs for _, theirs in both])
    if correlation is None or roadmap.ablation:
        return []
    return [f"Spearman's rank correlation with the paper's top-1 along the path: {correlation:+.2f} (n = {len(both)} steps)."]
