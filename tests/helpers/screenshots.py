"""Pictures of a report's page as a reader sees it: python -m tests.helpers.screenshots
reports/digits_noisy/report.html reports/screenshots.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1400, "height": 1000}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1400, "height": 1000}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "device_scale_factor": 2},
}


def take(page_file: Path, out: Path, step: str = "gelu") -> list[Path]:
    """A picture for each of `LOOKS`; on a desktop with `step` chosen, so that its details can be seen."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, options in LOOKS.items():
            page = browser.new_context(**options).new_page()
            page.goto(page_file.resolve().as_uri())
            page.wait_for_selector("html[data-ready]")
            if name != "phone":
                page.locator(f'[data-chart=accuracy] path[aria-label^="{step},"]').first.click()
                page.mouse.move(0, 0)  # or the tooltip would hide half of the chart
                page.locator("#tip").wait_for(state="hidden")
            made.append(out / f"{page_file.parent.name}_{name}.png")
            page.screenshot(path=made[-1])
        browser.close()
    return made


def main() -> None:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("page", type=Path, help="a report.html")
    options.add_argument("out", type=Path, help="where the pictures go")
    options.add_argument("step", nargs="?", default="gelu", help="the step whose details are shown")
    arguments = options.parse_args()
    for path in take(arguments.page, arguments.out, arguments.step):
        print(path)


if __name__ == "__main__":
    main()
