"""The ablation: one row per step with its spread, its difference to its parent, and the paper's values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from blocks import Complexity
from roadmap.config import RunConfig
from roadmap.deltas import Roadmap, change_of, known_cost, resolve
from roadmap.records import WAITING, Result, Status, accuracies
from roadmap.report.marginal import MarginalEffect
from roadmap.report.precision import Precision, TwoStage, two_stage
from roadmap.report.stats import (
    CONFIDENCE,
    Correlation,
    Difference,
    SignAgreement,
    Summary,
    difference,
    holm,
    rank_correlation,
    sampling_margin,
    sign_agreement,
    summarize,
    welch,
    z_score,
)
from roadmap.report.trained import left_out
from roadmap.steps_file import Reference
from roadmap.terminal import count

FIRST = ""  # the key of a root in `align`: the roots of two roadmaps are different networks in the same place


# what the note on differences begins with
DELTA_NOTE = "Δ is against the parent"


@dataclass(frozen=True)
class AblationRow:
    """A step in the ablation, with its runs: one per seed, all of one configuration; none for a publication.

    `top1` is percent of the last epoch, `delta` is against the parent, and `p_holm` is its p-value adjusted
    for all steps, if requested. `two_stage` is where `delta` is from, if it is from the two-stage procedure.
    `planned` counts the runs that the row should have. `gap` is our mean minus
    the paper's in percentage points and `gap_z` the same in standard errors; both are None on other data than
    the paper's. `mixed` names what differs between the row's runs, or between them and the parent's: code,
    versions or hardware. A reference, a model of timm, has no parent and is no side branch. `cost` is None
    for one whose cost is unknown until a run has a result.
    """

    step: str
    hash: str
    title: str
    change: str
    parent: str | None
    is_side_branch: bool
    planned: int
    cost: Complexity | None
    top1: Summary | None
    delta: Difference | None
    paper: Summary | None
    paper_delta: Difference | None
    paper_gmacs: float | None
    gmacs_note: str | None
    runs: tuple[Status, ...] = ()
    ema: Summary | None = None
    gap: float | None = None
    gap_z: float | None = None
    p_holm: float | None = None
    two_stage: TwoStage | None = None
    mixed: tuple[str, ...] = ()
    is_reference: bool = False

    @property
    def is_beside_path(self) -> bool:
        """Whether the path does not lead through it: a side branch, or a reference."""
        return self.is_side_branch or self.is_reference

    @cached_property
    def results(self) -> list[Result]:
        """The results of finished and diverged runs, by seed."""
        found = [run.result for run in self.runs if run.result is not None]
        return sorted(found, key=lambda result: result.seed)

    @property
    def seeds(self) -> dict[int, float]:
        return accuracies(self.results)

    @property
    def diverged(self) -> int:
        return sum(result.status == "diverged" for result in self.results)

    @property
    def states(self) -> dict[str, int]:
        """The number of runs by state; planned runs without a folder count as pending."""
        found = Counter[str](run.state for run in self.runs)
        found["pending"] += max(0, self.planned - len(self.runs)) if self.runs or not self.top1 else 0
        return {state: number for state, number in found.items() if number}

    @property
    def resolved(self) -> bool | None:
        """Whether the difference to the parent is resolved, by `p_holm` if the p-values were adjusted."""
        if self.p_holm is not None:
            return self.p_holm < 1 - CONFIDENCE
        return self.delta.resolved if self.delta else None

    @property
    def images_per_s(self) -> float | None:
        """Training throughput of all processes together, mean over the runs."""
        return _mean([result.images_per_s for result in self.results])

    @property
    def device_hours(self) -> float | None:
        """Hours of training without waits for data, times processes, which have a GPU each or share the CPU,
        and over the runs that share a GPU; mean over the runs.
        """
        done = [result for result in self.results if result.status == "done"]
        return _mean(
            [
                (one.train_seconds - (one.data_seconds or 0)) * one.processes / one.runs_per_gpu / 3600
                for one in done
            ]
        )

    @property
    def waiting(self) -> float | None:
        """The share of the training time that runs waited for data; None where no run measured it."""
        known = [one for one in self.results if one.data_seconds is not None]
        total = sum(one.train_seconds for one in known)
        return sum(one.data_seconds or 0 for one in known) / total if total else None

    @property
    def waits(self) -> bool:
        """Whether its runs waited for data for so long that it is reported."""
        return (self.waiting or 0) > WAITING

    @property
    def peak_memory_mb(self) -> float | None:
        """The maximum over the runs; None where no run measured it."""
        found = [result.peak_memory_mb for result in self.results if result.peak_memory_mb is not None]
        return max(found, default=None)

    def same(self, field: str) -> Any:
        """A field's value if all results share it, else all values as text; None without results."""
        values = {getattr(result, field) for result in self.results}
        return values.pop() if len(values) == 1 else "; ".join(sorted(map(str, values))) or None


