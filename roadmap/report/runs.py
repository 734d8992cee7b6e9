"""The experiment that a folder of runs holds, the state of its runs, and its ablation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from roadmap import STEPS_YAML
from roadmap.ablations import ablate, end_of
from roadmap.config import DataSpec
from roadmap.data import digits
from roadmap.deltas import NO_PROFILE, Roadmap, resolve
from roadmap.errors import config_error, relative
from roadmap.provenance import cached, versions
from roadmap.records import FINISHED, RunDir, Status, find_runs, run_tree, status
from roadmap.report.ablation import Ablation, measured, same_task
from roadmap.report.factorial import Pair, average_effects, changes_of, parse_interactions
from roadmap.report.marginal import (
    MarginalEffect,
    adjust,
    marginal_effects,
    results_by_step,
    with_average,
)
from roadmap.report.precision import Precision
from roadmap.report.trained import as_trained, variants
from roadmap.steps import load_roadmap
from roadmap.steps_file import Reference
from roadmap.terminal import count

MAX_LISTED = 3  # copies that are named one by one


@dataclass(frozen=True)
class Experiment:
    """The runs of one roadmap and profile below `folder`, in the order of the steps, as of the last `read`.

    `roadmap` is `whole`, or the ablation `kind` of it. `adjusted` asks for Holm's adjustment, `precision` for
    intervals of the two-stage procedure. `note` is set where the overrides were taken from the runs; `copies`
    has a sentence for each skipped copy of a run.
    `interactions` are those that a screening design estimates beside the average effects.
    """

    folder: Path
    whole: Roadmap
    roadmap: Roadmap
    profile: str | None
    overrides: Mapping[str, Any]
    kind: str | None
    adjusted: bool
    reference: Reference | None
    precision: Precision | None = None
    note: str | None = None
    interactions: Sequence[Pair] = ()
    all_runs: Sequence[Status] = ()
    copies: Sequence[str] = ()

    def read(self) -> Experiment:
        """The same with the present state of the runs."""
        name = (self.whole.name, self.profile or NO_PROFILE)
        mine = [status(run) for run in find_runs(self.folder) if run.experiment == name]
        steps = self.roadmap.with_references
        place = {step: index for index, step in enumerate(steps)}
        runs, copies = _skip_copies(mine, run_tree(self.folder))
        runs.sort(
            key=lambda run: (place.get(run.run.step, len(steps)), run.run.step, run.run.seed, run.run.hash)
        )
        return replace(self, all_runs=runs, copies=copies)

    @cached_property
    def runs(self) -> Sequence[Status]:
        """The runs of the ablation's steps, filed under any step, and of unknown steps."""
        hashes = {
            resolve(self.roadmap, step, profile=self.profile, overrides=self.overrides).hash
            for step in self.roadmap.steps
        }
        unknown = {step for step in {run.run.step for run in self.all_runs} if not self.whole.knows(step)}
        mine = set(self.roadmap.with_references)
        return [
            run
            for run in self.all_runs
            if run.run.step in mine or run.run.hash in hashes or run.run.step in unknown
        ]

    @cached_property
    def ablation(self) -> Ablation:
        found = measured(
            self.roadmap,
            self.profile,
            self.overrides,
            self.runs,
            self.reference,
            adjusted=self.adjusted,
            precision=self.precision,
        )
        notes = [self.note] if self.note else []
        notes += found.notes
        if others := len(self.all_runs) - len(self.runs):
            notes.append(
                f"{count(others, 'run')} of other steps and combinations left out (--ablate chooses others)."
            )
        effects, about = self._effects()
        return replace(
            found,
            notes=[*notes, *self.copies],
            folder=self.folder,
            runs=self.runs,
            effects=effects,
            effects_notes=about,
        )

    @property
    def finished(self) -> bool:
        """Whether no run will change any more."""
        return all(run.state in FINISHED for run in self.all_runs)

    def _effects(self) -> tuple[Sequence[MarginalEffect], Sequence[str]]:
        """The marginal effects, and sentences about them."""
        contexts = self.roadmap.contexts
        end = self.whole.trunk[-1] if contexts else end_of(self.whole, self.kind) if self.kind else None
        if end is None:
            return [], []
        results_of = results_by_step(self.whole, self.profile, self.overrides, self.all_runs)
        effects = marginal_effects(self.whole, end, results_of)
        notes: Sequence[str] = []
        if contexts:
            results = {step: results_of(step)[1] for step in contexts}
            average = average_effects(contexts, changes_of(self.roadmap), results, self.interactions)
            effects = with_average(effects, average, list(chain.from_iterable(results.values())))
            notes = average.notes
        return adjust(effects) if self.adjusted else effects, notes


