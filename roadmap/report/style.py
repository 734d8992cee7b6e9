"""How figures look, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette
BLUE, ORANGE, GREEN, GREY, PALE, DARK = "#0072B2", "#E69F00", "#009E73", "#9A9A9A", "#E3E3E3", "#333333"
STYLE: Any = {
    "font.size": 8.0,
    "font.family": "DejaVu Sans",
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
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


@contextmanager
def style() -> Iterator[None]:
    """Figures are made, and written, inside."""
    with mpl.rc_context(STYLE):
        yield


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes `path`.png and `path`.svg, byte for byte the same for the same figure."""
    written = []
    with style():
        for kind, metadata in METADATA.items():
            target = path.with_suffix(f".{kind}")
            figure.savefig(target, metadata=metadata)
            written.append(target)
    return written
