"""Which experiment a folder of runs holds, where its runs stand, and the ablation that they make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
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
from roadmap.report.ablation import measured, same_task
from roadmap.report.marginal import Worth, worths
from roadmap.report.rows import Ablation
from roadmap.report.trained import as_trained, variants
from roadmap.steps import load_roadmap
from roadmap.steps_file import Reference
from roadmap.terminal import count

MAX_LISTED = 3  # copies that are named one by one


@dataclass(frozen=True)
class RunSelection:
    """What the command line says of the runs; a roadmap or a profile that is None is found out from them.

    `as_trained` has the overrides found out, too.
    """

    steps_file: Path = STEPS_YAML
    roadmap: str | None = None
    profile: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    ablation: str | None = None
    adjusted: bool = False
    as_trained: bool = False


@dataclass(frozen=True)
class Experiment:
    """The runs of one roadmap and profile below `folder`; `roadmap` is `whole`, or the ablation of it that
    was asked for.

    `note` says so where the overrides were taken from the runs.
    """

    folder: Path
    whole: Roadmap
    roadmap: Roadmap
    choices: RunSelection
    reference: Reference | None
    note: str | None = None

    def look(self) -> LoadedRuns:
        """Where the runs stand now, those that are there twice counted once."""
        mine = [
            run
            for run in find_runs(self.folder)
            if run.experiment == (self.whole.name, self.choices.profile or NO_PROFILE)
        ]
        found, copies = _once([status(run) for run in mine], run_tree(self.folder))
        found.sort(
            key=lambda run: (_place(self.roadmap, run.run.step), run.run.step, run.run.seed, run.run.hash)
        )
        return LoadedRuns(self, found, copies)


@dataclass(frozen=True)
class Worths:
    """What each change is worth, under a title."""

    title: str
    changes: Sequence[Worth]


@dataclass(frozen=True)
class LoadedRuns:
    """What a look at an experiment found: a status a run, in the order of the steps, and a sentence on each
    copy that was left out.
    """

    experiment: Experiment
    all: Sequence[Status]
    copies: Sequence[str] = ()

    @cached_property
    def runs(self) -> Sequence[Status]:
        """The runs that the ablation is about: those of its steps, under whatever name, and of steps that
        nobody knows.
        """
        its, choices = self.experiment, self.experiment.choices
        hashes = {
            resolve(its.roadmap, step, profile=choices.profile, overrides=choices.overrides).hash
            for step in its.roadmap.steps
        }
        strange = {step for step in {run.run.step for run in self.all} if not its.whole.knows(step)}
        return [
            run
            for run in self.all
            if run.run.step in its.roadmap.tree or run.run.hash in hashes or run.run.step in strange
        ]

    @cached_property
    def ablation(self) -> Ablation:
        """The table's rows and notes."""
        its, choices = self.experiment, self.experiment.choices
        made = measured(
            its.roadmap,
            choices.profile,
            choices.overrides,
            self.runs,
            its.reference,
            adjusted=choices.adjusted,
        )
        others = len(self.all) - len(self.runs)
        notes = (
            [f"{count(others, 'run')} of other steps and combinations left out (--ablate chooses others)."]
            if others
            else []
        )
        return replace(made, notes=[*([its.note] if its.note else []), *made.notes, *notes, *self.copies])

    @property
    def finished(self) -> bool:
        """Whether no run will change any more."""
        return all(run.state in FINISHED for run in self.all)

    @cached_property
    def worth(self) -> Worths | None:
        """What each change is worth, where the ablation is one of those that tell."""
        its, choices = self.experiment, self.experiment.choices
        end = end_of(its.whole, choices.ablation) if choices.ablation else None
        changes = worths(its.whole, end, choices.profile, choices.overrides, self.all) if end else []
        if end is None or not changes:
            return None
        return Worths(
            f"What each change on the way to {its.whole.tree[end].title} is worth on"
            f" {choices.profile or 'ImageNet-1K'}",
            changes,
        )


