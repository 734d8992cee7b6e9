"""The report page in a real browser, and ablations to show on it, for the tests of the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from roadmap.deltas import resolve
from roadmap.records import RunDir, Status
from roadmap.report.ablation import Ablation, measured
from roadmap.report.page.page import page
from roadmap.steps import load_roadmap
from roadmap.steps_file import Reference
from tests.helpers.reports import finished

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")

ROADMAP = load_roadmap()
POINT = "[data-chart=accuracy] path[aria-roledescription=point]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@dataclass
class Opened:
    """A page in the browser, and what went over its console and wires."""

    page: Any
    wrong: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def steps(self) -> list[str]:
        """The ids in the rows that can be seen, from top to bottom."""
        found: list[str] = self.page.locator("table.steps tbody tr:not([hidden]) th a").all_inner_texts()
        return found

    def point(self, step: str) -> Any:
        return self.page.locator(f'{POINT}[aria-label^="{step},"]')

    def head(self, key: str) -> Any:
        return self.page.locator(f'table.steps th[data-key="{key}"]')


Open = Callable[..., Opened]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens ablations as one page, at 1400 x 1000; options are those of a browser context."""
    contexts, pages = [], []

    def open_page(*ablations: Ablation, **options: Any) -> Opened:
        file = tmp_path / "report.html"
        file.write_text(page(ablations), encoding="utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1400, "height": 1000}} | options))
        found = Opened(contexts[-1].new_page())
        found.page.on(
            "console",
            lambda message: (
                found.wrong.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        found.page.on("pageerror", lambda error: found.wrong.append(str(error)))
        found.page.on("dialog", lambda dialog: found.wrong.append(dialog.message))
        found.page.on("request", lambda request: found.requested.append(request.url))
        found.page.goto(file.as_uri())
        found.page.wait_for_selector("html[data-ready]", timeout=20_000)
        pages.append((found, file))
        return found

    yield open_page
    for found, file in pages:
        assert found.wrong == [], found.wrong
        assert set(found.requested) <= {file.as_uri(), "data:,"}, found.requested
    for context in contexts:
        context.close()


def runs_of(step: str, folder: Path, seeds: int = 3, epochs: int = 3, **more: Any) -> list[Status]:
    """Finished runs of a step, with the metrics that they logged."""
    hash = resolve(ROADMAP, step, profile="digits_noisy").hash
    found = []
    for seed in range(seeds):
        top1 = (
            80
            + 0.7 * ROADMAP.steps.index(step)
            - 3 * (step == "depthwise_conv")
            + 0.1 * ((7 * ROADMAP.steps.index(step) + 5 * seed**2) % 9)
        )
        one = finished(step, seed, hash, None if step == "kernel_9" and seed == 1 else top1, **more)
        run = RunDir(folder / "runs/convnext_t/digits_noisy" / step / one.run.path.name)
        if epochs:
            run.path.mkdir(parents=True)
            lines = [
                {
                    "kind": "epoch",
                    "epoch": epoch,
                    "train_loss": 2.31234 / epoch + seed / 7,
                    "val_loss": 2 / epoch,
                    "top1": top1 - 9 / epoch,
                }
                for epoch in range(1, epochs + 1)
            ]
            run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        found.append(replace(one, run=run))
    return found


def ours(folder: Path, steps: tuple[str, ...] = ROADMAP.steps[:-2], **more: Any) -> Ablation:
    """An ablation whose last two steps have no run, and with one run that diverged."""
    runs = [run for step in steps for run in runs_of(step, folder, **more)]
    return measured(ROADMAP, "digits_noisy", {}, runs, Reference(title="logistic regression", top1=84.5))
