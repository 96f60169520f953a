"""The HTML report, on tables made by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.html import render, render_fragment, show, tolerance_text
from precisionlab.search.verdict import State, Verdict

NAN, INF = math.nan, math.inf
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"'`&quot;{{ 7*7 }}{% raw %}",
    "emoji 🧨 and \u202eright to left",
    "two\nlines\tand a tab",
    "x" * 10_000,
]


def errors(
    prefix: str, sqnr: float | None, max_error: float | None = 0.01, nan: int = 0, inf: int = 0
) -> dict[str, Any]:
    """The columns of one kind of error; all empty for None."""
    if sqnr is None:
        figures: list[Any] = [NAN, NAN, NAN, NAN, None, None, None]
    else:
        figures = [sqnr, NAN, NAN, max_error, nan, inf, 0]
    names = ("sqnr_db", "cosine", "rel_l2", "max_error", "nan", "inf", "underflow")
    return {f"{prefix}_{name}": value for name, value in zip(names, figures, strict=True)}


def layer(index: int, name: str, precision: str = "fp16", **changes: Any) -> dict[str, Any]:
    """A row of layers.csv."""
    return {
        "precision": precision, "figures": "emulated", "index": index, "layer": name, "kind": "Conv",
        "nodes": name, "runs_in": precision, "fixed": "", "rank": index + 1, "pinned": False, "pinned_to": "",
        "reason": "", "released_figure": None, "released_nonfinite": None, "cause": "", "shape": "1×8",
        "multiply_adds": 100, "weight_bytes": 400, "cost_us": 2.5, "cost_figures": "estimated", "ref_max": 3.0,
        "overflow": 0, "alone_sqnr_db": 45.25, "alone_nonfinite": 0, "gain": 1e-5,
        **errors("introduced", 70.25), **errors("inherited", 60.75), "mixed_sqnr_db": 65.5, **changes,
    }  # fmt: skip


def variant(name: str, precision: str, output: str = "out", **changes: Any) -> dict[str, Any]:
    """A row of variants.csv."""
    return {
        "variant": name, "precision": precision, "figures": "emulated", "samples": 48, "held_out_samples": 16,
        "pins": 0, "layers": 4, "tolerance": "sqnr>=30", "met": True, "nonfinite_tensors": 0,
        "held_out_nonfinite_tensors": 0, "metric_name": "accuracy", "metric": 1.0, "reference_metric": 1.0,
        "metric_error": 0.01, "held_out_metric": 0.9375, "target": "a100", "cost_us": 12.5, "cost_of_fp32": 0.5125,
        "cost_figures": "estimated", "output": output, "sqnr_db": 57.0, "cosine": 0.99999, "rel_l2": 0.001,
        "max_error": 0.01, "sqnr_low_db": 55.5, "sqnr_high_db": 58.5, "nan": 0, "inf": 0, "top1": 1.0,
        "held_out_sqnr_db": 56.75, "held_out_cosine": 0.99998, "held_out_rel_l2": 0.002,
        "held_out_max_error": 0.02, "held_out_top1": 0.96, **changes,
    }  # fmt: skip


def said(state: str, sentence: str, on_random: bool = False) -> dict[str, Any]:
    """A verdict as run.json holds it."""
    return Verdict(State(state), sentence, "-0.3 → 57.0 dB", on_random).to_dict()


NOT_MET = {"met": False, "verdict": said("not met", "the nearest plan has 1 of 4 layers pinned to fp32")}


def facts(**changes: Any) -> dict[str, Any]:
    """What run.json holds."""
    found = {
        "met": True, "verdict": said("met", "1 of 4 layers pinned to fp32 make it right"), "pins": 1, "touched": 4,
        "evaluations": 9, "proven": True, "remark": "",
        "engine": None, "compiled": [], "inconclusive": [],
        "first_nonfinite": "sum_out", "first_nonfinite_layer": "LayerNorm_1/Sum_1", "table": None,
    }  # fmt: skip
    return {
        "precisionlab": "0.1.0",
        "versions": {"onnx": "1.17.0", "onnxruntime": "1.20.0", "numpy": "2.0.0"},
        "command": ["precisionlab", "sweep", "my model.onnx"],
        "created": "2026-11-22T20:00:00+00:00",
        "backend": "onnxruntime",
        "figures": "emulated",
        "engines": None, "layers": {"from": "patterns", "difference": ""},
        "target": {"name": "a100", "title": "NVIDIA A100", "source": "its datasheet"},
        "model": {"path": "models/my model.onnx", "sha256": "ab" * 32, "layers": 4},
        "data": {
            "folder": "samples", "name": "files", "description": "", "samples": 64, "choosing": 48,
            "held_out": 16, "random": False, "sha256": "cd" * 32, "seed": 0,
        },
        "tolerance": {"fp16": "sqnr>=30"},
        "threads": 2,
        "seconds": 12.5,
        "precisions": {"fp16": found},
        **changes,
    }  # fmt: skip


Report = tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, dict[str, PrecisionPlan]]


def report(names: list[str] | None = None, **changes: Any) -> Report:
    """A report of four layers, the second of which breaks FP16 and is pinned."""
    names = names or ["Conv_0", "LayerNorm_1/Sum_1", "Tanh_2", "Shape_3"]
    layers = [layer(i, name) for i, name in enumerate(names)]
    layers[1] |= {
        "pinned": True, "pinned_to": "fp32", "reason": "reaches 3.5e+05", "released_figure": -0.31,
        "released_nonfinite": 41, "alone_sqnr_db": NAN, "alone_nonfinite": 3,
        "cause": "overflow", "ref_max": 349120.0, "overflow": 7,
        **errors("introduced", NAN, NAN, nan=12, inf=3), **errors("inherited", -INF, INF, inf=3),
    }  # fmt: skip
    layers[3] |= {
        "rank": None,
        "fixed": "integers",
        "ref_max": NAN,
        "overflow": None,
        "mixed_sqnr_db": NAN,
        "alone_sqnr_db": NAN,
    }
    layers[3] |= {"alone_nonfinite": None, "gain": NAN}
    layers[3] |= errors("introduced", None) | errors("inherited", None)
    variants = [
        variant("fp32", "fp32", sqnr_db=INF, held_out_sqnr_db=INF),
        variant("fp16", "fp16", met=False, nonfinite_tensors=41, metric=0.0645, sqnr_db=-0.31, inf=2),
        variant("fp16 mixed", "fp16", pins=1),
    ]
    pin = Pin(names[1], (names[1],), Precision.FP32, "reaches 3.5e+05")
    plans = {"fp16": PrecisionPlan("ab" * 32, Precision.FP16, (pin,))}
    return facts(**changes), pd.DataFrame(variants), pd.DataFrame(layers), plans


class Page(HTMLParser):
    """The page's tags and texts, as a browser would take them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.texts.append(data)
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def row(self, *start: str) -> list[str]:
        """The first table row that begins so."""
        return next(
            [c.strip() for c in row] for row in self.rows if tuple(c.strip() for c in row[: len(start)]) == start
        )


