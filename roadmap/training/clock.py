"""The time that training takes, without what only its first iterations do, and the part of it that is spent
waiting for data.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from roadmap.data.augmentation import Batch
from roadmap.training.device import synchronize

WARM_UP = 10  # iterations of an attempt in which PyTorch compiles, and cuDNN searches for its algorithms


@dataclass
class Tally:
    """`iterations`, the `seconds` that training them took, and those of these in which no batch was there."""

    iterations: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


class Clock:
    """Measures the training of an attempt after its first WARM_UP iterations, and of the attempts before it.

    On CUDA, where the training thread runs ahead of the device, only the time counts as waiting in which the
    device has nothing to do. Nothing here waits for the device, except once at the end of the warm-up.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.warm, self.timed = Tally(), Tally()
        self.warming = WARM_UP
        self.started: float | None = None
        self.waits: deque[tuple[Any, Any]] = deque()  # events on CUDA that have not been reached yet

    @property
    def tally(self) -> Tally:
        """What is being measured: the warm-up, or what follows it."""
        return self.warm if self.warming else self.timed

    @property
    def measured(self) -> Tally:
        """What is known by now: the warm-up alone where nothing followed it."""
        return self.timed if self.timed.iterations else self.warm

    def start(self) -> None:
        """Starts or resumes measuring."""
        self.started = time.perf_counter()

    def lap(self) -> None:
        """Brings the seconds up to date."""
        if self.started is not None:
            present = time.perf_counter()
            self.tally.seconds += present - self.started
            self.started = present
        while self.waits and self.waits[0][1].query():
            begin, end = self.waits.popleft()
            self.tally.data_seconds += begin.elapsed_time(end) / 1000

    def stop(self) -> None:
        """Stops measuring."""
        self.lap()
        self.started = None

    def step(self) -> None:
        """Counts an iteration; after the last one of the warm-up, peak memory is reset, too."""
        self.tally.iterations += 1
        if self.warming == 1:
            synchronize(self.device)
            self.lap()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
        self.warming -= bool(self.warming)

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; measures how long each was waited for."""
        while True:
            begin = self._event()
            batch = next(batches, None)
            if batch is None:
                return
            end = self._event()
            if self.device.type == "cuda":
                self.waits.append((begin, end))
            else:
                self.tally.data_seconds += end - begin
            yield batch

    def _event(self) -> Any:
        """The present: on CUDA the device's, once it has done what is queued."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"warm": asdict(self.warm), "timed": asdict(self.timed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a checkpoint; the attempt has a warm-up of its own."""
        self.warm, self.timed = Tally(**state["warm"]), Tally(**state["timed"])


def all_timed(iterations: int, seconds: float) -> dict[str, Any]:
    """A clock's state after `iterations` of which no wait is known."""
    return {"warm": asdict(Tally()), "timed": asdict(Tally(iterations, seconds))}
