"""From folders of runs, or from the paper, to a folder of tables, figures and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from roadmap.deltas import Roadmap
from roadmap.errors import config_error, relative
from roadmap.files import write_atomic, write_errors
from roadmap.report.ablation import origins, published
from roadmap.report.compare import Comparison, compare, to_grid, write_comparison
from roadmap.report.marginal import MEANING
from roadmap.report.render import Grid
from roadmap.report.rows import Ablation
from roadmap.report.runs import Experiment, LoadedRuns, Worths
from roadmap.report.tables import WORTH_COLUMNS, grid, markdown, worth_cells, worth_frame, write, write_runs
from roadmap.report.tolerance import Expected, Verdict, check
from roadmap.terminal import console, table


@dataclass(frozen=True)
class ReportOptions:
    """What is made: the tables' columns, the x-axes of the figures of accuracy against cost, or the tables
    alone.
    """

    columns: Sequence[str] | None = None
    x: Sequence[str] = ("gmacs",)
    tables_only: bool = False


@dataclass(frozen=True)
class Part:
    """One ablation of a report, with its runs if it was measured; its tables go into `folder` below the
    report's.
    """

    ablation: Ablation
    folder: str = ""
    found: LoadedRuns | None = None


def papers(roadmaps: Sequence[Roadmap]) -> list[Part]:
    """The publication's ablation of each roadmap; ConfigError for one without published figures."""
    parts = []
    for roadmap in roadmaps:
        ablation = published(roadmap)
        if not ablation.rows:
            raise config_error(
                relative(roadmap.path), f"holds no published figures for the steps of {roadmap.name}"
            )
        parts.append(Part(ablation, roadmap.name if len(roadmaps) > 1 else ""))
    return parts


def parts_of(found: Sequence[LoadedRuns]) -> list[Part]:
    """The ablations of one or two folders of runs; those of two go into folders that say in what the two
    differ.
    """
    names = _names([each.experiment for each in found]) if len(found) > 1 else [""]
    return [Part(each.ablation, name, each) for each, name in zip(found, names, strict=True)]


def _names(sides: Sequence[Experiment]) -> Iterator[str]:
    """a-digits and b-cifar10, or a-convnext_t and b-convnext_b where the roadmap is what differs."""
    keys = [(side.whole.name, side.choices.profile or "paper") for side in sides]
    differ = [len(set(values)) > 1 for values in zip(*keys, strict=True)]
    for letter, key in zip("ab", keys, strict=True):
        words = [word for word, differs in zip(key, differ, strict=True) if differs] or [key[1]]
        yield "-".join([letter, *words])


@dataclass(frozen=True)
class Report:
    """One ablation, or two beside one another."""

    parts: Sequence[Part]

    @cached_property
    def comparison(self) -> Comparison | None:
        """What two ablations have in common."""
        return compare(self.parts[0].ablation, self.parts[1].ablation) if len(self.parts) > 1 else None

    def write(self, out: Path, how: ReportOptions) -> dict[str, list[Path]]:
        """Writes tables, figures and the page, and returns their paths by what they are; ConfigError where
        that cannot be.
        """
        if out.exists() and not out.is_dir():
            raise config_error(f"--out {relative(out)}", "is a file; name a folder, which is made if need be")
        files: dict[str, list[Path]] = {"tables": []}
        with write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            for part in self.parts:
                files["tables"] += _write_tables(part, out / part.folder, how.columns)
            files["tables"] += write_comparison(self.comparison, out) if self.comparison else []
            if not how.tables_only:
                files |= {
                    "figures": _write_figures(self.parts, out, how.x),
                    "page": [_write_page(self.parts, out)],
                }
        return files

    def show(self, how: ReportOptions) -> None:
        """Prints the tables at the terminal."""
        for part in self.parts:
            _show(grid(part.ablation, how.columns))
            if part.found and (worth := part.found.worth):
                cells = [worth_cells(change) for change in worth.changes]
                _print(worth.title, WORTH_COLUMNS, cells, _worth_notes(part.found, worth))
        if self.comparison:
            _show(to_grid(self.comparison))
            for letter, part in zip("AB", self.parts, strict=True):
                if part.found:  # the titles may be the same
                    console().print(f"{letter}: {relative(part.found.experiment.folder)}", soft_wrap=True)


