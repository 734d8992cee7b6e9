"""A submission: plans the runs, checks them, and submits those that are missing."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from roadmap.batches import plan_batches
from roadmap.cli.arguments import (
    Selection,
    check_used,
    read_overrides,
    read_precision,
    select,
    with_references,
)
from roadmap.config import DataSpec, RunConfig, SystemSpec
from roadmap.data.preflight import check_data
from roadmap.deltas import NO_PROFILE, Roadmap, known_training_macs
from roadmap.errors import ConfigError, Problem, config_error
from roadmap.estimate import finished_results, makespan, training_images, training_seconds
from roadmap.lease import Lease, LeaseHeld
from roadmap.records import RunDir, Status, find_runs, prepare, run_dir_of, status
from roadmap.references import check_references
from roadmap.steps import load_roadmaps
from roadmap.strict_yaml import show
from roadmap.terminal import console, count, tally
from roadmap.training.callbacks import check_trackers
from roadmap.training.initial_weights import check_init, with_init_digest
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
from slurm.jobs import jobs_of, keep_steps, runs_in_queue, take_snapshot, tree_hash
from slurm.local import gpus, gpus_for, plan_workers, train_here, worker_count, workers_per_gpu
from slurm.monitor import poll
from slurm.second_stage import check_limits, plan_seeds
from slurm.worker import OPEN

IMAGENET_IMAGES = 1_281_167  # assumed in estimates where the data is unavailable


def submit_runs(arguments: argparse.Namespace) -> int:
    """Plans and submits; returns the exit code."""
    for option in ("seeds", "workers", "pack", "runs-per-gpu"):
        if (value := getattr(arguments, option.replace("-", "_"))) is not None and value < 1:
            raise config_error(f"--{option}", f"must be at least 1, not {value}")
    precision = read_precision(arguments)
    check_limits(arguments, precision)
    name = arguments.cluster or default_cluster(arguments.cluster_file)
    cluster = load_cluster(name, arguments.cluster_file)
    check_scheduler(arguments, name, cluster)
    if arguments.runs_per_gpu is not None:
        check_sharing(arguments, cluster)
        cluster = cluster.shared_by(arguments.runs_per_gpu)
    check_folder(arguments.runs, cluster)
    selection = select(arguments)
    check_step_names(selection, arguments, name, cluster)
    steps = plan(selection, arguments, cluster)
    seeds = dict.fromkeys((config.step for config in steps), arguments.seeds)
    if precision is not None:
        limits = arguments.max_seeds, arguments.budget
        seeds = plan_seeds(selection.roadmap, steps, arguments.runs, precision, *limits)
    configs = with_seeds(steps, seeds)
    devices = gpus_for(configs)
    if cluster.scheduler == "local":
        workers = worker_count(arguments.workers, devices, cluster.runs_per_gpu)
        if cluster.runs_per_gpu > 1 and (arguments.workers or not devices):
            named = arguments.runs_per_gpu is not None
            where = "--runs-per-gpu" if named else f"cluster '{name}': runs_per_gpu {cluster.runs_per_gpu}"
            why = f"--workers is {workers}" if arguments.workers else "no run uses a GPU of this machine"
            console().print(f"{where} is ignored: {why}", highlight=False, soft_wrap=True)
        cluster = cluster.shared_by(workers_per_gpu(workers, devices))
    runs = [run_dir_of(arguments.runs, config) for config in configs]  # hashes a configuration for each
    warn_changed_configs(runs)
    if arguments.only == "failed":
        configs = select_failed(arguments.runs, configs)
        if not configs:
            console().print("no run has failed")
            return 0
        runs = [run_dir_of(arguments.runs, config) for config in configs]
    if arguments.dry_run:
        return dry_run(arguments, selection.roadmap, cluster, configs, runs, devices)
    runs = [prepare(arguments.runs, config) for config in configs]
    for run in runs:
        run.renew()
    if cluster.scheduler == "local":
        return train_here(runs, arguments.workers, devices, cluster.runs_per_gpu)
    try:
        # two submissions at once would submit all runs twice
        with Lease(jobs_of(runs[0]).absolute()) as lease:
            submit_missing(arguments, name, cluster, runs)
            lease.outcome = "done"
    except LeaseHeld as error:
        raise config_error("submit", f"{error}; wait until that submission has ended") from error
    except SlurmUnavailable as error:
        raise unanswered(error) from error
    return 0


def check_scheduler(arguments: argparse.Namespace, name: str, cluster: Cluster) -> None:
    """ConfigError for options that the cluster's scheduler would ignore."""
    is_local = cluster.scheduler == "local"
    others, needed = (("pack", "out"), "slurm") if is_local else (("workers",), "local")
    message = f"needs a cluster whose scheduler is {needed}; that of '{name}' is {cluster.scheduler}"
    problems = [Problem(f"--{key}", message) for key in others if getattr(arguments, key) is not None]
    if problems:
        raise ConfigError(problems)


