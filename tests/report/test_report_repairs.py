"""What is read of repairs: the page's section with the graph before and after, tables, summary, diff, terminal."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from models import proto
from test_diff import files
from test_report import HOSTILE, Page, Report, report, said

from precisionlab.cli.diff import print_diff
from precisionlab.cli.summary import print_summary
from precisionlab.cli.verify import _repairs_left_out
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.model import load_model
from precisionlab.model.repair import Exactness, Repair
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.cells import records_of
from precisionlab.report.diff import diff_runs, diff_to_dict, render_diff
from precisionlab.report.html import render, render_fragment
from precisionlab.report.machine import to_json
from precisionlab.report.markdown import render_markdown
from precisionlab.report.redraw import read_run, redraw
from precisionlab.report.repair_views import RepairedView, RepairView, scale_texts
from precisionlab.report.section import Tables
from precisionlab.report.subgraph import MOST, changed_part, number_text
from precisionlab.report.subgraph_drawing import MOST_NODES, draw_part, nodes_of
from precisionlab.search.certificate import Certificate, Figures, RepairRelease

LAYER = "LayerNorm_1/Sum_1"
REPAIR = Repair(
    "scale_sum_of_squares", Exactness.BITWISE, LAYER, ("square", "root"), (("x", -9),), ("it is wide",), "an overflow"
)
PART = {
    "before": [
        {"name": "x", "kind": "input", "constants": [], "state": "kept", "inputs": [], "beyond": []},
        {"name": "square", "kind": "Mul", "constants": [], "state": "kept", "inputs": [0], "beyond": []},
    ],
    "after": [
        {"name": "x", "kind": "input", "constants": [], "state": "kept", "inputs": [], "beyond": []},
        {"name": "x~scaled", "kind": "Mul", "constants": ["2^-9"], "state": "new", "inputs": [0], "beyond": []},
        {"name": "square", "kind": "Mul", "constants": [], "state": "kept", "inputs": [1], "beyond": []},
    ],
    "hidden": 0,
}
LEFT_OUT = {"sqnr": -0.31, "nonfinite_tensors": 41, "met": False}


def repaired(
    *repairs: Repair, pins: tuple[Pin, ...] = (), left_out: Any = LEFT_OUT, names: list[str] | None = None
) -> Report:
    """The report of tests/report/test_report.py, with repairs in the place of its pin."""
    run, variants, layers, _ = report(names)
    found = repairs or (REPAIR,)
    run["precisions"]["fp16"] |= {
        "verdict": said("met", "right with 1 repair: no layer needs a pin"),
        "pins": len(pins),
        "repaired": {
            "sha256": "ef" * 32,
            "float32": {"bitwise": True, "largest_difference": 0.0, "samples": 64},
            "repairs": [{"kind": one.kind, "node": one.nodes[0], "left_out": left_out, "graph": PART} for one in found],
            "released": ["reduce_mean at mean"],
        },
    }
    name = "fp16 mixed" if pins else "fp16 repaired"
    variants["repairs"] = [0, 0, len(found)]
    variants.loc[variants.variant == "fp16 mixed", ["pins", "variant"]] = [len(pins), name]
    layers["repair"] = ["", found[0].kind, "", ""]
    pinned = {pin.layer for pin in pins}
    layers["pinned"] = [layer in pinned for layer in layers["layer"]]
    layers["pinned_to"] = ["fp32" if layer in pinned else "" for layer in layers["layer"]]
    return run, variants, layers, {"fp16": PrecisionPlan("ab" * 32, Precision.FP16, pins, repairs=found)}


def summary(found: Report) -> str:
    run, variants, layers, plans = found
    return render_markdown(run, Tables(records_of(variants), records_of(layers), []), plans)


def part(before: str, after: str, weights: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What differs between two bodies."""
    graphs = []
    for name, body in (("before", before), ("after", after)):
        path = folder / f"{name}.onnx"
        used = {key: value for key, value in weights.items() if key in body}
        onnx.save_model(proto(f"(float[1,4] x) => (float[1,4] y) {{ {body} }}", used), path)
        graphs.append(load_model(path).onnx.graph)
    return changed_part(*graphs)


# The part of the graph