def name_files(files: Mapping[str, Sequence[Path]]) -> None:
    """Says what was written."""
    for kind, paths in files.items():
        console().print(f"{kind}: {', '.join(map(relative, paths))}", soft_wrap=True)


def _write_tables(part: Part, out: Path, columns: Sequence[str] | None) -> list[Path]:
    files = write(part.ablation, out, columns)
    if part.found is None:
        return files
    files.append(write_runs(part.found.runs, part.ablation, out))
    return files + (_write_worth(part.found, part.found.worth, out) if part.found.worth else [])


def _named(parts: Sequence[Part]) -> list[Ablation]:
    """The ablations, called A and B as in the comparison where there are two."""
    if len(parts) == 1:
        return [parts[0].ablation]
    return [
        replace(part.ablation, title=f"{letter}: {part.ablation.title}")
        for letter, part in zip("AB", parts, strict=True)
    ]


def _write_figures(parts: Sequence[Part], out: Path, x: Sequence[str]) -> list[Path]:
    """One figure after the other, so that one at a time is in memory."""
    from roadmap.report.figures.draw import draw
    from roadmap.report.figures.marginal_effects import worth_points
    from roadmap.report.figures.style import save

    files: list[Path] = []
    for name, figure in draw(_named(parts), x):
        files += save(figure, out / name)
    for part in parts:
        if part.found and (worth := part.found.worth):
            files += save(worth_points(worth.changes, worth.title), out / part.folder / "worth")
    return files


def _write_page(parts: Sequence[Part], out: Path) -> Path:
    from roadmap.report.page.page import page

    write_atomic(out / "report.html", page(_named(parts)))
    return out / "report.html"


def _write_worth(found: LoadedRuns, worth: Worths, out: Path) -> list[Path]:
    cells = [worth_cells(change) for change in worth.changes]
    write_atomic(out / "worth.csv", worth_frame(worth.changes).to_csv(index=False))
    write_atomic(out / "worth.md", markdown(worth.title, WORTH_COLUMNS, cells, _worth_notes(found, worth)))
    return [out / "worth.csv", out / "worth.md"]


def _worth_notes(found: LoadedRuns, worth: Worths) -> list[str]:
    """What a reader must know to judge what each change is worth."""
    notes = [f"{reading}: {meaning}." for reading, meaning in MEANING.items()]
    notes.append(
        "Percentage points of top-1 with their 95 % interval over n seeds, * where it excludes zero."
    )
    notes.append(
        "A dash stands for missing runs, and where a change that comes later sets the same values, so that"
        " leaving it out is none."
    )
    if any(any(change.diverged.values()) for change in worth.changes):
        notes.append("Runs that diverged are counted behind the difference, and in no mean.")
    used = {name for change in worth.changes for name in change.hashes}
    return notes + origins([run.result for run in found.all if run.result and run.result.hash in used])


def _show(made: Grid) -> None:
    _print(
        made.title,
        [f"{'>' * column.is_number}{column.head}" for column in made.columns],
        made.rows,
        made.notes,
    )


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    console().print(table(heads, rows, title))
    for note in notes:
        console().print(f"- {note}", soft_wrap=True)


def held_against(part: Part, expected: Expected, tolerance: float) -> Verdict:
    """The verdict of --check, told at the terminal."""
    verdict = check(part.ablation, expected, tolerance)
    for line in [*verdict.lines, f"check: {verdict.summary}"]:
        console().print(line, soft_wrap=True)
    return verdict
