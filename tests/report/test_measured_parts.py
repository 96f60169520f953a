"""Each layer by itself and the time of kernels, on the page: figures as they were measured, names as text alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import Opened, chromium, needs_browser
from test_kernel_times import KERNELS, facts_of
from test_report import HOSTILE, NAN, Page, facts, report

from precisionlab.report.each_layer import by_itself
from precisionlab.report.html import render


def each(**changes: Any) -> dict[str, Any]:
    """What run.json says of each layer by itself."""
    low = {"sqnr": -0.3, "nonfinite": 2, "metric": 0.25}
    found = {"samples": 8, "metric": "accuracy", "higher_is_better": True, "reference": {"metric": 1.0}, "low": low}
    return {**found, **changes}


def alone(on: float | None, off: float | None, metric: float = 1.0) -> dict[str, Any]:
    """The cells of a layer by itself, in dB; None was not measured, NaN was."""
    found: dict[str, Any] = {"each_samples": 8}
    for prefix, sqnr in (("one_on", on), ("one_off", off)):
        there = sqnr is not None
        found |= {
            f"{prefix}_sqnr_db": sqnr if there else NAN,
            f"{prefix}_metric": metric if there else NAN,
            f"{prefix}_nonfinite": 0 if there else None,
        }
    return found


CELLS = (alone(70.0, 1.0), alone(NAN, 40.0, 0.5), alone(55.0, None), alone(None, None))


def page_of(names: list[str] | None = None, metric: str = "accuracy") -> str:
    run, variants, layers, plans = report(names)
    rows = [{**row, **cells} for row, cells in zip(layers.to_dict("records"), CELLS, strict=True)]
    kernels = dict(zip([*(names or []), *KERNELS], KERNELS.values(), strict=False))
    own = {**run["precisions"]["fp16"], "each_layer": each(metric=metric)}
    own |= {"engine": {"met": True, "builds": 2, "notes": [], "warnings": [], "pins": [], "times": facts_of(kernels)}}
    engines = {"backend": "tensorrt", "device": "a GPU", "tensorrt": "10.3.0", "measured": True}
    changed = facts(precisions={"fp16": own}, engines=engines, fp32_times=facts_of(KERNELS))
    return render({**run, **changed}, variants, pd.DataFrame(rows), plans)


def test_each_layer_stands_with_its_figures_and_what_was_not_measured_is_a_dash() -> None:
    page = Page(page_of())
    assert ["Conv_0", "", "70.0", "1.000", "1.0", "1.000"] in page.rows
    assert ["LayerNorm_1/Sum_1", "", "NaN", "0.500", "40.0", "0.500"] in page.rows
    assert ["Tanh_2", "", "55.0", "1.000", "–", "–"] in page.rows
    assert "On 8 samples, FP16 throughout comes to −0.3 dB, accuracy 0.250" in page.text
    assert "3 layers, of 4 in all: the others there was no time for" in page.text


def view_of(cells: tuple[dict[str, Any], ...], **changes: Any) -> Any:
    _, _, layers, _ = report()
    rows = [{**row, **own} for row, own in zip(layers.to_dict("records"), cells, strict=False)]
    return by_itself(each(**changes), rows, "FP16")


def test_the_strip_shows_the_metric_where_it_tells_layers_apart_and_else_the_sqnr() -> None:
    found = view_of(CELLS)
    assert (found.figure, found.low, found.high) == ("accuracy", "0.25", "1")
    assert [row.on for row in found.rows if row.layer == "Conv_0"] == [100.0]
    alike = view_of((alone(70.0, 1.0), alone(20.0, 1.0)))
    assert alike.figure == "SQNR, dB"
    assert sorted(row.on for row in alike.rows) == pytest.approx([28.9, 100.0], abs=0.1)
    without = view_of((alone(70.0, 1.0),), metric=None, reference={"metric": None})
    assert (without.metric, without.reference, without.figure) == ("", "", "SQNR, dB")


@pytest.mark.parametrize(("higher", "place"), [(True, 0.0), (False, 100.0)])
def test_what_is_no_number_stands_at_the_worse_end(higher: bool, place: float) -> None:
    cells = ({**alone(50.0, 50.0), "one_on_metric": NAN}, alone(60.0, 60.0, 0.5), alone(60.0, 60.0, 0.75))
    found = view_of(cells, higher_is_better=higher)
    (row,) = (row for row in found.rows if row.layer == "Conv_0")
    assert (row.on, row.on_metric) == (place, "NaN")


@pytest.mark.parametrize("facts_", [None, {}])
def test_nothing_is_made_of_a_run_that_did_not_measure_it(facts_: dict[str, Any] | None) -> None:
    _, _, layers, _ = report()
    assert by_itself(facts_, layers.to_dict("records"), "FP16") is None
    assert by_itself(each(), layers.to_dict("records"), "FP16") is None


@pytest.mark.parametrize("name", HOSTILE[:3])
def test_names_of_strangers_are_text_there_too(name: str) -> None:
    plain = Page(page_of(["a", "b", "c", "d"]))
    hostile = Page(page_of([name, f"{name}1", f"{name}2", f"{name}3"], name))
    loud = ("script", "img", "iframe", "object", "style", "link", "base", "form")
    assert [tag for tag, _ in hostile.tags if tag in loud] == [tag for tag, _ in plain.tags if tag in loud]
    assert not any(str(key).startswith("on") for _, attributes in hostile.tags for key in attributes)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.thorough
@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_they_can_be_read_by_everybody(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    (tmp_path / "report.html").write_text(page_of([f"a/long/name/{i}" * 9 for i in range(4)]), encoding="utf-8")
    with Opened(browser, tmp_path / "report.html", width, scheme) as opened:
        opened.photograph(f"measured-{width}-{scheme}")
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert [found["id"] for found in Axe().run(opened.page).response["violations"]] == []
        opened.check_quiet()
