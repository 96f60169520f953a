"""The reports in a real browser: real runs, a large one, and one with names of strangers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import Opened, chromium, needs_browser
from models import DIGITS
from test_diff import files
from test_report import HOSTILE, Report, errors, report
from test_report_graph import page_of, scattered, status, title, transformer

from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.plan.plan import Pin
from precisionlab.precision import Precision
from precisionlab.report.cells import records_of
from precisionlab.report.diff import diff_runs, render_diff
from precisionlab.report.folds import Fold, find_folds
from precisionlab.report.graph import read_inputs
from precisionlab.report.html import render
from precisionlab.report.redraw import read_run

pytestmark = needs_browser

PREPARED = Path(__file__).parents[2] / "examples" / "prepared"
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
AUDITED = ((1280, "light"), (390, "dark"))
"""Each width and each scheme once: the width changes no colour, and the scheme nothing else. An audit takes seconds."""

# What is swept of each prepared model: few samples and plans, since only the page is looked at.
REAL: dict[str, dict[str, Any]] = {
    "magika": {"precisions": "fp16", "samples": 2, "max_evaluations": 3},
    "minilm_l3": {"precisions": "fp16", "samples": 2, "max_evaluations": 1},
    "ppocr4_det": {"precisions": "int8,fp16", "samples": 1, "calibration": "max", "tolerance": "sqnr>=1"},
}


@dataclass(frozen=True)
class Run:
    """A real run: its page, and the layers of its first precision in the order of the network."""

    name: str
    page: Path
    layers: pd.DataFrame

    @property
    def folds(self) -> list[Fold]:
        rows = records_of(self.layers)
        return find_folds([str(row["kind"]) for row in rows], read_inputs(rows))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def digits(swept_digits: SweepResult) -> Path:
    assert swept_digits.folder is not None
    return swept_digits.folder / "report.html"


@pytest.fixture
def mended(repaired_digits: SweepResult) -> Path:
    assert repaired_digits.folder is not None
    return repaired_digits.folder / "report.html"


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    name = request.param
    if not (PREPARED / name).exists():
        pytest.skip(f"{name} is not prepared: make models")
    out = tmp_path_factory.mktemp("runs") / name
    sweep(PREPARED / name / f"{name}.onnx", PREPARED / name / "data", out=out, **REAL[name])
    layers = pd.read_csv(out / "layers.csv", dtype={"inputs": str})
    first = layers[layers.precision == layers.precision.iloc[0]]
    return Run(name, out / "report.html", first.sort_values("index").reset_index(drop=True))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in two precisions, beside itself with other ranges and no pins allowed."""
    folder = tmp_path_factory.mktemp("compared")
    for name, changes in (("a", {}), ("b", {"calibration": "max", "max_pins": 0})):
        sweep(DIGITS / "digits.onnx", DIGITS, samples=4, precisions="fp16,int8", out=folder / name, **changes)
    page = folder / "diff.html"
    page.write_text(render_diff(diff_runs(read_run(folder / "a"), read_run(folder / "b"))), encoding="utf-8")
    return page


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
        opened.photograph(f"digits-{width}-{scheme}")
        page.locator("#layers-1 .open").first.click()
        assert (width, scheme) not in AUDITED or violations(page) == []
        check_layout(page)
        opened.check_quiet()
        ink, ground = page.evaluate(
            "(s => [s.color, s.backgroundColor])(getComputedStyle(document.querySelector('.pl')))"
        )
        assert (lightness(ink) > lightness(ground)) == (scheme == "dark")