def test_what_came_went_and_changed_is_told_apart(tmp_path: Path) -> None:
    before = (
        '["square"] a = Mul(x, x) ["old"] b = Neg(a) ["eps"] c = Add(b, e) ["root"] d = Sqrt(c) ["last"] y = Abs(d)'
    )
    after = (
        '["scale"] s = Mul(x, k) ["square"] a = Mul(s, s) ["eps"] c = Add(a, f) '
        '["root"] d = Sqrt(c) ["last"] y = Abs(d)'
    )
    weights = {"e": np.float32(1e-5), "f": np.float32(1e-5 * 2.0**-18), "k": np.float32(2.0**-9)}
    found = part(before, after, weights, tmp_path)
    states = {side: {n["name"]: n["state"] for n in found[side]} for side in ("before", "after")}
    kept = {"x": "kept", "square": "kept", "root": "kept"}
    assert states["before"] == {**kept, "old": "gone", "eps": "changed"}
    assert states["after"] == {**kept, "scale": "new", "eps": "changed"}
    scale = next(n for n in found["after"] if n["name"] == "scale")
    assert (scale["kind"], scale["constants"]) == ("Mul", ["2^-9"])
    links = {n["name"]: [found["after"][i]["name"] for i in n["inputs"]] for n in found["after"]}
    assert links == {"x": [], "scale": ["x"], "square": ["scale"], "eps": ["square"], "root": ["eps"]}


def test_what_lies_between_two_changes_is_shown_and_the_rest_of_the_network_is_not(tmp_path: Path) -> None:
    chain = " ".join(f'["n{i}"] v{i} = Abs({f"v{i - 1}" if i else "x"})' for i in range(9))
    before = f'{chain} ["a"] p = Mul(v8, two) ["b"] q = Sqrt(p) ["c"] r = Mul(q, two) ["d"] t = Neg(r) ["e"] y = Abs(t)'
    found = part(before, before.replace("two", "four"), {"two": np.float32(2), "four": np.float32(4)}, tmp_path)
    assert [n["name"] for n in found["after"]] == ["n8", "a", "b", "c", "d"]
    assert found["hidden"] == 0


def test_a_long_part_leaves_out_what_lies_between_and_says_so(tmp_path: Path) -> None:
    chain = " ".join(f'["n{i}"] v{i} = Abs({f"v{i - 1}" if i else "p"})' for i in range(MOST + 10))
    before = f'["a"] p = Mul(x, two) {chain} ["z"] y = Mul(v{MOST + 9}, two)'
    found = part(before, before.replace("two", "four"), {"two": np.float32(2), "four": np.float32(4)}, tmp_path)
    after = found["after"]
    assert [n["name"] for n in after] == ["x", "a", "n0", f"n{MOST + 9}", "z", "y"]
    assert after[3]["beyond"] == [2]
    assert found["hidden"] == MOST + 8
    assert 'class="link far"' in draw_part(nodes_of(after), "").svg


def test_what_computes_with_lengths_alone_is_not_shown(tmp_path: Path) -> None:
    before = """["a"] p = Mul(x, two) ["shape"] s = Shape(p) ["same"] t = Identity(s) ["turn"] u = Transpose(p)
        ["back"] r = Reshape(u, t) ["z"] y = Mul(r, two)"""
    found = part(before, before.replace("two", "four"), {"two": np.float32(2), "four": np.float32(4)}, tmp_path)
    assert [n["name"] for n in found["after"]] == ["x", "a", "turn", "back", "z", "y"]
    assert found["hidden"] == 0


def test_the_same_graph_has_no_part(tmp_path: Path) -> None:
    found = part('["a"] y = Abs(x)', '["a"] y = Abs(x)', {}, tmp_path)
    assert found == {"before": [], "after": [], "hidden": 0}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((2.0**-9, "2^-9"), (-(2.0**15), "-2^15"), (0.5, "0.5"), (2.0, "2"), (64.0, "64"), (128.0, "2^7")),
        *((1e-5, "1e-05"), (0.0, "0"), (math.inf, "inf"), (math.nan, "nan"), (2.0**-149, "2^-149"), (3.0, "3")),
    ],
)
def test_a_number_is_short_and_a_far_power_of_two_is_one(number: float, text: str) -> None:
    assert number_text(number) == text


# Its drawing


@pytest.mark.parametrize("name", HOSTILE)
def test_a_drawing_is_well_formed_whatever_nodes_are_called(name: str) -> None:
    entries = [{**entry, "name": name, "kind": name, "constants": [name]} for entry in PART["after"]]
    svg = ElementTree.fromstring(str(draw_part(nodes_of(entries), name.replace("\n", " ")).svg))
    assert {element.tag for element in svg.iter()} == {"svg", "path", "g", "title", "rect", "text"}
    assert max(len(text.text or "") for text in svg.iter("text")) <= 30


