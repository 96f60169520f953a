"""The HTML report of a calibration, on histograms made by hand."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import Opened, chromium, needs_browser
from models import DIGITS
from test_report import HOSTILE, Page

from precisionlab.calibration.histogram import BINS, Histogram, histogram_of
from precisionlab.evaluate.ranges import MeasuredRanges
from precisionlab.jobs.calibrate import calibrate
from precisionlab.report.calibration import render_calibration
from precisionlab.report.cells import short_percent
from precisionlab.report.sparkline import COLUMNS, Sparkline, sparkline

NAN, INF = math.nan, math.inf
WARNINGS = (
    "Few samples",
    "Never held an element",
    "NaN or Inf",
    "No finite value",
    "Zero throughout",
    "values clipped",
    "of the 128 levels",
)

Report = tuple[dict[str, Any], pd.DataFrame, dict[str, Histogram]]


def spread(exponent: int = 0, each: int = 100) -> Histogram:
    """As many values in each bin of [0, 2^exponent)."""
    return Histogram(np.full(BINS, each, np.int64), exponent, amax=math.ldexp(1 - 2**-20, exponent))


def row(name: str, histogram: Histogram, amax: float, **changes: Any) -> dict[str, Any]:
    """A row of ranges.csv."""
    clipped = histogram.clipped(amax)
    return {
        "tensor": name, "method": "entropy", "amax": amax, "scale": amax / 127, "largest": histogram.amax,
        "count": histogram.count, "zeros": histogram.zeros, "nonfinite": histogram.nonfinite, "clipped": clipped,
        "clipped_share": clipped / histogram.count if histogram.count else 0.0, "levels_used": 120,
        "entropy": amax, "percentile": amax, "mse": amax, "max": amax, "disagreement": 1.0, "operand": True,
        **changes,
    }  # fmt: skip


def facts(**changes: Any) -> dict[str, Any]:
    """What `Fingerprint.facts` gives."""
    return {
        "schema": 1,
        "cache": {"sha256": "ee" * 32, "tensorrt": "10.16.1"},
        "model": {"path": "models/my model.onnx", "sha256": "ab" * 32},
        "data": {"folder": "calib data", "sha256": "cd" * 32, "samples": 64, "skipped": 0},
        "method": "entropy",
        "versions": {"precisionlab": "0.1.0", "onnx": "1.17.0"},
        **changes,
    }


def report(*rows: dict[str, Any], **changes: Any) -> Report:
    """A report of one tensor that nothing can be said against, and of the rows given."""
    histograms = {"good": spread()}
    return facts(**changes), pd.DataFrame([row("good", spread(), spread().amax), *rows]), histograms


def page(*rows: dict[str, Any], **changes: Any) -> Page:
    return Page(render_calibration(*report(*rows, **changes)))


def warned(shown: Page) -> set[str]:
    """The warnings of a page; its table heads and explanations use other words."""
    head = shown.text[: shown.text.index("Ranges that look well")]
    return {warning for warning in WARNINGS if warning in head}


# Head and warnings


def test_head_says_what_it_was_made_from() -> None:
    shown = page(row("other", spread(), 0.5, operand=False))
    for text in (
        "models/my model.onnx", "ab" * 32, "64 samples in calib data", "cd" * 32, "for TensorRT 10.16.1",
        "2; 1 feeds INT8 layers", "entropy : the range that loses the least information", "onnx 1.17.0",
    ):  # fmt: skip
        assert text in shown.text


def test_nothing_to_object_to() -> None:
    shown = page()
    assert "Nothing in the data speaks against them" in shown.text
    assert warned(shown) == set()
    assert "No value lies beyond its tensor’s range" in shown.text
    assert "all methods give the same range" in shown.text


BAD: Mapping[str, dict[str, Any]] = {
    "NaN or Inf": row("bad", histogram_of(np.array([1, 2, NAN, INF], np.float32)), 2.0),
    "Never held an element": row("bad", histogram_of(np.zeros(0, np.float32)), 0.0, disagreement=NAN, levels_used=1),
    "Zero throughout": row("bad", histogram_of(np.zeros(5, np.float32)), 0.0, disagreement=NAN, levels_used=1),
    "values clipped": row("bad", spread(), 0.98),
    "of the 128 levels": row("bad", spread(), spread().amax, levels_used=31),
}


@pytest.mark.parametrize("warning", BAD)
def test_each_warning_appears_alone_and_names_its_tensor(warning: str) -> None:
    shown = page(BAD[warning])
    assert warned(shown) == {warning}
    assert "Look at this before you trust them" in shown.text
    text = shown.text[: shown.text.index("Ranges that look well")]
    assert "1 tensor." in text
    assert "bad" in text
    assert "good" not in text


ALL_NAN = row("bad", histogram_of(np.array([NAN], np.float32)), 0.0, disagreement=NAN, levels_used=1)


def test_nothing_but_nan_is_no_finite_value_and_yet_held() -> None:
    assert warned(page(ALL_NAN)) == {"NaN or Inf", "No finite value"}


def test_the_borders_of_the_warnings() -> None:
    fine = [
        row("a", spread(), 0.99 + 1 / BINS),  # just less than 1 % clipped
        row("b", spread(), 1.0, levels_used=32),
    ]
    assert warned(page(*fine)) == set()
    assert warned(page(data={"samples": 15, "folder": "d"})) == {"Few samples"}
    assert warned(page(data={"samples": 16, "folder": "d"})) == set()
    assert "Few samples: 15." in page(data={"samples": 15, "folder": "d"}).text


def test_all_warnings_at_once_are_counted() -> None:
    rows = [bad | {"tensor": f"t{i}"} for i, bad in enumerate([*BAD.values(), ALL_NAN])]
    shown = page(*rows, data={"samples": 3, "folder": "d"})
    assert warned(shown) == set(WARNINGS)
    assert "Look at these 7 points before you trust them" in shown.text


def test_tensors_that_feed_no_int8_layer_raise_no_alarm() -> None:
    rows = [bad | {"tensor": f"t{i}", "operand": False} for i, bad in enumerate([*BAD.values(), ALL_NAN])]
    shown = page(*rows)
    assert "Nothing in the data speaks against them" in shown.text
    assert "6 notes on tensors that feed no INT8 layer: no alarm" in shown.text
    assert not any(a.get("class") == "banner" for _, a in shown.tags)
    assert "notes on tensors" not in page().text


def test_what_auto_measured_is_shown_with_what_it_took() -> None:
    measured = [MeasuredRanges("entropy", 8.12, 8.2, False), MeasuredRanges("mse", 18.9, NAN, True)]
    shown = Page(render_calibration(*report(method="auto"), measured))
    assert shown.row("entropy") == ["entropy", "8.1", "8.2", "–"]
    assert shown.row("mse") == ["mse", "18.9", "NaN", "✓ taken"]
    assert "What auto measured" not in page().text


def test_paths_in_commands_are_absolute_where_it_is_known_what_they_are_below() -> None:
    text = Page(render_calibration(*report(cache="runs/a.cache"), started_in=PurePosixPath("/work"))).text
    assert "precisionlab cache lint /work/runs/a.cache --model '/work/models/my model.onnx'" in text
    assert "precisionlab sweep '/work/models/my model.onnx' --data '/work/calib data' --precisions int8" in text


def test_a_warning_names_the_worst_first_and_counts_the_rest() -> None:
    rows = [row(f"t{i}", spread(), 0.5 - i / 100, operand=i != 6) for i in range(7)]
    text = page(*rows).text
    text = text[: text.index("Ranges that look well")]
    assert "6 tensors." in text
    assert re.findall(r"\bt\d", text) == ["t5", "t4", "t3", "t2", "t1", "t6"]
    assert "and 1 more in the table of all tensors" in text


def test_random_data_is_warned_of() -> None:
    assert "Random data." not in page().text
    shown = page(data={"folder": None, "sha256": "", "samples": 64, "skipped": 0})
    assert "Random data." in shown.text
    assert "Do not use them" in shown.text


def test_facts_that_are_missing_are_left_out() -> None:
    shown = Page(render_calibration({}, *report()[1:]))
    assert warned(shown) == set()
    assert "Random data." not in shown.text
    assert "precisionlab cache lint FILE --model MODEL" in shown.text
    assert "TensorRT None" not in shown.text


def test_a_model_without_tensors_has_a_page() -> None:
    assert "There are no ranges" in Page(render_calibration(facts(), pd.DataFrame([]), {})).text


# Figures


def table_row(shown: Page, name: str) -> list[str]:
    """The row of the table of all tensors."""
    return next([c.strip() for c in cells] for cells in shown.rows if len(cells) > 10 and cells[1].strip() == name)


def test_figures_of_a_row() -> None:
    values = np.array([0, 0, 0, 0.25, 0.5, 1, 2, 4, NAN, -INF], np.float32)
    rows = row("x", histogram_of(values), 1.5, max=4.0, mse=3.0, disagreement=4 / 1.5, operand=False, levels_used=40)
    assert table_row(page(rows), "x") == [
        "1", "x", "–", "–", "entropy", "1.5", "0.0118", "4", "25 clipped", "40", "37.5", "2 not finite",
        "1.5", "1.5", "3", "4", "2.67",
    ]  # fmt: skip


def test_nonfinite_figures_are_shown_as_such_and_absent_ones_as_dashes() -> None:
    rows = row("x", spread(), NAN, scale=INF, max=INF, disagreement=NAN)
    cells = table_row(page(rows), "x")
    assert cells[5:7] == ["NaN", "∞"]
    assert cells[-2:] == ["∞", "–"]
    empty = row("x", histogram_of(np.zeros(0, np.float32)), 0.0, levels_used=1, disagreement=NAN)
    assert table_row(page(empty), "x")[8:11] == ["–", "1", "–"]  # no share of nothing


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (NAN, "NaN"), (0.0, "0"), (1.0, "100"), (0.99996, "99.9"), (0.01234, "1.23"), (1e-7, "1e−05")],
)
def test_percent(share: float | None, text: str) -> None:
    assert short_percent(share) == text


def test_methods_that_disagree_most_come_first_and_operands_before_them() -> None:
    rows = [
        row(f"t{i}", spread(), 0.5, max=1.0, disagreement=2.0 + i, operand=i % 2 == 0, method="max") for i in range(12)
    ]
    rows.append(row("none", histogram_of(np.zeros(3, np.float32)), 0.0, disagreement=NAN))
    run, ranges, histograms = report(*rows)
    histograms |= {f"t{i}": spread() for i in range(12)}
    shown = Page(render_calibration(run, ranges, histograms))
    found = [[c.strip() for c in cells] for cells in shown.rows if len(cells) == 8]
    assert [cells[0] for cells in found[1:]] == ["t10", "t8", "t6", "t4", "t2", "t0", "t11", "t9", "t7", "t5"]
    assert found[1][3] == "12"
    assert found[1][4:] == ["0.5clips 50 %"] * 3 + ["1 (in use)clips 0 %"]


def test_an_older_table_without_a_method_can_be_drawn() -> None:
    run, ranges, histograms = report()
    assert "Range by mse" not in Page(render_calibration(run, ranges.drop(columns="mse"), histograms)).text


def test_auto_says_which_methods_were_taken() -> None:
    shown = page(row("a", spread(), 1.0, method="mse"), row("b", spread(), 1.0, method="mse"), method="auto")
    assert "mse for 2 tensors, entropy for 1 tensor" in shown.text


# Pictures


def picture(histogram: Histogram, amax: float) -> Sparkline:
    drawn = sparkline(histogram, amax)
    assert drawn is not None
    return drawn


def strokes(drawn: Sparkline) -> list[tuple[float, int]]:
    return [(float(x), int(h)) for x, h in re.findall(r"M([\d.]+) 28v-(\d+)", drawn.clipped)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.99])
def test_threshold_stands_where_the_range_ends(share: float) -> None:
    histogram = spread(3)
    drawn = picture(histogram, share * histogram.amax)
    assert drawn.threshold == pytest.approx(1 + share * 2 * COLUMNS, abs=0.06)
    assert all(x > 1 + share * 2 * COLUMNS for x, _ in strokes(drawn))
    ends = [float(x) for x in re.findall(r"H([\d.]+)", drawn.kept)]
    assert max(ends, default=1.0) == pytest.approx(1 + share * 2 * COLUMNS, abs=0.06)
    assert len(strokes(drawn)) == COLUMNS - math.floor(share * COLUMNS)


def test_nothing_beyond_the_largest_value() -> None:
    drawn = picture(spread(), spread().amax)
    assert drawn.threshold == 1 + 2 * COLUMNS
    assert drawn.clipped == ""
    assert drawn.kept == f"M1 28V1H{1 + 2 * COLUMNS}V28z"
    assert "nothing lies beyond" in drawn.words


def test_heights_are_logarithmic_and_a_single_value_is_seen() -> None:
    bins = np.zeros(BINS, np.int64)
    bins[0], bins[2048], bins[4095] = 999_999, 999, 1
    drawn = picture(Histogram(bins, 0, amax=4095.5 / 4096), 0.25)
    assert drawn.kept.startswith("M1 28V1H3V28")
    assert [h for _, h in strokes(drawn)] == [round(27 * 3 / 6), 1]


def test_exact_zeros_are_not_drawn() -> None:
    bins = np.zeros(BINS, np.int64)
    bins[0], bins[4095] = 1000, 5
    assert picture(Histogram(bins, 0, amax=0.9999, zeros=1000), 0.9999).kept == "M1 28H127V1H129V28z"


def test_zeros_alone_have_no_picture() -> None:
    assert sparkline(histogram_of(np.zeros(9, np.float32)), 0.0) is None
    run, ranges, histograms = report(row("dead", histogram_of(np.zeros(9, np.float32)), 0.0, disagreement=NAN))
    histograms["dead"] = histogram_of(np.zeros(9, np.float32))
    assert table_row(Page(render_calibration(run, ranges, histograms)), "dead")[2] == "zero throughout"


@pytest.mark.parametrize("amax", [NAN, INF, -1.0, 7.0])
def test_a_range_that_is_not_on_the_picture_is_not_drawn(amax: float) -> None:
    drawn = picture(spread(), amax)
    assert drawn.threshold is None
    assert drawn.clipped == ""
    assert "outside the picture" in drawn.words


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1.0, 3.4e38])
def test_any_float32_can_be_drawn(value: float) -> None:
    histogram = histogram_of(np.array([value, -value, value / 2], np.float32))
    for share in (0.3, 1.0):
        drawn = picture(histogram, share * histogram.amax)
        assert "nan" not in drawn.kept + drawn.clipped
        assert drawn.kept or drawn.clipped


def test_words_say_what_the_picture_shows() -> None:
    words = picture(spread(1), 0.5).words
    assert words == (
        "Histogram of the magnitudes up to 2. The range ends at 25 % of that; 75 % of the values lie beyond."
    )
    run, ranges, histograms = report(row("x", spread(1), 0.5))
    shown = Page(render_calibration(run, ranges, histograms | {"x": spread(1)}))
    assert any(a.get("role") == "img" and a.get("aria-label") == words for tag, a in shown.tags if tag == "svg")


# What to do now


def test_commands_name_the_cache() -> None:
    text = page(cache={"path": "my runs/it's.cache", "tensorrt": "8.6.1"}).text
    quoted = "'my runs/it'\"'\"'s.cache'"
    assert f"precisionlab cache lint {quoted} --model 'models/my model.onnx'" in text
    assert f"--int8 --calib={quoted}" in text
    assert f"--calibration-cache {quoted}" in text
    assert 'Cached("my runs/it\'s.cache")' in text
    assert "precisionlab sweep 'models/my model.onnx' --data 'calib data' --precisions int8" in text


def test_the_python_snippet_is_python() -> None:
    html = render_calibration(*report(cache="a.cache"))
    code = next(text for text in Page(html).texts if "IInt8EntropyCalibrator2" in text)
    compile(code, "snippet", "exec")
    assert "read_calibration_cache" in code


# Safety


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_are_text(name: str) -> None:
    def draw(name: str) -> str:
        bad = row(name, spread(), 0.5, max=1.0, disagreement=2.0, levels_used=3, method=name)
        run = facts(
            model={"path": name, "sha256": name}, data={"folder": name, "sha256": name, "samples": 3, "skipped": 2},
            cache={"path": name, "tensorrt": name}, method=name, versions={name: name},
        )  # fmt: skip
        return render_calibration(run, pd.DataFrame([bad]), {name: spread()})

    shown, plain = Page(draw(name)), Page(draw("plain"))
    assert name.replace("\n", "␊").replace("\t", "␉") in "".join(shown.texts)
    assert [tag for tag, _ in shown.tags] == [tag for tag, _ in plain.tags]
    assert not any(key.startswith("on") for _, attributes in shown.tags for key in attributes)


def test_a_path_that_is_not_utf8_can_be_written() -> None:
    html = render_calibration(*report(cache="calib\udce9.cache", model={"path": "mod\udce9le.onnx"}))
    assert "mod\\udce9le.onnx" in html.encode().decode()


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run() -> None:
    html = render_calibration(*report(row("x", spread(), 0.5)))
    shown = Page(html)
    assert not re.search(r"https?://|url\(|@import|<link|<img|<iframe| src=", html)
    policy = next(a["content"] for _, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(script) == 1
    assert policy is not None
    assert "default-src 'none'" in policy
    assert base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode() in policy


def test_ids_are_unique_headers_have_scope_and_links_lead_somewhere() -> None:
    shown = page(row("x", spread(), 0.5, max=1.0, disagreement=2.0), row("x2", spread(), 0.5))
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in shown.tags if tag == "th")
    assert {str(a["href"])[1:] for _, a in shown.tags if "href" in a} - {"ranges.csv"[1:]} <= set(ids)


def test_the_same_page_from_a_file() -> None:
    run, ranges, histograms = report(*BAD.values())
    again = pd.read_csv(io.StringIO(ranges.to_csv(index=False)))
    assert render_calibration(run, again, histograms) == render_calibration(run, ranges, histograms)


@pytest.mark.slow
def test_seven_hundred_tensors_stay_small() -> None:
    rng = np.random.default_rng(0)
    names = [f"/encoder/layer.{i}/attention/output/dense/MatMul_output_0" for i in range(700)]
    jagged = {n: Histogram(rng.integers(0, 10**9, BINS) ** 2, 0, amax=0.9999) for n in names}
    rows = [row(n, h, 0.123456789, max=0.9999, disagreement=8.1, levels_used=3) for n, h in jagged.items()]
    html = render_calibration(facts(), pd.DataFrame(rows), jagged)
    assert html.count('class="hist"') > 700
    assert len(html.encode()) < 3_000_000


@pytest.mark.thorough
@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_of_a_real_calibration_can_be_read_by_everybody(tmp_path: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    calibrate(DIGITS / "digits.onnx", DIGITS, samples=8, tensorrt="8.6.1", out=tmp_path)
    with chromium() as browser, Opened(browser, tmp_path / "calibration.html", width, scheme) as opened:
        opened.photograph(f"calibration-{width}-{scheme}")
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert [found["id"] for found in Axe().run(opened.page).response["violations"]] == []
        opened.check_quiet()
