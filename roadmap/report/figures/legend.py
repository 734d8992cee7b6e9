"""The key of a figure: numbers, marks and lines with what they mean, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from roadmap.report.figures.style import DARK, wrapped

LINE = 1.4  # the distance of two lines in font sizes
MARK, GAP = 16.0, 4.0  # points that a mark takes, and that lie between it and its words


@dataclass(frozen=True)
class LegendEntry:
    """A number, or the look of a `Line2D`, and its meaning; a look with a marker and no line is one point."""

    mark: str | dict[str, Any]
    words: str


@dataclass(frozen=True)
class Legend:
    """Entries in columns of some inches, in a font size."""

    entries: Sequence[LegendEntry]
    columns: int
    inches: float
    points: float

    @property
    def height(self) -> float:
        """In inches."""
        return (
            max((line + words.count("\n") + 1 for _, line, words, _ in self._placed()), default=0)
            * LINE
            * self.points
            / 72
        )

    def draw(self, axes: Axes) -> None:
        """Fills axes of `columns` times `inches`, from top to bottom."""
        width = self.inches * 72
        axes.set_axis_off()
        axes.set_xlim(0, self.columns * width)
        axes.set_ylim(self.height * 72, 0)
        look: Any = {"va": "baseline", "color": DARK, "fontsize": self.points}
        for column, line, words, mark in self._placed():
            x, y = column * width, (line + 0.75) * LINE * self.points
            for below, part in enumerate(words.split("\n")):
                axes.text(x + MARK + GAP, y + below * LINE * self.points, part, ha="left", **look)
            if isinstance(mark, str):
                axes.text(x + MARK, y, mark, ha="right", fontweight="bold", **look)
            else:
                across = [x + MARK / 2] if mark.get("linestyle") == "none" else [x + 2, x + MARK]
                axes.plot(across, [y - 0.36 * self.points] * len(across), clip_on=False, **mark)

    def _placed(self) -> list[tuple[int, int, str, str | dict[str, Any]]]:
        """Column, line, words and mark of each entry; columns are filled one after the other."""
        texts = [wrapped(entry.words, self.inches - (MARK + GAP) / 72, self.points) for entry in self.entries]
        lines = [text.count("\n") + 1 for text in texts]
        full = -(-sum(lines) // self.columns)
        found, column, line = [], 0, 0
        for entry, text, taken in zip(self.entries, texts, lines, strict=True):
            if line >= full:
                column, line = column + 1, 0
            found.append((column, line, text, entry.mark))
            line += taken
        return found
