"""How long augmentation keeps the training thread per batch, and the workers per image: `python -m
tests.benchmark_augmentation`.

The time is the thread's own (CPU time), so that waiting does not count. The training thread queues the
operators of erasing, mixing and RandAugment. Here the device is the CPU, where an operator also computes;
images of 4 px keep that small, and no figure depends on the size otherwise. On a GPU each operator is a
launch or two, so their number is printed, too. The minimum is what other processes disturb least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.steps import load_roadmap, resolve
from roadmap.training.device import hardware
from roadmap.training.engine import Engine
from tests.helpers.images import CPU, CountedOperators, augmentation_of

IMAGES, SIZE, DRAWN_AT = 128, 4, 224
NOTHING: dict[str, Any] = {
    "recipe.randaugment": None,
    "recipe.random_erasing": 0.0,
    "recipe.mixup": 0.0,
    "recipe.cutmix": 0.0,
}
SUBJECTS: dict[str, tuple[str, list[str]]] = {
    "erasing": ("pillow", ["recipe.random_erasing"]),
    "mixup and cutmix": ("pillow", ["recipe.mixup", "recipe.cutmix"]),
    "all under pillow": ("pillow", list(NOTHING)),
    "RandAugment": ("tensor", ["recipe.randaugment"]),
    "all under tensor": ("tensor", list(NOTHING)),
}


def config_of(pipeline: str, kept: list[str]) -> RunConfig:
    """ConvNeXt-T's recipe with what is `kept` of its augmentation, and a small network."""
    left_out = {key: value for key, value in NOTHING.items() if key not in kept}
    small = {"model.depths": [1, 1, 1, 1], "model.width_mult": 0.125, "data.image_size": DRAWN_AT}
    batch = {"recipe.global_batch": IMAGES, "recipe.local_batch": IMAGES, "recipe.pipeline": pipeline}
    return resolve(load_roadmap(), "separate_downsampling", overrides=small | batch | left_out)


def milliseconds(run: Callable[[int], Any], rounds: int) -> tuple[float, ...]:
    """Minimum and quartiles of the thread's own time."""
    times = []
    for number in range(rounds):
        started = time.thread_time()
        run(number)
        times.append(1000 * (time.thread_time() - started))
    return tuple(map(float, np.quantile(times[1:], [0, 0.25, 0.5, 0.75])))


def measured(name: str, rounds: int) -> str:
    """A subject's line: the training thread's time for a batch, and a worker's for drawing and collating."""
    config = config_of(*SUBJECTS[name])
    augmentation, engine = augmentation_of(config), Engine(config, CPU, 10)
    images = torch.randint(256, (IMAGES, 3, SIZE, SIZE)).float().contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    ready: list[Any] = []

    def draw(number: int) -> None:
        drawn = [augmentation.draw(number, sample) for sample in range(IMAGES)]
        ready.append(augmentation.params([one for one in drawn if one is not None]))

    def augment(number: int) -> None:
        engine.iteration = number
        engine._augment(Batch(images, labels, *ready[number]), 0)

    worker, thread = milliseconds(draw, rounds), milliseconds(augment, rounds)
    with CountedOperators() as counted:
        augment(0)
    return f"{name:<18} {counted.count:>9}  {_text(thread)}   {_text(worker)}"


def _text(quantiles: tuple[float, ...]) -> str:
    least, low, middle, high = quantiles
    return f"{middle:6.2f} ({low:.2f} to {high:.2f}), {least:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100, help="batches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"ms for {IMAGES} images: median (quartiles), minimum; n = {options.rounds}; {hardware(CPU)}")
    print(f"{'':<18} operators  {'training thread':<29} a worker")
    for name in SUBJECTS:
        print(measured(name, options.rounds), flush=True)


if __name__ == "__main__":
    main()
