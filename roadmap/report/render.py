"""A table of text, rendered as Markdown, LaTeX and HTML, which all show any cell literally."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

BRANCH = "└ "
GLUE = "\N{NO-BREAK SPACE}"
MARKS = "†‡*"  # behind a number
WIDEST, WIDEST_HEAD = 34, 9  # letters in a line of a LaTeX cell, so that a table has a chance to fit a page
# because braces and per cent signs are LaTeX
LATEX_SIGNS: Any = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}


@dataclass(frozen=True)
class Heading:
    """The head of a column; `title` is the head in full, `is_code` marks names from commands and files."""

    key: str
    head: str
    title: str = ""
    is_number: bool = True
    is_code: bool = False


@dataclass(frozen=True)
class Table:
    """A title, columns, a text for each cell, and the notes below; a column `step` heads the rows."""

    title: str
    columns: Sequence[Heading]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]

    @property
    def heads(self) -> list[str]:
        """The heads for a terminal, where '>' aligns to the right."""
        return [f"{'>' * column.is_number}{column.head}" for column in self.columns]


def to_markdown(table: Table) -> str:
    """The table with its title and notes, for GitHub."""
    return _templates().get_template("table.md.j2").render(table=table)


def to_html(table: Table) -> str:
    """A page with the table and its notes, without scripts or external resources."""
    return _templates().get_template("table.html.j2").render(table=table)


def to_latex(table: Table, label: str = "tab:ablation") -> str:
    r"""The table as a `table*` for \input, with booktabs and graphicx, scaled to fit the page."""
    texts = zip(*table.rows, strict=True)
    cells = [_latex_column(*column) for column in zip(table.columns, texts, strict=True)]
    heads = [
        _stack(textwrap.wrap(column.head, WIDEST_HEAD if column.is_number else WIDEST), column, "b")
        for column in table.columns
    ]
    template = _templates().overlay(**LATEX_SIGNS).get_template("table.tex.j2")
    rows = list(zip(*cells, strict=True))
    return template.render(table=table, title=_latex(table.title), label=label, heads=heads, rows=rows)


@cache
def _templates() -> Environment:
    """Without autoescape: each format has its own filters."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {
        "markdown": _markdown,
        "cell": lambda text: _markdown(text).replace("|", "\\|"),
        "html": lambda text: escape(_line(text)),
        "guarded": _guarded,
        "note": _latex_note,
    }
    return found


def _markdown(text: str) -> str:
    """Text without HTML, links, formulas and emphasis; a single star, and underscores in a name, stay."""
    text = _line(text).replace("\\", "\\\\").replace("](", "]\\(")
    for sign in "*`~$":
        text = text.replace(sign, f"\\{sign}") if text.count(sign) > 1 else text
    text = re.sub(r"(?<![A-Za-z0-9])_", r"\_", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))


def _line(text: str) -> str:
    """Text in one line, without control characters and surrogates."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in {"Cc", "Cs"} else sign
        for sign in " ".join(text.split())
    )


def _latex_column(column: Heading, texts: Sequence[str]) -> list[str]:
    """The cells of a column; numbers have aligned decimal points, and marks outside of the column."""
    if not column.is_number:
        return [_wrapped(column, text) for text in texts]
    spread = max((text.rstrip(MARKS).partition(" ± ")[2] for text in texts), key=len)
    cells = []
    for text in texts:
        plain = text.rstrip(MARKS)
        marks = "".join(rf"\rlap{{{_latex(mark)}}}" for mark in text[len(plain) :])
        alone = spread and " ± " not in plain and re.fullmatch(r"[+-]?[\d.]+", plain)
        cells.append(_latex(plain) + (rf"\phantom{{ {_latex(f'± {spread}')}}}" if alone else "") + marks)
    return cells


def _wrapped(column: Heading, text: str) -> str:
    indent = r"\quad " * text.startswith(BRANCH)
    return indent + _stack(textwrap.wrap(_glued(_line(text.removeprefix(BRANCH))), WIDEST), column, "t")


def _glued(text: str) -> str:
    """Text that is broken between its parts, and in them only before an arrow; `_line` removes the glue."""
    parts = re.split(r"(?<=,) (?![^\[]*\])", text)
    found = [
        part.replace(" ", GLUE) if len(part) <= WIDEST else part.replace(" →", f"{GLUE}→") for part in parts
    ]
    return re.sub(r"\[[^]]*\]", lambda list_: list_[0].replace(" ", GLUE), " ".join(found))


def _stack(texts: Sequence[str], column: Heading, place: str) -> str:
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
    r"""LaTeX guarded from `\\`, which reads a bracket or a star after it as its argument."""
    return f"{{}}{latex}" if latex.startswith(("[", "*")) else latex


def _latex_note(note: str) -> str:
    """A note with places to break its long paths and names."""
    return re.sub(r"/(?=\S)|\\_", r"\g<0>\\allowbreak{}", _latex(note))


def _latex(text: str, *, is_code: bool = False) -> str:
    """Text for pdflatex, with true minus signs before numbers, and no pair of hyphens that makes a dash."""
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
    "‡": "ddagger",
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
