"""Tables at a terminal, and whole lines where the output goes elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from roadmap.cli.options import shown

WIDE = 240


def console(file: TextIO | None = None) -> Console:
    """As wide as the terminal; wide enough for every column where there is none.

    Brackets and colons in text mean nothing to it.
    """
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    found = Console(file=file or sys.stdout, **plain)
    return found if found.is_terminal else Console(file=found.file, width=WIDE, **plain)


def count(number: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def tally(words: Iterable[str]) -> str:
    """How often each word is there, the most frequent first: '12 done, 2 running'."""
    return ", ".join(f"{number} {word}" for word, number in Counter(words).most_common())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table whose columns that start with '>' are aligned to the right; cells are plain text, whatever is
    in them.
    """
    built = Table(box=SIMPLE_HEAD, title=title and shown(title), title_justify="left", pad_edge=False)
    for name in columns:
        built.add_column(
            shown(name.removeprefix(">")),
            justify="right" if name.startswith(">") else "left",
            no_wrap=name.startswith(">"),
        )
    for row in rows:
        built.add_row(*(Text(shown(cell)) for cell in row))
    return built