def experiment_of(folder: Path, choices: RunSelection) -> Experiment:
    """The one experiment that a folder of runs holds, or that is chosen of it; ConfigError where that is
    open, or there is none.
    """
    runs = find_runs(folder)
    there = [run.experiment for run in runs]
    name = _one("roadmap", folder, {roadmap for roadmap, _ in there}, choices.roadmap)
    profile = _one(
        "profile", folder, {profile for roadmap, profile in there if roadmap == name}, choices.profile
    )
    choices = replace(choices, roadmap=name, profile=None if profile == NO_PROFILE else profile)
    whole = load_roadmap(choices.steps_file, name)
    choices, note = _trained(
        whole, folder, choices, [run for run in runs if run.experiment == (name, profile)]
    )
    settings: dict[str, Any] = {"profile": choices.profile, "overrides": choices.overrides}
    roadmap = ablate(whole, choices.ablation, **settings) if choices.ablation is not None else whole
    return Experiment(
        folder, whole, roadmap, choices, _reference(whole, choices.profile, choices.overrides), note
    )


def _trained(
    roadmap: Roadmap, folder: Path, choices: RunSelection, runs: Sequence[RunDir]
) -> tuple[RunSelection, str | None]:
    """The choices with the overrides that the runs were trained with, and a note on that; by default if all
    of them agree on others.
    """
    if choices.as_trained:
        variant = as_trained(roadmap, choices.profile, folder, runs)
    elif choices.overrides or _present(roadmap, choices, runs):
        variant = None
    else:
        found = variants(roadmap, choices.profile, runs)
        variant = found[0] if len(found) == 1 and found[0].overrides and not found[0].edited else None
    if variant is None:
        return choices, None
    why = "" if choices.as_trained else "; none has the configuration of the steps file"
    note = f"Collected with {variant.options}, as the runs were trained{why}."
    return replace(choices, overrides=variant.overrides), note


def _present(roadmap: Roadmap, choices: RunSelection, runs: Sequence[RunDir]) -> bool:
    """Whether a run has the configuration that its step has now."""
    steps = {run.step for run in runs if roadmap.knows(run.step)}
    there = {(run.step, run.hash) for run in runs}
    return any((step, resolve(roadmap, step, profile=choices.profile).hash) in there for step in steps)


def _one(what: str, folder: Path, there: set[str], wanted: str | None) -> str:
    """The roadmap or profile to collect."""
    if not there:
        raise config_error(relative(folder), "holds no runs")
    if wanted is None and len(there) > 1:
        raise config_error(
            relative(folder),
            f"holds runs of the {what}s {', '.join(sorted(there))}; choose one with --{what}",
        )
    if wanted is not None and wanted not in there:
        raise config_error(
            relative(folder), f"holds no runs of {what} '{wanted}', but of {', '.join(sorted(there))}"
        )
    return wanted or there.pop()


def _reference(roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any]) -> Reference | None:
    """What the runs are compared with: on digits a logistic regression, on the paper's own data its reference
    network.
    """
    first = roadmap.steps[0]
    mine, plain = resolve(roadmap, first, profile=profile, overrides=overrides), resolve(roadmap, first)
    if mine.data.dataset == "digits":
        return Reference(title="logistic regression on the pixels", top1=_logistic_regression(mine.data))
    return roadmap.reference if same_task(mine, plain) else None


@cache
def _logistic_regression(data: DataSpec) -> float:
    """Its accuracy, worked out once for each data set: scikit-learn takes seconds to be imported and to train
    it.
    """
    decided_by = [
        json.dumps(data.model_dump(mode="json")),
        str(versions(("scikit-learn", "scipy", "numpy"))),
        Path(digits.__file__).read_text("utf-8"),
    ]
    return float(
        cached("logistic-regression", "\n".join(decided_by), lambda: repr(digits.logistic_regression(data)))
    )


def _place(roadmap: Roadmap, step: str) -> int:
    return roadmap.steps.index(step) if step in roadmap.tree else len(roadmap.steps)


def _once(found: Iterable[Status], root: Path) -> tuple[list[Status], list[str]]:
    """One status a run, a finished one before others, and a sentence on each copy that is left out."""
    kept: dict[str, Status] = {}
    left: list[tuple[Status, str]] = []
    for run in found:
        name = run.run.name
        first = kept.setdefault(name, run)
        if first is not run:
            better = first.result is None and run.result is not None
            kept[name] = run if better else first
            left.append((first if better else run, name))
    said = [_copy(one, kept[name], root) for one, name in left]
    more = len(said) - MAX_LISTED
    return list(kept.values()), said[:MAX_LISTED] + (
        [f"{count(more, 'more run')} of which there is a copy, counted once."] if more > 0 else []
    )


def _copy(left: Status, kept: Status, root: Path) -> str:
    one, other = (run.run.path.relative_to(root).as_posix() for run in (left, kept))
    differ = "" if left.result in (None, kept.result) else ", though their results differ"
    return f"{one} is the same run as {other}, and left out{differ}."
