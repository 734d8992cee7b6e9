"""Whatever a table holds, Markdown, HTML and LaTeX show it as text; LaTeX compiles, and fits a page."""

from __future__ import annotations

import random
import re
import shutil
import string
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from roadmap.report.columns import COLUMNS
from roadmap.report.render import Heading, Table, to_html, to_latex, to_markdown
from roadmap.report.tables import ablation_table, write_tables
from tests.test_tables import ABLATIONS, HOSTILE, KINDS, ROADMAP, of_runs

CLASSES = {
    "one column": r"\documentclass{article}",
    "two columns": r"\documentclass[twocolumn,10pt]{article}\usepackage[a4paper,margin=2cm]{geometry}",
}
SIGNS = "&%$#{}<>|\\[]*/+=;:!?@(),.-"
needs_latex = pytest.mark.skipif(
    not shutil.which("pdflatex") or not shutil.which("pdftotext"), reason="needs pdflatex and pdftotext"
)
anything = st.text(
    st.sampled_from("ab_*`~$|\\<>&;#()[]!'\"-\n é漢") | st.characters(exclude_categories=["Cs", "Cc"])
)


def one_cell(text: str) -> Table:
    return Table(text, [COLUMNS["title"], COLUMNS["n"]], [[text, "3"]], [text])


def plain(text: str) -> str:
    return " ".join(text.split())


def shown_by_markdown(text: str) -> list[list[str]]:
    """The cells of the tables as a reader of GitHub's Markdown sees them."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            assert all(child.type in ("text", "text_special") for child in token.children or ())
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows


@given(anything)
@example(HOSTILE)
@example(r"a\|b")
@example("&lt;b&gt; &amp;#60; <b>")
@example("_a_ **b** `c` ~~d~~ [e](f) __g__")
def test_markdown_shows_any_text(text: str) -> None:
    table = to_markdown(one_cell(text)).partition("\n\n- ")[0]
    assert shown_by_markdown(table) == [["title", "n"], [plain(text), "3"]]


def test_markdown_is_as_readable_as_text() -> None:
    columns = [Heading("step", "step", is_number=False), Heading("n", "n")]
    table = Table("a_b", columns, [["└ a_b", "> 1000"], ["c*", "–"]], ["see a_b", "* 95 %"])
    lines = to_markdown(table).splitlines()
    assert to_markdown(Table("$a$ for 1 $", [], [], [])).startswith(r"# \$a\$ for 1 \$")
    assert lines == [
        "# a_b",
        "",
        "| step | n |",
        "| --- | ---: |",
        "| └ a_b | > 1000 |",
        "| c* | – |",
        "",
        "- see a_b",
        "- * 95 %",
    ]


class Reader(HTMLParser):
    """The elements of a page, and the texts of each kind; void elements and what is open at the end apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


@given(anything)
@example(HOSTILE)
def test_html_shows_any_text(text: str) -> None:
    reader = Reader(to_html(one_cell(text)))
    assert reader.open == []
    assert reader.texts["td"] == [plain(text), "3"]
    assert reader.texts["title"] == reader.texts["caption"] == reader.texts["li"] == [plain(text)]
    assert {tag for tag, _ in reader.seen} == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
    }


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_page_has_a_row_a_step_and_nothing_from_elsewhere(name: str, tmp_path: Path) -> None:
    table = ablation_table(ABLATIONS[name]())
    reader = Reader(
        write_tables(ABLATIONS[name](), tmp_path)[KINDS.index("html")].read_text(encoding="utf-8")
    )
    assert reader.open == []
    assert len(reader.texts["tr"]) == 1 + len(table.rows)
    assert reader.texts["th"] == [column.head for column in table.columns] + [row[0] for row in table.rows]
    assert reader.texts["td"] == [plain(text) for row in table.rows for text in row[1:]]
    assert reader.texts["li"] == list(map(plain, table.notes))
    assert reader.texts["title"] == reader.texts["caption"] == [plain(table.title)]
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.seen}
    scopes = [attributes.get("scope") for tag, attributes in reader.seen if tag == "th"]
    assert scopes == ["col"] * len(table.columns) + ["row"] * len(table.rows)