@pytest.mark.parametrize("wrong", [{"inputs": [1]}, {"inputs": [-1]}, {"beyond": [7]}, {"inputs": ["a"]}])
def test_a_part_that_no_sweep_writes_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"takes from|invalid literal"):
        nodes_of([PART["after"][0], {**PART["after"][1], **wrong}])
    assert len(nodes_of(PART["after"])) == 3


def test_a_part_of_thousands_of_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="a part of 401 nodes"):
        nodes_of([PART["after"][0]] * (MOST_NODES + 1))
    assert len(nodes_of([PART["after"][0]] * MOST_NODES)) == MOST_NODES


def test_no_two_nodes_of_a_drawing_lie_over_each_other() -> None:
    entries = [{**PART["before"][0], "name": f"n{i}", "kind": "Add", "inputs": [*range(i)][-3:]} for i in range(12)]
    svg = ElementTree.fromstring(str(draw_part(nodes_of(entries), "").svg))
    boxes = [(float(r.get("x", "")), float(r.get("y", ""))) for r in svg.iter("rect")]
    width = float(svg.get("width", ""))
    assert all(x >= 0 and x + 196 <= width for x, _ in boxes)
    assert all(abs(a[0] - b[0]) >= 196 or abs(a[1] - b[1]) >= 40 for a in boxes for b in boxes if a is not b)


@pytest.mark.parametrize(
    ("name", "text"),
    [("x", "x: 2^3"), ("7", "channel 7: 2^3"), ("0-3,7,9-10", "7 channels: 2^3"), ("0-", "0-: 2^3"), ("", ": 2^3")],
)
def test_channels_are_counted_where_a_plan_lists_them(name: str, text: str) -> None:
    assert scale_texts(Repair("k", Exactness.BITWISE, "l", ("n",), ((name, 3),))) == (text,)


# The page


def test_the_page_has_a_section_that_says_what_was_repaired_why_and_what_proves_it() -> None:
    page = Page(render(*repaired()))
    row = page.row("squares scaled before they are summed up")
    assert row[1:5] == [LAYER, "an overflow", "x: 2^-9", "the same bits"]
    assert row[5].split() == ["−0.3", "NaN/Inf", "in", "41", "tensors"]
    for words in (
        "Repaired, and why",
        "Proven: no repair can be left out.",
        "gives what the original gives, bit for bit, on 64 samples .",
        "SQNR, dB : −0.3 as it is, 57.0 repaired ; on the samples held out 56.8 and 56.8.",
        "it is wide",
        "new: Mul x~scaled (2^-9)",
        "Found too, and not needed, or no help: reduce_mean at mean",
        "No layer needs a pin: the model is repaired .",
        "The plan found deals with it: 1 repair.",
        "Build the repaired model with plan.json : it names the repairs. For one of these:",
        "Measure the plan again, and that each repair is needed",
    ):
        assert words in page.text, words
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "svg"].count("part") == 2
    assert ("a", {"href": "#row-1-1"}) in page.tags


def test_repairs_that_were_left_out_all_at_once_are_not_said_to_be_needed_each() -> None:
    two = (REPAIR, replace(REPAIR, nodes=("other",)))
    found = repaired(*two, left_out={**LEFT_OUT, "together": 2})
    page, words = Page(render(*found)), summary(found)
    assert "Proven: they cannot be left out." in page.text
    assert "All 2 of them were, at once" in page.text
    assert "the repairs cannot be left out: without all 2 of them the tolerance does not hold" in page.text
    assert ", if all are left out" in page.text
    assert "Each was, alone" not in page.text
    assert "Proven: with all 2 of them left out, the tolerance does not hold" in words
    assert "if all are left out" in words


def test_labels_say_repaired_where_there_are_no_pins_and_both_where_there_are() -> None:
    pin = Pin("Tanh_2", ("Tanh_2",), Precision.FP32, "why")
    for found, words in ((repaired(), "repaired"), (repaired(pins=(pin,)), "repaired, with pins")):
        page = Page(render(*found))
        assert "inherited, as it is (line)" in page.text
        assert f"inherited, {words} (dashed)" in page.text
        assert "FP16 as it is" in page.text
    assert "inherited, with pins (dashed)" in (text := Page(render(*report())).text)
    assert "FP16 no pins" in text
    assert "it names the repairs, and the nodes to keep in FP32" in page.text


