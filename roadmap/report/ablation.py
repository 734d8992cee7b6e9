"""From results, or from the paper's figures, to the ablation and the sentences that belong under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from blocks import complexity
from roadmap.config import RunConfig
from roadmap.deltas import Roadmap, change_of, resolve
from roadmap.records import Result, Status
from roadmap.report.rows import Ablation, AblationRow, accuracies
from roadmap.report.stats import (
    Correlation,
    Summary,
    difference,
    holm,
    rank_correlation,
    summarize,
    welch,
    z_score,
)
from roadmap.report.trained import left_out
from roadmap.steps_file import Reference


def published(roadmap: Roadmap) -> Ablation:
    """The ablation that the paper prints; GMACs and parameters are ours, the printed GMACs stand beside."""
    rows = [_printed(roadmap, name) for name, step in roadmap.tree.items() if step.paper]
    notes = [
        f"As printed{f' in {roadmap.source}' if roadmap.source else ''}; GMACs and parameters are computed"
        " from our plans."
    ]
    notes += [
        f"{row.step}: prints {row.paper_gmacs:.2f} GMACs; {row.gmacs_note}." for row in rows if row.gmacs_note
    ]
    if any(row.top1 and row.top1.std is not None for row in rows):
        unresolved = [row.step for row in rows if row.delta and row.delta.resolved is False]
        notes.append(
            f"Not resolved by the published spread (Welch, 95 %): {', '.join(unresolved) or 'none'}."
        )
    else:
        notes.append("No spread is published: no step is resolved or unresolved.")
    return Ablation(
        f"{roadmap.title} as published", tuple(rows), "paper", notes, roadmap, reference=roadmap.reference
    )


def measured(
    roadmap: Roadmap,
    profile: str | None,
    overrides: Mapping[str, Any],
    runs: Sequence[Status],
    reference: Reference | None = None,
    *,
    adjusted: bool = False,
) -> Ablation:
    """The ablation of our own runs; those of another configuration than the roadmap's present one are left
    out, and named.

    `adjusted` has the p-values of all steps adjusted together, so that none of them may be false, after Holm.
    """
    configs = {name: resolve(roadmap, name, profile=profile, overrides=overrides) for name in roadmap.steps}
    by_hash: dict[str, list[Status]] = {}
    for run in runs:
        by_hash.setdefault(run.run.hash, []).append(run)
    present = {name: _one_a_seed(name, by_hash.get(config.hash, [])) for name, config in configs.items()}
    planned = max(map(len, present.values()))
    rows = []
    for name, config in configs.items():
        row = _measured(roadmap, config, present, planned)
        rows.append(replace(row, change=change_of(roadmap, name, profile=profile, overrides=overrides)))
    rows = _adjust(rows) if adjusted else rows
    here = [run.run for run in runs if run.run.step in configs]
    others = list(left_out(roadmap, profile, here, {config.hash for config in configs.values()}))
    # an empty table must say at once where the runs are
    first = [] if any(row.top1 for row in rows) else others
    notes = [] if first else others
    unknown = {run.run.step for run in runs if not roadmap.knows(run.run.step)}
    notes += [f"{name}: not a step of {roadmap.path.name}, left out." for name in sorted(unknown)]
    notes += [f"{run.why}." for run in runs if run.why and run.result is None]
    title = f"{roadmap.title} on {profile or 'ImageNet-1K'}"
    agreement = None if roadmap.ablation else agreement_of(roadmap, rows)
    notes = [*first, *_honest(rows, reference, adjusted), *_agreement(agreement), *roadmap.notes, *notes]
    return Ablation(title, tuple(rows), "measured", notes, roadmap, profile, overrides, reference, agreement)


def _adjust(rows: Sequence[AblationRow]) -> list[AblationRow]:
    """The rows with the p-values, and with the seeds that are needed, of differences that are tested
    together.
    """
    ps = {row.step: row.delta.p for row in rows if row.delta and row.delta.p is not None}
    adjusted, seeds = (
        dict(zip(ps, holm(list(ps.values())), strict=True)),
        {row.step: row.seeds for row in rows},
    )
    return [
        (
            replace(
                row, p_holm=adjusted[row.step], delta=difference(row.seeds, seeds[row.parent or ""], len(ps))
            )
            if row.step in ps
            else row
        )
        for row in rows
    ]


def _one_a_seed(step: str, runs: Sequence[Status]) -> tuple[Status, ...]:
    """A run for each seed of those with one configuration: a finished one before others, one that is filed
    under `step` before others.
    """
    best = sorted(runs, key=lambda run: (run.result is None, run.run.step != step))
    return tuple({run.run.seed: run for run in reversed(best)}.values())


def _printed(roadmap: Roadmap, name: str) -> AblationRow:
    """A step with the publication's figures."""
    step, config = roadmap.tree[name], resolve(roadmap, name)
    figures, before = _paper(roadmap, name), _paper(roadmap, step.parent)
    delta = welch(figures, before) if figures and before else None
    return AblationRow(
        step=name,
        hash=config.hash,
        title=step.title,
        change=change_of(roadmap, name),
        parent=step.parent,
        is_side_branch=name not in roadmap.trunk,
        planned=figures.n if figures else 0,
        top1=figures,
        delta=delta,
        cost=complexity(config.model, config.data.image_size),
        paper=figures,
        paper_delta=delta,
        paper_gmacs=step.paper.gmacs if step.paper else None,
        gmacs_note=step.paper.gmacs_note if step.paper else None,
    )


