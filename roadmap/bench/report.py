"""A device's tables and figures, made anew from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from roadmap.bench.figure import throughput_figure
from roadmap.bench.groups import groups_of
from roadmap.bench.results import read_rows
from roadmap.bench.table import to_markdown
from roadmap.deltas import Roadmap
from roadmap.files import write_atomic, write_errors
from roadmap.report.figures.style import save


def write_report(path: Path, roadmaps: Mapping[str, Roadmap]) -> list[Path]:
    """Writes the Markdown beside a CSV file, and a figure for each group that has one; returns what was
    written.

    ConfigError if the file is not one of ours, or where that cannot be.
    """
    rows, made = read_rows(path), [path.with_suffix(".md")]
    with write_errors(path.parent):
        write_atomic(made[0], to_markdown(rows, roadmaps))
        for group in groups_of(rows, roadmaps):
            figure = throughput_figure(group)
            if figure is not None:
                made += save(figure, path.with_name(f"{path.stem}-{group.name}"))
    return made
