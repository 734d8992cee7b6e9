"""The report of one or two ablations: a folder of tables, figures and a page, and tables at the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from roadmap.errors import config_error, relative
from roadmap.files import write_atomic, write_errors
from roadmap.report.ablation import Ablation
from roadmap.report.compare import Comparison, compare, comparison_table, write_comparison
from roadmap.report.render import Table
from roadmap.report.tables import ablation_table, effects_table, effects_title, write_tables
from roadmap.terminal import console, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AblationReport:
    """One ablation, or two that are compared; `columns` choose those of the tables for readers."""

    ablations: Sequence[Ablation]
    columns: Sequence[str] | None = None

    @cached_property
    def comparison(self) -> Comparison | None:
        return compare(*self.ablations) if len(self.ablations) > 1 else None

    def write(
        self, out: Path, costs: Sequence[str] = ("gmacs",), *, tables_only: bool = False
    ) -> dict[str, list[Path]]:
        """Writes tables, figures and the page, and returns their paths by kind.

        `costs` are the x-axes of the figures of accuracy. ConfigError where `out` cannot be written to.
        """
        if out.exists() and not out.is_dir():
            message = "is a file; name a folder, which is created if it is missing"
            raise config_error(f"--out {relative(out)}", message)
        files: dict[str, list[Path]] = {"tables": []}
        with write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            for ablation, folder in zip(self.ablations, self._folders(), strict=True):
                files["tables"] += write_tables(ablation, out / folder, self.columns)
            files["tables"] += write_comparison(self.comparison, out) if self.comparison else []
            if not tables_only:
                files |= {"figures": self._write_figures(out, costs), "page": [self._write_page(out)]}
        return files

    def show(self) -> None:
        """Prints the tables."""
        for ablation in self.ablations:
            _print(ablation_table(ablation, self.columns))
            if ablation.effects:
                _print(effects_table(ablation))
        if self.comparison:
            _print(comparison_table(self.comparison))
            for letter, ablation in zip("AB", self.ablations, strict=True):
                if ablation.folder:  # the titles may be the same
                    console().print(f"{letter}: {relative(ablation.folder)}", soft_wrap=True)

    def _folders(self) -> list[str]:
        """The ablations' folders, named by how they differ, such as a-digits and b-cifar10."""
        if len(self.ablations) == 1:
            return [""]
        if self.ablations[0].source == "paper":
            return [ablation.roadmap.name for ablation in self.ablations]
        keys = [(ablation.roadmap.name, ablation.profile or "paper") for ablation in self.ablations]
        differs = [len(set(values)) > 1 for values in zip(*keys, strict=True)]
        words = [
            [word for word, is_new in zip(key, differs, strict=True) if is_new] or [key[1]] for key in keys
        ]
        return ["-".join([letter, *of]) for letter, of in zip("ab", words, strict=True)]

    def _titled(self) -> list[Ablation]:
        """The ablations, with A and B in their titles as in the comparison."""
        if len(self.ablations) == 1:
            return list(self.ablations)
        return [
            replace(ablation, title=f"{letter}: {ablation.title}")
            for letter, ablation in zip("AB", self.ablations, strict=True)
        ]

    def _write_figures(self, out: Path, costs: Sequence[str]) -> list[Path]:
        from roadmap.report.figures.marginal_effects import effects_figure
        from roadmap.report.figures.style import save

        files: list[Path] = []
        for name, figure in draw_figures(self._titled(), costs):
            files += save(figure, out / name)
        for ablation, folder in zip(self.ablations, self._folders(), strict=True):
            if ablation.effects:
                figure = effects_figure(ablation.effects, effects_title(ablation))
                files += save(figure, out / folder / "worth")
        return files

    def _write_page(self, out: Path) -> Path:
        from roadmap.report.page.page import page

        write_atomic(out / "report.html", page(self._titled()))
        return out / "report.html"


def draw_figures(
    ablations: Sequence[Ablation], costs: Sequence[str] = ("gmacs",), width: float | None = None
) -> Iterator[tuple[str, Figure]]:
    """The figures with content and the names of their files, drawn one at a time to save memory.

    `costs` are what accuracy is drawn against; measured throughput is added. `width` is in inches.
    """
    from roadmap.report.figures.accuracy_vs_cost import accuracy_vs
    from roadmap.report.figures.measured_vs_paper import measured_vs_paper
    from roadmap.report.figures.roadmap_bars import roadmap_bars
    from roadmap.report.figures.seed_strip import seed_strip
    from roadmap.report.figures.style import DOUBLE_COLUMN
    from roadmap.report.figures.training_curves import training_curves

    has_speed = any(row.images_per_s for ablation in ablations for row in ablation.rows)
    costs = list(dict.fromkeys([*costs, "images_per_s"] if has_speed else costs))
    makers: dict[str, Callable[..., Figure | None]] = {
        "roadmap": roadmap_bars,
        **{f"accuracy_vs_{cost}": partial(accuracy_vs, x=cost) for cost in costs},
        "measured_vs_paper": measured_vs_paper,
        "training_curves": training_curves,
        "seeds": seed_strip,
    }
    for name, make in makers.items():
        if (figure := make(ablations, width=width or DOUBLE_COLUMN)) is not None:
            yield name, figure


def _print(made: Table) -> None:
    console().print(table(made.heads, made.rows, made.title))
    for note in made.notes:
        console().print(f"- {note}", soft_wrap=True)
