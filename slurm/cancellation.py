"""What a cancellation does: it finds who is at work on the runs, and stops them."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roadmap.deltas import NO_PROFILE, Roadmap, parse_overrides, resolve
from roadmap.errors import ConfigError, config_error
from roadmap.lease import is_here, owner
from roadmap.records import RunDir, Status, status
from roadmap.steps import load_roadmap
from roadmap.terminal import count
from roadmap.training.initial_weights import with_init_digest
from slurm.choose import of_seeds, of_steps, runs_of_experiment
from slurm.client import SlurmUnavailable, Task, ask, queued
from slurm.monitor import ENDING, root_of
from slurm.submitted import grouped, jobs_of, submissions, submitted_jobs

JOBS_A_CALL = 200


@dataclass
class Plan:
    """What is to be done: jobs and processes to stop, by what they train, `kept` from workers, and `left`
    alone with the reason.
    """

    jobs: dict[str, list[RunDir]] = field(default_factory=dict)
    processes: dict[int, RunDir] = field(default_factory=dict)
    kept: list[RunDir] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def stop_runs(arguments: argparse.Namespace) -> int:
    """Stops what is chosen; exit code 1 if Slurm does not answer, and then nothing is stopped."""
    chosen = [found for one in choose(arguments) if (found := status(one)).result is None]
    try:
        plan = plan_for(chosen)
        if not arguments.dry_run:
            carry_out(plan)
    except SlurmUnavailable as error:
        print(f"Slurm does not answer, so nobody knows what is queued: {error}", file=sys.stderr)
        return 1
    for line in account(plan, arguments.dry_run):
        print(line)
    return 0


def choose(arguments: argparse.Namespace) -> list[RunDir]:
    """The runs that the command line names; ConfigError if it names none at all."""
    if not (arguments.all or arguments.steps or arguments.seed or arguments.not_in_plan):
        raise config_error("--all, --steps, --seed or --not-in-plan", "must say which runs to stop")
    runs = runs_of_experiment(arguments)
    if arguments.steps:
        runs = of_steps(runs, arguments.runs, arguments.steps)
    if arguments.seed:
        runs = of_seeds(runs, arguments.runs, arguments.seed)
    return list(not_in_plan(runs, arguments)) if arguments.not_in_plan else runs


def not_in_plan(runs: Sequence[RunDir], arguments: argparse.Namespace) -> Iterator[RunDir]:
    """The runs whose configuration the steps file and the overrides do not give any more."""
    roadmaps: dict[str, Roadmap] = {}
    wanted: dict[tuple[str, str, str], str | None] = {}
    overrides = parse_overrides(arguments.overrides)
    for one in runs:
        name, profile = one.experiment
        if name not in roadmaps:
            roadmaps[name] = load_roadmap(arguments.steps_file, name)
        key = (name, profile, one.step)
        if key not in wanted:
            wanted[key] = hash_of(roadmaps[name], one.step, profile, overrides)
        if wanted[key] != one.hash:
            yield one


def hash_of(roadmap: Roadmap, step: str, profile: str, overrides: dict[str, Any]) -> str | None:
    """The hash of a step's configuration now; None if there is no such step or profile any more.

    ConfigError for bad overrides.
    """
    choice = None if profile == NO_PROFILE else profile
    try:
        resolve(roadmap, step, profile=choice)
    except ConfigError:
        return None
    return with_init_digest(resolve(roadmap, step, profile=choice, overrides=overrides)).hash


def plan_for(chosen: Sequence[Status]) -> Plan:
    """The jobs of `chosen`, and the processes of this machine that train one without a job; SlurmUnavailable
    if Slurm cannot be asked.
    """
    plan, wanted = Plan(), {found.run.path: found for found in chosen}
    folders = [jobs for jobs in dict.fromkeys(jobs_of(found.run) for found in chosen) if submissions(jobs)]
    tasks = queued(retry=True) if folders else []
    queue = {
        task.id: (task, [root_of(jobs) / name for name in names])
        for jobs in folders
        for task, names in grouped(jobs, tasks)
    }
    served: set[Path] = set()
    for task, paths in queue.values():
        if mine := [RunDir(path) for path in paths if path in wanted]:
            served |= {one.path for one in mine}
            plan_job(plan, task, mine, [RunDir(path) for path in paths if path not in wanted])
    begun = {jobs for jobs in dict.fromkeys(jobs_of(found.run) for found in chosen) if submitted_jobs(jobs)}
    for path, found in wanted.items():
        # workers of this kind may be about
        if path not in served and jobs_of(found.run) in begun and found.state != "cancelled":
            plan.kept.append(found.run)
        if found.owner is not None and path not in served:
            plan_process(plan, found.run, found.owner)
    return plan


def plan_job(plan: Plan, task: Task, mine: list[RunDir], others: Sequence[RunDir]) -> None:
    """Stops a job unless it ends by itself or is to train other runs, too."""
    kept = [title(one) for one in others if status(one).result is None]
    if task.state in ENDING:
        plan.left.append(f"job {task.id} ({titles(mine)}) is ending already")
    elif kept:
        plan.left.append(
            f"job {task.id} ({titles(mine)}) is left alone, for it trains {', '.join(kept)}, too; choose all"
            " of them"
        )
    else:
        plan.jobs[task.id] = mine


def plan_process(plan: Plan, one: RunDir, owner: dict[str, Any]) -> None:
    """Stops a process if it is here."""
    if is_here(owner):
        plan.processes[int(owner["pid"])] = one
    else:
        plan.left.append(
            f"{title(one)} is trained by process {owner.get('pid')} on {owner.get('host')}: stop it there"
        )


def carry_out(plan: Plan) -> None:
    """Has Slurm cancel the jobs, keeps workers from the runs, and only then tells the processes to save and
    stop.
    """
    jobs = list(plan.jobs)
    for first in range(0, len(jobs), JOBS_A_CALL):
        ask("scancel", *jobs[first : first + JOBS_A_CALL], retry=True)
    for one in plan.kept:
        with contextlib.suppress(FileNotFoundError):  # the run is being deleted
            one.cancel()
    for process, one in plan.processes.items():
        # it has just ended, or is at another run, while Slurm was asked
        if (owner(one.path) or {}).get("pid") != process:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


def account(plan: Plan, rehearsed: bool) -> Iterator[str]:
    """What was done, or would be."""
    done = "would be cancelled" if rehearsed else "cancelled"
    told = "would be told" if rehearsed else "was told"
    yield from (f"job {job} {done}: {titles(mine)}" for job, mine in plan.jobs.items())
    for process, one in plan.processes.items():
        yield f"process {process} {told} to save and {'leave' if one in plan.kept else 'end'}: {title(one)}"
    if plan.kept:
        yield (
            f"{'would be left' if rehearsed else 'left'} by all workers until submitted again:"
            f" {titles(plan.kept)}"
        )
    yield from plan.left
    ended = (
        f"{count(len(plan.jobs), 'job')} and {len(plan.processes)}"
        f" {'process' if len(plan.processes) == 1 else 'processes'}"
    )
    if plan.jobs or plan.processes:
        yield f"{ended} in all"
    elif not plan.kept:
        yield "nothing to stop: none of these runs is queued or being trained"


def title(one: RunDir) -> str:
    """A run in a few words."""
    return f"{one.step} seed {one.seed}"


def titles(runs: Sequence[RunDir]) -> str:
    """Runs in a few words each."""
    return ", ".join(map(title, runs))
