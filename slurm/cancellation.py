"""A cancellation: finds the jobs and processes that train the selected runs, and stops them."""

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
from slurm.client import SlurmUnavailable, Task, ask, queued
from slurm.jobs import grouped, jobs_of, root_of, submissions, submitted_jobs
from slurm.monitor import ENDING, select_runs

JOBS_PER_CALL = 200


@dataclass
class Cancellation:
    """The `jobs` and `processes` to stop, with the runs that they train; the runs `kept` from workers; and
    reasons why something is `left` alone.
    """

    jobs: dict[str, list[RunDir]] = field(default_factory=dict)
    processes: dict[int, RunDir] = field(default_factory=dict)
    kept: list[RunDir] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def stop_runs(arguments: argparse.Namespace) -> int:
    """Stops the selected runs; exit code 1 if Slurm does not answer, and then nothing is stopped."""
    selected = [found for one in select(arguments) if (found := status(one)).result is None]
    try:
        plan = plan_for(selected)
        if not arguments.dry_run:
            carry_out(plan)
    except SlurmUnavailable as error:
        print(f"Slurm does not answer, so it is unknown what is queued: {error}", file=sys.stderr)
        return 1
    for line in describe(plan, arguments.dry_run):
        print(line)
    return 0


def select(arguments: argparse.Namespace) -> list[RunDir]:
    """The runs that the command line selects; ConfigError if it selects none at all."""
    if not (arguments.all or arguments.steps or arguments.seed or arguments.not_in_plan):
        message = "must be given, to select the runs to stop"
        raise config_error("--all, --steps, --seed or --not-in-plan", message)
    runs = select_runs(arguments, arguments.steps or (), arguments.seed or ())
    return list(not_in_plan(runs, arguments)) if arguments.not_in_plan else runs


def not_in_plan(runs: Sequence[RunDir], arguments: argparse.Namespace) -> Iterator[RunDir]:
    """The runs whose configuration no longer results from the steps file and the overrides."""
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
    """The hash of a step's configuration now; None if the step or profile no longer exists.

    ConfigError for bad overrides.
    """
    choice = None if profile == NO_PROFILE else profile
    try:
        resolve(roadmap, step, profile=choice)
    except ConfigError:
        return None
    return with_init_digest(resolve(roadmap, step, profile=choice, overrides=overrides)).hash


def plan_for(selected: Sequence[Status]) -> Cancellation:
    """The jobs of the `selected` runs, and this machine's processes that train one without a job."""
    plan, wanted = Cancellation(), {found.run.path: found for found in selected}
    folders = list(dict.fromkeys(jobs_of(found.run) for found in selected))
    submitting = [jobs for jobs in folders if submissions(jobs)]
    tasks = queued(retry=True) if submitting else []
    queue = {
        task.id: (task, [root_of(jobs) / name for name in names])
        for jobs in submitting
        for task, names in grouped(jobs, tasks)
    }
    in_queue: set[Path] = set()
    for task, paths in queue.values():
        if mine := [RunDir(path) for path in paths if path in wanted]:
            in_queue |= {one.path for one in mine}
            plan_job(plan, task, mine, [RunDir(path) for path in paths if path not in wanted])
    with_workers = {jobs for jobs in folders if submitted_jobs(jobs)}
    for path, found in wanted.items():
        if path in in_queue:
            continue
        # local workers may still be running, and would train it
        if jobs_of(found.run) in with_workers and found.state != "cancelled":
            plan.kept.append(found.run)
        if found.owner is not None:
            plan_process(plan, found.run, found.owner)
    return plan


def plan_job(plan: Cancellation, task: Task, mine: list[RunDir], others: Sequence[RunDir]) -> None:
    """Stops a job unless it is ending or also trains other runs."""
    kept = [title(one) for one in others if status(one).result is None]
    if task.state in ENDING:
        plan.left.append(f"job {task.id} ({titles(mine)}) is ending already")
    elif kept:
        plan.left.append(
            f"job {task.id} ({titles(mine)}) is left alone, since it also trains {', '.join(kept)}; select"
            " all of them"
        )
    else:
        plan.jobs[task.id] = mine


def plan_process(plan: Cancellation, one: RunDir, owner: dict[str, Any]) -> None:
    """Stops a process if it runs on this machine."""
    if is_here(owner):
        plan.processes[int(owner["pid"])] = one
    else:
        plan.left.append(
            f"{title(one)} is trained by process {owner.get('pid')} on {owner.get('host')}: stop it there"
        )


def carry_out(plan: Cancellation) -> None:
    """Cancels the jobs, keeps workers from the runs, and only then stops the processes, which save."""
    jobs = list(plan.jobs)
    for first in range(0, len(jobs), JOBS_PER_CALL):
        ask("scancel", *jobs[first : first + JOBS_PER_CALL], retry=True)
    for one in plan.kept:
        with contextlib.suppress(FileNotFoundError):  # the run is being deleted
            one.cancel()
    for process, one in plan.processes.items():
        # while Slurm was asked, it may have ended or started another run
        if (owner(one.path) or {}).get("pid") != process:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)


def describe(plan: Cancellation, dry_run: bool) -> Iterator[str]:
    """What was done, or would be."""
    done, asked = ("would be", "would be") if dry_run else ("", "was")
    canceled = f"{done} canceled".strip()
    yield from (f"job {job} {canceled}: {titles(mine)}" for job, mine in plan.jobs.items())
    for process, one in plan.processes.items():
        then = "continue with other runs" if one in plan.kept else "end"
        yield f"process {process} {asked} asked to save and {then}: {title(one)}"
    if plan.kept:
        skipped = f"{done} skipped".strip()
        yield f"{skipped} by all workers until submitted again: {titles(plan.kept)}"
    yield from plan.left
    if plan.jobs or plan.processes:
        processes = "1 process" if len(plan.processes) == 1 else f"{len(plan.processes)} processes"
        yield f"{count(len(plan.jobs), 'job')} and {processes} in all"
    elif not plan.kept:
        yield "nothing to stop: none of these runs is queued or being trained"


def title(one: RunDir) -> str:
    """'gelu seed 0'."""
    return f"{one.step} seed {one.seed}"


def titles(runs: Sequence[RunDir]) -> str:
    """'gelu seed 0, gelu seed 1'."""
    return ", ".join(map(title, runs))
