"""Results in a notebook, in a real browser, under the style that JupyterLab gives to outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Opened, chromium, needs_browser
from models import DIGITS

import precisionlab
from precisionlab.jobs.result import SweepResult

pytestmark = [needs_browser, pytest.mark.thorough]

LAB = Path(__file__).parent / "jupyterlab"
"""JupyterLab's own style of outputs that are HTML, and its two themes."""


def jupyterlab(theme: str = "light") -> str:
    return "".join((LAB / name).read_text() for name in (f"theme-{theme}.css", "rendermime.css"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def results(swept_digits: SweepResult, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    assert swept_digits.folder is not None
    model = DIGITS / "digits.onnx"
    return {
        "sweep": swept_digits,
        "calibrate": precisionlab.calibrate(model, DIGITS, samples=8, tensorrt="8.6.1", out=folder / "cal"),
        "verify": precisionlab.verify(swept_digits.folder / "plan.fp16.json", threads=2),
        "compare": precisionlab.compare(model, model, DIGITS, samples=2, out=folder / "cmp"),
        "diff": precisionlab.diff(swept_digits, swept_digits),
        "extract": precisionlab.extract(model, DIGITS, samples=2, out=folder / "ex"),
    }


def page(fragment: str, path: Path, style: str, is_light: bool = True) -> Path:
    theme, outer = str(is_light).lower(), "jp-RenderedHTMLCommon jp-RenderedHTML jp-OutputArea-output"
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title><style>{style}</style>'
        f'<body class="jp-ThemedContainer" data-jp-theme-light="{theme}">'
        f'<div class="{outer}" data-mime-type="text/html">{fragment}</div></body>'
    )
    return path


LOOK = """() => [...document.querySelectorAll('.pl *')].map(e => {
    const s = getComputedStyle(e);
    return [e.tagName, s.textAlign, s.verticalAlign, s.padding, s.whiteSpace, s.fontSize, s.fontFamily, s.color,
            s.backgroundColor, s.margin, s.borderBottomWidth, s.tableLayout, s.fontWeight, s.lineHeight,
            s.listStyleType, s.textDecorationLine, s.display].join(' ');
})"""


@pytest.mark.parametrize("name", ["sweep", "calibrate", "verify", "compare", "diff", "extract"])
def test_a_result_looks_the_same_with_jupyterlabs_style_as_without(
    name: str, results: dict[str, Any], browser: Any, tmp_path: Path
) -> None:
    fragment = results[name]._repr_html_()
    looks = []
    for style in ("", jupyterlab()):
        with Opened(browser, page(fragment, tmp_path / "page.html", style)) as opened:
            looks.append(opened.page.evaluate(LOOK))
            opened.photograph(f"notebook-{name}-{'jupyterlab' if style else 'plain'}")
            opened.check_quiet()
    assert looks[0] == looks[1]
    assert looks[0]


@pytest.mark.parametrize("is_light", [True, False])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_result_is_dark_where_the_notebook_is(
    is_light: bool, scheme: str, results: dict[str, Any], browser: Any, tmp_path: Path
) -> None:
    file = page(
        results["diff"]._repr_html_(), tmp_path / "page.html", jupyterlab("light" if is_light else "dark"), is_light
    )
    with Opened(browser, file, scheme=scheme) as opened:
        ground = opened.page.evaluate("getComputedStyle(document.querySelector('.pl')).backgroundColor")
    channels = [int(part) for part in ground.removeprefix("rgb(").rstrip(")").split(",")]
    assert (sum(channels) > 380) == is_light