def _mean(values: Sequence[float]) -> float | None:
    found = summarize(values)
    return found.mean if found else None


@dataclass(frozen=True)
class Agreement:
    """How the steps of the path compare with the paper's; a part is None where too few have both values.

    `delta` is the rank correlation of the differences to the parent, `signs` counts those of the same sign.
    `top1` is the rank correlation of the accuracies, without an interval: each step adds to the one before,
    and sums of unrelated effects correlate, too (Yule 1926).
    """

    top1: Correlation | None
    delta: Correlation | None
    signs: SignAgreement | None


@dataclass(frozen=True)
class Ablation:
    """The rows of a roadmap, with a title and the notes below its table; `source` is `paper` or `measured`.

    `roadmap`, `profile` and `overrides` give the configurations. `reference` is drawn as a line, and
    `agreement` compares the path with the paper's. `runs` of `folder` are the runs of the
    ablation's steps, in any state; `effects` is empty unless the ablation has marginal effects, and
    `effects_notes` are sentences about them.
    """

    title: str
    rows: tuple[AblationRow, ...]
    source: str
    notes: list[str]
    roadmap: Roadmap
    profile: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    agreement: Agreement | None = None
    folder: Path | None = None
    runs: Sequence[Status] = ()
    effects: Sequence[MarginalEffect] = ()
    effects_notes: Sequence[str] = ()

    def row(self, step: str) -> AblationRow:
        return next(row for row in self.rows if row.step == step)


def published(roadmap: Roadmap) -> Ablation:
    """The ablation that the paper prints, with our GMACs and parameters and the printed GMACs."""
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
    precision: Precision | None = None,
) -> Ablation:
    """The ablation of our own runs; notes name runs of other configurations, which are skipped.

    With `adjusted`, the p-values of all steps are adjusted together with Holm's method. With `precision`, the
    differences to the parents and their intervals are those of the two-stage procedure. References have a row
    if they have a run.
    """
    tried = {run.run.step for run in runs}
    shown = (*roadmap.steps, *(name for name in roadmap.references if name in tried))
    configs = {name: resolve(roadmap, name, profile=profile, overrides=overrides) for name in shown}
    by_hash: dict[str, list[Status]] = {}
    for run in runs:
        by_hash.setdefault(run.run.hash, []).append(run)
    present = {name: _one_per_seed(name, by_hash.get(config.hash, [])) for name, config in configs.items()}
    present = {name: found for name, found in present.items() if found or name not in roadmap.references}
    planned = _planned(roadmap, {name: len(found) for name, found in present.items()})
    rows = []
    for name in present:
        is_reference = name in roadmap.references
        row = _measured(roadmap, configs[name], present, planned[name])
        row = _two_stage(row, present, precision) if precision and not is_reference else row
        rows.append(replace(row, change=change_of(roadmap, name, profile=profile, overrides=overrides)))
    rows = _adjust(rows) if adjusted else rows
    here = [run.run for run in runs if run.run.step in configs]
    others = list(left_out(roadmap, profile, here, {config.hash for config in configs.values()}))
    # an empty table must explain at once where the runs are
    first = [] if any(row.top1 for row in rows) else others
    notes = [] if first else others
    unknown = {run.run.step for run in runs if not roadmap.knows(run.run.step)}
    notes += [f"{name}: not a step of {roadmap.path.name}, left out." for name in sorted(unknown)]
    notes += [f"{run.why}." for run in runs if run.why and run.result is None]
    title = f"{roadmap.title} on {profile or 'ImageNet-1K'}"
    agreement = None if roadmap.ablation else agreement_of(roadmap, rows)
    notes = [
        *first,
        *_caveats(rows, reference, adjusted, precision),
        *_test_set(rows, max(config.data.copies for config in configs.values())),
        *origins([result for row in rows for result in row.results]),
        *_about_references(rows),
        *_agreement(agreement),
        *roadmap.notes,
        *notes,
    ]
    return Ablation(title, tuple(rows), "measured", notes, roadmap, profile, overrides, reference, agreement)


