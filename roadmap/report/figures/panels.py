"""What the figures of several panels share: their places, the numbers of the steps, and the key below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from roadmap.report.aligned import aligned
from roadmap.report.figures.style import STYLE, type_of, wrapped
from roadmap.report.rows import Ablation
from roadmap.terminal import count

WIDE = 5.0  # inches from which on two panels stand side by side
LEADING = 1.25  # the distance of two lines in font sizes
FINE = 720.0  # dots an inch at which text is measured, so that no rounding to whole dots is left
MOST_COLUMNS = 5
# inches to which the key's lines are broken, tried in turn
CAPS = tuple(round(3.0 - 0.15 * step, 2) for step in range(15))
# of the key's columns: the mark, the gaps behind it and behind the words, in font sizes
MARK, AFTER, BETWEEN = 2.0, 0.5, 1.2


@dataclass(frozen=True)
class Numbers:
    """The numbers that stand for the steps in a figure: the places in the table, or in several tables row by
    row.

    `titles` are in the order of the numbers, from 1; `of` holds the numbers of each ablation's steps.
    """

    titles: tuple[str, ...]
    of: tuple[Mapping[str, int], ...]


def numbers(ablations: Sequence[Ablation]) -> Numbers:
    """The same step has the same number in all ablations."""
    rows = aligned(ablations)
    of = [
        {row.rows[index].step: number for number, row in enumerate(rows, 1) if row.rows[index]}  # type: ignore[union-attr]
        for index in range(len(ablations))
    ]
    return Numbers(tuple(row.title for row in rows), tuple(of))


def seeds(sizes: Iterable[int]) -> str:
    """The numbers of seeds as words: 'n = 3 seeds', 'n = 1 to 3 seeds'."""
    found = sorted(set(sizes)) or [0]
    return f"n = {count(found[0], 'seed')}" if len(found) == 1 else f"n = {found[0]} to {found[-1]} seeds"


def paired(
    ablations: Sequence[Ablation], width: float, height: float
) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A figure with two panels an ablation, each `height` inches high: side by side, or where it is narrow
    one below the other.
    """
    across = 2 if width >= WIDE else 1
    down = 2 * len(ablations) // across
    size = type_of(width).title
    titles = [wrapped(ablation.title, width - 0.9, size) for ablation in ablations]
    more = sum(title.count("\n") for title in titles) * LEADING * size / 72
    figure = Figure(figsize=(width, height * down + more), layout="constrained")
    figure.set_label("; ".join(ablation.title for ablation in ablations))
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    pairs = list(zip(panels[::2], panels[1::2], strict=True))
    for title, (first, _) in zip(titles, pairs, strict=True):
        first.set_title(title, loc="left", fontsize=size)
    return figure, pairs


def add_key(figure: Figure, entries: Sequence[tuple[Artist, str]], note: str = "") -> None:
    """A key in columns below the panels, under `note`; the figure grows by its height."""
    width, height = figure.get_size_inches()
    size = type_of(width).small
    columns, labels = _columns([words for _, words in entries], float(width) - 0.15, size)
    key = figure.legend(
        [mark for mark, _ in entries], labels, loc="outside lower left", ncols=columns, frameon=False,
        fontsize=size, title_fontsize=size, title=wrapped(note, width - 0.2, size) or None, alignment="left",
        handlelength=MARK, handletextpad=AFTER, columnspacing=BETWEEN, labelspacing=0.25, borderpad=0.2,
        borderaxespad=0.2,
    )  # fmt: skip
    figure.set_size_inches(width, height + key.get_window_extent().height / figure.dpi + 0.05)


def _columns(words: Sequence[str], width: float, size: float) -> tuple[int, list[str]]:
    """The number of columns, and the labels broken into lines, with which the key is lowest."""
    found: list[tuple[int, int, list[str]]] = []
    for columns in range(1, min(MOST_COLUMNS, len(words)) + 1):
        room = width - columns * (MARK + AFTER + BETWEEN) * size / 72
        for cap in CAPS:
            labels = [wrapped(label, cap, size) for label in words]
            parts = [list(part) for part in np.array_split(labels, columns)]
            if sum(max(_inches(label, size) for label in part) for part in parts) <= room or (
                columns,
                cap,
            ) == (1, CAPS[-1]):
                found.append(
                    (max(sum(label.count("\n") + 1 for label in part) for part in parts), columns, labels)
                )
                break
    _, columns, labels = min(found, default=(0, 1, []))
    return columns, labels


@lru_cache(maxsize=4096)
def _inches(text: str, size: float) -> float:
    """The width of the widest line."""
    font = get_font(findfont(FontProperties(family=STYLE["font.family"])))
    font.set_size(size, FINE)
    widths = []
    for line in text.split("\n"):
        font.set_text(line)
        widths.append(font.get_width_height()[0])
    return max(widths) / 64 / FINE


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places next to the wanted ones that lie `gap` apart, in the same order, between `low` and `high` if
    they fit there.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [0.0] * len(wanted)
    groups: list[tuple[float, int]] = []  # of places that touch: the lowest wanted start, how many
    for index in order:
        start, members = min(max(wanted[index], low), high), 1
        while groups and groups[-1][0] + groups[-1][1] * gap > start:
            before, more = groups.pop()
            # the start that is nearest to what all of the group want
            start = (before * more + (start - more * gap) * members) / (more + members)
            members += more
            start = max(low, min(start, high - (members - 1) * gap))
        groups.append((start, members))
    at = [start + place * gap for start, members in groups for place in range(members)]
    for index, place in zip(order, at, strict=True):
        places[index] = place
    return places
