"""The report page as it is sent: one file that holds, hides and leaks nothing else, for every eye, window,
printer and title.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from roadmap.report.ablation import Ablation, measured, published
from roadmap.report.page.page import page
from roadmap.steps_file import Reference
from tests.helpers import commands, pages
from tests.helpers.pages import POINT, ROADMAP, Open, needs_browser, ours, runs_of
from tests.helpers.reports import COMMIT

browser, opened = pages.browser, pages.opened  # fixtures

ATTACK = """</script><script>alert(1)</script><img src=x onerror="alert(2)"><!--"""
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Reader(HTMLParser):
    """Checks that elements nest, and notes ids and what refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute is given twice: {tag} {attrs}"
        self.ids += [found["id"] or ""] if "id" in found else []
        self.references += (found.get("aria-labelledby") or "").split()
        href = found.get("href") or ""
        (
            (self.references if href.startswith("#") else self.links).append(href.removeprefix("#"))
            if href
            else None
        )
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize("number", [1, 2])
def test_the_page_is_well_formed_and_links_only_to_the_files_beside_it(number: int, tmp_path: Path) -> None:
    reader = read(page([ours(tmp_path), published(ROADMAP)][:number]))
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.references) <= set(reader.ids)
    files = (
        ["comparison.csv", "comparison.json"] if number > 1 else ["ablation.csv", "ablation.json", "runs.csv"]
    )
    assert sorted(reader.links) == sorted(["data:,", *files])
    assert reader.headings[0] == 1
    assert all(
        later - before <= 1 for before, later in zip(reader.headings, reader.headings[1:], strict=False)
    )


def test_the_same_ablation_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "from tests.helpers.pages import *; import sys;"
        " sys.stdout.buffer.write(page([ours(Path(sys.argv[1]))]).encode())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "elsewhere")]
    other = commands.run(command, check=True).stdout  # its sets have another order, that of its server
    assert other == page([ours(tmp_path / "here")])


@needs_browser
def test_nothing_is_requested_and_nothing_else_may_run(opened: Open, tmp_path: Path) -> None:
    at = opened(ours(tmp_path))
    assert at.requested[0].startswith("file://")
    policy = at.page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    sent = at.page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    at.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran ="
        " 1'}))"
    )
    assert (sent, at.page.evaluate("window.ran")) == ("refused", None)
    assert [
        text for text in at.wrong if "Content Security Policy" not in text and "Fetch API" not in text
    ] == []
    at.wrong.clear()  # the two refusals


@needs_browser
def test_markup_in_titles_and_runs_stays_text(opened: Open, tmp_path: Path) -> None:
    plain = ours(tmp_path, hardware=ATTACK, commit=ATTACK, versions={ATTACK: ATTACK})
    rows = tuple(
        replace(row, title=ATTACK, change=ATTACK) if row.step == "gelu" else row for row in plain.rows
    )
    reference = Reference(title=ATTACK, top1=84.5)
    at = opened(replace(plain, title=ATTACK, rows=rows, reference=reference, notes=[*plain.notes, ATTACK]))
    at.point("gelu").hover()
    assert at.page.locator("#tip strong").inner_text() == f"gelu: {ATTACK}"
    assert ATTACK in at.page.locator("#tip dd").all_inner_texts()
    at.point("gelu").click()
    assert at.page.locator("article:visible h3").inner_text() == ATTACK
    assert at.page.locator("tr.chosen td.title").text_content() == ATTACK
    assert (
        at.page.locator("#a0-runs + *, .runs td").filter(has_text=ATTACK).count()
        >= 3 * len(ROADMAP.steps) - 6
    )
    assert at.page.title() == ATTACK
    assert at.page.locator("figcaption").get_by_text(f"{ATTACK} (84.50)").count() == 1
    assert (at.page.locator("img").count(), at.page.locator("script").count()) == (0, 3)