def test_verdict_says_before_and_after() -> None:
    page = Page(render(*report()))
    assert "1 of 4 layers pinned to fp32 make it right" in page.text
    assert page.row("Worst output’s SQNR, dB")[1:] == ["∞", "✗ −0.3", "57.0"]
    assert page.row("accuracy")[1:] == ["1.000", "0.065", "1.000"]
    assert page.row("Tensors with new NaN or Inf")[1:] == ["0", "41", "0"]
    assert "SQNR ≥ 30 dB; no new NaN, and no Inf but where FP16 cannot hold a value" in page.text
    assert "sum_out" in page.text
    assert "33.3 % of the multiply-adds" in page.text  # of the three layers that FP16 touches
    assert "EMULATED" in page.text
    assert "emulated by ONNX Runtime on this machine’s CPU, not measured in a TensorRT engine" in page.text
    assert "precisionlab sweep 'models/my model.onnx' --data samples --plan plan.json" in page.text
    assert "precisionlab sweep 'my model.onnx'" in page.text


def test_not_met_is_said() -> None:
    run, variants, layers, plans = report()
    run["precisions"]["fp16"] |= NOT_MET
    page = Page(render(run, variants, layers, plans))
    assert "✗ NOT met The nearest plan has 1 of 4 layers pinned to fp32" in page.text
    assert "Do not use FP16 yet" in page.text


def test_right_without_pins_has_no_column_for_them() -> None:
    run, variants, layers, _ = report()
    run["precisions"]["fp16"]["verdict"] = said("met", "right as it is: no layer needs a pin")
    run["precisions"]["fp16"] |= {"pins": 0, "proven": None, "first_nonfinite": None, "first_nonfinite_layer": None}
    layers["pinned"] = False
    plans = {"fp16": PrecisionPlan("ab" * 32, Precision.FP16)}
    page = Page(render(run, variants[variants.variant != "fp16 mixed"], layers, plans))
    assert "Right as it is: no layer needs a pin" in page.text
    assert len(page.row("Worst output’s SQNR, dB")) == 3
    assert "No layer needs a pin." in page.text


