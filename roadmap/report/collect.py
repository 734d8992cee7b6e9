"""From a folder of runs, or from the paper, to a folder of tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from roadmap.ablations import ablate, end_of
from roadmap.files import write_atomic, written
from roadmap.records import Status, find_runs, status
from roadmap.report.ablation import measured, origins, published
from roadmap.report.plots import accuracy_vs_gmacs, roadmap_bars
from roadmap.report.rows import Ablation
from roadmap.report.style import save
from roadmap.report.tables import WORTH_COLUMNS, cells, columns, markdown, runs_frame, to_frame, to_markdown, worth_cells, worth_frame
from roadmap.report.worth import MEANING, Worth, worths
from roadmap.report.worth_plot import worth_points
from roadmap.strict_yaml import ConfigError, Problem, relative
from roadmap.terminal import console, count, table
from roadmap.tree import NO_PROFILE, Reference, Roadmap, resolve


def collect_paper(roadmap: Roadmap, out: Path) -> None:
    """The publication's table and figures, from the steps file alone."""
    ablation = published(roadmap)
    if not ablation.rows:
        raise ConfigError([Problem(relative(roadmap.path), f"holds no published figures for the steps of {roadmap.name}")])
    _write(ablation, roadmap.reference, out)


def collect_runs(
    roadmap: Roadmap, runs: Path, out: Path, *, ablation: str | None = None, profile: str | None, overrides: Mapping[str, Any]
) -> None:
    """Tables and figures of the runs below `runs`, which must be of one roadmap and one profile; finds out which, if need be.

    With an `ablation`, its combinations take the place of the path, and what each change is worth is told, too.
    """
    found = [status(run) for run in find_runs(runs)]
    profile = _one_experiment(roadmap, runs, found, profile)
    whole = roadmap
    if ablation is not None:
        roadmap = ablate(whole, ablation, profile=profile, overrides=overrides)
    mine = [run for run in found if run.run.experiment == (roadmap.name, profile or NO_PROFILE)]
    mine.sort(key=lambda run: (_place(roadmap, run.run.step), run.run.path.name))
    hashes = {resolve(roadmap, step, profile=profile, overrides=overrides).hash for step in roadmap.steps}
    here = [run for run in mine if run.run.step in roadmap.tree or run.run.hash in hashes or not whole.knows(run.run.step)]
    reference = _reference(whole, profile, overrides)
    rows = measured(roadmap, profile, overrides, here, reference)
    if len(here) < len(mine):
        rows.notes.append(f"{count(len(mine) - len(here), 'run')} of other steps and combinations left out (--ablate chooses others).")
    _write(rows, reference, out, runs_frame(here, rows))
    if ablation and (end := end_of(whole, ablation)):
        title = f"What each change on the way to {whole.tree[end].title} is worth on {profile or 'ImageNet-1K'}"
        if changes := worths(whole, end, profile, overrides, mine):
            used = {name for worth in changes for name in worth.hashes}
            _write_worth(changes, title, out, origins([run.result for run in mine if run.result and run.result.hash in used]))


def _reference(roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any]) -> Reference | None:
    """What the runs are compared with: on digits a logistic regression, on the paper's own data its reference network."""
    first = roadmap.steps[0]
    mine, plain = resolve(roadmap, first, profile=profile, overrides=overrides), resolve(roadmap, first)
    if mine.data.dataset == "digits":
        from roadmap.data.digits import logistic_regression

        return Reference(title="logistic regression on the pixels", top1=logistic_regression(mine.data))
    same = (mine.data, mine.model.num_classes) == (plain.data, plain.model.num_classes)
    return roadmap.reference if same else None


def _one_experiment(roadmap: Roadmap, runs: Path, found: list[Status], profile: str | None) -> str | None:
    """The profile to collect; ConfigError if the folder leaves it open."""
    there = sorted({run.run.experiment[1] for run in found if run.run.experiment[0] == roadmap.name})
    if not there:
        raise ConfigError([Problem(relative(runs), f"holds no runs of {roadmap.name}")])
    if profile is None and len(there) > 1:
        raise ConfigError([Problem(relative(runs), f"holds runs of the profiles {', '.join(there)}; choose one with --profile")])
    if profile is not None and profile not in there:
        raise ConfigError([Problem(relative(runs), f"holds no runs of profile '{profile}', but of {', '.join(there)}")])
    return profile or (None if there[0] == NO_PROFILE else there[0])


def _place(roadmap: Roadmap, step: str) -> int:
    return roadmap.steps.index(step) if step in roadmap.tree else len(roadmap.steps)


def _write(ablation: Ablation, reference: Reference | None, out: Path, runs: pd.DataFrame | None = None) -> None:
    """The files of an ablation, and its table at the terminal."""
    with written(out):
        out.mkdir(parents=True, exist_ok=True)
        if runs is not None:
            write_atomic(out / "runs.csv", runs.to_csv(index=False))
        write_atomic(out / "ablation.csv", to_frame(ablation).to_csv(index=False))
        write_atomic(out / "ablation.md", to_markdown(ablation))
        figures = save(roadmap_bars(ablation, reference), out / "roadmap")
        figures += save(accuracy_vs_gmacs(ablation, reference), out / "accuracy_vs_gmacs")
    _show(ablation.title, columns(ablation), [cells(ablation, row) for row in ablation.rows], ablation.notes)
    _point_to(out / "ablation.md", figures)


def _write_worth(found: list[Worth], title: str, out: Path, origin: list[str]) -> None:
    """The table and the figure of what each change is worth."""
    rows = [worth_cells(worth) for worth in found]
    notes = [f"{reading}: {meaning}." for reading, meaning in MEANING.items()]
    notes.append("Percentage points of top-1 with their 95 % interval over n seeds, * where it excludes zero.")
    notes.append(
        "A dash stands for missing runs, and where a change that comes later sets the same values, so that leaving it out is none."
    )
    if any(any(worth.diverged.values()) for worth in found):
        notes.append("Runs that diverged are counted behind the difference, and in no mean.")
    notes += origin
    with written(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "worth.csv", worth_frame(found).to_csv(index=False))
        write_atomic(out / "worth.md", markdown(title, WORTH_COLUMNS, rows, notes))
        figures = save(worth_points(found, title), out / "worth")
    _show(title, WORTH_COLUMNS, rows, notes)
    _point_to(out / "worth.md", figures)


def _show(title: str, heads: list[str], rows: list[list[str]], notes: list[str]) -> None:
    console().print(table(heads, rows, title))
    for note in notes:
        console().print(f"- {note}", soft_wrap=True)


def _point_to(tables: Path, figures: list[Path]) -> None:
    console().print(f"tables: {relative(tables)}; figures: {', '.join(map(relative, figures))}", soft_wrap=True)
