"""The ablation as one HTML file: a table to sort and filter, interactive charts, and details of each step."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from roadmap.deltas import overriding
from roadmap.provenance import cached, versions
from roadmap.report.ablation import Ablation, AblationRow
from roadmap.report.columns import COLUMNS, Column, chosen
from roadmap.report.page import vega as charts
from roadmap.report.page.details import RUN_HEADS, StepDetails, details, provenance
from roadmap.report.tables import ablation_table
from roadmap.strict_yaml import show
from roadmap.terminal import count

PAGE = Path(__file__).parent
SCRIPTS = ("page.js", "table.js", "charts.js", "curves.js", "main.js")
UNSAFE = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)
EXPORTED = "window.vegaEmbed = vegaEmbed;"
STATES = {
    "resolved": "difference resolved",
    "unresolved": "difference not resolved",
    "complete": "all runs finished",
    "incomplete": "runs missing",
    "trouble": "diverged or failed",
    "path": "on the path",
    "side": "beside the path",
}


@dataclass(frozen=True)
class PageCell:
    """A cell's text, and its value to sort by, None where it is missing."""

    text: str
    value: str | None


@dataclass(frozen=True)
class PageRow:
    """A row of the table: its cells in the order of the columns, its `STATES`, and its details."""

    number: int
    row: AblationRow
    cells: tuple[PageCell, ...]
    states: tuple[str, ...]
    details: StepDetails
    children: tuple[int, ...]
    way: tuple[int, ...]


@dataclass(frozen=True)
class PageSection:
    """The content of the page for one ablation."""

    ablation: Ablation
    columns: tuple[Column, ...]
    shown: frozenset[str]
    lines: tuple[PageRow, ...]
    states: dict[str, str]
    facts: tuple[tuple[str, str], ...]
    notes: Sequence[str]
    runs: tuple[tuple[str, ...], ...]
    axes: list[dict[str, str]]
    measures: dict[str, dict[str, str]]
    data: dict[str, Any]


def page(ablations: Sequence[Ablation]) -> str:
    """The HTML of one ablation, or of several; the same ablations give the same text."""
    views = [_view(ablation) for ablation in ablations]
    data = {
        "charts": {"accuracy": charts.accuracy_chart(), "curve": charts.curve_chart()},
        "views": [view.data for view in views],
    }
    library, own = bundle(), _own_script()
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=" and ".join(dict.fromkeys(ablation.title for ablation in ablations)),
        views=views,
        run_heads=RUN_HEADS,
        policy=_policy(library, own),
        style=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
        data=Markup(_json(data)),
        scripts=[Markup(library), Markup(own)],
        files=_files(ablations),
    )