@pytest.mark.parametrize(
    ("state", "tone", "shown"),
    [
        ("met only as float32", "missed", "✗ met only as float32"),
        ("not known", "open", "? not known"),
        ("not finished", "open", "? not finished"),
    ],
)
def test_each_state_has_its_colour_and_advice(state: str, tone: str, shown: str) -> None:
    run, variants, layers, plans = report()
    run["precisions"]["fp16"] |= {"met": False, "verdict": said(state, "because of this")}
    html = render(run, variants, layers, plans)
    assert f'<article class="card {tone}">' in html
    assert '<article class="card met">' not in html
    text = Page(html).text
    assert f"{shown} Because of this" in text
    assert "Do not use FP16 yet" not in text
    assert "because of this" in text
    assert "Build with" not in text


def test_runs_of_older_versions_have_their_verdict_from_what_they_hold() -> None:
    run, variants, layers, plans = report()
    del run["precisions"]["fp16"]["verdict"]
    assert "✓ met Right with 1 pin" in Page(render(run, variants, layers, plans)).text
    run["precisions"]["fp16"]["met"] = False
    assert "✗ NOT met NOT right with 1 pin" in Page(render(run, variants, layers, plans)).text


def test_measured_figures_are_not_called_emulated() -> None:
    assert "EMULATED" not in Page(render(*report(figures="measured"))).text


@pytest.mark.parametrize("draw", [render, render_fragment])
def test_random_data_is_warned_of(draw: Any) -> None:
    run, *rest = report()
    assert "Random data." not in Page(draw(run, *rest)).text
    run["data"]["random"] = True
    assert "the layers found here are likely to be the wrong ones" in Page(draw(run, *rest)).text


def test_nonfinite_figures_are_shown_as_such_and_absent_ones_as_dashes() -> None:
    page = Page(render(*report()))
    broken = page.row("2", "LayerNorm_1/Sum_1")
    assert broken[2:7] == ["Conv", "–", "NaN", "−∞", "pinned FP32 overflow"]
    assert broken[7:] == ["1", "1×8", "NaN", "NaN", "15", "65.5", "3.49e+05 > 65504", "pinned to FP32: reaches 3.5e+05"]
    assert page.row("–", "Shape_3")[2:] == [
        *("Conv", "–", "–", "–", "fixed: integers", "3", "1×8"),
        *(["–"] * 6),
    ]
    assert page.row("fp32")[8:10] == ["∞", "∞"]


def test_what_an_absorbed_inf_is_not_pinned_for_is_said_where_the_plan_is_right() -> None:
    run, variants, layers, plans = report()
    broken = layers.assign(mixed_sqnr_db=[-INF, 65.5, 65.5, NAN], inherited_inf=[3, 3, 0, None])
    said = "not pinned: the Inf is absorbed behind it"
    assert said in Page(render(run, variants, broken, plans)).row("1", "Conv_0")[6]
    assert said not in Page(render(run, variants, layers, plans)).row("1", "Conv_0")[6]
    not_met = run | {"precisions": {"fp16": run["precisions"]["fp16"] | NOT_MET}}
    assert said not in Page(render(not_met, variants, broken, plans)).text


def test_shares_of_the_output_error_are_shown_and_what_the_order_is_by() -> None:
    run, variants, layers, plans = report()
    shared = layers.assign(output_share=[0.25, NAN, 0.75, NAN])
    page = Page(render(run, variants, shared, plans))
    assert [page.row(*start)[3] for start in (("1", "Conv_0"), ("2", "LayerNorm_1/Sum_1"), ("–", "Shape_3"))] == [
        *("25.0", "breaks it", "–"),
    ]
    assert "Ordered by share of the output error" in page.text
    assert "Ordered by the error that each introduces itself" in Page(render(run, variants, layers, plans)).text


def test_one_sentence_says_how_many_layers_an_error_is_spread_over() -> None:
    run, variants, layers, plans = report()
    carriers = {"share": 0.9, "layers": 39, "measured": 92, "diffuse": True}
    spread = run | {"precisions": {"fp16": run["precisions"]["fp16"] | {"carriers": carriers, "touched": 92}}}
    said = "The error is diffuse: 39 of 92 layers make 90 % of it, by what each does alone."
    assert said in Page(render(spread, variants, layers, plans)).text
    assert "of it, by what each does alone" not in Page(render(run, variants, layers, plans)).text