def check_sharing(arguments: argparse.Namespace, cluster: Cluster) -> None:
    """ConfigError if --runs-per-gpu cannot decide how many workers this machine gets."""
    if cluster.scheduler == "local" and arguments.workers is not None:
        raise config_error("--runs-per-gpu", "decides how many --workers there are; give one of the two")
    if cluster.scheduler == "local" and not gpus():
        raise config_error("--runs-per-gpu", "needs a GPU, and this machine has none; choose --workers")


def check_folder(runs: Path, cluster: Cluster) -> None:
    """ConfigError for what is not a folder, and for one whose name submitit or Slurm would change: it would
    write logs elsewhere.
    """
    for folder in (runs.absolute(), *runs.absolute().parents):
        if folder.exists() and not folder.is_dir():
            raise config_error(f"--runs {folder}:", "is not a folder; choose another")
    is_local = cluster.scheduler == "local"
    if tag := re.search(r"%[jtAa]" if is_local else r"[%\\\n]", str(runs.absolute())):
        who = "submitit, which starts the workers," if is_local else "Slurm"
        message = (
            f"holds {tag[0]!r}, which {who} replaces in the names of files; choose another folder, or a link"
            " to this one without it"
        )
        raise config_error(f"--runs {runs.absolute()}:", message)


def check_step_names(
    selection: Selection, arguments: argparse.Namespace, name: str, cluster: Cluster
) -> None:
    """ConfigError if the cluster's entry names a step that no roadmap of the steps file has."""
    if not cluster.steps:
        return
    known = set(selection.roadmap.with_references)
    if not cluster.steps.keys() <= known:  # steps of another roadmap, or misspelled
        others = load_roadmaps(arguments.steps_file).values()
        everywhere = known.union(*(other.with_references for other in others))
        check_steps(name, arguments.cluster_file, everywhere)


def plan(selection: Selection, arguments: argparse.Namespace, cluster: Cluster) -> list[RunConfig]:
    """The configuration of each step; ConfigError for one that cannot be trained.

    It is resolved and checked once for all seeds.
    """
    more = _references(selection) if arguments.references else ()
    steps = dict.fromkeys([*(arguments.steps or selection.roadmap.steps), *more])
    configs = [with_init_digest(selection.resolve(step)) for step in steps]
    check_used(selection.overrides, configs)
    if not arguments.dry_run:  # which may run where the data is unavailable
        check_data(*configs, here=cluster.scheduler == "local")
        check_references(configs)
    for config in configs:
        if not arguments.dry_run:
            check_init(config)
        check_trackers(config)
        plan_batches(config, cluster.of(config.step).world)
    return configs


def _references(selection: Selection) -> Sequence[str]:
    """The roadmap's references; ConfigError where a table could not have them, or there are none."""
    roadmap = selection.roadmap
    if roadmap.ablation is not None:
        message = "cannot be used with --ablate, whose table has no references; name them with --steps"
        raise config_error("--references", message)
    return tuple(with_references([roadmap])[0].references)