def read_experiment(
    folder: Path,
    *,
    steps_file: Path = STEPS_YAML,
    roadmap: str | None = None,
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    kind: str | None = None,
    adjusted: bool = False,
    trained: bool = False,
    precision: Precision | None = None,
    interactions: str | None = None,
) -> Experiment:
    """The one experiment that a folder holds, or the one that `roadmap` and `profile` choose.

    With `trained`, the overrides are taken from the runs. `interactions`, such as `A:B,C:D`, are estimated
    beside the average effects of a screening design. ConfigError where the choice is open, or empty.
    """
    runs = find_runs(folder)
    there = [run.experiment for run in runs]
    name = _choose("roadmap", folder, {of for of, _ in there}, roadmap)
    profile = _choose("profile", folder, {of for of_roadmap, of in there if of_roadmap == name}, profile)
    whole = load_roadmap(steps_file, name)
    mine = [run for run in runs if run.experiment == (name, profile)]
    of_profile = None if profile == NO_PROFILE else profile
    given, note = _overrides(whole, of_profile, folder, mine, overrides or {}, trained=trained)
    ablation = ablate(whole, kind, profile=of_profile, overrides=given) if kind is not None else whole
    reference = _reference(whole, of_profile, given)
    pairs = parse_interactions(interactions, ablation) if interactions is not None else ()
    return Experiment(
        folder,
        whole,
        ablation,
        of_profile,
        given,
        kind,
        adjusted,
        reference,
        precision,
        note,
        pairs,
    ).read()


def _overrides(
    roadmap: Roadmap,
    profile: str | None,
    folder: Path,
    runs: Sequence[RunDir],
    given: Mapping[str, Any],
    *,
    trained: bool,
) -> tuple[Mapping[str, Any], str | None]:
    """The overrides to collect with, and a note where they are those that the runs were trained with.

    By default those are taken if all runs agree on them and none has the configuration of the steps file.
    """
    if trained:
        variant = as_trained(roadmap, profile, folder, runs)
    elif given or _is_current(roadmap, profile, runs):
        variant = None
    else:
        found = variants(roadmap, profile, runs)
        variant = found[0] if len(found) == 1 and found[0].overrides and not found[0].edited else None
    if variant is None:
        return given, None
    why = "" if trained else "; none has the configuration of the steps file"
    return variant.overrides, f"Collected with {variant.options}, as the runs were trained{why}."


def _is_current(roadmap: Roadmap, profile: str | None, runs: Sequence[RunDir]) -> bool:
    """Whether a run has the present configuration of its step."""
    steps = {run.step for run in runs if roadmap.knows(run.step)}
    there = {(run.step, run.hash) for run in runs}
    return any((step, resolve(roadmap, step, profile=profile).hash) in there for step in steps)


def _choose(what: str, folder: Path, there: set[str], wanted: str | None) -> str:
    """The roadmap or profile to collect."""
    names = ", ".join(sorted(there))
    if not there:
        raise config_error(relative(folder), "holds no runs")
    if wanted is None and len(there) > 1:
        message = f"holds runs of the {what}s {names}; choose one with --{what}"
        raise config_error(relative(folder), message)
    if wanted is not None and wanted not in there:
        message = f"holds no runs of {what} '{wanted}', but of {names}"
        raise config_error(relative(folder), message)
    return wanted or there.pop()


def _reference(roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any]) -> Reference | None:
    """A logistic regression on digits, or the paper's reference network on the paper's data."""
    first = roadmap.steps[0]
    mine, plain = resolve(roadmap, first, profile=profile, overrides=overrides), resolve(roadmap, first)
    if mine.data.dataset == "digits":
        return Reference(title="logistic regression on the pixels", top1=_logistic_regression(mine.data))
    return roadmap.reference if same_task(mine, plain) else None


@cache
def _logistic_regression(data: DataSpec) -> float:
    """Its accuracy, cached on disk: scikit-learn takes seconds to import and to fit it."""
    decided_by = [
        json.dumps(data.model_dump(mode="json")),
        str(versions(("scikit-learn", "scipy", "numpy"))),
        Path(digits.__file__).read_text("utf-8"),
    ]
    return float(
        cached("logistic-regression", "\n".join(decided_by), lambda: repr(digits.logistic_regression(data)))
    )


def _skip_copies(found: Iterable[Status], root: Path) -> tuple[list[Status], list[str]]:
    """One status per run, preferably a finished one, and a sentence for each copy that is skipped."""
    chosen: dict[str, Status] = {}
    skipped: list[tuple[Status, str]] = []
    for run in found:
        name = run.run.name
        first = chosen.setdefault(name, run)
        if first is not run:
            better = first.result is None and run.result is not None
            chosen[name] = run if better else first
            skipped.append((first if better else run, name))
    notes = [_copy_note(copy, chosen[name], root) for copy, name in skipped]
    if (more := len(notes) - MAX_LISTED) > 0:
        notes[MAX_LISTED:] = [f"{count(more, 'more run')} with a copy, counted once."]
    return list(chosen.values()), notes


def _copy_note(copy: Status, run: Status, root: Path) -> str:
    one, other = (of.run.path.relative_to(root).as_posix() for of in (copy, run))
    differ = "" if copy.result in (None, run.result) else ", though their results differ"
    return f"{one} is the same run as {other}, and left out{differ}."