def test_what_most_names_begin_with_is_left_out_to_the_eye_alone() -> None:
    html = render(*report(["/encoder/layer/Conv", "/encoder/layer/Sum", "/encoder/layer/Tanh", "Shape"]))
    assert Page(html).row("1", "/encoder/layer/Conv")
    assert '<bdi class="name cut"><span class="pre">/encoder/layer/</span>Conv</bdi>' in html
    assert "stands for <code>/encoder/layer/</code>" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (NAN, "NaN"), (INF, "∞"), (-INF, "−∞"), (-0.31, "−0.3"), (57.04, "57.0")],
)
def test_show(value: float | None, text: str) -> None:
    assert show(value, ".1f") == text


def test_a_metric_that_is_nan_is_not_an_absent_one() -> None:
    run, variants, layers, plans = report()
    variants.loc[variants.variant == "fp16", "metric"] = NAN
    assert Page(render(run, variants, layers, plans)).row("accuracy")[2] == "NaN"
    variants["metric_name"] = variants["metric"] = variants["reference_metric"] = None
    assert "accuracy" not in Page(render(run, variants, layers, plans)).text


def test_worst_of_several_outputs_is_nan_where_one_is() -> None:
    run, _, layers, plans = report()
    variants = [
        variant(name, "fp16", output, met=False, sqnr_db=sqnr, cosine=NAN, nan=nan)
        for name in ("fp16", "fp16 mixed")
        for output, sqnr, nan in (("good", 50.0, 0), ("broken", NAN, 3), ("labels", NAN, None))
    ]
    page = Page(render(run, pd.DataFrame(variants), layers, plans))
    assert page.row("Worst output’s SQNR, dB")[2] == "✗ NaN"
    assert page.row("good")[1] == "50.0"
    assert page.row("broken")[1] == "NaN"
    assert page.row("labels")[1] == "–"  # integers have no SQNR


@pytest.mark.parametrize("draw", [render, render_fragment])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_are_text(draw: Any, name: str) -> None:
    run, variants, layers, plans = report(["a", name, "b", "c"])
    layers[["kind", "cause", "reason", "shape", "nodes"]] = name
    variants["output"] = variants["metric_name"] = name
    run["data"] |= {"name": name, "description": name, "folder": name}
    run["model"]["path"] = name
    run["command"] = ["precisionlab", name]
    run["precisions"]["fp16"] |= {"first_nonfinite": name, "first_nonfinite_layer": name, "table": name}
    run["tolerance"]["fp16"] = name
    run["target"] = {"name": name, "title": name, "source": name}
    plans["fp16"] = plans["fp16"].with_pins([Pin(name, (name, name), Precision.FP32, name)])
    html = draw(run, variants, layers, plans)
    page, plain = Page(html), Page(draw(*report()))
    assert name.replace("\n", "␊").replace("\t", "␉") in "".join(page.texts)
    assert sum(tag == "script" for tag, _ in page.tags) == sum(tag == "script" for tag, _ in plain.tags)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"br"}
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)


def test_a_path_that_is_not_utf8_can_be_written() -> None:
    run, *rest = report()
    run["model"]["path"] = "mod\udce9le.onnx"
    assert "mod\\udce9le.onnx" in render(run, *rest).encode().decode()


@pytest.mark.parametrize("draw", [render, render_fragment])
def test_nothing_is_loaded_from_anywhere(draw: Any) -> None:
    html = draw(*report())
    # The one address left is a name, not a link: the namespace of SVG.
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|<link|<img|<iframe| src=", html)
    hrefs = [attributes["href"] for _, attributes in Page(html).tags if "href" in attributes]
    beside = {"layers.csv", "variants.csv", "pareto.csv", "samples.csv", "run.json", "summary.md", "plan.json"}
    assert all(href and (href.startswith("#") or href in beside) for href in hrefs)


