"""The second stage of `submit.py --precision`: each step's seeds, from the finished first stage."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from roadmap.config import RunConfig
from roadmap.deltas import Roadmap
from roadmap.errors import ConfigError, Problem, config_error
from roadmap.estimate import finished_results
from roadmap.records import Result, accuracies
from roadmap.report.precision import Allocation, Contrast, Precision, allocate
from roadmap.report.stats import MOST_SEEDS
from roadmap.terminal import console, count, table

NONE = "–"


def check_limits(arguments: argparse.Namespace, precision: Precision | None) -> None:
    """ConfigError for a --max-seeds or --budget that is impossible, or given without --precision."""
    problems = []
    given = {"--max-seeds": arguments.max_seeds, "--budget": arguments.budget}
    if precision is None:
        message = "limits the seeds that --precision W asks for; give both"
        problems = [Problem(name, message) for name, value in given.items() if value is not None]
    else:
        most = arguments.max_seeds
        if most is not None and not precision.first <= most <= MOST_SEEDS:
            message = f"must be from --seeds, {precision.first}, to {MOST_SEEDS:,}, not {most:,}"
            problems.append(Problem("--max-seeds", message))
        if arguments.budget is not None and not 0 <= arguments.budget < math.inf:
            message = f"must be a number of hours, 0 or more, not {arguments.budget:g}"
            problems.append(Problem("--budget", message))
    if problems:
        raise ConfigError(problems)


def plan_seeds(
    roadmap: Roadmap,
    steps: Sequence[RunConfig],
    runs: Path,
    precision: Precision,
    max_seeds: int | None,
    budget: float | None,
) -> dict[str, int]:
    """The seeds of each step in both stages, printed as a table; those of the first while it is unfinished.

    ConfigError where no step is selected together with its parent, and for too many seeds.
    """
    stages = Stages(roadmap, {config.step: _results(config, runs) for config in steps}, precision)
    if not stages.pairs:
        parents = dict.fromkeys(filter(None, (roadmap.delta(step).parent for step in stages.results)))
        add = f"; add {', '.join(parents)}" if parents else ""
        raise config_error("--steps", f"selects no step together with its parent{add}")
    for line in stages.unpaired():
        console().print(line)
    missing = sum(seed not in found for found in stages.results.values() for seed in range(precision.first))
    if missing:
        console().print(
            f"first stage: {missing} of {count(len(steps) * precision.first, 'run')} unfinished; when all"
            " have a result, the same command plans the second stage"
        )
        return dict.fromkeys(stages.results, precision.first)
    plan = allocate(stages.contrasts.values(), stages.hours, precision, max_seeds, budget)
    _check_number(plan)
    console().print(table(HEADS, stages.rows(plan), f"Differences to ± {precision.width:g} points"))
    for line in stages.notes(plan):
        console().print(line, soft_wrap=True)
    return dict(plan.seeds)


def _results(config: RunConfig, runs: Path) -> dict[int, Result]:
    return {result.seed: result for result in finished_results(config, runs)}


def _check_number(plan: Allocation) -> None:
    step, seeds = max(plan.seeds.items(), key=lambda item: item[1])
    if seeds > MOST_SEEDS:
        message = (
            f"needs {seeds:,} seeds of '{step}', more than {MOST_SEEDS:,}; give a larger one, or --max-seeds"
        )
        raise config_error(f"--precision {plan.precision.width:g}", message)


HEADS = (
    "step", "parent", ">std of Δ", ">pairs needed", ">finished", "reached?", ">planned ±", ">seeds",
    ">device-hours",
)  # fmt: skip


@dataclass(frozen=True)
class Stages:
    """The finished runs of the selected steps, by step and seed, of both stages."""

    roadmap: Roadmap
    results: Mapping[str, Mapping[int, Result]]
    precision: Precision

    @cached_property
    def pairs(self) -> dict[str, str]:
        """The parent of each selected step whose parent is selected, too."""
        parents = {step: self.roadmap.delta(step).parent for step in self.results}
        return {step: parent for step, parent in parents.items() if parent and parent in self.results}

    @cached_property
    def contrasts(self) -> dict[str, Contrast]:
        """The differences whose spread is known from the first stage, by step."""
        spreads = {
            step: self.precision.spread(self.top1(step), self.top1(parent))
            for step, parent in self.pairs.items()
        }
        return {
            step: Contrast(step, self.pairs[step], spread)
            for step, spread in spreads.items()
            if spread is not None
        }

    @cached_property
    def hours(self) -> dict[str, float]:
        """The device-hours of a run of each step: the mean over the first stage, waits for data included."""
        return {
            step: fmean(
                found[seed].train_seconds * found[seed].processes / found[seed].runs_per_gpu / 3600
                for seed in range(self.precision.first)
            )
            for step, found in self.results.items()
        }

    def top1(self, step: str) -> dict[int, float]:
        """Accuracies by seed, without runs that diverged."""
        return accuracies(self.results[step].values())

    def finished(self, contrast: Contrast) -> int:
        """The finished pairs of those that a difference needs."""
        both = self.top1(contrast.step).keys() & self.top1(contrast.parent).keys()
        return sum(seed < self.precision.needed(contrast.spread) for seed in both)

    def unpaired(self) -> Iterator[str]:
        """A line for each step whose parent is not selected."""
        for step in self.results:
            if step not in self.pairs and (parent := self.roadmap.delta(step).parent):
                yield f"{step}: its parent, {parent}, is not selected; no seeds for their difference"

    def rows(self, plan: Allocation) -> Iterator[list[str]]:
        """The cells of each step."""
        for step, seeds in plan.seeds.items():
            hours = (seeds - self.precision.first) * self.hours[step]
            cells = [NONE] * 5
            if contrast := self.contrasts.get(step):
                needed, finished = self.precision.needed(contrast.spread), self.finished(contrast)
                reached = "yes" if finished >= needed else "no"
                cells = [f"{contrast.spread:.2f}", str(needed), str(finished), reached]
                cells.append(f"{plan.margin(contrast):.2f}")
            yield [step, self.pairs.get(step, NONE), *cells, str(seeds), f"{hours:.2f}"]

    def notes(self, plan: Allocation) -> Iterator[str]:
        """The cost of the second stage, and what it will not reach."""
        first = self.precision.first
        number = sum(seeds - first for seeds in plan.seeds.values())
        done = sum(first <= seed < plan.seeds[step] for step, found in self.results.items() for seed in found)
        cost = plan.second_stage(self.hours)
        yield (
            f"second stage: {count(number, 'run')} after seed {first - 1}, {cost:,.2f} device-hours at the"
            f" first stage's speed; {done} finished"
        )
        if plan.width > self.precision.width:
            yield f"--budget allows ± {plan.width:.2f} instead of ± {self.precision.width:g}"
        if short := [one for one in self.contrasts.values() if not plan.reaches(one)]:
            names = ", ".join(f"{one.step} (± {plan.margin(one):.2f})" for one in short)
            yield f"limited by --max-seeds or --budget, not to ± {self.precision.width:g}: {names}"
        for step in self.pairs:
            if step not in self.contrasts:
                yield f"{step}: no interval, since {self._why_unknown(step)}"
        for contrast in self.contrasts.values():
            if lost := self._diverged(contrast, plan.pairs(contrast)):
                yield f"{contrast.step}: will not reach ± {self.precision.width:g}, since {lost}"

    def _why_unknown(self, step: str) -> str:
        """Why the first stage does not give the spread of a step's difference."""
        lost = self._diverged(Contrast(step, self.pairs[step], 0.0), self.precision.first)
        return lost or "all differences of the first stage are the same, and their spread is unknown"

    def _diverged(self, contrast: Contrast, pairs: int) -> str:
        """'seeds 1, 4 of gelu diverged', of the first `pairs`."""
        found = {
            step: [
                seed for seed, one in sorted(self.results[step].items()) if one.top1 is None and seed < pairs
            ]
            for step in (contrast.step, contrast.parent)
        }
        return " and ".join(
            f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))} of {step} diverged"
            for step, seeds in found.items()
            if seeds
        )
