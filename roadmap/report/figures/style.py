"""How figures look, and how they are written."""

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
import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from roadmap.files import write_atomic

DOUBLE_COLUMN, SINGLE_COLUMN = 7.0, 3.4  # inches: both columns of a paper, and one
FEWEST = 8  # letters in a line of text, however little room there is

# Okabe and Ito's color-blind safe palette
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
GREY, PALE, DARK = "#8A8A8A", "#E3E3E3", "#333333"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # what stands between two dollar signs in a title is no formula
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
    "pdf.fonttype": 42,  # publishers refuse matplotlib's default, Type 3
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
# What would say when a file was written, and by which version of matplotlib
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class Look:
    """How one of several ablations in a figure is told from the others; `share` is how much of its square the
    marker fills.
    """

    color: str
    marker: str
    share: float


LOOKS = (
    Look(BLUE, "o", math.pi / 4),
    Look(VERMILION, "s", 1.0),
    Look(GREEN, "^", 0.5),
    Look(PURPLE, "v", 0.5),
)


@dataclass(frozen=True)
class Type:
    """Font sizes in points: of titles, of the axes' labels and rows, and of all else, which is the smallest
    in a figure.
    """

    title: float
    text: float
    small: float


def type_of(width: float) -> Type:
    """Sizes for a figure that is printed `width` inches wide, at which none is below 6 points."""
    return Type(9.0, 8.0, 7.0) if width >= 0.75 * DOUBLE_COLUMN else Type(7.5, 6.5, 6.0)


def wrapped(words: str, inches: float, points: float) -> str:
    """Text in lines that are no longer than `inches` at a font size."""
    # a letter of this font is 0.58 of its size wide, on average
    letters = max(FEWEST, int(inches * 72 / (0.58 * points)))
    while True:
        lines = textwrap.wrap(words, letters, break_on_hyphens=False)
        if letters == FEWEST or all(_inches(line, points) <= inches for line in lines):
            return "\n".join(lines)
        letters -= 1


@lru_cache(maxsize=4096)
def _inches(line: str, points: float) -> float:
    if not line.strip():
        return 0.0
    with style():
        path = TextPath((0, 0), line, size=points)
    return _width(path.vertices[:, 0], path.codes) / 72


def _width(x: NDArray[np.float64], codes: NDArray[np.uint8]) -> float:
    """How wide a text's outline of lines and quadratic curves is, as `Path.get_extents` has it, curve by
    curve in Python.
    """
    control = np.flatnonzero(codes == Outline.CURVE3)[::2]
    start, middle, end = x[control - 1], x[control], x[control + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = (start - middle) / (start - 2 * middle + end)
    turn = np.where((turn > 0) & (turn < 1), turn, 0.0)  # or the curve has its extremes at its ends
    turned = (1 - turn) ** 2 * start + 2 * turn * (1 - turn) * middle + turn**2 * end
    on_curve = x[np.setdiff1d(np.flatnonzero(codes != Outline.CLOSEPOLY), control)]
    return float(np.ptp(np.concatenate([on_curve, turned])))


@contextmanager
def style(width: float = DOUBLE_COLUMN) -> Iterator[None]:
    """Figures of a width in inches are made inside, from matplotlib's own defaults: a user's matplotlibrc
    changes nothing.
    """
    with mpl.rc_context():
        current: Any = mpl.rcParams
        # the checks of its own update take longer than a line of text is drawn
        dict.update(current, _parameters(width))
        yield


@cache
def _parameters(width: float) -> dict[str, Any]:
    """matplotlib's own defaults under ours, but for what chooses its backend."""
    size = type_of(width)
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
    """Writes `path`.png, .svg and .pdf, byte for byte the same for the same figure.

    The figure's label is the title that a browser reads out and a reader of the PDF shows.
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
