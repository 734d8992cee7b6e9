"""What loading data costs: the training loop with its loader beside the same steps on a batch that is on the
device already.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from roadmap.bench.results import BARE, LOOP
from roadmap.bench.workloads import SHORTEST, no_refusal, seconds_each
from roadmap.config import RunConfig
from roadmap.data.loader import Loader
from roadmap.data.staging import stage
from roadmap.training.engine import Engine
from roadmap.training.metrics import Mean

PREFETCHED = 2  # batches that each of PyTorch's workers holds ready
FEWEST = 10  # iterations of a window


@contextmanager
def loop_and_bare(
    config: RunConfig, device: torch.device, shortest: float = SHORTEST
) -> Iterator[dict[str, Callable[[], float]]]:
    """Measurements in seconds an iteration of the loop and of the bare step, on the same engine; erasing and
    mixup are in both.

    A window begins untimed, for as long as it takes to use up what workers have made ready, or to let them
    fill their queues.
    """
    loader = Loader(stage(config), "train", device)
    try:
        engine = Engine(config, device, iterations_per_epoch=len(loader))
        engine.check_compiled()
        batches, mean = _endless(loader), Mean(device)
        fixed = [
            (images.clone(), labels.clone()) for images, labels in islice(batches, engine.plan.accumulation)
        ]

        def bare() -> None:
            mean.add(engine.train_step(fixed))

        def loop() -> None:
            mean.add(engine.train_step(islice(batches, engine.plan.accumulation)))

        untimed = math.ceil(PREFETCHED * config.system.workers / engine.plan.accumulation) + 1
        with no_refusal():
            bare()
        loop()
        iterations = max(FEWEST, math.ceil(shortest / _window(bare, device, 1, 1)))
        yield {
            BARE: lambda: _window(bare, device, untimed, iterations),
            LOOP: lambda: _window(loop, device, untimed, iterations),
        }
    finally:
        loader.close()


def _endless(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """The micro-batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _window(run: Callable[[], None], device: torch.device, untimed: int, iterations: int) -> float:
    for _ in range(untimed):
        run()
    return seconds_each(run, device, iterations)
