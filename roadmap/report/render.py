"""A table of text as Markdown, LaTeX and HTML; whatever its cells hold stays text in all of them."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from roadmap.report.columns import Column

BRANCH = "└ "
GLUE = "\N{NO-BREAK SPACE}"
WIDEST, WIDEST_HEAD = 34, 9  # letters in a line of a cell, so that a table has a chance to fit a page


@dataclass(frozen=True)
class Grid:
    """A table as text: a title, the columns, a text for each cell, and the sentences that belong below."""

    title: str
    columns: list[Column]
    rows: list[list[str]]
    notes: list[str]


def to_markdown(grid: Grid) -> str:
    """The table with its title and notes, as GitHub reads it."""
    return markdown(
        grid.title,
        [f"{'>' * column.is_number}{column.head}" for column in grid.columns],
        grid.rows,
        grid.notes,
    )


def markdown(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A table under its title and over its notes; heads that start with '>' are aligned to the right."""
    lines = [f"# {_markdown(title)}", "", _markdown_row([head.removeprefix(">") for head in heads])]
    lines.append(f"| {' | '.join('---:' if head.startswith('>') else '---' for head in heads)} |")
    return (
        "\n".join([*lines, *map(_markdown_row, rows), "", *(f"- {_markdown(note)}" for note in notes)]) + "\n"
    )


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(_markdown(text).replace('|', chr(92) + '|') for text in texts)} |"


def _markdown(text: str) -> str:
    """Without HTML, links, formulas and emphasis; a star alone and underscores within a name are none, and
    stay as they are.
    """
    text = _line(text).replace("\\", "\\\\").replace("](", "]\\(")
    for sign in "*`~$":
        text = text.replace(sign, f"\\{sign}") if text.count(sign) > 1 else text
    text = re.sub(r"(?<![A-Za-z0-9])_", r"\_", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))


def _line(text: str) -> str:
    """Text in one line, of characters that a file can hold."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in {"Cc", "Cs"} else sign
        for sign in " ".join(text.split())
    )


def to_html(grid: Grid) -> str:
    """The table and notes as a fragment: `table.ablation` with caption and scoped heads, then `ul.notes`."""
    lines = ['<table class="ablation">', f"<caption>{_html(grid.title)}</caption>", "<thead>", "<tr>"]
    lines += [
        f'<th scope="col"{_class(one)} title="{_html(one.tells)}">{_html(one.head)}</th>'
        for one in grid.columns
    ]
    lines += ["</tr>", "</thead>", "<tbody>"]
    for row in grid.rows:
        lines += [
            "<tr>",
            *(_html_cell(column, text) for column, text in zip(grid.columns, row, strict=True)),
            "</tr>",
        ]
    lines += ["</tbody>", "</table>"]
    notes = [f"<li>{_html(note)}</li>" for note in grid.notes]
    return "\n".join([*lines, *(['<ul class="notes">', *notes, "</ul>"] if notes else [])]) + "\n"


def page(title: str, body: str) -> str:
    """A page of its own around a fragment of HTML, without scripts or anything from elsewhere."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_html(title)}</title>
