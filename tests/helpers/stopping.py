"""A stop at a chosen iteration."""

from __future__ import annotations

import signal

from roadmap.signals import StopSignals
from roadmap.training.callbacks import Callback


class StopAt(Callback):
    """Asks a run to stop after some iterations, as a signal would."""

    def __init__(self, stop: StopSignals, iterations: int) -> None:
        self.stop, self.left = stop, iterations

    def on_step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.signal = signal.SIGTERM