def ratio(one: str, other: str) -> float:
    """The contrast of two colors as WCAG 2 has it."""

    def light(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted([light(one), light(other)])
    return (bright + 0.05) / (dark + 0.05)


COLOURS = """() => [...document.querySelectorAll("h1, .kicker, a, td, th, dt, dd, label, p, li, \
button, select, code, figcaption span")]
  .filter((one) => one.checkVisibility() && one.textContent.trim())
  .map((one) => {
    let ground = one, color = "rgba(0, 0, 0, 0)";
    while (ground && (color = getComputedStyle(ground).backgroundColor) === "rgba(0, 0, 0, 0)") \
ground = ground.parentElement;
    return [one.tagName + " " + one.textContent.trim().slice(0, 30), getComputedStyle(one).color, color];
  })"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_light_and_dark(opened: Open, tmp_path: Path, scheme: str) -> None:
    at = opened(ours(tmp_path), color_scheme=scheme)
    at.point("gelu").click()
    at.page.mouse.move(5, 5)
    at.page.wait_for_timeout(300)  # the rows' colors have arrived
    weak = {(name, one, other) for name, one, other in at.page.evaluate(COLOURS) if ratio(one, other) < 4.5}
    assert weak == set()
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    before = at.page.evaluate(ground)
    assert (ratio(before, "rgb(0, 0, 0)") > 10) is (scheme == "light")
    at.page.get_by_role("button", name="Dark mode").click()
    assert (ratio(at.page.evaluate(ground), "rgb(0, 0, 0)") > 10) is (scheme == "dark")
    assert f"theme={'dark' if scheme == 'light' else 'light'}" in at.page.url


@needs_browser
@pytest.mark.parametrize("width", [390, 768])
def test_a_narrow_window_scrolls_in_one_direction(opened: Open, tmp_path: Path, width: int) -> None:
    at = opened(ours(tmp_path), published(ROADMAP), viewport={"width": width, "height": 844}, has_touch=True)
    at.point("gelu").first.tap()
    at.page.locator(".columns summary").first.click()
    at.page.locator(".runs summary").click()
    assert at.page.evaluate("document.documentElement.scrollWidth") <= width
    assert at.page.evaluate(
        "document.querySelector('[data-rows]').scrollWidth >"
        " document.querySelector('[data-rows]').clientWidth"
    )


@needs_browser
def test_on_paper_there_are_no_controls_and_nothing_is_folded(opened: Open, tmp_path: Path) -> None:
    at = opened(ours(tmp_path), color_scheme="dark")
    at.point("gelu").click()
    at.page.emulate_media(media="print")
    at.page.locator(".runs td").first.wait_for()
    assert (
        at.page.locator(
            "input:visible, select[data-axis]:visible, .chip:visible, summary:visible, #theme:visible"
        ).count()
        == 0
    )
    assert at.page.locator("article:visible").count() == len(ROADMAP.steps)
    assert (
        at.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    )
    at.page.emulate_media(media="screen")
    assert at.page.locator("article:visible").count() == 1
    at.page.locator(".runs td").first.wait_for(state="hidden")


@needs_browser
def test_motion_is_reduced_where_it_is_asked_for(opened: Open, tmp_path: Path) -> None:
    at = opened(ours(tmp_path, steps=()))
    lasting = "getComputedStyle(document.querySelector('.steps td')).transitionDuration"
    assert at.page.evaluate(lasting) == "0.15s"
    at.page.emulate_media(reduced_motion="reduce")
    assert at.page.evaluate(lasting) == "0s"


@needs_browser
def test_the_paper_alone_and_a_roadmap_without_runs_are_pages_too(opened: Open) -> None:
    at = opened(published(ROADMAP))
    assert at.page.locator(POINT).count() == len(published(ROADMAP).rows)
    assert (at.page.locator(".runs, .curves").count(), at.page.get_by_text("runs.csv").count()) == (0, 0)
    at = opened(measured(ROADMAP, "digits_noisy", {}, []))
    assert at.page.locator(POINT).count() == 0
    assert at.page.get_by_text("No run has finished yet").is_visible()
    at.page.locator("table.steps tbody a").nth(2).click()
    assert at.page.locator("article:visible h3").inner_text() == ROADMAP.tree["stage_ratio"].title


@needs_browser
def test_two_ablations_stand_beside_one_another_and_share_the_choice(opened: Open, tmp_path: Path) -> None:
    at = opened(ours(tmp_path), published(ROADMAP))
    at.page.locator("#a1 table.steps tbody a", has_text="kernel_9").click()
    assert at.page.locator("tr.chosen th a").all_inner_texts() == ["kernel_9", "kernel_9"]
    assert at.page.locator("#a1 article:visible").evaluate("one => one === document.activeElement")


@needs_browser
def test_every_run_is_listed_with_its_provenance(opened: Open, tmp_path: Path) -> None:
    at = opened(ablation := ours(tmp_path, steps=("gelu",), processes=4, corrupt_images=7, attempts=3))
    at.page.locator(".runs summary").click()
    cells = at.page.locator(".runs tbody tr").first.locator("th, td").all_inner_texts()
    assert cells[0].startswith("convnext_t/digits_noisy/gelu/seed0-")
    assert cells[1:9] == ["0", "done", f"{ablation.row('gelu').seeds[0]:.2f}", "3", "1000", "4", "3", "7"]
    assert cells[10:14] == [
        COMMIT,
        "one core",
        "python 3.11.7, scikit-learn 1.7.0",
        "2026-01-02T03:04:05+00:00",
    ]


@needs_browser
def test_a_hundred_runs_of_300_epochs_are_less_than_3_mb(opened: Open, tmp_path: Path) -> None:
    runs = list(chain.from_iterable(runs_of(step, tmp_path, seeds=6, epochs=300) for step in ROADMAP.steps))
    assert len(runs) > 100
    big: Ablation = measured(ROADMAP, "digits_noisy", {}, runs)
    assert len(page([big]).encode()) < 3_000_000
    opened(big).page.locator("[data-curve=loss] svg").wait_for()


def test_what_a_step_sets_without_effect_is_marked(tmp_path: Path) -> None:
    text = page([ours(tmp_path, steps=())])
    found: Any = re.search(
        r"<code>recipe.epochs</code> <small>([^<]*)</small></th><td>\d+</td><td>300</td>", text
    )
    assert unescape(found[1]) == "without effect here: profile 'digits_noisy' sets 2"
