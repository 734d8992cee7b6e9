"""Tables at a terminal, whole lines where the output goes elsewhere, and the loop of every `--watch`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from roadmap.cli.options import shown

WIDE = 10_000  # columns of an output that is not a terminal: no cell is wrapped or cut


def console(file: TextIO | None = None) -> Console:
    """A console as wide as the terminal, or without one wide enough for every column.

    It prints brackets and colons as they are.
    """
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    found = Console(file=file or sys.stdout, **plain)
    return found if found.is_terminal else Console(file=found.file, width=WIDE, **plain)


def count(number: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def mib(size: int) -> str:
    """So many bytes: '1,024 MiB'."""
    return f"{size / 2**20:,.0f} MiB"


def tally(words: Iterable[str]) -> str:
    """How often each word occurs, the most frequent first: '12 done, 2 running'."""
    return ", ".join(f"{number} {word}" for word, number in Counter(words).most_common())


class _Table(Table):
    """A table whose lines end where their text ends."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = (part for part in super().__rich_console__(console, options) if isinstance(part, Segment))
        for line in Segment.split_lines(parts):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                yield from line[:-1]
                yield Segment(line[-1].text.rstrip(), line[-1].style)
            yield Segment.line()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of plain text, whose columns that start with '>' are aligned to the right."""
    built = _Table(box=SIMPLE_HEAD, title=title and shown(title), title_justify="left", pad_edge=False)
    for name in columns:
        built.add_column(
            shown(name.removeprefix(">")),
            justify="right" if name.startswith(">") else "left",
            no_wrap=name.startswith(">"),
        )
    for row in rows:
        built.add_row(*(Text(shown(cell)) for cell in row))
    return built


def repeat(step: Callable[[], bool], seconds: float, interrupted: Callable[[], object] | None = None) -> bool:
    """Calls `step` every `seconds` until it returns True, and returns True.

    Ctrl-C calls `interrupted` and the loop continues; without `interrupted` it ends the loop, which returns
    False.
    """
    while True:
        try:
            if step():
                return True
            time.sleep(seconds)
        except KeyboardInterrupt:
            if interrupted is None:
                return False
            interrupted()


@contextmanager
def live_text() -> Iterator[Callable[[str], None]]:
    """A function that shows a text: in place of the last one at a terminal, below it elsewhere."""
    screen = console()
    if not screen.is_terminal:
        yield lambda text: print(text, flush=True)
        return
    with Live(console=screen, auto_refresh=False) as live:
        yield lambda text: live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
