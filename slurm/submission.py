"""What a submission does: it plans, hands over what is missing, and says what it did."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from roadmap.batches import plan_batches
from roadmap.cli.arguments import choices_of, roadmap_of
from roadmap.config import RunConfig
from roadmap.data.preflight import check_data
from roadmap.lease import Lease, LeaseHeld
from roadmap.records import RunDir, Status, find_runs, prepare, run_dir_of, status
from roadmap.steps import load_roadmaps
from roadmap.strict_yaml import ConfigError, Problem, show
from roadmap.terminal import console, count
from roadmap.training.callbacks import check_trackers
from roadmap.training.initial_weights import check_init, with_init_digest
from roadmap.tree import NO_PROFILE, resolve
from slurm.client import MAX_ARRAY_SIZE, SlurmUnavailable, Task, max_array_size, queued
from slurm.cluster import Cluster, check_steps, default_cluster, load_cluster
from slurm.executor import (
    Array,
    arrays_of,
    collect_when_done,
    collecting_script,
    is_collected,
    script,
    submit,
)
from slurm.forecast import forecast
from slurm.local import train_here
from slurm.monitor import poll
from slurm.snapshot import keep_steps, take, tree_hash
from slurm.status_table import counts
from slurm.submitted import jobs_of, runs_in_queue
from slurm.worker import OPEN


def submit_runs(arguments: argparse.Namespace) -> int:
    """Plans and submits; returns the exit code."""
    for name in ("seeds", "workers", "pack"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError([Problem(f"--{name}", f"must be at least 1, not {value}")])
    name = arguments.cluster or default_cluster(arguments.cluster_file)
    cluster = load_cluster(name, arguments.cluster_file)
    check_folder(arguments.runs, cluster)
    check_step_names(arguments, name, cluster)
    configs = plan(arguments, cluster)
    runs = [run_dir_of(arguments.runs, config) for config in configs]
    warn_changed_configs(runs)
    if arguments.dry_run:
        return dry_run(arguments, cluster, configs, runs)
    if arguments.only == "failed":
        configs = select_failed(arguments.runs, configs)
    runs = [prepare(arguments.runs, config) for config in configs]
    for run in runs:
        run.renew()
    if cluster.scheduler == "local":
        return train_here(runs, arguments.workers)
    return hand_over(arguments, name, cluster, runs)


def check_folder(runs: Path, cluster: Cluster) -> None:
    """ConfigError for a folder of which submitit or Slurm take a part for a tag that they replace: logs and
    records would go elsewhere.
    """
    is_local = cluster.scheduler == "local"
    if tag := re.search(r"%[jtAa]" if is_local else r"[%\\\n]", str(runs.absolute())):
        who = "submitit, which starts the workers," if is_local else "Slurm"
        message = (
            f"holds {tag[0]!r}, which {who} replaces in the names of files; choose another folder, or a link"
            " to this one without it"
        )
        raise ConfigError([Problem(f"--runs {runs.absolute()}:", message)])


def check_step_names(arguments: argparse.Namespace, name: str, cluster: Cluster) -> None:
    """ConfigError where the cluster's entry names a step that no roadmap of the steps file has."""
    if not cluster.steps:
        return
    known = set(roadmap_of(arguments).steps)
    if not cluster.steps.keys() <= known:  # those of another roadmap, or misspelled
        others = load_roadmaps(arguments.steps_file).values()
        check_steps(name, arguments.cluster_file, known.union(*(roadmap.steps for roadmap in others)))


def plan(arguments: argparse.Namespace, cluster: Cluster) -> list[RunConfig]:
    """All runs, seed by seed, so that a roadmap cut short is whole for some; ConfigError for one that could
    not be trained.

    What all seeds of a step have in common, which is all but the seed, is resolved and checked once.
    """
    roadmap, choices = roadmap_of(arguments), choices_of(arguments)
    steps = dict.fromkeys(arguments.steps or roadmap.steps)
    configs = [with_init_digest(resolve(roadmap, step, **choices)) for step in steps]
    if not arguments.dry_run:  # which may be far from the data
        check_data(*configs, here=cluster.scheduler == "local")
    for config in configs:
        if not arguments.dry_run:
            check_init(config)
        check_trackers(config)
        plan_batches(config, cluster.of(config.step).world)
    return [config.model_copy(update={"seed": seed}) for seed in range(arguments.seeds) for config in configs]


