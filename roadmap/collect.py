"""From a folder of runs, or from the paper, to a folder of tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from roadmap.files import write_atomic
from roadmap.plots import accuracy_vs_gmacs, roadmap_bars, save
from roadmap.records import Status, find_runs, status
from roadmap.strict_yaml import ConfigError, Problem, relative
from roadmap.tables import Ablation, cells, columns, measured, published, runs_frame, to_frame, to_markdown
from roadmap.terminal import console, table
from roadmap.tree import NO_PROFILE, Reference, Roadmap, resolve


def collect_paper(roadmap: Roadmap, out: Path) -> None:
    """The publication's table and figures, from the steps file alone."""
    _write(published(roadmap), roadmap.reference, out)


def collect_runs(roadmap: Roadmap, runs: Path, out: Path, *, profile: str | None, overrides: Mapping[str, Any]) -> None:
    """Tables and figures of the runs below `runs`, which must be of one roadmap and one profile; finds out which, if need be."""
    found = [status(run) for run in find_runs(runs)]
    profile = _one_experiment(roadmap, runs, found, profile)
    mine = [run for run in found if run.run.experiment == (roadmap.name, profile or NO_PROFILE)]
    mine.sort(key=lambda run: (_place(roadmap, run.run.step), run.run.path.name))
    reference = _reference(roadmap, profile, overrides)
    ablation = measured(roadmap, profile, overrides, mine, reference)
    _write(ablation, reference, out, runs_frame(mine, ablation))


def _reference(roadmap: Roadmap, profile: str | None, overrides: Mapping[str, Any]) -> Reference | None:
    """What the runs are compared with: on digits a logistic regression, on the paper's own data its reference network."""
    first = roadmap.steps[0]
    mine, plain = resolve(roadmap, first, profile=profile, overrides=overrides), resolve(roadmap, first)
    if mine.data.dataset == "digits":
        from roadmap.digits import logistic_regression

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
    """All files of a report, and the table at the terminal."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if runs is not None:
            write_atomic(out / "runs.csv", runs.to_csv(index=False))
        write_atomic(out / "ablation.csv", to_frame(ablation).to_csv(index=False))
        write_atomic(out / "ablation.md", to_markdown(ablation))
        written = save(roadmap_bars(ablation, reference), out / "roadmap")
        written += save(accuracy_vs_gmacs(ablation, reference), out / "accuracy_vs_gmacs")
    except OSError as error:
        raise ConfigError([Problem(relative(out), f"cannot be written: {error.strerror}")]) from error
    screen = console()
    screen.print(table(columns(ablation), [cells(ablation, row) for row in ablation.rows], ablation.title))
    for note in ablation.notes:
        screen.print(f"- {note}", soft_wrap=True)
    screen.print(f"tables: {relative(out / 'ablation.md')}; figures: {', '.join(map(relative, written))}", soft_wrap=True)