def test_a_run_without_repairs_has_nothing_of_them() -> None:
    html = render(*report())
    assert 'id="repaired"' not in html
    assert "Repairs" not in Page(html).text


def test_the_repaired_layer_is_marked_in_its_row_and_in_the_graph() -> None:
    run, variants, layers, plans = repaired()
    html = render(run, variants, layers.assign(inputs=""), plans)
    assert Page(html).row("2", LAYER)[14] == "repaired squares scaled before they are summed up"
    assert '"repaired":[1]' in html
    assert '<tr data-i="1" id="row-1-1" class="repaired">' in html


@pytest.mark.parametrize(
    ("left_out", "cell"),
    [({"figures": None}, "the others need it"), (None, "–"), ({"sqnr": "nan", "nonfinite_tensors": 0}, "NaN")],
)
def test_what_is_left_without_a_repair_is_a_figure_or_why_there_is_none(left_out: Any, cell: str) -> None:
    assert Page(render(*repaired(left_out=left_out))).row("squares scaled before they are summed up")[5] == cell


def test_a_repair_that_rounds_and_one_of_a_later_version_are_shown() -> None:
    rounding = Repair("log_hypot", Exactness.ROUNDING, "elsewhere", ("log",))
    later = Repair("of_the_future", Exactness.BITWISE, "Conv_0", ("n",))
    page = Page(render(*repaired(rounding, later)))
    first = page.row("a scaled hypotenuse in the place of a sum of squares")
    assert first[1:5] == ["elsewhere", "–", "–", "rounds elsewhere, to 1e-5"]
    assert page.row("of_the_future")[1] == "Conv_0"


def test_repairs_of_a_run_that_says_no_more_are_listed_without_drawings() -> None:
    run, *rest = repaired()
    for facts in (None, {"sha256": "ef", "float32": {"bitwise": False, "largest_difference": 2e-6, "samples": 3}}):
        run["precisions"]["fp16"]["repaired"] = facts
        html = render(run, *rest)
        assert 'class="part"' not in html
        assert Page(html).row("squares scaled before they are summed up")[5] == "–"
    assert "to 2e-06 of an output's largest number, on 3 samples" in Page(html).text


def test_a_long_list_of_changes_is_cut_and_a_wide_drawing_has_the_page_to_itself() -> None:
    run, *rest = repaired()
    head = PART["after"][0]
    news = [{**head, "name": f"n{i}", "kind": "Abs", "state": "new", "inputs": [0]} for i in range(9)]
    run["precisions"]["fp16"]["repaired"]["repairs"][0]["graph"] = {**PART, "after": [head, *news]}
    html = render(run, *rest)
    assert "new: Abs n5" in Page(html).text
    assert "new: Abs n6" not in Page(html).text
    assert "and 3 more, drawn below" in Page(html).text
    assert '<div class="parts wide">' in html
    assert '<div class="parts">' in render(*repaired())


@pytest.mark.parametrize("draw", [render, render_fragment])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_are_text(draw: Any, name: str) -> None:
    def tags(name: str) -> list[str]:
        repair = Repair(REPAIR.kind, Exactness.BITWISE, name, (name,), ((name, 3),), (name,), name)
        found = repaired(repair, names=["a", name, "b", "c"])
        # A long name stands in two parts in the table of layers.
        return [tag for tag, facts in Page(draw(*found)).tags if facts.get("class") not in ("head", "tail")]

    assert tags(name) == tags("plain")


def test_a_notebook_shows_the_repairs_without_drawings_or_ids() -> None:
    html = render_fragment(*repaired())
    page = Page(html)
    assert page.row("squares scaled before they are summed up")[1] == LAYER
    assert 'class="part"' not in html
    assert not [attributes for _, attributes in page.tags if {"id", "href"} & set(attributes)]


def test_the_summary_has_a_table_of_repairs() -> None:
    text = summary(repaired())
    assert "### FP16: 1 repair" in text
    assert "bit for bit, on 64 samples" in text
    assert "| Variant | Figures | Pins | Repairs |" in text
    assert "| fp16 repaired | emulated | 0 | 1 |" in text
    assert f"| squares scaled before they are summed up | `{LAYER}` | an overflow | x: 2^-9 | the same bits |" in text
    assert "repair" not in summary(report()).lower()


# Two runs