def compiled(folder: Path, start: str, *tables: str) -> tuple[str, str]:
    """What pdflatex says of a document with the tables, and the document's text."""
    inputs = []
    for number, table in enumerate(tables):
        (folder / f"table{number}.tex").write_text(table, encoding="utf-8")
        inputs.append(rf"\input{{table{number}}}")
    lines = [
        start,
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
        r"See Table~\ref{tab:ablation}.",
        *inputs,
        r"\end{document}",
    ]
    (folder / "paper.tex").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=120,
    )
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-3000:]
    text = subprocess.run(
        ["pdftotext", "-layout", "paper.pdf", "-"], cwd=folder, capture_output=True, check=True, timeout=60
    )
    return log, text.stdout.decode("utf-8")


def overfull(log: str) -> list[float]:
    """By how many points boxes are too wide, or higher than a page."""
    found = re.findall(
        r"Overfull \\[hv]box \(([\d.]+)pt too|Float too large for page by ([\d.]+)pt", log.replace("\n", "")
    )
    return [float(wide or high) for wide, high in found]


@needs_latex
@pytest.mark.parametrize("start", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("name", ABLATIONS)
def test_latex_compiles_and_fits_the_page(name: str, start: str, tmp_path: Path) -> None:
    table = ablation_table(ABLATIONS[name]())
    log, text = compiled(tmp_path, start, to_latex(table))
    assert max(overfull(log), default=0.0) < 3.0
    steps = [row.step for row in ABLATIONS[name]().rows]
    assert [step for step in steps if step not in text] == []
    assert "<script>alert(" in text or name == "published"


@needs_latex
def test_latex_shows_signs_as_they_are(tmp_path: Path) -> None:
    every = [f"a{sign}b" for sign in string.punctuation] + [
        "a−1b",
        "a--b",
        "Δ ± × → – — † ‡ λ …",
        "[3, 4]",
        "*x",
        "é ß Å œ",
        "漢",
    ]
    table = Table("t", [COLUMNS["title"], COLUMNS["hash"]], [[text, text] for text in every], [])
    text = compiled(tmp_path, CLASSES["one column"], to_latex(table))[1]
    for sign in [*SIGNS, "--"]:
        assert text.count(f"a{sign}b") == 2
    for word in ("a−1b", "± × → – — † ‡ λ", "[3, 4]", "*x", "ß", "œ", "[U+6F22]", "a_b"):
        assert word in text


@needs_latex
def test_latex_compiles_with_any_text(tmp_path: Path) -> None:
    draw = random.Random(0)
    letters = SIGNS + "_^~\"'`- \nab1–−†└漢é\x00\u202e" + HOSTILE
    rows = [["".join(draw.choices(letters, k=draw.randrange(40))) for _ in range(4)] for _ in range(30)]
    columns = [COLUMNS[key] for key in ("title", "n", "step", "top1")]
    notes = ["".join(draw.choices(letters, k=200)) for _ in range(5)]
    compiled(
        tmp_path,
        CLASSES["two columns"],
        to_latex(Table(HOSTILE, columns, rows, notes)),
        to_latex(Table("", columns[:1], [[""]], [])),
    )


@needs_latex
def test_latex_breaks_long_paths_in_notes(tmp_path: Path) -> None:
    path = "/".join(["runs", *["separate_downsampling"] * 8])
    log, _ = compiled(
        tmp_path,
        CLASSES["one column"],
        to_latex(Table("t", [COLUMNS["title"]], [["a"]], [f"A word, and {path} is damaged."])),
    )
    assert overfull(log) == []


@needs_latex
def test_a_latex_table_can_be_referred_to(tmp_path: Path) -> None:
    tex = write_tables(of_runs(), tmp_path, ["step", "top1"])[KINDS.index("tex")].read_text(encoding="utf-8")
    assert r"\label{tab:convnext-t-digits-noisy}" in tex
    for _ in range(2):
        text = compiled(
            tmp_path, CLASSES["one column"], tex.replace("tab:convnext-t-digits-noisy", "tab:ablation")
        )[1]
    assert "See Table 1." in text


def test_latex_indents_side_branches_and_hangs_marks_out() -> None:
    lines = to_latex(ablation_table(of_runs(), ["step", "top1", "paper_gmacs"])).splitlines()
    assert r"\quad \texttt{kernel\string_9} & 86.88\phantom{ $\pm$ 0.89} & 4.21 \\" in lines
    assert r"\texttt{kernel\string_7} & 85.10 $\pm$ 0.00\rlap{$\dagger$} & 4.15 \\" in lines
    assert sum(line.startswith((r"\texttt", r"\quad")) for line in lines) == len(ROADMAP.steps)