def select_failed(runs: Path, configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Those whose runs have failed, before they began, too, which Slurm knows.

    ConfigError if it does not answer where it must be asked.
    """
    board = poll([run_dir_of(runs, config) for config in configs])
    if any(row.state == "unknown" for row in board.rows):
        raise unanswered(board.said[0].partition(": ")[2])
    for line in board.said:  # without the accounting, nobody knows of those that failed before they began
        console().print(line, highlight=False)
    return [config for config, row in zip(configs, board.rows, strict=True) if row.state == "failed"]


def unanswered(why: object) -> ConfigError:
    """Why nothing is submitted while Slurm cannot be asked."""
    return ConfigError(
        [
            Problem(
                "Slurm",
                f"does not answer, so nobody knows what is queued already, and nothing was submitted: {why}",
            )
        ]
    )


def warn_changed_configs(runs: Sequence[RunDir]) -> None:
    """Says which runs are there of the same steps and seeds, but of another configuration, such as one that
    was changed since.
    """
    folders = [folder for folder in dict.fromkeys(run.path.parent for run in runs) if folder.is_dir()]
    there = {(other.step, other.seed, other.hash) for folder in folders for other in find_runs(folder)}
    seeds, mine = {(run.step, run.seed) for run in runs}, {(run.step, run.seed, run.hash) for run in runs}
    others = [
        f"{step}/seed{seed}-{digest}" for step, seed, digest in sorted(there - mine) if (step, seed) in seeds
    ]
    if others:
        names = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        console().print(
            f"stale, of another configuration, and left alone: {count(len(others), 'run')} ({names})",
            highlight=False,
        )


def dry_run(
    arguments: argparse.Namespace, cluster: Cluster, configs: Sequence[RunConfig], runs: Sequence[RunDir]
) -> int:
    """Prints what would be done; nothing is made."""
    found = [status(run) for run in runs]
    console().print(f"{count(len(runs), 'run')}: {counts(found)}")
    if cluster.scheduler == "slurm":
        left = [state.run for state in found if state.state in OPEN | {"cancelled"}]
        try:
            longest = max_array_size()
        except SlurmUnavailable:
            longest = MAX_ARRAY_SIZE
        jobs = jobs_of(runs[0]).absolute()
        source = jobs / f"source-{tree_hash()}"
        for number, array in enumerate(arrays_of(cluster, left, arguments.pack, longest), 1):
            print(
                f"# array {number}: {count(len(array.groups), 'job')} of {array.cluster.nodes} x"
                f" {array.cluster.tasks} processes"
            )
            print("# " + ", ".join(run.step + " " + run.path.name for group in array.groups for run in group))
            print(script(array, jobs, source))
        if left:
            print("# the job that collects when all have ended")
            print(collecting_script(cluster, jobs, source))
    unfinished = [config for config, state in zip(configs, found, strict=True) if state.result is None]
    for line in forecast(cluster, unfinished, arguments.runs) if unfinished else ():
        console().print(line, highlight=False)
    return 0


def hand_over(arguments: argparse.Namespace, name: str, cluster: Cluster, runs: Sequence[RunDir]) -> int:
    """Submits what is neither finished nor alive, and a job that collects in the end."""
    if not runs:
        console().print("no run has failed")
        return 0
    jobs = jobs_of(runs[0]).absolute()
    try:
        with Lease(jobs) as lease:  # two submissions at once would submit everything twice
            code = _hand_over(arguments, name, cluster, runs, jobs)
            lease.outcome = "done"
            return code
    except LeaseHeld as error:
        raise ConfigError([Problem("submit", f"{error}; wait until that submission is through")]) from error
    except SlurmUnavailable as error:
        raise unanswered(error) from error


def _hand_over(
    arguments: argparse.Namespace, name: str, cluster: Cluster, runs: Sequence[RunDir], jobs: Path
) -> int:
    tasks, found = queued(retry=True), [status(run) for run in runs]
    waiting = runs_in_queue(jobs, tasks)
    left = [state.run for state in found if is_open(state, waiting)]
    console().print(
        f"{count(len(runs), 'run')}: {counts(found)}; {len(waiting)} in the queue, {len(left)} to submit"
    )
    if not left and (not waiting or is_collected(jobs, tasks)):
        return 0
    snapshot = take(jobs)
    collecting = _collecting(arguments, keep_steps(arguments.steps_file, jobs, snapshot))
    arrays = arrays_of(cluster, left, arguments.pack, max_array_size())
    submitted, refusals = _submit_in_order(arrays, jobs, name, cluster, snapshot)
    if submitted or not left:
        everything = sorted({*submitted, *(task.job for task in waiting.values())})
        try:
            job = collect_when_done(cluster, jobs, name, snapshot, everything, collecting)
        except ConfigError as error:
            refusals += error.problems
        else:
            where = f"python -m roadmap status {arguments.runs} shows where they are"
            console().print(f"job {job}: collects when they have ended; {where}", highlight=False)
    if refusals:
        raise ConfigError(refusals)
    return 0


def _submit_in_order(
    arrays: Sequence[Array], jobs: Path, name: str, cluster: Cluster, snapshot: Path
) -> tuple[list[str], list[Problem]]:
    """Submits arrays up to one that is refused, as where the queue is full; returns their jobs' ids, and why
    not all were submitted.
    """
    submitted: list[str] = []
    # Slurm limits an array alone; of several, each waits for those before it in its lanes
    lanes = [""] * (cluster.parallel or 0)
    for array in arrays:
        taken, others = lanes[: len(array.groups)], lanes[len(array.groups) :]
        try:
            job = submit(array, jobs, name, snapshot, list(dict.fromkeys(filter(None, taken))))
        except ConfigError as error:
            if not submitted:
                raise
            rest = [run for left in arrays[len(submitted) :] for group in left.groups for run in group]
            message = (
                f"queued are the jobs {', '.join(submitted)}, but not {count(len(rest), 'run')} from"
                f" {rest[0].name} on; "
            )
            message += "the same command submits those later"
            return submitted, [*error.problems, Problem(f"cluster '{name}':", message)]
        lanes = others + [job] * len(taken)
        submitted.append(job)
        console().print(f"job {job}: {describe(array)}", highlight=False)
    return submitted, []


def is_open(state: Status, waiting: dict[str, Task]) -> bool:
    """Whether a run is to be submitted: it is not finished, and nobody is at it or about to be."""
    return state.state in OPEN and state.run.name not in waiting


def describe(array: Array) -> str:
    """An array in a line."""
    first, cluster = array.groups[0][0], array.cluster
    which = f"{first.step} …" if len(array.groups) > 1 else first.step
    kind = f"{cluster.gpu_type} GPU" if cluster.gpu_type else "GPU"
    gpus = f", {count(cluster.gpus_per_node, kind)} each" if cluster.gpus_per_node else ""
    return f"{count(len(array.groups), 'job')} ({which}) on {count(cluster.nodes, 'node')}{gpus}"


def _collecting(arguments: argparse.Namespace, steps_file: Path) -> list[str]:
    """The command that makes tables and figures of the plan, in a job whose code is the snapshot's; it reads
    nothing that may be edited.
    """
    out = arguments.out or Path("reports") / arguments.roadmap / (arguments.profile or "paper")
    words = [
        sys.executable,
        "-m",
        "roadmap",
        "collect",
        str(arguments.runs.absolute()),
        "--out",
        str(out.absolute()),
    ]
    words += ["--steps-file", str(steps_file), "--roadmap", arguments.roadmap]
    words += ["--profile", arguments.profile or NO_PROFILE]
    if arguments.ablate is not None:
        words += ["--ablate", arguments.ablate]
    overrides = choices_of(arguments)["overrides"]  # with the digest of the weights as they are now
    return words + [word for key, value in overrides.items() for word in ("--set", f"{key}={show(value)}")]