def _measured(
    roadmap: Roadmap, config: RunConfig, present: Mapping[str, Sequence[Status]], planned: int
) -> AblationRow:
    """A step with our figures beside the publication's."""
    name, parent = config.step, roadmap.tree[config.step].parent
    printed = _printed(roadmap, name)
    mine, before = (
        [run.result for run in present.get(step or "", ()) if run.result is not None]
        for step in (name, parent)
    )
    top1 = summarize(list(accuracies(mine).values()))
    theirs = printed.paper if top1 and same_task(config, resolve(roadmap, name)) else None
    return replace(
        printed,
        hash=config.hash,
        planned=planned,
        cost=complexity(config.model, config.data.image_size),
        top1=top1,
        delta=difference(accuracies(mine), accuracies(before)) if parent else None,
        runs=tuple(present[name]),
        ema=summarize([result.ema_top1 for result in mine if result.ema_top1 is not None]),
        gap=top1.mean - theirs.mean if top1 and theirs else None,
        gap_z=z_score(top1, theirs) if top1 and theirs else None,
        mixed=_mixed([*mine, *before]),
    )


def same_task(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations are tested on the same images and classes, so that their accuracies can be
    compared.
    """
    return (one.data, one.model.num_classes) == (other.data, other.model.num_classes)


def _mixed(results: Sequence[Result]) -> tuple[str, ...]:
    """What results that are compared do not have in common."""
    named: dict[str, set[Any]] = {
        "code": {result.commit for result in results},
        "versions": {tuple(sorted(result.versions.items())) for result in results},
        "hardware": {result.hardware for result in results},
    }
    return tuple(name for name, values in named.items() if len(values) > 1)


def _paper(roadmap: Roadmap, step: str | None) -> Summary | None:
    figures = roadmap.tree[step].paper if step else None
    return Summary(figures.top1, figures.std, figures.n) if figures else None


def _honest(rows: Sequence[AblationRow], reference: Reference | None, adjusted: bool) -> list[str]:
    """What a reader must know to judge the figures: n, missing runs, hardware, versions, code."""
    finished, planned = sum(row.top1.n if row.top1 else 0 for row in rows), sum(row.planned for row in rows)
    many = (
        "the p-values of all steps are adjusted together (Holm), and 'yes' means below .05."
        if adjusted
        else (
            "'yes' means that the interval excludes zero; of many steps that change nothing, one in twenty"
            " would say so, too."
        )
    )
    notes = [
        (
            f"{finished} of {planned} runs; top-1 in % of the last epoch, mean ± sample standard deviation"
            " over n seeds."
        ),
        (
            "Δ is against the parent, with its 95 % interval (t, in pairs where the seeds are the same, else"
            f" Welch); {many}"
        ),
    ]
    notes += (
        [f"Reference on the same images: {reference.title}, {reference.top1:.2f} %."] if reference else []
    )
    diverged = [f"{row.step} ({row.diverged})" for row in rows if row.diverged]
    notes += [f"Diverged, and in no mean: {', '.join(diverged)}."] if diverged else []
    mixed = [f"{row.step} ({', '.join(row.mixed)})" for row in rows if row.mixed]
    notes += (
        [f"† Runs of a row, or of it and its parent, that differ in more than the step: {'; '.join(mixed)}."]
        if mixed
        else []
    )
    return notes + origins([result for row in rows for result in row.results])


def origins(results: Sequence[Result]) -> list[str]:
    """On what hardware, with which versions and from which commit results come, a sentence each."""
    notes = []
    for what, values in (
        ("Hardware", {result.hardware for result in results}),
        (
            "Versions",
            {
                ", ".join(f"{name} {version}" for name, version in result.versions.items())
                for result in results
            },
        ),
        ("Code", {result.commit or "no commit" for result in results}),
    ):
        notes += (
            [f"{what}: {'; '.join(sorted(values))}." + (" MIXED." if len(values) > 1 else "")]
            if values
            else []
        )
    return notes


def agreement_of(roadmap: Roadmap, rows: Sequence[AblationRow]) -> Correlation | None:
    """Whether the measured path orders the steps as the paper's does."""
    both = [
        (row.top1.mean, row.paper.mean)
        for row in rows
        if row.step in roadmap.trunk and row.top1 and row.paper
    ]
    return rank_correlation([ours for ours, _ in both], [theirs for _, theirs in both])


def _agreement(found: Correlation | None) -> list[str]:
    return (
        [f"Spearman's rank correlation with the paper's top-1 along the path: {found} (n = {found.n} steps)."]
        if found
        else []
    )
