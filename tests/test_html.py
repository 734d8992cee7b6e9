"""The report page in a real browser, opened from a file: what it shows is what the table says, whatever is
sorted, chosen or asked for.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers import pages
from tests.helpers.pages import POINT, ROADMAP, Open, needs_browser, ours

browser, opened, expect = pages.browser, pages.opened, pages.sync_api.expect


@needs_browser
def test_a_head_sorts_numbers_as_numbers_and_puts_the_missing_last(opened: Open, tmp_path: Path) -> None:
    at = opened(ablation := ours(tmp_path))
    known = [row for row in ablation.rows if row.top1]
    missing = [row.step for row in ablation.rows if not row.top1]
    assert len(missing) == 2
    rising = [row.step for row in sorted(known, key=lambda row: row.top1.mean if row.top1 else 0.0)]
    at.head("top1").get_by_role("button").click()
    assert at.steps() == [*rising, *missing]
    assert at.head("top1").get_attribute("aria-sort") == "ascending"
    at.head("top1").get_by_role("button").click()
    assert at.steps() == [*reversed(rising), *missing]
    at.head("n").get_by_role("button").click()
    # stable
    assert at.steps() == ["kernel_9", *(step for step in reversed(rising) if step != "kernel_9"), *missing]
    assert (at.head("top1").get_attribute("aria-sort"), at.head("n").get_attribute("aria-sort")) == (
        "none",
        "ascending",
    )
    at.head("step").get_by_role("button").click()
    assert at.steps().index("kernel_9") < at.steps().index("kernel_11")
    for _ in range(2):
        at.head("step").get_by_role("button").click()
    assert at.steps() == [row.step for row in ablation.rows]


@needs_browser
def test_the_table_filters_by_words_and_by_state_and_shows_other_columns(
    opened: Open, tmp_path: Path
) -> None:
    at = opened(ablation := ours(tmp_path))
    at.page.get_by_label("filter", exact=True).fill("spatial KERNEL")
    assert at.steps() == ["kernel_5", "kernel_7", "kernel_9", "kernel_11"]
    assert at.page.locator("[data-count]").inner_text() == f"4 of {len(ablation.rows)} steps"
    at.page.locator("[data-state]").select_option("side")
    assert at.steps() == ["kernel_5", "kernel_9", "kernel_11"]
    at.page.get_by_label("filter", exact=True).fill("")
    at.page.locator("[data-state]").select_option("resolved")
    assert at.steps() == [row.step for row in ablation.rows if row.resolved]
    at.page.locator("[data-state]").select_option("trouble")
    assert at.steps() == ["kernel_9"]
    assert not at.head("title").is_visible()
    at.page.locator(".columns summary").click()
    at.page.get_by_label("title", exact=True).check()
    assert at.head("title").is_visible()
    assert at.page.locator("tr:not([hidden]) td.title").inner_text() == "kernel size 9"


@needs_browser
def test_hovering_over_a_step_shows_its_values(opened: Open, tmp_path: Path) -> None:
    at, row = opened(ablation := ours(tmp_path)), ablation.row("gelu")
    at.point("gelu").hover()
    said = at.page.locator("#tip").inner_text()
    for text in (
        row.step,
        row.title,
        row.change,
        f"{row.top1} (n = 3)",
        f"Δ to {row.parent}",
        str(row.delta),
        row.hash,
        f"0: {row.seeds[0]:.2f}, 1: {row.seeds[1]:.2f}",
    ):
        assert text in said
    at.page.mouse.move(5, 5)
    expect(at.page.locator("#tip")).to_be_hidden()


@needs_browser
def test_choosing_a_point_follows_the_way_from_the_root_to_it(opened: Open, tmp_path: Path) -> None:
    at = opened(ours(tmp_path))
    at.point("kernel_9").click()
    way = [step.name for step in ROADMAP.lineage("kernel_9")]
    assert at.page.locator("tr.way th a").all_inner_texts() == way
    assert at.page.locator("tr[aria-current=true] th a").inner_text() == "kernel_9"
    assert at.page.locator("article:visible h3").inner_text() == ROADMAP.tree["kernel_9"].title
    assert at.page.locator("article:visible .trail li").all_inner_texts() == way
    assert "kernel_9 is chosen" in at.page.locator("#live").inner_text()
    colors = {step: at.point(step).get_attribute("fill") for step in ("resnet50", "kernel_7", "kernel_9")}
    assert colors == {"resnet50": "var(--pick)", "kernel_7": "var(--accent)", "kernel_9": "var(--paper)"}
    assert at.point("kernel_9").get_attribute("stroke") == "var(--pick)"
    frame, row = (at.page.locator(name).bounding_box() for name in ("[data-rows]", "tr.chosen"))
    assert frame["y"] <= row["y"] <= frame["y"] + frame["height"] - row["height"]
    at.page.locator("article:visible .trail").get_by_text("move_up_depthwise").click()
    at.page.locator("article:visible .leads").get_by_text("kernel_7").click()  # from parent to child
    assert at.point("kernel_7").get_attribute("aria-pressed") == "true"
    at.page.locator("table.steps td.delta").nth(3).click()
    assert at.point("patchify_stem").get_attribute("aria-pressed") == "true"
    assert at.page.url.endswith("#step=patchify_stem")
    at.page.get_by_role("button", name="Close").click()
    assert at.page.locator("tr.way, tr.chosen, article:visible").count() == 0


@needs_browser
def test_another_cost_relabels_the_axis_and_moves_the_points(opened: Open, tmp_path: Path) -> None:
    at = opened(ours(tmp_path))
    axis, before = at.page.get_by_label("horizontal axis"), at.point("increase_width").bounding_box()
    assert axis.locator("option").evaluate_all("them => them.map(one => one.value)") == [
        "gmacs",
        "params",
        "images_per_s",
        "device_hours",
    ]
    assert at.page.locator("[data-chart=accuracy] svg").get_by_text("GMACs an image").count() == 1
    axis.select_option("params")
    at.page.locator("[data-chart=accuracy] svg").get_by_text("parameters (M)").wait_for()
    assert at.page.locator("[data-chart=accuracy] svg").get_by_text("GMACs an image").count() == 0
    assert at.point("increase_width").bounding_box() != before
    assert at.page.locator(POINT).count() == len(ROADMAP.steps) - 2


@needs_browser
def test_everything_can_be_done_with_the_keyboard(opened: Open, tmp_path: Path) -> None:
    at = opened(ours(tmp_path))

    def tab_to(selector: str) -> None:
        for _ in range(60):
            at.page.keyboard.press("Tab")
            if at.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab never comes to {selector}")

    tab_to(POINT)
    assert at.page.locator("#tip").is_visible()
    reached = []
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "End"):
        at.page.keyboard.press(key)
        at.page.keyboard.press("Enter")
        reached.append(at.page.locator("tr.chosen th a").inner_text())
    assert reached == ["enhanced_recipe", "stage_ratio", "enhanced_recipe", "resnet50", ROADMAP.steps[-3]]
    at.page.keyboard.press("Escape")
    assert not at.page.locator("#tip").is_visible()
    tab_to("th[data-key=top1] button")
    outline = at.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    at.page.keyboard.press("Enter")
    assert (at.head("top1").get_attribute("aria-sort"), outline) == ("ascending", "solid")


@needs_browser
def test_curves_show_what_was_logged_and_are_colored_by_choice(opened: Open, tmp_path: Path) -> None:
    at = opened(
        ours(
            tmp_path,
            steps=("resnet50", "enhanced_recipe", "stage_ratio", "patchify_stem", "depthwise_conv", "gelu"),
        )
    )
    colored = at.page.locator("[data-curve=loss] .mark-line path:not([stroke='var(--faint)'])")
    chip = at.page.locator(".chip", has_text="stage_ratio")
    assert (at.page.locator("[data-curve=loss] .mark-line path").count(), colored.count()) == (6, 2)
    chip.click()
    assert (chip.get_attribute("aria-pressed"), colored.count()) == ("true", 3)
    at.point("depthwise_conv").click()
    expect(at.page.locator("[data-curve=loss] .mark-line path[stroke='var(--pick)']")).to_have_count(1)
    at.page.locator("[data-measure=loss]").select_option("val_loss")
    at.page.locator("[data-curve=loss] [role=img], [data-curve=loss] svg").first.wait_for()
    shown = json.loads(at.page.locator("#data").text_content())["views"][0]["curves"][0]
    assert shown["train_loss"][0] == [2.4552, 2.3123, 2.5981]
    assert (shown["epoch"], shown["seeds"], "ema_top1" in shown) == ([1, 2, 3], 3, False)
