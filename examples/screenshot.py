"""The pictures of a report: `python -m examples.screenshot docs` sweeps two models and photographs what it finds.

`report.png` is the top of the page of the bundled example, as `make example` draws it, for the README; `repaired.png`
what was repaired in magika. It needs Chromium, and the development extra.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from precisionlab.jobs.sweep import sweep
from precisionlab.report.redraw import page_of, read_run

DIGITS = Path(__file__).parents[1] / "calib_data"
MAGIKA = Path(__file__).parent / "prepared" / "magika"
WIDTH, HEIGHT = 1280, 1250  # the top of the page, as it opens


def main() -> int:
    from playwright.sync_api import sync_playwright

    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        bundled, magika = Path(folder) / "digits", Path(folder) / "magika"
        sweep(DIGITS / "digits.onnx", DIGITS, out=bundled)
        sweep(MAGIKA / "magika.onnx", MAGIKA / "data", precisions="fp16", out=magika)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(_at_home(bundled).as_uri())
        page.screenshot(path=out / "report.png")
        page.goto(_at_home(magika).as_uri())
        page.locator("section[aria-labelledby=repaired]").screenshot(path=out / "repaired.png")
        browser.close()
    for picture in (out / "report.png", out / "repaired.png"):
        print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB")
    return 0


def _at_home(folder: Path) -> Path:
    """The page as a user has it who swept at home: its commands name no temporary folder."""
    files = read_run(folder)
    run = {**files.run, "started_in": "/home/me", "folder": f"reports/{folder.name}"}
    page = folder / "home.html"
    page.write_text(page_of(replace(files, run=run)), encoding="utf-8")
    return page


if __name__ == "__main__":
    sys.exit(main())