def _planned(roadmap: Roadmap, found: Mapping[str, int]) -> dict[str, int]:
    """The runs that each row should have: as many as the row with the most, but a reference its own.

    Steps that an ablation shares with the roadmap may have more seeds from there, and ask for none of others.
    """
    shared = roadmap.whole.tree if roadmap.whole else {}
    own = [found[name] for name in roadmap.steps if name not in shared]
    most = max(own, default=0) or max(found[name] for name in roadmap.steps)
    return {
        name: number if name in roadmap.references else max(number, most) for name, number in found.items()
    }


def _adjust(rows: Sequence[AblationRow]) -> list[AblationRow]:
    """The rows with p-values, and seeds needed, of differences that are tested together."""
    ps = {row.step: row.delta.p for row in rows if row.delta and row.delta.p is not None}
    adjusted = dict(zip(ps, holm(list(ps.values())), strict=True))
    seeds = {row.step: row.seeds for row in rows}

    def adjust(row: AblationRow) -> AblationRow:
        if row.two_stage is not None:
            return replace(row, p_holm=adjusted[row.step])
        delta = difference(row.seeds, seeds[row.parent or ""], len(ps))
        return replace(row, p_holm=adjusted[row.step], delta=delta)

    return [adjust(row) if row.step in ps else row for row in rows]


def _one_per_seed(step: str, runs: Sequence[Status]) -> tuple[Status, ...]:
    """One run per seed, all of one configuration: preferably finished, then preferably filed under `step`."""
    best = sorted(runs, key=lambda run: (run.result is None, run.run.step != step))
    return tuple({run.run.seed: run for run in reversed(best)}.values())


def _printed(roadmap: Roadmap, name: str) -> AblationRow:
    """The row of a step with the publication's values."""
    step, config = roadmap.delta(name), resolve(roadmap, name)
    top1, before = _paper(roadmap, name), _paper(roadmap, step.parent)
    delta = welch(top1, before) if top1 and before else None
    return AblationRow(
        step=name,
        hash=config.hash,
        title=step.title,
        change=change_of(roadmap, name),
        parent=step.parent,
        is_side_branch=name not in roadmap.trunk and name not in roadmap.references,
        planned=top1.n if top1 else 0,
        top1=top1,
        delta=delta,
        cost=known_cost(roadmap, config),
        paper=top1,
        paper_delta=delta,
        paper_gmacs=step.paper.gmacs if step.paper else None,
        gmacs_note=step.paper.gmacs_note if step.paper else None,
        is_reference=name in roadmap.references,
    )


def _measured(
    roadmap: Roadmap, config: RunConfig, present: Mapping[str, Sequence[Status]], planned: int
) -> AblationRow:
    """The row of a step with our values and the publication's."""
    name, parent = config.step, roadmap.delta(config.step).parent
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
        cost=known_cost(roadmap, config) or _recorded_cost(mine),
        top1=top1,
        delta=difference(accuracies(mine), accuracies(before)) if parent else None,
        runs=tuple(present[name]),
        ema=summarize([result.ema_top1 for result in mine if result.ema_top1 is not None]),
        gap=top1.mean - theirs.mean if top1 and theirs else None,
        gap_z=z_score(top1, theirs) if top1 and theirs else None,
        mixed=_mixed([*mine, *before]) if mine else (),
    )


