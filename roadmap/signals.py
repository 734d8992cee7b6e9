"""Asking a run to stop, and its answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# SIGUSR2 announces a time limit: a job that obeyed while it starts would start for ever
ENDS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """No error: the run was asked to stop, has saved where it is, and can be resumed."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets signals end the process at once for as long as there is nothing to save, as while it waits for
    others that may never come.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGUSR2 into a request that a run follows at its next iteration; a second
    SIGINT ends it at once.

    The loop that reads the request may be far away, such as behind the staging of data: inside `at_once`,
    SIGINT and SIGTERM raise Stopped.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For where there is nothing to save: one of ENDS raises Stopped wherever the main thread is, and so
        does one caught before.

        Other code may swallow that exception or raise one of its own in its place, as `import numpy` does:
        the block still ends with Stopped.
        """
        before, self._at_once = self._at_once, True
        try:
            self._raise_stopped()
            yield
        except Exception as error:
            self._raise_stopped(error)
            raise
        else:
            self._raise_stopped()
        finally:
            self._at_once = before

    def _raise_stopped(self, cause: Exception | None = None) -> None:
        if self.signal in ENDS and not isinstance(cause, Stopped):
            raise Stopped(self.signal.name) from cause

    def obey(self) -> None:
        """Ends the process by the signal that was caught, if any was: for where signals are not caught any
        more.
        """
        if self.signal is not None:
            os.kill(os.getpid(), self.signal)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self._at_once:
            self._raise_stopped()