def test_only_the_pages_own_script_may_run() -> None:
    html = render(*report())
    policy = next(a["content"] for tag, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    script = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(script) == 1
    assert base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode() in policy


def test_fragment_stands_inside_another_page() -> None:
    html = render_fragment(*report())
    page = Page(html)
    assert not {"html", "head", "body", "script", "link"} & {tag for tag, _ in page.tags}
    assert not any("id" in attributes for _, attributes in page.tags)
    style = html[html.index("<style>") + 7 : html.index("</style>")]
    selectors = re.findall(r"(?:^|[{}])\s*([^{}@]+)\{", re.sub(r"@media[^{]*\{", "", style))
    assert selectors
    assert all(part.strip().startswith(".pl") for selector in selectors for part in selector.split(","))
    for text in ("1 of 4 layers pinned to fp32 make it right", "LayerNorm_1/Sum_1", "reaches 3.5e+05"):
        assert text in page.text


def test_ids_are_unique_and_headers_have_scope() -> None:
    page = Page(render(*report()))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")


def test_the_same_page_from_files(tmp_path: Any) -> None:
    run, variants, layers, plans = report()
    variants.to_csv(tmp_path / "variants.csv", index=False)
    layers.to_csv(tmp_path / "layers.csv", index=False)
    again = (pd.read_csv(tmp_path / "variants.csv"), pd.read_csv(tmp_path / "layers.csv"))
    assert render(json.loads(json.dumps(run)), *again, plans) == render(run, variants, layers, plans)


# The chart


def curves(layers: pd.DataFrame) -> dict[str, str]:
    """Curve → its path on the chart of a page."""
    run, variants, _, plans = report()
    html = render(run, variants, layers, plans)
    chart = html[html.index('class="plot"') : html.index('class="legend"')]
    return dict(re.findall(r'class="curve (\w+)"><path d="([^"]*)"', chart))


def test_nonfinite_values_have_lanes_of_their_own() -> None:
    layers = report()[2]
    html = render(*report())
    labels = re.findall(r">(NaN|−∞|∞)</text>", html)
    assert set(labels) == {"NaN", "−∞"}
    drawn = curves(layers)
    assert drawn["introduced"].count("M") == 3  # a stroke for each layer measured, NaN's too; none for the last
    assert drawn["inherited"].count("M") == 3  # the curve breaks where it leaves the numbers
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn["introduced"])]
    assert max(heights) == heights[2] == heights[3] > heights[0]


def test_what_lies_above_120_decibels_flattens_no_chart() -> None:
    layers = report()[2]
    spiked = layers.assign(inherited_sqnr_db=[800.0, *layers["inherited_sqnr_db"][1:]])
    run, variants, _, plans = report()
    html = render(run, variants, spiked, plans)
    assert "&gt; 120</text>" in html
    assert ">500</text>" not in html
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", curves(spiked)["introduced"])]
    level = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", curves(layers)["introduced"])]
    assert heights[0] - heights[2] == pytest.approx(level[0] - level[2], rel=0.3)


def test_axes_say_what_they_show() -> None:
    html = render(*report())
    assert 'class="title">Layer, by its place in the network</text>' in html
    assert ">SQNR, dB</text>" in html


def test_the_curve_of_a_plan_that_is_not_right_is_not_drawn_as_one_that_is() -> None:
    run, *rest = report()
    assert 'class="curve mixed"' in render(run, *rest)
    html = render(run | {"precisions": {"fp16": run["precisions"]["fp16"] | NOT_MET}}, *rest)
    assert 'class="curve mixed missed"' in html
    assert 'class="curve mixed"' not in html


def test_pins_are_marked_and_named() -> None:
    assert "<title>LayerNorm_1/Sum_1: pinned to FP32</title>" in render(*report())


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0, 400.0, None])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_figures_make_a_chart(value: float | None, count: int) -> None:
    run, variants, _, plans = report()
    rows = [layer(i, f"l{i}", mixed_sqnr_db=NAN, **errors("introduced", value)) for i in range(count)]
    rows = [row | errors("inherited", value) for row in rows]
    page = Page(render(run, variants, pd.DataFrame(rows), plans))
    assert any(a.get("role") == "img" for _, a in page.tags) == (value is not None)


# Size


def many(count: int) -> Report:
    names = [f"/encoder/layer.{i}/attention/output/dense/MatMul" for i in range(count)]
    return report(names)


@pytest.mark.slow
def test_three_hundred_layers_stay_small() -> None:
    assert len(render(*many(300)).encode()) < 400_000


@pytest.mark.slow
def test_three_thousand_layers_are_drawn() -> None:
    html = render(*many(3000))
    assert html.count("<tr data-i=") == 3000
    assert len(html.encode()) < 3_000_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sqnr[a, b]>=40,rel_l2<=0.1", "SQNR of a, b ≥ 40 dB, relative L2 error ≤ 0.1"),
        ("sqnr>=30", "SQNR ≥ 30 dB"),
        ("sqnr>=30, top1>=0.99", "SQNR ≥ 30 dB, equal top-1 ≥ 0.99"),
        ("metric_drop<=0.01", "loss of the task metric ≤ 0.01"),
        ("who knows", "who knows"),
    ],
)
def test_tolerance_in_words(text: str, words: str) -> None:
    assert tolerance_text(text) == words
