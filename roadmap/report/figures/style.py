"""The style of figures, and how they are saved."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from roadmap.files import write_atomic

DOUBLE_COLUMN, SINGLE_COLUMN = 7.0, 3.4  # inches: both columns of a paper, and one
FEWEST = 8  # letters in a line of text, however little room there is
FINE = 720.0  # dots per inch at which text is measured, so that rounding to dots does not matter

# Okabe and Ito's color-blind safe palette
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
GRAY, PALE, DARK = "#8A8A8A", "#E3E3E3", "#333333"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # text between dollar signs in a title is not a formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": DARK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "roadmap",  # the same figure gives the same file
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # publishers reject matplotlib's default, Type 3
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
# without dates and versions of matplotlib, which would change the files
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class SeriesStyle:
    """Color and marker of one of several ablations; `share` is the part of a square that the marker fills."""

    color: str
    marker: str
    share: float


SERIES = (
    SeriesStyle(BLUE, "o", math.pi / 4),
    SeriesStyle(VERMILION, "s", 1.0),
    SeriesStyle(GREEN, "^", 0.5),
    SeriesStyle(PURPLE, "v", 0.5),
)


@dataclass(frozen=True)
class FontSizes:
    """Font sizes in points: of titles, of the axes' labels and rows, and of everything else."""

    title: float
    text: float
    small: float


def font_sizes(width: float) -> FontSizes:
    """Sizes for a figure that is printed `width` inches wide, at which none is below 6 points."""
    return FontSizes(9.0, 8.0, 7.0) if width >= 0.75 * DOUBLE_COLUMN else FontSizes(7.5, 6.5, 6.0)


def wrapped(words: str, inches: float, points: float) -> str:
    """Text in lines that are no longer than `inches` at a font size."""
    # a letter of this font is 0.58 of its size wide, on average
    letters = max(FEWEST, int(inches * 72 / (0.58 * points)))
    while True:
        lines = textwrap.wrap(words, letters, break_on_hyphens=False)
        if letters == FEWEST or all(text_inches(line, points) <= inches for line in lines):
            return "\n".join(lines)
        letters -= 1


@lru_cache(maxsize=4096)
def text_inches(line: str, points: float) -> float:
    """The width of a line of text."""
    font = get_font(findfont(FontProperties(family=STYLE["font.family"])))
    font.set_size(points, FINE)
    font.set_text(line)
    return float(font.get_width_height()[0]) / 64 / FINE


@contextmanager
def style(width: float = DOUBLE_COLUMN) -> Iterator[None]:
    """The context for figures of a width in inches: matplotlib's defaults and ours, not a matplotlibrc."""
    with mpl.rc_context():
        current: Any = mpl.rcParams
        # its own update validates each value, which takes longer than to draw a line of text
        dict.update(current, _parameters(width))
        yield


@cache
def _parameters(width: float) -> dict[str, Any]:
    """matplotlib's defaults and ours, without the backend."""
    size = font_sizes(width)
    sizes: Any = {
        "font.size": size.small,
        "axes.labelsize": size.text,
        "xtick.labelsize": size.text,
        "ytick.labelsize": size.text,
        "legend.fontsize": size.small,
        "figure.titlesize": size.title,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | sizes)
        return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes `path`.png, .svg and .pdf, with the same bytes for the same figure.

    The figure's label becomes the title of the SVG and the PDF.
    """
    written = []
    title = {"Title": figure.get_label()} if figure.get_label() else {}
    with style():
        for kind, metadata in METADATA.items():
            target = path.with_suffix(f".{kind}")
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata | title)
            write_atomic(target, content.getvalue())
            written.append(target)
    return written