def _two_stage(
    row: AblationRow, present: Mapping[str, Sequence[Status]], precision: Precision
) -> AblationRow:
    """The row with the two-stage procedure's difference; each step has its own number of planned runs."""
    before = [run.result for run in present.get(row.parent or "", ()) if run.result is not None]
    found = two_stage(row.seeds, accuracies(before), precision)
    planned = max(precision.first, len(row.runs))
    return replace(row, two_stage=found, delta=found.delta if found else None, planned=planned)


def _recorded_cost(results: Sequence[Result]) -> Complexity | None:
    """The cost that runs counted on their network."""
    return Complexity(results[0].params, results[0].macs) if results else None


def same_task(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations share test images and classes, so that their accuracies are comparable."""
    return (one.data, one.model.num_classes) == (other.data, other.model.num_classes)


def _mixed(results: Sequence[Result]) -> tuple[str, ...]:
    """Which of code, versions and hardware differ between results that are compared."""
    named: dict[str, set[Any]] = {
        "code": {result.commit for result in results},
        "versions": {tuple(sorted(result.versions.items())) for result in results},
        "hardware": {result.hardware for result in results},
    }
    return tuple(name for name, values in named.items() if len(values) > 1)


def _paper(roadmap: Roadmap, step: str | None) -> Summary | None:
    printed = roadmap.delta(step).paper if step else None
    return Summary(printed.top1, printed.std, printed.n) if printed else None


def _caveats(
    rows: Sequence[AblationRow], reference: Reference | None, adjusted: bool, precision: Precision | None
) -> list[str]:
    """The notes on n, missing runs, hardware, versions and code."""
    finished, planned = sum(row.top1.n if row.top1 else 0 for row in rows), sum(row.planned for row in rows)
    resolved = (
        "the p-values of all steps are adjusted together (Holm), and 'yes' means below .05; an interval is"
        " its row's own, and may exclude zero where the answer is no."
        if adjusted
        else "'yes' means that the interval excludes zero, as it does by chance for one in twenty steps that"
        " change nothing."
    )
    has_interval = any(row.delta and row.delta.margin is not None for row in rows)
    about = f", with its 95 % interval ({_method(precision)}); {resolved}"
    notes = [
        f"{finished} of {count(planned, 'run')}; top-1 in % of the last epoch, mean ± sample standard"
        " deviation over n seeds.",
        DELTA_NOTE + (about if has_interval else "; an interval takes two seeds of a row and of its parent."),
    ]
    if precision:
        compared = [row.two_stage for row in rows if row.parent]
        reached = sum(bool(found and found.reached) for found in compared)
        notes.append(
            f"Known to ± {precision.width:g} points: {reached} of {len(compared)} differences; an"
            " interval is final when all runs are finished."
        )
    if reference:
        notes.append(f"Reference on the same images: {reference.title}, {reference.top1:.2f} %.")
    if diverged := [f"{row.step} ({row.diverged})" for row in rows if row.diverged]:
        notes.append(f"Diverged, and in no mean: {', '.join(diverged)}.")
    if mixed := [f"{row.step} ({', '.join(row.mixed)})" for row in rows if row.mixed]:
        what = "† Runs of a row, or of it and its parent, that differ in more than the step"
        notes.append(f"{what}: {'; '.join(mixed)}.")
    if waiting := [f"{row.step} ({100 * (row.waiting or 0):.0f} %)" for row in rows if row.waits]:
        what = "‡ Training waited for data, a share of its time that images/s and device-hours leave out"
        notes.append(f"{what}: {', '.join(waiting)}.")
    return notes


def _test_set(rows: Sequence[AblationRow], copies: int) -> list[str]:
    """The note on the sampling error of the test images, if results record their number."""
    sizes = [result.val_images for row in rows for result in row.results if result.val_images]
    means = {row.step: row.top1.mean for row in rows if row.top1}
    if not sizes or not means:
        return []
    # the copies of an image are not independent, and may be right or wrong all together
    images = max(1, min(sizes) // copies)
    errors = {step: sampling_margin(mean, images) for step, mean in means.items()}
    pairs = [
        math.hypot(errors[row.step], errors[row.parent])
        for row in rows
        if row.step in errors and row.parent in errors
    ]
    what = f"{images:,} test images" + (f", with {copies} copies of each," if copies > 1 else "")
    more = f", and a Δ by up to {max(pairs):.2f}, less the more two networks agree" if pairs else ""
    return [
        f"These ± are of training alone. Another sample of {what} would move a top-1 by up to"
        f" {max(errors.values()):.2f} points (95 %, binomial), most of it in all rows alike{more}."
    ]


def _method(precision: Precision | None) -> str:
    if precision is None:
        return "t, in pairs where the seeds are the same, else Welch"
    return (
        f"Stein's two-stage procedure: pairs of the same seed, as many as the spread over seeds 0 to"
        f" {precision.first - 1} asks for"
    )


def origins(results: Sequence[Result]) -> list[str]:
    """A sentence each on the hardware, the versions and the commits of results."""
    found = {
        "Hardware": {result.hardware for result in results},
        "Versions": {", ".join(f"{name} {of}" for name, of in result.versions.items()) for result in results},
        "Code": {result.commit or "no commit" for result in results},
    }
    return [
        f"{what}: {'; '.join(sorted(values))}.{' MIXED.' * (len(values) > 1)}"
        for what, values in found.items()
        if values
    ]


def _about_references(rows: Sequence[AblationRow]) -> list[str]:
    """The note on references, if there are any."""
    names = [row.step for row in rows if row.is_reference]
    what = "models of timm, trained with the recipe of the path's last step, without a parent to compare with"
    return [f"Reference steps ({', '.join(names)}): {what}."] if names else []


def agreement_of(roadmap: Roadmap, rows: Sequence[AblationRow]) -> Agreement:
    """How the path's accuracies and differences compare with the paper's."""
    path = [row for row in rows if row.step in roadmap.trunk]
    top1 = [(row.top1.mean, row.paper.mean) for row in path if row.top1 and row.paper]
    delta = [(row.delta.value, row.paper_delta.value) for row in path if row.delta and row.paper_delta]
    levels = rank_correlation(*_sides(top1))
    return Agreement(
        top1=replace(levels, low=None, high=None) if levels else None,
        delta=rank_correlation(*_sides(delta)),
        signs=sign_agreement(*_sides(delta)),
    )


def _sides(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _agreement(found: Agreement | None) -> list[str]:
    """The notes on the agreement with the paper."""
    notes = []
    if found and found.delta and found.signs:
        notes.append(
            "Effects along the path against the paper's: Spearman's rank correlation of Δ"
            f" {found.delta} (n = {found.delta.n} steps), the same sign in {found.signs}."
        )
    if found and found.top1:
        notes.append(
            f"Spearman's rank correlation with the paper's top-1 along the path: {found.top1}"
            f" (n = {found.top1.n} steps); it has no interval, because each step adds to the one before."
        )
    return notes


@dataclass(frozen=True)
class AlignedRow:
    """A step's row in each ablation, None where an ablation lacks the step, and their common title."""

    title: str
    rows: tuple[AblationRow | None, ...]


def align(ablations: Sequence[Ablation]) -> list[AlignedRow]:
    """All steps of some ablations in order; a step that only a later ablation has follows its predecessor."""
    by_key = [
        {FIRST if row is ablation.rows[0] and row.parent is None else row.step: row for row in ablation.rows}
        for ablation in ablations
    ]
    order: list[str] = []
    for rows in by_key:
        place = 0
        for key in rows:
            if key not in order:
                order.insert(place, key)
            place = order.index(key) + 1
    found = [tuple(rows.get(key) for rows in by_key) for key in order]
    return [AlignedRow(_joined([row.title for row in rows if row]), rows) for rows in found]


def _joined(titles: Sequence[str]) -> str:
    """Different titles with a slash between them; 'a (1 / 2)' where only the parentheses differ."""
    different = list(dict.fromkeys(titles))
    heads = {title.partition(" (")[0] for title in different}
    if len(different) > 1 and len(heads) == 1 and all(title.endswith(")") for title in different):
        return f"{heads.pop()} ({' / '.join(title.partition(' (')[2][:-1] for title in different)})"
    return " / ".join(different)