<style>
body {{ margin: 2rem; color: #222; background: #fff; font: 13px/1.4 system-ui, sans-serif; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
caption {{ padding-bottom: 0.7rem; text-align: left; font-size: 1.25rem; font-weight: 600; }}
th, td {{ padding: 0.3rem 0.55rem; border-bottom: 1px solid #ddd; text-align: left; \
vertical-align: baseline; }}
thead th {{ border-bottom: 2px solid #222; vertical-align: bottom; }}
tbody th, .number {{ white-space: nowrap; font-weight: normal; }}
thead .number {{ white-space: normal; font-weight: bold; }}
.number {{ text-align: right; }}
tbody .code {{ font-family: ui-monospace, monospace; }}
tbody tr:hover {{ background: #f4f4f4; }}
.notes {{ max-width: 60rem; padding-left: 1.2rem; color: #444; overflow-wrap: anywhere; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def _html(text: str) -> str:
    return escape(_line(text))


def _class(column: Column) -> str:
    names = [name for name, holds in (("number", column.is_number), ("code", column.is_code)) if holds]
    return f' class="{" ".join(names)}"' if names else ""


def _html_cell(column: Column, text: str) -> str:
    kind, scope = ("th", ' scope="row"') if column.key == "step" else ("td", "")
    return f"<{kind}{scope}{_class(column)}>{_html(text)}</{kind}>"


def to_latex(grid: Grid, label: str = "tab:ablation") -> str:
    r"""The table as a `table*` to \input into a document that uses booktabs and graphicx; it is made smaller
    where a page is too narrow.
    """
    body = list(
        zip(
            *(_latex_column(*one) for one in zip(grid.columns, zip(*grid.rows, strict=True), strict=True)),
            strict=True,
        )
    )
    heads = [
        _stack(textwrap.wrap(one.head, WIDEST_HEAD if one.is_number else WIDEST), one, "b")
        for one in grid.columns
    ]
    title = _latex(grid.title)
    lines = [
        r"% needs \usepackage{booktabs,graphicx}; where it comes out too small, choose fewer columns",
        r"\begin{table*}[tp]",
        r"\centering",
        rf"\caption{{{title}{'' if title.endswith('.') else '.'}}}",
        rf"\label{{{label}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        (
            r"\begin{tabular}"
            rf"{{@{{}}{''.join('r' if column.is_number else 'l' for column in grid.columns)}@{{}}}}"
        ),
        r"\toprule",
        rf"{' & '.join(heads)} \\",
        r"\midrule",
        *(f"{_guarded(' & '.join(cells))} \\\\" for cells in body),
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    if grid.notes:
        lines += [r"\par\medskip", r"\begin{minipage}{\linewidth}", r"\footnotesize\raggedright"]
        lines += [*map(_latex_note, grid.notes), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _latex_column(column: Column, texts: Sequence[str]) -> list[str]:
    """The cells of a column; numbers stand with their marks aside and their decimal points aligned."""
    if not column.is_number:
        return [_wrapped(column, text) for text in texts]
    spread = max((text.rstrip("†*").partition(" ± ")[2] for text in texts), key=len)
    cells = []
    for text in texts:
        plain = text.rstrip("†*")
        marks = "".join(rf"\rlap{{{_latex(mark)}}}" for mark in text[len(plain) :])
        alone = spread and " ± " not in plain and re.fullmatch(r"[+-]?[\d.]+", plain)
        cells.append(_latex(plain) + (rf"\phantom{{ {_latex(f'± {spread}')}}}" if alone else "") + marks)
    return cells


def _wrapped(column: Column, text: str) -> str:
    indent = r"\quad " * text.startswith(BRANCH)
    return indent + _stack(textwrap.wrap(_glued(_line(text.removeprefix(BRANCH))), WIDEST), column, "t")


def _glued(text: str) -> str:
    """Text that is to be broken between its parts, and within them only before an arrow's right side; `_line`
    takes the glue away.
    """
    parts = re.split(r"(?<=,) (?![^\[]*\])", text)
    found = [
        part.replace(" ", GLUE) if len(part) <= WIDEST else part.replace(" →", f"{GLUE}→") for part in parts
    ]
    return re.sub(r"\[[^]]*\]", lambda list_: list_[0].replace(" ", GLUE), " ".join(found))


def _stack(texts: Sequence[str], column: Column, place: str) -> str:
    """Lines above each other in one cell."""
    is_head = place == "b"
    lines = [
        (
            rf"\texttt{{{_latex(text, is_code=True)}}}"
            if column.is_code and not is_head
            else _guarded(_latex(text))
        )
        for text in texts
    ]
    if len(lines) < 2:
        return "".join(lines)
    stacked = r" \\ ".join(lines)
    return (
        rf"\begin{{tabular}}[{place}]{{@{{}}{'r' if column.is_number else 'l'}@{{}}}}{stacked}\end{{tabular}}"
    )


def _guarded(latex: str) -> str:
    r"""`\\` would take a bracket or a star behind it for its own."""
    return f"{{}}{latex}" if latex.startswith(("[", "*")) else latex


def _latex_note(note: str) -> str:
    """A note with places to break its long paths and names."""
    return re.sub(r"/(?=\S)|\\_", r"\g<0>\\allowbreak{}", _latex(note))


def _latex(text: str, *, is_code: bool = False) -> str:
    """Text for pdflatex, which takes a hyphen before a number for no minus and two of them for a dash."""
    text = re.sub(r"(?<![\w.)\]-])-(?=\.?\d)", "−", _line(text))
    text = re.sub(r"(?<!\w)'(?=\w)", "‘", re.sub(r"(?<=\d) (?=%)", GLUE, text))
    signs = [
        LATEX.get(sign) or (sign if sign.isascii() or sign in LETTERS else f"[U+{ord(sign):04X}]")
        for sign in text
    ]
    found = "".join(
        f"{sign}{{}}" if sign in "-'," and after == sign else sign
        for sign, after in zip(signs, [*signs, ""][1:], strict=True)
    )
    return found.replace(r"\_", r"\string_") if is_code else found


LETTERS = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿŒœŠšŽž"
GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "η": "eta",
    "λ": "lambda",
    "μ": "mu",
    "µ": "mu",
    "σ": "sigma",
}
MATHS = {
    "Δ": "Delta",
    "Σ": "Sigma",
    "±": "pm",
    "×": "times",
    "→": "to",
    "·": "cdot",
    "≤": "le",
    "≥": "ge",
    "≈": "approx",
    "†": "dagger",
}
LATEX = {sign: rf"$\{name}$" for sign, name in (GREEK | MATHS).items()} | {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"${sign}$" for sign in "<>|"},
    **{
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "`": r"\textasciigrave{}",
        GLUE: "~",
        '"': "''",
    },
    **{
        "−": "$-$",
        "–": "--",
        "—": "---",
        "…": r"\dots{}",
        "“": "``",
        "”": "''",
        "‘": "`",
        "’": "'",
        "²": "$^2$",
        "³": "$^3$",
    },
}
