"""How long a plan will keep a cluster busy, from finished runs or from a GPU's speed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from blocks.cost import complexity
from roadmap.config import DataSpec, RunConfig, SystemSpec
from roadmap.run import finished_results, training_images
from slurm.cluster import Cluster

IMAGENET = 1_281_167  # where the data is not at hand
BACKWARD = 3  # a training image costs a forward pass and a backward one of twice its work


def forecast(cluster: Cluster, configs: Sequence[RunConfig], runs: Path) -> Iterator[str]:
    """Device-hours of a plan, and the hours until its end; what is not known is said to be unknown.

    Runs of a step differ by their seeds alone: what they take is found out once.
    """
    images: dict[tuple[DataSpec, SystemSpec], int] = {}
    steps: dict[str, tuple[Cluster, float | None]] = {}
    for config in {config.step: config for config in configs}.values():
        resources, data = cluster.of(config.step), (config.data, config.system)
        if data not in images:
            images[data] = training_images(config) or IMAGENET
        steps[config.step] = resources, _hours(resources, config, runs, images[data])
    costs = [steps[config.step] for config in configs]
    known = [hours for _, hours in costs if hours is not None]
    device = "GPU" if cluster.gpus_per_node else "process"
    if not known:
        yield "forecast: unknown; no run of these configurations has finished on as many processes"
        yield (
            f"forecast: tflops in the cluster's entry, what a {device} sustains, would give one"
            if cluster.gpus_per_node
            else ""
        )
        return
    total = sum(hours * resources.world for resources, hours in costs if hours is not None)
    at_once = min(cluster.parallel or len(known), len(known))
    unknown = (
        "" if len(known) == len(configs) else f", and {len(configs) - len(known)} of which nothing is known"
    )
    yield (
        f"forecast: {total:,.1f} {device}-hours for {len(known)} runs{unknown}; evaluation and waiting come"
        " on top"
    )
    kinds: dict[str, list[float]] = {}
    for resources, hours in costs:
        if hours is not None:
            kinds.setdefault(resources.model_dump_json(), []).append(hours)
    end = _end(kinds.values(), at_once)
    yield (
        f"forecast: {end:,.1f} hours with up to {at_once} runs at a time; a run takes {min(known):,.2f} to"
        f" {max(known):,.2f}"
    )


def _end(arrays: Iterable[Sequence[float]], at_once: int) -> float:
    """The hours until arrays of runs are through that take so many hours each; an array waits for its lanes
    as where it is submitted.
    """
    lanes = [0.0] * at_once
    for hours in arrays:
        taken, others = lanes[: len(hours)], lanes[len(hours) :]
        end = max(taken) + max(sum(hours) / len(taken), max(hours))
        lanes = others + [end] * len(taken)
    return max(lanes)


def _hours(cluster: Cluster, config: RunConfig, runs: Path, epoch: int) -> float | None:
    """The hours of one run with `epoch` images an epoch: at the speed of finished runs on as many processes,
    or at the cluster's tflops.
    """
    images = epoch * config.recipe.epochs
    speeds = [
        result.images_per_s
        for result in finished_results(config, runs)
        if result.processes == cluster.world and result.images_per_s
    ]
    if speeds:
        return images / fmean(speeds) / 3600
    if cluster.tflops is None or not cluster.gpus:
        return None
    flops = 2 * BACKWARD * complexity(config.model, config.data.image_size).macs * images
    return flops / (1e12 * cluster.tflops * cluster.gpus) / 3600
