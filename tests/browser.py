"""A real browser for the tests: Chromium, as the system has it, driven by Playwright."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
_MISSING = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or bool(_MISSING),
    reason="no Chromium on this machine" if CHROMIUM is None else f"not installed: {', '.join(_MISSING)}",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser. As root, and in containers, Chromium's sandbox cannot be had."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page that was opened from disk, with all that it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light", fragment: str = "") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.address = path.as_uri()
        self.page.goto(self.address + fragment)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def photograph(self, name: str) -> None:
        """The whole page as a picture in the folder of PRECISIONLAB_SCREENSHOTS, to be looked at; else it is left."""
        if folder := os.environ.get("PRECISIONLAB_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def check_quiet(self) -> None:
        """The page asked for nothing but itself, and nothing failed."""
        assert {url.split("#")[0] for url in self.requests} == {self.address}
        assert self.complaints == []