def _files(ablations: Sequence[Ablation]) -> list[str]:
    """The files beside the page with the same values."""
    if len(ablations) > 1:
        return ["comparison.csv", "comparison.json"]
    return ["ablation.csv", "ablation.json", *(["runs.csv"] if ablations[0].source == "measured" else [])]


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the vl-convert package, without a download."""
    text = cached("vega", f"{versions(['vl-convert-python'])}{EXPORTED}", _made_bundle)
    assert "</script" not in text.lower()
    assert "<!--" not in text
    return text


def _made_bundle() -> str:
    import vl_convert

    text: str = vl_convert.javascript_bundle(EXPORTED)  # takes seconds
    return text


def _own_script() -> str:
    """The page's scripts as one function, apart from the short global names of the library."""
    return "\n".join(["(() => {", *((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS), "})();"])


def _policy(*scripts: str) -> str:
    """A content security policy that allows these scripts and no others, and no requests."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri"
        " 'none'; form-action 'none'"
    )


def _json(value: Any) -> str:
    """JSON that cannot end its element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(UNSAFE)


def _view(ablation: Ablation) -> PageSection:
    from roadmap.report.curves import curves_of  # reads the runs' metrics

    columns = tuple(COLUMNS.values())
    lines = tuple(_lines(ablation, columns))
    states = {state: words for state, words in STATES.items() if any(state in line.states for line in lines)}
    curves = charts.bands(curves_of(ablation), {row.step: number for number, row in enumerate(ablation.rows)})
    axes, reference = charts.axes(ablation), ablation.reference
    data = {
        "points": [
            point | {"way": line.way} for point, line in zip(charts.points(ablation), lines, strict=True)
        ],
        "axes": axes,
        "reference": {"top1": reference.top1} if reference else None,
        "curves": curves,
    }
    return PageSection(
        ablation=ablation,
        columns=columns,
        shown=frozenset(column.key for column in chosen(ablation)),
        lines=lines,
        states=states,
        facts=tuple(_facts(ablation)),
        notes=ablation_table(ablation).notes,
        runs=tuple(provenance(ablation)),
        axes=axes,
        measures=_measures(curves),
        data=data,
    )


def _measures(curves: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The measures of the curves, by chart."""
    found: dict[str, dict[str, str]] = {}
    for key, (chart, title) in charts.MEASURES.items():
        if any(key in curve for curve in curves):
            found.setdefault(chart, {})[key] = title
    return found


def _lines(ablation: Ablation, columns: Sequence[Column]) -> Iterator[PageRow]:
    numbers = {row.step: number for number, row in enumerate(ablation.rows)}
    for number, row in enumerate(ablation.rows):
        yield PageRow(
            number=number,
            row=row,
            cells=tuple(_cell(column, row) for column in columns),
            states=tuple(_states(row)),
            details=details(ablation, row),
            children=tuple(numbers[other.step] for other in ablation.rows if other.parent == row.step),
            way=tuple(_way(ablation, row, numbers)),
        )


def _way(ablation: Ablation, row: AblationRow, numbers: dict[str, int]) -> list[int]:
    """The numbers of the rows from the root to this one, without ancestors that have no row."""
    way, step = [], ablation.roadmap.delta(row.step)
    while True:
        way += [numbers[step.name]] if step.name in numbers else []
        if step.parent is None:
            return way[::-1]
        step = ablation.roadmap.delta(step.parent)


def _cell(column: Column, row: AblationRow) -> PageCell:
    value = column.value(row)
    return PageCell(column.text(row), None if value is None else str(value))


def _states(row: AblationRow) -> Iterator[str]:
    if row.resolved is not None:
        yield "resolved" if row.resolved else "unresolved"
    if row.states:
        yield "complete" if set(row.states) <= {"done", "diverged"} else "incomplete"
    if row.states.keys() & {"diverged", "failed"}:
        yield "trouble"
    yield "side" if row.is_beside_path else "path"


def _facts(ablation: Ablation) -> Iterator[tuple[str, str]]:
    """The overview of the ablation, as names and values."""
    roadmap, rows = ablation.roadmap, ablation.rows
    yield (
        "roadmap",
        f"{roadmap.name}, {count(len(rows), 'step')}" + (f", {roadmap.ablation}" if roadmap.ablation else ""),
    )
    if ablation.source == "measured":
        yield "profile", ablation.profile or "none: the paper's setting"
        for path, setting in overriding(roadmap.base, ablation.overrides).items():
            yield path, show(setting.value)
        yield (
            "runs with an accuracy",
            f"{sum(row.top1.n for row in rows if row.top1)} of {sum(row.planned for row in rows)}",
        )
    tested = [row.resolved for row in rows if row.resolved is not None]
    if tested:
        yield "differences resolved", f"{sum(tested)} of {len(tested)}"
    if best := max(
        (row for row in rows if row.top1), key=lambda row: row.top1.mean if row.top1 else 0.0, default=None
    ):
        yield "highest mean", f"{best.step}, {charts.accuracy(best)}"
    if ablation.reference:
        yield "reference", f"{ablation.reference.title}, {ablation.reference.top1:.2f} %"
    if (found := ablation.agreement) and found.delta and found.signs:
        yield "rank correlation of Δ with the paper's", str(found.delta)
        yield "Δ of the paper's sign, on the path", str(found.signs)
