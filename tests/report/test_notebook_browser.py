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

# What applies to tables of JupyterLab 4.2's packages/rendermime/style/base.css (BSD-3-Clause, Project Jupyter
# Contributors), with values in the place of its variables.
JUPYTERLAB = """
.jp-RenderedHTMLCommon{color:#111;font-family:serif;font-size:14px;line-height:1.6;padding-right:20px}
.jp-RenderedHTMLCommon table{border-collapse:collapse;border-spacing:0;border:none;color:#f0f;font-size:12px;
table-layout:fixed;margin-left:auto;margin-bottom:1em;margin-right:auto}
.jp-RenderedHTMLCommon thead{border-bottom:1px solid #000;vertical-align:bottom}
.jp-RenderedHTMLCommon td,.jp-RenderedHTMLCommon th,.jp-RenderedHTMLCommon tr{vertical-align:middle;padding:.5em;
line-height:normal;white-space:normal;max-width:none;border:none}
.jp-RenderedMarkdown.jp-RenderedHTMLCommon td,.jp-RenderedMarkdown.jp-RenderedHTMLCommon th{max-width:none}
:not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon td,:not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon th,
:not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon tr{text-align:right}
.jp-RenderedHTMLCommon th{font-weight:bold}
.jp-RenderedHTMLCommon tbody tr:nth-child(odd){background:#fff}
.jp-RenderedHTMLCommon tbody tr:nth-child(even){background:#abc}
.jp-RenderedHTMLCommon tbody tr:hover{background:#0ff}
.jp-RenderedHTMLCommon p{text-align:left;margin:0 0 1em}
.jp-RenderedHTMLCommon h3{font-size:2em;margin:1em 0}
"""


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
    theme, outer = str(is_light).lower(), "jp-RenderedHTMLCommon jp-RenderedHTML"
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title><style>{style}</style>'
        f'<body data-jp-theme-light="{theme}"><div class="{outer}">{fragment}</div></body>'
    )
    return path


LOOK = """() => [...document.querySelectorAll('.pl td, .pl th, .pl table, .pl tr, .pl h3, .pl p')].map(e => {
    const s = getComputedStyle(e);
    return [e.tagName, s.textAlign, s.verticalAlign, s.padding, s.whiteSpace, s.fontSize, s.color, s.backgroundColor,
            s.margin, s.borderBottomWidth, s.tableLayout, s.fontWeight, s.lineHeight].join(' ');
})"""


@pytest.mark.parametrize("name", ["sweep", "calibrate", "verify", "compare", "diff", "extract"])
def test_a_result_looks_the_same_with_jupyterlabs_style_as_without(
    name: str, results: dict[str, Any], browser: Any, tmp_path: Path
) -> None:
    fragment = results[name]._repr_html_()
    looks = []
    for style in ("", JUPYTERLAB):
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
    file = page(results["diff"]._repr_html_(), tmp_path / "page.html", JUPYTERLAB, is_light)
    with Opened(browser, file, scheme=scheme) as opened:
        ground = opened.page.evaluate("getComputedStyle(document.querySelector('.pl')).backgroundColor")
    channels = [int(part) for part in ground.removeprefix("rgb(").rstrip(")").split(",")]
    assert (sum(channels) > 380) == is_light
