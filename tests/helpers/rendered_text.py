"""The texts of a figure as they are rendered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeAlias

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase

SLACK = 0.5  # pixels by which two texts may touch
Texts: TypeAlias = Sequence[tuple[Text, Bbox]]


def texts_of(figure: Figure) -> Texts:
    """The texts that are drawn, with what they take in pixels."""
    canvas: Any = FigureCanvasAgg(figure)
    drawn: list[Text] = []
    original = Text.draw

    def record(self: Text, *words: Any, **named: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        original(self, *words, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    renderer = canvas.get_renderer()
    return tuple((text, Text.get_window_extent(text, renderer)) for text in dict.fromkeys(drawn))


def overlapping(texts: Texts) -> list[tuple[str, str]]:
    """Which of them cover each other."""
    return [
        (one.get_text(), other.get_text())
        for (one, box), (other, its) in combinations(texts, 2)
        if overlap(box, its)
    ]


def outside(texts: Texts, page: BboxBase) -> list[str]:
    """Which of them leave a rectangle."""
    return [text.get_text() for text, box in texts if not within(box, page)]


def overlap(one: Bbox, other: Bbox) -> bool:
    """Whether two share more than a touch."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(width > SLACK and height > SLACK)


def within(box: Bbox, page: BboxBase) -> bool:
    """Whether one lies in the other."""
    return bool(
        box.x0 >= page.x0 - SLACK
        and box.x1 <= page.x1 + SLACK
        and box.y0 >= page.y0 - SLACK
        and box.y1 <= page.y1 + SLACK
    )