def lightness(color: str) -> float:
    return sum(float(part) for part in color.removeprefix("rgb(").rstrip(")").split(",")[:3])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_larger_real_runs_can_be_read_by_everybody(
    browser: Any, real: Run, tmp_path: Path, width: int, scheme: str
) -> None:
    with Opened(browser, real.page, width, scheme) as opened:
        page = opened.page
        check_layout(page)
        opened.photograph(f"{real.name}-{width}-{scheme}")
        if (width, scheme) in AUDITED:
            # The rows are alike, and a browser full of them is asked for ten seconds: those of one layer stand for all.
            name = layer_names(page, "#layers-1")[0]
            for table in page.locator("[data-layers]").all():
                table.locator(".tools input").fill(name)
                table.locator(".open:visible").first.click()
            assert violations(page) == []
            check_layout(page)
        opened.check_quiet()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_two_runs_compared_can_be_read_by_everybody(
    browser: Any, compared: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    with Opened(browser, compared, width, scheme) as opened:
        page = opened.page
        check_layout(page)
        opened.photograph(f"diff-{width}-{scheme}")
        assert (width, scheme) not in AUDITED or violations(page) == []
        # Whether B is worse is seen without scrolling sideways.
        for table in page.locator("#verdicts ~ .cards .scroll, #variants ~ .scroll").all():
            assert table.evaluate("t => t.scrollWidth <= t.clientWidth")
        for link in page.locator("nav a").all():
            assert page.locator(str(link.get_attribute("href"))).count() == 1
        opened.check_quiet()


@pytest.mark.parametrize(("width", "scheme"), AUDITED)
def test_the_graph_of_a_repair_can_be_read_by_everybody(browser: Any, mended: Path, width: int, scheme: str) -> None:
    with Opened(browser, mended, width, scheme) as opened:
        page = opened.page
        check_layout(page)
        opened.photograph(f"repaired-{width}-{scheme}")
        assert violations(page) == []
        before, after = page.locator("svg.part").all()
        assert after.locator(".new .what").first.text_content() == "/norm/center_out~scaled"
        for drawing in (before, after):
            frame = drawing.locator("xpath=..").bounding_box()
            assert frame is not None
            assert frame["width"] <= width
            assert all(text.evaluate("t => t.getBBox().width <= 186") for text in drawing.locator("text").all())
            assert drawing.evaluate("s => s.getBoundingClientRect().width === Number(s.getAttribute('width'))")
        page.locator(".repair summary").focus()
        page.keyboard.press("Enter")
        assert not before.is_visible()
        page.keyboard.press("Enter")
        assert before.is_visible()
        page.locator("section[aria-labelledby=repaired] .figures a").first.click()
        page.locator("#row-1-2 .open[aria-expanded=true]").wait_for()
        assert "Inherited repaired" in page.locator("tr.details").inner_text()
        for link in page.locator("nav a").all():
            assert page.locator(str(link.get_attribute("href"))).count() == 1
        opened.check_quiet()


# What can be done with it


def column(page: Any, table: str, place: int) -> list[str]:
    found: list[str] = page.locator(
        f"{table} tbody tr:not([hidden]):not(.details) > :nth-child({place})"
    ).all_inner_texts()
    return [text.strip() for text in found]


def layer_names(page: Any, table: str) -> list[str]:
    """The whole names of the layers that are shown; the eye sees less of them."""
    found: list[str] = page.locator(f"{table} tbody tr:not([hidden]):not(.details) > th").all_text_contents()
    return [text.strip() for text in found]


def key_of(page: Any, table: str, key: str) -> list[str]:
    """The cells of the column with this key."""
    place = page.locator(f"{table} thead th[data-key={key}]").evaluate("head => head.cellIndex + 1")
    return column(page, table, place)


def numbers(page: Any, table: str, head: str) -> list[float]:
    """The finite figures of the column with this head, as they stand."""
    heads = page.locator(f"{table} thead th").all_inner_texts()
    place = 1 + next(n for n, text in enumerate(heads) if head in " ".join(text.split()))
    return [float(text.replace("−", "-")) for text in column(page, table, place) if text[-1].isdigit()]


def test_tables_are_sorted_and_filtered(browser: Any, digits: Path) -> None:
    with Opened(browser, digits) as opened:
        page, table = opened.page, "#layers-1"
        assert column(page, table, 1)[:3] == ["1", "2", "3"]
        page.locator(f"{table} .columns").click()
        page.locator(f"{table} thead button", has_text="Place").click()
        assert key_of(page, table, "index") == [str(n) for n in range(17)]
        page.locator(f"{table} thead button", has_text="Place").click()
        assert key_of(page, table, "index")[0] == "16"
        head = page.locator(f"{table} th", has_text="Place")
        assert head.get_attribute("aria-sort") == "descending"
        page.locator(f"{table} .open").first.click()
        page.locator(f"{table} input").fill("pinned norm")
        assert page.locator(f"{table} output").inner_text() == "4 of 17 layers"
        assert set(layer_names(page, table)) == {"/norm/square", "/norm/variance", "/norm/add_eps", "/norm/std"}
        assert page.locator(f"{table} tr.details").count() == 0
        opened.check_quiet()


def test_a_variant_is_a_row_until_its_outputs_are_asked_for(browser: Any, tmp_path: Path) -> None:
    run, variants, layers, plans = report()
    both = pd.concat([variants.assign(output=name) for name in ("first", HOSTILE[1])])
    rows = both.sort_values("variant", kind="stable")
    with Opened(browser, written(tmp_path / "report.html", (run, rows, layers, plans))) as opened:
        page = opened.page
        assert page.locator(".variants tr.output:visible").count() == 0
        button = page.locator(".variants .unfold").first
        button.click()
        assert button.get_attribute("aria-expanded") == "true"
        assert page.locator(".variants tr.output:visible").count() == 2
        assert violations(page) == []
        button.click()
        assert page.locator(".variants tr.output:visible").count() == 0
        opened.check_quiet()


def test_the_way_to_each_section_stays_in_sight(browser: Any, digits: Path) -> None:
    with Opened(browser, digits) as opened:
        page = opened.page
        page.locator("nav a", has_text="All layers").click()
        nav, head = page.locator("nav").bounding_box(), page.locator("#layers").bounding_box()
        assert nav is not None
        assert head is not None
        assert nav["y"] == 0
        assert nav["height"] <= head["y"] <= 200
        page.locator("#layers-1 input").fill("nothing is called so")
        assert page.locator("#layers-1 output").inner_text() == "Nothing found: 0 of 17 layers"
        assert page.locator("#layers-1 thead abbr").first.get_attribute("title")
        opened.check_quiet()


def test_the_table_of_layers_fits_its_page_a_line_a_row(browser: Any, real: Run) -> None:
    with Opened(browser, real.page) as opened:
        page = opened.page
        frame = page.locator("#layers-1 .opens")
        assert frame.evaluate("f => f.scrollWidth <= f.clientWidth")
        heights = page.locator("#layers-1 tbody tr:not([hidden])").evaluate_all("rows => rows.map(r => r.offsetHeight)")
        assert max(heights) <= 1.5 * min(heights) <= 60
        heads, widths = page.locator("#layers-1 table.layers > thead th"), "heads => heads.map(h => h.offsetWidth)"
        before = heads.evaluate_all(widths)
        page.locator("#layers-1 .open:visible").first.click()
        assert heads.evaluate_all(widths) == before
        seen = page.locator("#layers-1 table.layers > thead th:visible").evaluate_all(
            "heads => heads.map(h => h.dataset.key)"
        )
        measured = real.layers["output_share"].notna().any()
        shares = ["share"] if measured else []
        assert seen == ["rank", "layer", "kind", *shares, "introduced", "inherited", "cause"]
        page.locator("#layers-1 .columns").click()
        assert page.locator("#layers-1 table.layers > thead th:visible").count() == 15
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


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_draws_the_values_of_its_tensors_and_its_error_over_the_samples(
    browser: Any, digits: Path, width: int
) -> None:
    with Opened(browser, digits, width) as opened:
        page = opened.page
        page.locator("#row-1-2 .open").click()
        panel = page.locator("tr.details")
        text = panel.inner_text()
        assert "Output /norm/square_out" in text
        assert "Error over the samples" in text
        assert panel.locator("path.bars.beyond").count() == 1, "what FP16 cannot hold"
        assert panel.locator("path.limit.quantized").count() == 0
        page.locator("#row-1-2 .open").click()
        row = page.locator("#layers-2 tbody tr", has_text="/block1/pointwise/Conv").first
        row.locator(".open").click()
        panel = page.locator("#layers-2 tr.details")
        assert "INT8 input" in panel.inner_text()
        assert "of 127 levels" in panel.inner_text()
        assert panel.locator("path.limit.quantized").count() >= 1
        assert panel.locator("rect.box-plot").count() == 2
        for drawing in panel.locator("figure svg").all():
            box = drawing.bounding_box()
            assert box is not None
            assert box["width"] <= width
        assert violations(page) == []
        opened.check_quiet()


def test_the_chart_is_zoomed_and_follows_the_layer_that_is_read(browser: Any, digits: Path) -> None:
    with Opened(browser, digits) as opened:
        page = opened.page
        chart = page.locator("[data-chart=layers-1]")
        zoom, frame = chart.locator(".zoom"), chart.locator(".scroll")
        before = chart.locator("svg").first.bounding_box()
        for _ in range(3):
            zoom.locator("button", has_text="Zoom in").click()
        after = chart.locator("svg").first.bounding_box()
        assert before is not None
        assert after is not None
        assert after["width"] == pytest.approx(8 * before["width"], rel=0.02)
        assert after["height"] == pytest.approx(before["height"], rel=0.02)
        chart.locator("input").focus()
        page.keyboard.press("End")
        assert frame.evaluate("f => f.scrollLeft + f.clientWidth") > 0.9 * after["width"]
        zoom.locator("output", has_text="to 16").wait_for()  # the page hears of the scrolling a frame later
        page.keyboard.press("Home")
        assert frame.evaluate("f => f.scrollLeft") < after["width"] / 8
        zoom.locator("button", has_text="Whole network").click()
        whole = chart.locator("svg").first.bounding_box()
        assert whole is not None
        assert (whole["width"], whole["height"]) == pytest.approx((before["width"], before["height"]))
        opened.check_quiet()


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


def test_tables_of_larger_runs_are_sorted_and_filtered(browser: Any, real: Run) -> None:
    with Opened(browser, real.page) as opened:
        page, table, count = opened.page, "#layers-1", len(real.layers)
        page.locator(f"{table} .columns").click()
        page.locator(f"{table} thead button", has_text="Place").click()
        assert key_of(page, table, "index") == [str(n) for n in range(count)]
        assert layer_names(page, table) == list(real.layers["layer"])
        page.locator(f"{table} thead [data-key=introduced] button").click()
        shown = numbers(page, table, "Introduced, dB")
        assert shown == sorted(shown)
        assert len(shown) > count / 5
        last = real.layers.iloc[-1]
        page.locator(f"{table} .tools input").fill(last["layer"])
        assert last["layer"] in layer_names(page, table)
        assert page.locator(f"{table} output").inner_text().endswith(f" of {count} layers")
        opened.check_quiet()


@pytest.mark.parametrize("width", WIDTHS)
def test_links_of_larger_runs_lead_to_rows(browser: Any, real: Run, width: int) -> None:
    with Opened(browser, real.page, width) as opened:
        page = opened.page
        for link in page.locator(".hazard a").all()[:2]:
            link.click()
            row = page.locator(str(link.get_attribute("href")))
            row.locator(".open[aria-expanded=true]").wait_for()
            assert str(link.text_content()) in str(row.text_content())
        page.locator("#layers-1 input").fill("nothing is called so")
        reader = page.locator("[data-chart=layers-1] .reader")
        reader.locator("input").focus()
        page.keyboard.press("End")
        last = len(real.layers) - 1
        assert reader.locator("output").inner_text().startswith(f"{last}: {real.layers['layer'][last]}")
        reader.locator("a").click()
        row = page.locator(f"#row-1-{last}")
        row.locator(".open[aria-expanded=true]").wait_for()
        top = row.evaluate("row => row.getBoundingClientRect().top")
        assert 0 <= top < 900
        opened.check_quiet()


def layers_shown(page: Any) -> str:
    """What the graph says of its layers, without the model's inputs and outputs."""
    return status(page).partition(" Besides")[0]


def test_repeated_blocks_of_larger_runs_fold_and_open(browser: Any, real: Run) -> None:
    folds, count = real.folds, len(real.layers)
    assert [(fold.size, fold.times) for fold in folds] == {
        "magika": [],
        "minilm_l3": [(54, 3)],
        "ppocr4_det": [(22, 3), (7, 8), (7, 5)],
    }[real.name]
    folded = f"{count - sum(fold.end - fold.start for fold in folds) + len(folds)} nodes shown for {count} layers."
    everything = f"All {count} layers shown."
    with Opened(browser, real.page) as opened:
        page = opened.page
        assert layers_shown(page) == (folded if folds else everything)
        canvas = page.locator("[data-graph] canvas")
        for fold in folds:
            inside = str(real.layers["layer"][fold.start + fold.size])
            page.locator("[data-graph] input").fill(inside)
            page.locator("[data-of=list] button", has=page.locator(f"bdi:text-is({inside!r})")).click()
            assert title(page) == inside
            assert layers_shown(page) != folded
            canvas.focus()
            page.keyboard.press("Escape")
            assert title(page) == f"block 2 of {fold.times}"
            page.keyboard.press("Enter")
            assert title(page) == str(real.layers["layer"][fold.start + fold.size])
            page.keyboard.press("Escape")
            page.keyboard.press("Escape")
            assert title(page) == f"{fold.times} × {fold.size} layers"
            assert layers_shown(page) == folded
        if folds:
            page.locator("[data-do=unfold]").click()
            assert layers_shown(page) == everything
            page.locator("[data-do=fold]").click()
            assert layers_shown(page) == folded
        opened.check_quiet()


def test_the_graph_of_larger_runs_is_walked_by_keyboard(browser: Any, real: Run) -> None:
    with Opened(browser, real.page, 390) as opened:
        page = opened.page
        page.locator("[data-graph] canvas").focus()
        seen = []
        for key in ("Home", *["ArrowDown"] * 6, "End"):
            page.keyboard.press(key)
            seen.append(title(page))
        assert len(set(seen)) == len(seen)
        page.keyboard.press("ArrowUp")  # from an output of the model to the layer that gives it
        page.locator("[data-of=details] a").click()
        assert title(page) in str(page.locator("#layers-1 tr.shown").text_content())
        opened.check_quiet()


def test_layers_compared_are_sorted_and_filtered(browser: Any, compared: Path) -> None:
    with Opened(browser, compared) as opened:
        page, table = opened.page, "[data-layers]"
        count = page.locator(f"{table} tbody tr").count()
        assert count > 5
        page.locator(f"{table} thead button", has_text="Inherited, B").click()
        shown = numbers(page, table, "Inherited, B")
        assert shown == sorted(shown)
        page.locator(f"{table} input").fill("int8 worse")
        kept = page.locator(f"{table} tbody tr:not([hidden])").all_inner_texts()
        assert 0 < len(kept) < count
        assert all("INT8" in text and "worse" in text for text in kept)
        assert page.locator(f"{table} output").inner_text() == f"{len(kept)} of {count} layers"
        opened.check_quiet()


@pytest.mark.parametrize("letters", [100, 450, 1900, 2500])
def test_a_command_that_scrolls_can_be_scrolled_by_keyboard(browser: Any, tmp_path: Path, letters: int) -> None:
    """How many lines it takes on a narrow screen hangs on the paths in it."""
    found = report()
    found[0]["model"]["path"] = "m" * letters + ".onnx"
    with Opened(browser, written(tmp_path / "report.html", found), 320) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        scrolls = "[...document.querySelectorAll('.command pre')].filter(p => p.scrollHeight > p.clientHeight)"
        assert opened.page.evaluate("document.querySelectorAll('.command pre').length") > 3
        assert opened.page.evaluate(f"{scrolls}.length") or letters < 2000
        assert opened.page.evaluate(f"{scrolls}.filter(p => p.tabIndex < 0).map(p => p.innerText.length)") == []


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


def test_names_of_strangers_do_nothing_on_a_page_that_compares(browser: Any, tmp_path: Path) -> None:
    runs = []
    for number, name in enumerate(("a", HOSTILE[1])):
        run, variants, layers, plans = report([*HOSTILE, "c"])
        layers["kind"] = variants["output"] = HOSTILE[1]
        layers["introduced_sqnr_db"] = 40.0 + number
        run["data"]["name"] = HOSTILE[number]
        plans["fp16"] = plans["fp16"].with_pins([Pin(one, (one,), Precision.FP32, one) for one in HOSTILE[number:]])
        runs.append(files((run, variants, layers, plans), name))
    (tmp_path / "diff.html").write_text(render_diff(diff_runs(*runs)), encoding="utf-8")
    for width in WIDTHS:
        with Opened(browser, tmp_path / "diff.html", width) as opened:
            page = opened.page
            page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
            check_layout(page)
            names = page.locator("[data-layers] tbody th").all_text_contents()
            assert {name.replace("\n", "␊").replace("\t", "␉") for name in HOSTILE} <= set(names)
            assert page.locator("img, main script").count() == 0
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


def test_three_thousand_layers_are_filtered_opened_and_linked_to(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, written(tmp_path / "report.html", large(3000))) as opened:
        page = opened.page
        assert page.locator("#layers-2 output").inner_text() == "3000 of 3000 layers, the first 300 of them shown"
        page.locator("#layers-1 input").fill("layer.2999/")
        assert page.locator("#layers-1 output").inner_text() == "1 of 3000 layers"
        page.locator("#layers-1 .open:visible").click()
        assert page.locator("tr.details").count() == 1
        page.evaluate("location.hash = '#row-1-2500'")
        page.locator("#row-1-2500 .open[aria-expanded=true]").wait_for()
        page.locator("#layers-2 button", has_text="Show all").click()
        assert page.locator("#layers-2 tbody tr:not([hidden])").count() == 3000
        opened.check_quiet()


@pytest.mark.parametrize("shape", ["blocks", "tangle"])
def test_a_graph_of_three_thousand_layers_is_unfolded_and_walked(browser: Any, tmp_path: Path, shape: str) -> None:
    kinds, inputs = transformer(500) if shape == "blocks" else (["Conv"] * 3000, scattered(3000, 30))
    path = tmp_path / "report.html"
    path.write_text(page_of(kinds, inputs), encoding="utf-8")
    with Opened(browser, path) as opened:
        page = opened.page
        page.locator("[data-do=unfold]").click()
        assert status(page) == f"All {len(kinds)} layers shown."
        page.locator("[data-do=fit]").click()
        page.locator("[data-of=list] button").nth(5).click()
        opened.check_quiet()
