"""A stop at a chosen iteration."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

from roadmap.signals import StopSignals
from roadmap.training.callbacks import Callback


class After(Callback):
    """Calls `act` once, after some iterations."""

    def __init__(self, iterations: int, act: Callable[[], object]) -> None:
        self.left, self.act = iterations, act

    def on_step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


class StopAt(After):
    """Asks a run to stop after some iterations, as a signal would."""

    def __init__(self, stop: StopSignals, iterations: int) -> None:
        super().__init__(iterations, partial(setattr, stop, "signal", signal.SIGTERM))
