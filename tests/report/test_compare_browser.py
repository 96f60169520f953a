"""The page of a second model beside the first, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Opened, chromium, needs_browser
from models import DIGITS, proto

from precisionlab.jobs.compare import compare

pytestmark = [needs_browser, pytest.mark.thorough]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits.onnx beside a copy with other weights and a long name of a stranger's."""
    folder = tmp_path_factory.mktemp("compared")
    model = onnx.load(DIGITS / "digits.onnx")
    for weight in model.graph.initializer:
        if len(weight.dims) == 4:
            array = onnx.numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    name = "<b>" + "very long/" * 40
    inner = model.graph.node[6].output[0]
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [f"{name}{value}" if value == inner else value for value in values]
    onnx.save_model(model, folder / "other.onnx")
    compare(DIGITS / "digits.onnx", folder / "other.onnx", DIGITS, samples=8, out=folder / "out")
    return folder / "out" / "compare.html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_can_be_read_by_everybody(browser: Any, page: Path, width: int, scheme: str) -> None:
    with Opened(browser, page, width, scheme) as opened:
        opened.photograph(f"compare-{width}-{scheme}")
        assert [found["id"] for found in Axe().run(opened.page).response["violations"]] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        opened.check_quiet()


def test_the_layers_can_be_sorted_and_filtered(browser: Any, page: Path) -> None:
    with Opened(browser, page) as opened:
        section = opened.page.locator("[data-layers]")
        section.locator(".tools input").fill("gemm")
        assert section.locator("output").text_content() == "1 of 17 layers"
        section.locator(".tools input").fill("")
        section.locator("thead button", has_text="Introduced").last.click()
        figures = section.locator(".sortable tbody td:nth-child(3)").all_text_contents()
        numbers = [float("inf") if text == "∞" else float(text) for text in figures]
        assert numbers == sorted(numbers)


def test_a_proto_without_layers_that_differ_has_a_page_too(tmp_path: Path, browser: Any) -> None:
    model = proto("(float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    onnx.save_model(model, tmp_path / "model.onnx")
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "0.npz", x=np.ones((1, 2), np.float32))
    compare(tmp_path / "model.onnx", tmp_path / "model.onnx", tmp_path / "data", out=tmp_path / "out")
    with Opened(browser, tmp_path / "out" / "compare.html") as opened:
        assert "right: the second model is within" in str(opened.page.text_content("main"))
        opened.check_quiet()
