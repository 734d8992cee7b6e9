"""How long a plan will keep a cluster busy, from finished runs or from a GPU's speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from blocks.cost import complexity
from roadmap.recipe import RunConfig
from roadmap.run import finished_results, training_images
from slurm.cluster import Cluster

IMAGENET = 1_281_167  # where the data is not at hand
BACKWARD = 3  # a training image costs a forward pass and a backward one of twice its work


def forecast(cluster: Cluster, configs: Sequence[RunConfig], runs: Path) -> Iterator[str]:
    """Device-hours of a plan, and the hours until its end; what is not known is said to be unknown."""
    costs = [(_hours(cluster.of(config.step), config, runs), cluster.of(config.step).world) for config in configs]
    known = [hours for hours, _ in costs if hours is not None]
    device = "GPU" if cluster.gpus_per_node else "process"
    if not known:
        yield "forecast: unknown; no run of these configurations has finished on as many processes"
        yield f"forecast: tflops in the cluster's entry, what a {device} sustains, would give one" if cluster.gpus_per_node else ""
        return
    total = sum(hours * world for hours, world in costs if hours is not None)
    at_once = min(cluster.parallel or len(known), len(known))
    unknown = "" if len(known) == len(configs) else f", and {len(configs) - len(known)} of which nothing is known"
    yield f"forecast: {total:,.1f} {device}-hours for {len(known)} runs{unknown}; evaluation and waiting come on top"
    end = max(sum(known) / at_once, max(known))
    yield f"forecast: {end:,.1f} hours with {at_once} runs at a time; a run takes {min(known):,.2f} to {max(known):,.2f}"


def _hours(cluster: Cluster, config: RunConfig, runs: Path) -> float | None:
    """The hours of one run: at the speed of finished runs on as many processes, or at the cluster's tflops."""
    images = (training_images(config) or IMAGENET) * config.recipe.epochs
    speeds = [result.images_per_s for result in finished_results(config, runs) if result.processes == cluster.world and result.images_per_s]
    if speeds:
        return images / fmean(speeds) / 3600
    if cluster.tflops is None or not cluster.gpus:
        return None
    flops = 2 * BACKWARD * complexity(config.model, config.data.image_size).macs * images
    return flops / (1e12 * cluster.tflops * cluster.gpus) / 3600