def test_diff_says_which_repairs_came_and_went() -> None:
    pinned, mended = files(report(), "a"), files(repaired(), "b")
    (change,) = diff_runs(pinned, mended).precisions
    assert [(c.repair.kind, c.texts) for c in change.repairs] == [(REPAIR.kind, ("", "x: 2^-9"))]
    assert [pin.layer for pin in change.removed] == [LAYER]
    assert change.variants == ("fp16 mixed", "fp16 repaired")
    (back,) = diff_runs(mended, pinned).precisions
    assert [c.texts for c in back.repairs] == [("x: 2^-9", "")]
    assert diff_runs(mended, mended).precisions[0].repairs == ()
    other = files(repaired(Repair(REPAIR.kind, Exactness.BITWISE, LAYER, REPAIR.nodes, (("x", -7),))), "c")
    assert [c.texts for c in diff_runs(mended, other).precisions[0].repairs] == [("x: 2^-9", "x: 2^-7")]


def test_diff_tells_of_repairs_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    diff = diff_runs(files(report(), "a"), files(repaired(), "b"))
    print_diff(diff, sys.stdout)
    printed = capsys.readouterr().out
    assert "no repair → x: 2^-9: scale_sum_of_squares at square" in printed
    assert "fp16 mixed → fp16" in " ".join(printed.split())
    page = Page(render_diff(diff))
    assert page.row("squares scaled before they are summed up")[1:4] == [LAYER, "–", "x: 2^-9"]
    (found,) = json.loads(json.dumps(diff_to_dict(diff)))["precisions"]
    assert found["repairs"] == [
        {"kind": REPAIR.kind, "node": "square", "for": LAYER, "a": None, "b": {"x": -9}, "reason": "an overflow"}
    ]
    assert found["plans"] == {"a": "fp16 mixed", "b": "fp16 repaired"}
    assert 'id="repairs"' not in render_diff(diff_runs(files(report(), "a"), files(report(), "b")))


# A real run


def folder_of(result: SweepResult) -> Path:
    assert result.folder is not None
    return result.folder


def scale_of(result: SweepResult) -> str:
    """What its repair computes at: `2^-9`."""
    ((_, exponent),) = result.plans["fp16"].repairs[0].scales
    return f"2^{exponent}"


@pytest.mark.slow
def test_the_files_of_a_run_tell_of_its_repair(repaired_digits: SweepResult) -> None:
    folder = folder_of(repaired_digits)
    facts = json.loads((folder / "run.json").read_text())["precisions"]["fp16"]["repaired"]
    (drawn,) = facts["repairs"]
    (proof,) = json.loads((folder / "plan.json").read_text())["certificate"]["repairs"]
    assert drawn["left_out"].items() <= proof.items()
    news = [(n["kind"], n["constants"]) for n in drawn["graph"]["after"] if n["state"] == "new"]
    assert ("Mul", [scale_of(repaired_digits)]) in news
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert redraw(read_run(folder)) == html
    assert Page(html).row("squares scaled before they are summed up")[1] == "/norm/square"
    assert "repairs" not in json.loads((folder / "plan.json").read_text())["repaired"]


@pytest.mark.slow
def test_the_tables_of_a_run_tell_of_its_repair(repaired_digits: SweepResult) -> None:
    variants = repaired_digits.variants.set_index("variant")["repairs"]
    assert variants.to_dict() == {"fp32": 0, "fp16": 0, "fp16 repaired": 1}
    layers = repaired_digits.layers.set_index("layer")["repair"]
    assert layers[layers != ""].to_dict() == {"/norm/square": "scale_sum_of_squares"}
    found = json.loads(to_json(repaired_digits))
    assert [(p["repairs"], p["chosen"]) for p in found["pareto"]] == [(0, False), (1, True)]
    assert [repair["kind"] for repair in found["plans"]["fp16"]["repairs"]] == ["scale_sum_of_squares"]


@pytest.mark.slow
def test_the_annotated_model_names_the_repair_of_the_layer_that_it_is_for(repaired_digits: SweepResult) -> None:
    nodes = onnx.load(folder_of(repaired_digits) / "annotated.onnx").graph.node
    facts = {node.name: {entry.key: entry.value for entry in node.metadata_props} for node in nodes}
    kinds = {name: found.get("precisionlab.fp16.repair") for name, found in facts.items()}
    assert {name: kind for name, kind in kinds.items() if kind} == {"/norm/square": "scale_sum_of_squares"}