def with_seeds(steps: Sequence[RunConfig], seeds: Mapping[str, int]) -> list[RunConfig]:
    """All runs, seed by seed, so that a roadmap cut short is complete for some; `seeds` has their number for
    each step.
    """
    return [
        config.model_copy(update={"seed": seed})
        for seed in range(max(seeds.values()))
        for config in steps
        if seed < seeds[config.step]
    ]


def select_failed(runs: Path, configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Those whose runs have failed, also before they started, which only Slurm knows.

    ConfigError if it must be asked and does not answer.
    """
    states = poll([run_dir_of(runs, config) for config in configs])
    if any(row.state == "unknown" for row in states.rows):
        raise unanswered(states.notes[0].partition(": ")[2])
    for note in states.notes:  # runs that failed before they started are unknown without the accounting
        console().print(note, highlight=False)
    return [config for config, row in zip(configs, states.rows, strict=True) if row.state == "failed"]


def unanswered(why: object) -> ConfigError:
    """The error that nothing is submitted while Slurm does not answer."""
    message = f"does not answer, so it is unknown what is queued, and nothing was submitted: {why}"
    return config_error("Slurm", message)


def warn_changed_configs(runs: Sequence[RunDir]) -> None:
    """Lists existing runs of the same steps and seeds with another configuration, such as an earlier one."""
    folders = [folder for folder in dict.fromkeys(run.path.parent for run in runs) if folder.is_dir()]
    existing = {(other.step, other.seed, other.hash) for folder in folders for other in find_runs(folder)}
    seeds, mine = {(run.step, run.seed) for run in runs}, {(run.step, run.seed, run.hash) for run in runs}
    others = [
        f"{step}/seed{seed}-{digest}"
        for step, seed, digest in sorted(existing - mine)
        if (step, seed) in seeds
    ]
    if others:
        names = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        console().print(
            f"of another configuration, and left alone: {count(len(others), 'run')} ({names})",
            highlight=False,
        )


def dry_run(
    arguments: argparse.Namespace,
    roadmap: Roadmap,
    cluster: Cluster,
    configs: Sequence[RunConfig],
    runs: Sequence[RunDir],
    devices: Sequence[str],
) -> int:
    """Prints the plan, Slurm's scripts and an estimate; writes and submits nothing. `devices` are the GPUs of
    this machine that local runs may use.
    """
    found = [status(run) for run in runs]
    at_once = cluster.parallel
    if cluster.scheduler == "local":
        at_once = worker_count(arguments.workers, devices, cluster.runs_per_gpu)
        console().print(plan_workers(found, arguments.workers, devices, cluster.runs_per_gpu).text)
    else:
        console().print(f"{count(len(runs), 'run')}: {tally(state.state for state in found)}")
    if cluster.scheduler == "slurm":
        left = [state.run for state in found if state.state in OPEN | {"cancelled"}]
        try:
            longest = max_array_size()
        except SlurmUnavailable:
            longest = MAX_ARRAY_SIZE
        jobs = jobs_of(runs[0]).absolute()
        source = jobs / f"source-{tree_hash()}"
        for number, array in enumerate(arrays_of(cluster, left, arguments.pack or 1, longest), 1):
            share = array.cluster.runs_per_gpu
            nodes, tasks = count(array.cluster.nodes, "node"), array.cluster.tasks * share
            processes = f"{nodes} with {tasks} process{'es' if tasks > 1 else ''} each"
            print(f"# array {number}: {count(len(array.groups), 'job')} on {processes}")
            if share > 1:
                cpus = count(array.cluster.cpus_per_task, "CPU")
                print(f"# up to {share} runs share the GPU of a job, {cpus} each")
            print("# " + ", ".join(run.step + " " + run.path.name for group in array.groups for run in group))
            print(script(array, jobs, source))
        if left:
            print("# the job that collects when all have ended")
            print(collecting_script(cluster, jobs, source))
    unfinished = [config for config, state in zip(configs, found, strict=True) if state.result is None]
    lines = estimate(roadmap, cluster, unfinished, arguments.runs, at_once) if unfinished else ()
    for line in lines:
        console().print(line, highlight=False)
    try:
        check_data(*unfinished, here=False)  # which writes nothing
    except ConfigError as error:
        print(f"warning: without --dry-run, this fails here:\n{error}")
    return 0


def estimate(
    roadmap: Roadmap, cluster: Cluster, configs: Sequence[RunConfig], runs: Path, at_once: int | None
) -> Iterator[str]:
    """The device-hours of a plan, and the hours until its end with `at_once` runs at a time (None: all), as
    far as they can be estimated.

    Runs of a step differ by their seeds alone, so each step is estimated once. The hours of a GPU are counted
    once for all the runs that share it.
    """
    images: dict[tuple[DataSpec, SystemSpec], int | None] = {}
    steps: dict[str, tuple[Cluster, float | None]] = {}
    for config in {config.step: config for config in configs}.values():
        resources, data = cluster.of(config.step), (config.data, config.system)
        if data not in images:
            images[data] = training_images(config)
        steps[config.step] = resources, _hours(roadmap, resources, config, runs, images[data])
    known = [hours for config in configs if (hours := steps[config.step][1]) is not None]
    on_gpus = cluster.gpus_per_node or (cluster.scheduler == "local" and gpus())
    device = "GPU" if on_gpus else "process"
    if not known:
        shared = f", {cluster.runs_per_gpu} to a GPU" if cluster.runs_per_gpu > 1 else ""
        yield f"estimate: unknown; no run of these configurations has finished on as many processes{shared}"
        if cluster.gpus_per_node:
            yield f"estimate: needs tflops in the cluster's entry, what a {device} sustains"
        return
    total, arrays = 0.0, dict[str, list[float]]()
    for resources, hours in (steps[config.step] for config in configs):
        if hours is not None:
            total += hours * resources.world / resources.runs_per_gpu
            arrays.setdefault(resources.model_dump_json(), []).append(hours)
    rest = len(configs) - len(known)
    unknown = f", and {rest} of unknown length" if rest else ""
    cost = f"{total:,.1f} {device}-hours for {count(len(known), 'run')}"
    yield f"estimate: {cost}{unknown}; evaluation and waiting come on top"
    if None in images.values():
        yield f"estimate: takes the data that is unavailable here for ImageNet, {IMAGENET_IMAGES:,} images"
    at_once = min(at_once or len(known), len(known))
    shortest, longest, end = min(known), max(known), makespan(arrays.values(), at_once)
    yield (
        f"estimate: {end:,.1f} hours with up to {count(at_once, 'run')} at a time; a run takes"
        f" {shortest:,.2f} to {longest:,.2f}"
    )


def _hours(
    roadmap: Roadmap, cluster: Cluster, config: RunConfig, runs: Path, epoch_images: int | None
) -> float | None:
    """The hours of a run: at the speed of finished runs on as many processes, each with as large a share of a
    GPU, or at the cluster's tflops.
    """
    images = (epoch_images or IMAGENET_IMAGES) * config.recipe.epochs
    wanted = cluster.world, cluster.runs_per_gpu
    results = [one for one in finished_results(config, runs) if (one.processes, one.runs_per_gpu) == wanted]
    seconds = training_seconds(images, results)
    if seconds is None and cluster.tflops is not None and cluster.gpus:
        flops = 1e12 * cluster.tflops * cluster.gpus / cluster.runs_per_gpu
        macs = known_training_macs(roadmap, config)
        seconds = None if macs is None else 2 * macs * images / flops
    return None if seconds is None else seconds / 3600


def submit_missing(
    arguments: argparse.Namespace, name: str, cluster: Cluster, runs: Sequence[RunDir]
) -> None:
    """Submits the runs that are neither finished nor active, and a job that collects at the end."""
    jobs = jobs_of(runs[0]).absolute()
    tasks, found = queued(retry=True), [status(run) for run in runs]
    waiting = runs_in_queue(jobs, tasks)
    left = [state.run for state in found if is_open(state, waiting)]
    states = tally(state.state for state in found)
    console().print(
        f"{count(len(runs), 'run')}: {states}; {len(waiting)} in the queue, {len(left)} to submit"
    )
    if not left and (not waiting or is_collected(jobs, tasks)):
        return
    snapshot = take_snapshot(jobs)
    command = collect_command(arguments, keep_steps(arguments.steps_file, jobs, snapshot))
    arrays = arrays_of(cluster, left, arguments.pack or 1, max_array_size())
    submitted, refusals = _submit_in_order(arrays, jobs, name, cluster, snapshot)
    if submitted or not left:
        everything = sorted({*submitted, *(task.job for task in waiting.values())})
        try:
            job = collect_when_done(cluster, jobs, name, snapshot, everything, command)
        except ConfigError as error:
            refusals += error.problems
        else:
            where = f"python -m roadmap status {arguments.runs} shows where they are"
            console().print(f"job {job}: collects when they have ended; {where}", highlight=False)
    if refusals:
        raise ConfigError(refusals)


def _submit_in_order(
    arrays: Sequence[Array], jobs: Path, name: str, cluster: Cluster, snapshot: Path
) -> tuple[list[str], list[Problem]]:
    """Submits arrays until one is refused, as by a full queue; returns their jobs' ids, and the refusal."""
    submitted: list[str] = []
    # Slurm limits each array separately; of several, each waits for those before it in its lanes
    lanes = [""] * (cluster.parallel or 0)
    for array in arrays:
        runs = len(array.groups) * array.cluster.runs_per_gpu
        taken, others = lanes[:runs], lanes[runs:]
        try:
            job = submit(array, jobs, name, snapshot, list(dict.fromkeys(filter(None, taken))))
        except ConfigError as error:
            if not submitted:
                raise
            rest = [run for left in arrays[len(submitted) :] for group in left.groups for run in group]
            message = (
                f"queued are the jobs {', '.join(submitted)}, but not {count(len(rest), 'run')} from"
                f" {rest[0].name} on; the same command submits those later"
            )
            return submitted, [*error.problems, Problem(f"cluster '{name}':", message)]
        lanes = others + [job] * len(taken)
        submitted.append(job)
        console().print(f"job {job}: {describe(array)}", highlight=False)
    return submitted, []


def is_open(state: Status, waiting: dict[str, Task]) -> bool:
    """Whether a run is to be submitted: it is not finished, and no process trains it or is queued to."""
    return state.state in OPEN and state.run.name not in waiting


def describe(array: Array) -> str:
    """'3 jobs (gelu …) on 1 node, 8 a100 GPUs each'."""
    first, cluster = array.groups[0][0], array.cluster
    which = f"{first.step} …" if len(array.groups) > 1 else first.step
    kind = f"{cluster.gpu_type} GPU" if cluster.gpu_type else "GPU"
    gpus = f", {count(cluster.gpus_per_node, kind)} each" if cluster.gpus_per_node else ""
    shared = f", {cluster.runs_per_gpu} runs on it at a time" if cluster.runs_per_gpu > 1 else ""
    return f"{count(len(array.groups), 'job')} ({which}) on {count(cluster.nodes, 'node')}{gpus}{shared}"


def collect_command(arguments: argparse.Namespace, steps_file: Path) -> list[str]:
    """The command that makes tables and figures of the plan, for a job that runs the snapshot's code; it
    reads nothing that may be edited meanwhile.
    """
    out = arguments.out or Path("reports") / arguments.roadmap / (arguments.profile or "paper")
    words = [sys.executable, "-m", "roadmap", "collect", str(arguments.runs.absolute())]
    words += ["--out", str(out.absolute())]
    words += ["--steps-file", str(steps_file), "--roadmap", arguments.roadmap]
    words += ["--profile", arguments.profile or NO_PROFILE]
    if arguments.ablate is not None:
        words += ["--ablate", arguments.ablate]
    if arguments.precision is not None:
        words += ["--precision", repr(arguments.precision), "--seeds", str(arguments.seeds)]
    overrides = read_overrides(arguments)  # with the digest of the weights as they are now
    return words + [word for key, value in overrides.items() for word in ("--set", f"{key}={show(value)}")]
