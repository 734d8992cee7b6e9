"""How many data-loading workers a process has, and what they can be expected to load."""

from __future__ import annotations

from roadmap.config import RunConfig
from roadmap.data.locate import kind_of
from roadmap.provenance import cores_per_process
from roadmap.terminal import count

MOST, STREAMING = 16, 8
PREFETCH = 2  # batches that a worker has ready: PyTorch's default
IN_USE = 2  # batches that the training loop holds
# JPEGs of ImageNet's size that a core prepares at 224 px in a second, by tests/benchmark_input.py on one
# machine; 620 as tensors from shards whose shorter edge is 256 px
RATES = {
    ("pillow", "folder"): 150,
    ("pillow", "shards"): 150,
    ("tensor", "folder"): 330,
    ("tensor", "shards"): 330,
}
RATES_PX = 224


def workers_of(config: RunConfig, device: str, streams: bool) -> int:
    """The data-loading workers of each DataLoader of a process on that type of device.

    `auto` leaves a core to the training thread. A CPU trains so slowly that one worker keeps up. The order of
    a stream depends on their number, which must be the same where its run resumes.
    """
    if config.system.workers != "auto":
        return config.system.workers
    if streams:
        return STREAMING
    spare = cores_per_process() - 1
    return min(MOST, max(1, spare)) if device == "cuda" else min(1, spare)


def shared_bytes(workers: int, batch_bytes: int) -> int:
    """The shared memory that the batches of so many workers take."""
    return (PREFETCH * workers + IN_USE) * batch_bytes


def workers_in(shared: int, batch_bytes: int) -> int:
    """The workers whose batches fit into so many bytes of shared memory."""
    return max(0, (shared // batch_bytes - IN_USE) // PREFETCH)


def expected_rate(config: RunConfig) -> str | None:
    """What the workers of a process on a GPU of this machine may load, in words; None where no figure is
    known for this pipeline, data and size of images.
    """
    rate = RATES.get((config.recipe.pipeline, kind_of(config.data)))
    if rate is None or config.data.image_size != RATES_PX:
        return None
    workers = workers_of(config, "cuda", streams=False)
    cores = min(max(1, workers), cores_per_process())
    here = f"{count(workers, 'worker')} on {count(cores, 'core')}"
    return f"about {rate * cores:,} images/s a process, an estimate for {here}, by {rate} a core elsewhere"