@pytest.mark.slow
def test_the_terminal_says_what_was_repaired_in_80_columns(repaired_digits: SweepResult) -> None:
    stream = io.StringIO()
    print_summary(repaired_digits, stream)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert max(len(line) for line in lines if not line.startswith(("Report:", "Plan:", "  precisionlab"))) <= 80
    assert next(line for line in lines if line.startswith("fp32")).endswith("reference")
    text = " ".join(stream.getvalue().split())
    for words in (
        "fp16: right with 1 repair: no layer needs a pin",
        "repair /norm/square",
        f"squares scaled before they are summed up, x: {scale_of(repaired_digits)}; in float32 the same bits",
        "NaN or Inf in 4 tensors as it is",
        "/norm/square ~",
    ):
        assert words in text, words


@pytest.mark.slow
def test_a_run_with_pins_and_one_with_repairs_are_compared(
    repaired_digits: SweepResult, swept_digits: SweepResult
) -> None:
    diff = diff_runs(read_run(folder_of(swept_digits)), read_run(folder_of(repaired_digits)))
    (change,) = diff.precisions
    assert len(change.removed) == 4
    assert [c.texts for c in change.repairs] == [("", f"x: {scale_of(repaired_digits)}")]
    figures = {c.name: (c.before, c.after) for c in change.found if not c.held_out and c.output is None}
    assert figures["pins"] == (4, 0)
    assert all(after is not None and after > 60 for after in figures["sqnr"])
    assert [f for f in diff.failures if f.startswith("fp16")] == []


@pytest.mark.slow
def test_each_of_two_repairs_has_the_graph_as_the_other_leaves_it(tmp_path: Path) -> None:
    body = " ".join(
        f'["a{i}"] a{i} = Mul({v}, {v}) ["m{i}"] m{i} = ReduceMean<axes=[1]>(a{i}) ["r{i}"] r{i} = Sqrt(m{i}) '
        f'["d{i}"] {w} = Div({v}, r{i}) '
        for i, (v, w) in enumerate((("x", "h"), ("g", "y")))
    ).replace('["a1"]', '["big"] g = Mul(h, k) ["a1"]')
    onnx.save_model(
        proto(f"(float[1,4] x) => (float[1,4] y) {{ {body} }}", {"k": np.float32(3000)}), tmp_path / "model.onnx"
    )
    data = tmp_path / "data"
    data.mkdir()
    for i in range(3):
        np.savez(data / f"{i}.npz", x=np.float32([[300, 500, 700, 900 + i]]))
    result = sweep(tmp_path / "model.onnx", data, precisions="fp16", out=tmp_path / "run")
    (found,) = result.precisions
    assert len(found.plan.repairs) == 2
    drawn = result.run["precisions"]["fp16"]["repaired"]["repairs"]
    news = [{n["name"] for n in one["graph"]["after"] if n["state"] == "new"} for one in drawn]
    assert all(news)
    assert not news[0] & news[1]
    assert (
        Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).text.count("the graph before and after")
        == 2
    )


@pytest.mark.parametrize(
    ("together", "without", "head", "proof"),
    [
        ([1], "it", "left out", "Each was, alone"),
        ([1, 1], "any one of them", "left out", "Each was, alone"),
        ([2, 2], "all 2 of them", "all are left out", "All 2 of them were, at once, as each does little by itself"),
        (
            [1, 3, 3, 3],
            "all 3 of channels or any other",
            "left out, of channels all",
            "All 3 of channels were, at once, as each does little by itself, and any other alone",
        ),
    ],
)
def test_what_was_left_out_at_once_and_what_by_itself_is_told_apart(
    together: list[int], without: str, head: str, proof: str
) -> None:
    repair = Repair("migrate_channels", Exactness.BITWISE, "a", ("a",))
    releases = [RepairRelease(repair, None, True, count) for count in together]
    views = [RepairView("", "", "a", "", (), (), (), "", "", 0, together=one.together) for one in releases]
    found = RepairedView(tuple(views), "")
    assert (found.without, found.left_out_words, found.proof_words) == (without, head, proof)
    told = _repairs_left_out(Certificate((), Figures({}, 0, True), (), True, tuple(releases)))
    assert (
        told
        == {
            "left out": ["any one of its repairs left out"],
            "all are left out": ["all of its repairs left out"],
            "left out, of channels all": ["all of its channels as they were", "any other of its repairs left out"],
        }[head]
    )
