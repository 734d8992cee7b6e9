"""How a run shows itself to whoever watches it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class Callback:
    """Somebody who looks at a run; this one does not care.

    As a context manager it is opened first and closed whatever happens.
    """

    def open(self) -> None:
        """A run may follow."""

    def begin(self, done: int, total: int) -> None:
        """`done` of `total` iterations are behind."""

    def advance(self) -> None:
        """An iteration has been made."""

    def record(self, record: dict[str, Any]) -> None:
        """A line was added to the metrics."""

    def close(self) -> None:
        """Nothing more will come."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Callbacks(Callback):
    """Several who look at a run; one that fails is named in a warning and left out, for that is no reason to
    stop training.
    """

    def __init__(self, watches: Iterable[Callback]) -> None:
        self._watches = list(watches)

    def open(self) -> None:
        """Opens all."""
        self._tell(lambda watch: watch.open())

    def begin(self, done: int, total: int) -> None:
        """Tells all."""
        self._tell(lambda watch: watch.begin(done, total))

    def advance(self) -> None:
        """Tells all."""
        self._tell(lambda watch: watch.advance())

    def record(self, record: dict[str, Any]) -> None:
        """Tells all."""
        self._tell(lambda watch: watch.record(record))

    def close(self) -> None:
        """Closes all."""
        self._tell(lambda watch: watch.close())

    def _tell(self, news: Callable[[Callback], None]) -> None:
        for watch in tuple(self._watches):
            try:
                news(watch)
            except Exception as error:
                self._watches.remove(watch)
                logger.warning(
                    "%s fails and is left out from here on: %s: %s",
                    type(watch).__name__,
                    type(error).__name__,
                    error,
                )
                with suppress(Exception):
                    watch.close()


class LiveProgress(Callback):
    """A live bar with epoch, loss, accuracy, images/s and time left; plain lines, an epoch each, where there
    is no terminal.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, state="")
        self._state: dict[str, str] = {}

    def open(self) -> None:
        """Starts the bar."""
        self._bar.start()

    def close(self) -> None:
        """Ends the bar."""
        self._bar.stop()

    def begin(self, done: int, total: int) -> None:
        """Gives the bar its length."""
        self._bar.update(self._task, total=total, completed=done)

    def advance(self) -> None:
        """Moves the bar."""
        self._bar.advance(self._task)

    def record(self, record: dict[str, Any]) -> None:
        """Shows the latest figures."""
        self._state["epoch"] = f"epoch {record['epoch']}"
        self._state["loss"] = f"loss {record['train_loss']:.3f}"
        self._state["speed"] = f"{record['images_per_s']:.0f} images/s"
        if record["kind"] == "epoch":
            self._state["accuracy"] = f"top-1 {record['top1']:.2f} %"
            if not self.console.is_terminal:
                self.console.print(", ".join(self._state.values()), highlight=False)
        self._bar.update(self._task, state="  ".join(self._state.values()))
