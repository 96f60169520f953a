"""The page of a fidelity run begins with its verdict, and is read on a narrow screen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browser import Opened, chromium, needs_browser
from models import DIGITS
from test_report import Page

from precisionlab.jobs.fidelity import fidelity
from precisionlab.precision import Precision
from precisionlab.report.fidelity import fidelity_page, headline
from precisionlab.results.fidelity import FidelityFindings, Goal


def found(*goals: Goal) -> Any:
    return SimpleNamespace(precision=Precision.INT8, goals=goals)


GOOD, BAD, NONE = Goal("a", 1.0, least=0.9), Goal("b", 0.1, least=0.9), Goal("c", None, least=0.9)


@pytest.mark.parametrize(
    ("goals", "words"),
    [
        ([GOOD], "The emulation is true here: its one goal is met"),
        ([GOOD, GOOD], "The emulation is true here: both goals are met"),
        ([GOOD, GOOD, GOOD, NONE], "The emulation is true here: all 3 goals are met; 1 has no figure"),
        ([GOOD, BAD], "1 of 2 goals is missed: INT8: b"),
        ([BAD, BAD, NONE], "2 of 2 goals are missed: INT8: b; INT8: b; 1 has no figure"),
        ([NONE], "Nothing was compared: no goal has a figure"),
        ([], "Nothing was compared: no goal has a figure"),
    ],
)
def test_the_verdict_counts_the_goals_that_are_met(goals: list[Goal], words: str) -> None:
    assert headline([found(*goals)]) == words


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> FidelityFindings:
    out = tmp_path_factory.mktemp("fidelity")
    return fidelity(DIGITS / "digits.onnx", DIGITS, precisions="int8", samples=2, threads=1, out=out)


@pytest.mark.slow
def test_the_page_has_its_verdict_first_and_leads_to_its_parts(result: FidelityFindings) -> None:
    page = Page(fidelity_page(result))
    assert page.text.index("Is the emulation true?") < page.text.index("INT8 on cpu")
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    hrefs = {str(attributes["href"]) for _, attributes in page.tags if "href" in attributes}
    assert {href[1:] for href in hrefs if href.startswith("#")} <= ids
    assert {href for href in hrefs if not href.startswith("#")} == {"fidelity.csv", "fidelity.json"}


@pytest.mark.thorough
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_scrolls_down_alone(result: FidelityFindings, tmp_path: Path, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    (tmp_path / "fidelity.html").write_text(fidelity_page(result), encoding="utf-8")
    with chromium() as browser, Opened(browser, tmp_path / "fidelity.html", 390, scheme) as opened:
        opened.photograph(f"fidelity-390-{scheme}")
        every = "[...document.querySelectorAll('body *')].filter(e => e.clientWidth && !e.closest('svg'))"
        wide = f"{every}.filter(e => e.scrollWidth > e.clientWidth + 1)"
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
        assert opened.page.evaluate(f"{wide}.map(e => e.tagName + e.className)") == []
        assert Axe().run(opened.page).response["violations"] == []
        opened.check_quiet()
