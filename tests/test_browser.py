"""The reports in a real browser: real runs, a large one, and one with names of strangers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import Opened, chromium, needs_browser
from models import DIGITS
from test_report import HOSTILE, Report, errors, report

from precisionlab.precision import Pin, Precision
from precisionlab.report.html import render
from precisionlab.sweep import sweep

pytestmark = needs_browser

MAGIKA = Path(__file__).parents[1] / "examples" / "prepared" / "magika"
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    sweep(DIGITS / "digits.onnx", DIGITS, out=out)
    return out / "report.html"


@pytest.fixture(scope="module")
def magika(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MAGIKA.exists():
        pytest.skip("magika is not prepared: make models")
    out = tmp_path_factory.mktemp("runs") / "magika"
    sweep(MAGIKA / "magika.onnx", MAGIKA / "data", precisions="fp16", samples=16, out=out)
    return out / "report.html"


def written(path: Path, found: Report) -> Path:
    path.write_text(render(*found), encoding="utf-8")
    return path


def violations(page: Any) -> list[str]:
    """What axe finds against the page, with the first element that it is about."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']} ({v['impact']}, {len(v['nodes'])}): {v['nodes'][0]['html'][:200]}" for v in found]


def check_layout(page: Any) -> None:
    """Nothing is cut off at the side: what is wider than the page scrolls inside its own frame."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("h1").is_visible()


# Real runs


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_real_run_can_be_read_by_everybody(
    browser: Any, digits: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    with Opened(browser, digits, width, scheme) as opened:
        page = opened.page
        check_layout(page)
        page.screenshot(path=tmp_path / f"digits-{width}-{scheme}.png", full_page=True)
        page.locator("#layers-1 .open").first.click()
        assert violations(page) == []
        check_layout(page)
        opened.check_quiet()
        ink, ground = page.evaluate(
            "(s => [s.color, s.backgroundColor])(getComputedStyle(document.querySelector('.pl')))"
        )
        assert (lightness(ink) > lightness(ground)) == (scheme == "dark")


def lightness(color: str) -> float:
    return sum(float(part) for part in color.removeprefix("rgb(").rstrip(")").split(",")[:3])


def test_a_larger_real_run_is_quiet_and_accessible(browser: Any, magika: Path) -> None:
    with Opened(browser, magika, 390) as opened:
        check_layout(opened.page)
        assert violations(opened.page) == []
        opened.check_quiet()
        assert opened.page.locator(".hazard", has_text="Overflow").count() == 1


# What can be done with it


def column(page: Any, table: str, place: int) -> list[str]:
    found: list[str] = page.locator(
        f"{table} tbody tr:not([hidden]):not(.details) > :nth-child({place})"
    ).all_inner_texts()
    return [text.strip() for text in found]


def test_tables_are_sorted_and_filtered(browser: Any, digits: Path) -> None:
    with Opened(browser, digits) as opened:
        page, table = opened.page, "#layers-1"
        assert column(page, table, 1)[:3] == ["1", "2", "3"]
        page.locator(f"{table} thead button", has_text="Place").click()
        assert column(page, table, 2) == [str(n) for n in range(17)]
        page.locator(f"{table} thead button", has_text="Place").click()
        assert column(page, table, 2)[0] == "16"
        head = page.locator(f"{table} th", has_text="Place")
        assert head.get_attribute("aria-sort") == "descending"
        page.locator(f"{table} .open").first.click()
        page.locator(f"{table} input").fill("pinned norm")
        assert page.locator(f"{table} output").inner_text() == "4 of 17 layers"
        assert set(column(page, table, 3)) == {"/norm/square", "/norm/variance", "/norm/add_eps", "/norm/std"}
        assert page.locator(f"{table} tr.details").count() == 0
        opened.check_quiet()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_opens_what_is_known_of_its_layer(browser: Any, digits: Path, width: int) -> None:
    with Opened(browser, digits, width) as opened:
        page = opened.page
        row = page.locator("#row-1-2")
        row.locator("td").nth(5).click()  # anywhere on the row
        button, panel = row.locator(".open"), page.locator("tr.details")
        assert button.get_attribute("aria-expanded") == "true"
        text = panel.inner_text()
        assert "9.68e+6" in text or "9.68e+06" in text
        for words in ("times what FP16 can hold", "overflow: values up to", "Inherited with pins", "Relative L2"):
            assert words in text
        # Nothing in the panel lies over what stands beside it.
        parts = panel.locator(".panel > div").all()
        table = panel.locator("table").bounding_box()
        assert table is not None
        assert [part.evaluate("p => p.scrollWidth <= p.clientWidth") for part in parts] == [True, True]
        assert table["width"] <= parts[0].bounding_box()["width"]
        box, frame = panel.locator(".panel").bounding_box(), page.locator("#layers-1 .scroll").bounding_box()
        assert box is not None
        assert frame is not None
        assert box["width"] <= frame["width"]
        button.click()
        assert panel.count() == 0
        assert button.get_attribute("aria-expanded") == "false"


def test_links_lead_from_hazards_and_chart_to_rows_and_back(browser: Any, digits: Path) -> None:
    with Opened(browser, digits) as opened:
        page = opened.page
        page.locator("#layers-1 input").fill("nothing is called so")
        page.locator(".hazard a", has_text="/norm/variance").click()
        row = page.locator("#row-1-3")
        row.locator(".open[aria-expanded=true]").wait_for()
        assert page.locator("#layers-1 input").input_value() == ""
        assert row.evaluate(
            "row => { const b = row.getBoundingClientRect(); return b.top >= 0 && b.top < innerHeight; }"
        )
        page.locator("#layers-1 .to-chart").click()
        reader = page.locator("[data-chart=layers-1] .reader")
        assert "/norm/variance" in reader.locator("output").inner_text()
        page.keyboard.press("ArrowRight")
        assert "/norm/add_eps" in reader.locator("output").inner_text()
        reader.locator("a").click()
        page.locator("#row-1-4 .open[aria-expanded=true]").wait_for()
        for link in page.locator("nav a").all():
            assert page.locator(str(link.get_attribute("href"))).count() == 1
        opened.check_quiet()
    with Opened(browser, digits, fragment="#row-1-3") as opened:
        opened.page.locator("#row-1-3 .open[aria-expanded=true]").wait_for()


def test_the_keyboard_reaches_everything(browser: Any, digits: Path) -> None:
    with Opened(browser, digits) as opened:
        page = opened.page
        page.locator("#layers-1 input").focus()
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.className") == "open":
                break
        page.keyboard.press("Enter")
        assert page.locator("tr.details").count() == 1
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Space")
        assert page.locator("tr.details").count() == 0


def test_commands_are_copied_without_a_network(browser: Any, digits: Path) -> None:
    with Opened(browser, digits) as opened:
        page = opened.page
        opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
        first = page.locator("[data-copy]").first
        first.locator("button").click()
        first.locator("button", has_text="Copied").wait_for()
        command = first.locator("code").text_content()
        assert command is not None
        assert "precisionlab export" in command
        assert "--format trtexec" in command
        assert page.evaluate("navigator.clipboard.readText()") == command
        # Where a browser gives a file no clipboard, the selection is copied.
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        last = page.locator("[data-copy]").last
        last.locator("button").click()
        last.locator("button", has_text="Copied").wait_for()
        opened.check_quiet()


# Names of strangers


def test_names_of_strangers_do_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    run, variants, layers, plans = report([*HOSTILE, "c"])
    layers[["cause", "reason", "nodes"]] = [[name] * 3 for name in [*HOSTILE, "c"]]
    variants["output"] = variants["metric_name"] = HOSTILE[1]
    run["data"] |= {"folder": HOSTILE[0], "look": {"findings": [
        {"severity": "warning", "input": HOSTILE[1], "text": HOSTILE[1]}]}}  # fmt: skip
    run["model"]["path"] = HOSTILE[1]
    run["folder"] = HOSTILE[4]
    pins = [Pin(name, (name,), Precision.FP32, name) for name in HOSTILE]
    plans["fp16"] = plans["fp16"].with_pins(pins)
    path = written(tmp_path / "report.html", (run, variants, layers, plans))
    for width in WIDTHS:
        with Opened(browser, path, width) as opened:
            page = opened.page
            page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
            check_layout(page)
            for row in page.locator("#layers-1 tbody tr[data-i]").all():
                row.locator(".open").click()
            names = page.locator("#layers-1 th .open").all_text_contents()
            assert {name.replace("\n", "␊").replace("\t", "␉") for name in HOSTILE} <= set(names)
            assert page.locator("img, main script:not([type='application/json'])").count() == 0
            assert violations(page) == []
            opened.check_quiet()


# Size and speed


def large(count: int) -> Report:
    """A run of so many layers in two precisions, with all that a real one has."""
    run, variants, layers, plans = report([f"/encoder/layer.{i}/attention/output/dense/MatMul" for i in range(count)])
    other = layers.copy()
    other["precision"] = other["runs_in"] = "int8"
    for kind in ("introduced", "inherited"):
        for name, value in errors(kind, 31.4159, 0.27182).items():
            other[name] = value
    both = variants[variants.precision == "fp16"].copy()
    both["precision"] = "int8"
    both["variant"] = both["variant"].str.replace("fp16", "int8")
    run["precisions"]["int8"] = {**run["precisions"]["fp16"], "table": "entropy over 48 samples"}
    run["tolerance"]["int8"] = "sqnr>=20"
    return run, pd.concat([variants, both]), pd.concat([layers, other], ignore_index=True), plans


def test_three_hundred_layers_are_a_small_file(tmp_path: Path) -> None:
    assert written(tmp_path / "report.html", large(300)).stat().st_size < 1_000_000


def test_three_thousand_layers_are_painted_within_two_seconds(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "report.html", large(3000))
    with Opened(browser, path) as opened:
        page = opened.page
        painted = page.evaluate(
            """() => new Promise(done => new PerformanceObserver(list => done(list.getEntries()[0].startTime))
                .observe({type: "paint", buffered: true}))"""
        )
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        assert painted < 2000
        assert loaded < 4000  # 0.5 s where nothing else runs
        assert page.locator("#layers-2 output").inner_text() == "3000 of 3000 layers, the first 300 of them shown"
        start = time.monotonic()
        page.locator("#layers-1 input").fill("layer.2999/")
        assert page.locator("#layers-1 output").inner_text() == "1 of 3000 layers"
        page.locator("#layers-1 .open:visible").click()
        assert page.locator("tr.details").count() == 1
        assert time.monotonic() - start < 3
        page.evaluate("location.hash = '#row-1-2500'")
        page.locator("#row-1-2500 .open[aria-expanded=true]").wait_for()
        page.locator("#layers-2 button", has_text="Show all").click()
        assert page.locator("#layers-2 tbody tr:not([hidden])").count() == 3000
        opened.check_quiet()
        print(f"3,000 layers: {path.stat().st_size / 1e6:.1f} MB, painted {painted:.0f} ms, loaded {loaded:.0f} ms")
