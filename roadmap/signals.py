"""All handling of signals: requests to stop a run, and what child processes do with signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# SIGUSR2 announces a time limit: a job that stopped for it while it starts would be requeued forever
ENDS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Not an error: the run was asked to stop, has saved its state, and can be resumed."""


@contextmanager
def handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Handles the signals with `handler` inside; the previous handlers come back."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets signals end the process at once while there is nothing to save, as while it waits for others."""
    with handling(signal.SIG_DFL, *SIGNALS):
        yield


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started inside ignore the terminal's Ctrl-C, which reaches all of a terminal's processes."""
    with handling(signal.SIG_IGN, signal.SIGINT):
        yield


@contextmanager
def delaying_interrupts() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C; this process receives it at the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_on_sigterm() -> None:
    """Makes SIGTERM raise SystemExit, so that `with` and `finally` blocks run."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def obey_parent(parent: int, worker: int) -> None:
    """Makes a DataLoader's worker ignore signals except SIGTERM from the process `parent`.

    A signal to the whole process group must not end a worker before its parent has saved. `parent` is the
    process that it works for; Python may have started the worker from a fork server.
    """
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(parent,), name="signals", daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class StopSignals:
    """Records SIGINT, SIGTERM and SIGUSR2 as a request that a run follows at its next iteration; a second
    SIGINT raises KeyboardInterrupt.

    The loop that reads the request may be far away, such as behind the staging of data: inside `at_once`,
    SIGINT and SIGTERM raise Stopped.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at_once = False
        self._handlers = handling(self._request, *SIGNALS)

    def __enter__(self) -> Self:
        self._handlers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.__exit__(kind, error, trace)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For code that has nothing to save: SIGINT or SIGTERM raises Stopped, also one received before.

        Other code may swallow that exception or replace it, as `import numpy` does: the block still ends with
        Stopped.
        """
        before = self._at_once
        self._at_once = True
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
        """Ends the process by the signal that was caught, if any, once signals are no longer caught."""
        if self.signal is not None:
            os.kill(os.getpid(), self.signal)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if self._at_once:
            self._raise_stopped()
