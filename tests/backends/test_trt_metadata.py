"""What layers say of the ONNX nodes that they are made of, as the parsers of all versions write it, is read alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import load, plan_for, proto
from onnx import helper

from precisionlab.backends.tensorrt.inspector import layers_of
from precisionlab.backends.tensorrt.latency import times_of_layers
from precisionlab.backends.tensorrt.metadata import NO_NAMES, NodeNames, engine_nodes, names_of, network_nodes
from precisionlab.export import Subject
from precisionlab.export.polygraphy import polygraphy_script
from precisionlab.precision import Precision

ODD = NodeNames(
    {"a": "Relu", "b": "Conv", "a | b": "Exp", "x[0]": "Exp", "q]": "Exp", "s p: c": "Exp", "iff": "If", "lp": "Loop",
     "a][ONNX Layer: c": "Exp", "call": "f", "both": "Relu"},
    {"inner": "iff", "deep": "iff", "in | bar": "iff", "many": "", "fn": "call", "both": "iff"},
    frozenset({"f"}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "nodes"),
    [
        ("a", ("a",)),
        ("a | b", ("a | b",)),  # a name of its own before a name with a doc string
        ("b | a", ("b",)),
        ("a | File x.py(3): f |  | tb (then_branch) | iff (If)", ("a",)),  # in the main graph, it is in no body
        ("x[0] | see [1]", ("x[0]",)),
        ("q]", ("q]",)),
        ("s p: c | doc: of | s p: c", ("s p: c",)),
        ("b | x] [ONNX Layer: a", ("b",)),
        ("inner | tb (then_branch) | iff (If)", ("inner", "iff")),
        ("deep | g (body) | lp (Loop) | tb (else_branch) | iff (If)", ("deep", "lp", "iff")),
        ("in | bar | tb (then_branch) | iff (If)", ("in | bar", "iff")),
        ("inner", ("inner", "iff")),  # 8.6 to 10.1 tell nothing of the body
        ("inner | its doc | (If)", ("inner", "iff")),
        ("many", ("many", "")),
        ("fn | call (f)", ("fn", "call")),
        ("fn | Local Function: f", ("fn", "call")),
        ("fn | doc | Local Function: f", ("fn", "call")),
        ("both | Local Function: g", ("both",)),
        ("both | tb (then_branch) | iff (If)", ("both", "iff")),
        ("both | doc", ("both",)),
        ("iff | tb (then_branch) | iff (If)", ("iff",)),
        ("stranger", ("stranger",)),
        ("stranger | its doc", ("stranger | its doc",)),
        ("stranger | tb (then_branch) | other (If)", ("stranger", "other")),
    ],
)
def test_a_networks_layer_names_its_node_and_what_holds_that(said: str, nodes: tuple[str, ...]) -> None:
    assert network_nodes(f"[ONNX Layer: {said}]", ODD) == nodes


@pytest.mark.parametrize("text", ["", "made by hand", "[ONNX Layer: a", "ONNX Layer: a]"])
def test_other_text_names_none(text: str) -> None:
    assert network_nodes(text, ODD) == ()
    assert engine_nodes(text, ODD) == ()


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ("something else", ()),
        ("[ONNX Layer: ]", ("",)),
        ("[ONNX Layer: a][ONNX Layer: b][ONNX Layer: a]", ("a", "b")),
        ("[ONNX Layer: a] [ONNX Layer: b]", ("a", "b")),
        ("x [ONNX Layer: a]\x1fy [ONNX Layer: b]\x1e[ONNX Layer: iff]", ("a", "b", "iff")),
        ("[ONNX Layer: a] and more", ("a",)),
        ("[ONNX Layer: a | doc]\x1e[ONNX Layer: b | x] [y]", ("a", "b")),
        ("[ONNX Layer: a | see ][ONNX Layer: nobody]][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a][ONNX Layer: c]", ("a][ONNX Layer: c",)),
        ("[ONNX Layer: q]][ONNX Layer: x[0]]", ("q]", "x[0]")),
        ("[ONNX Layer: iff][ONNX Layer: inner | tb (then_branch) | iff (If)]", ("iff",)),
        ("[ONNX Layer: fn | Local Function: f]\x1f[ONNX Layer: many]", ("call",)),
        ("[ONNX Layer: (Unnamed Layer* 2) [Constant]][ONNX Layer: e] [f]", ("(Unnamed Layer* 2) [Constant]", "e] [f")),
    ],
)  # fmt: skip
def test_an_engines_layer_names_nodes_of_the_main_graph(metadata: str, nodes: tuple[str, ...]) -> None:
    assert engine_nodes(metadata, ODD) == nodes


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ("[ONNX Layer: a]\x1f[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: x[0] | y]", ("x[0] | y",)),
        ("[ONNX Layer: inner | bd (body) | lp (Loop) | tb (else_branch) | iff (If)]", ("inner", "lp", "iff")),
    ],
)
def test_without_the_file_it_is_read_by_its_form(metadata: str, nodes: tuple[str, ...]) -> None:
    assert network_nodes(metadata, NO_NAMES) == nodes


def test_a_text_that_the_parser_has_cut_short_still_begins_with_its_node() -> None:
    long = "[ONNX Layer: a | " + "doc " * 2000 + "]"
    assert network_nodes(f"{long[:2000]} ... {long[-2000:]}", ODD) == ("a",)


TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x1e\x1f"), max_size=20)


@given(st.lists(TEXT.filter(bool), min_size=1, max_size=4, unique=True), TEXT)
def test_any_name_is_read_back_from_a_networks_layer(names: list[str], doc: str) -> None:
    known = NodeNames(dict.fromkeys(names, "Relu"))
    for name in names:
        assert network_nodes(f"[ONNX Layer: {name}]", known) == (name,)
        lines = "".join(f" | {line}" for line in doc.split("\n"))
        (found,) = network_nodes(f"[ONNX Layer: {name}{lines}]", known)
        # Another node may have this very text for a name.
        assert found == name or f"{name}{lines}".startswith(found)


def nested() -> onnx.ModelProto:
    body = """(float[1,4] x) => (float[1,4] y) {
        sum = ReduceSum <keepdims = 0> (x) [gt] c = Greater(sum, nothing) [grow] e = Exp(x)
        [iff] y = If (c) <
            then_branch = tb () => (float[1,4] t) { [one] r = Relu(e) [two] t = Neg(r) },
            else_branch = eb () => (float[1,4] f) { [one] f = Sigmoid(e) }
        >
    }"""
    return proto(body, {"nothing": np.float32(0)})


def test_the_names_of_a_file_tell_what_holds_each_node() -> None:
    model = nested()
    nodes = [helper.make_node("Tanh", ["a"], ["h"]), helper.make_node("Neg", ["h"], ["b"], "two")]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))
    model.graph.node.append(helper.make_node("f", ["e"], ["z"], "call", domain="own"))
    names = names_of(model)
    assert names.operators == {"node_of_sum": "ReduceSum", "gt": "Greater", "grow": "Exp", "iff": "If", "call": "f"}
    assert names.holders == {"one": "iff", "two": "", "node_of_h": "call"}
    assert names.functions == {"f"}


def test_the_exported_script_reads_them_too(tmp_path: Path) -> None:
    model = load(proto("(float[4] x) => (float[4] y) { [p] a = Relu(x) [q] y = Exp(a) }"), tmp_path)
    named = onnx.load_model(model.path)
    named.graph.node[0].name = "a | b"
    model = load(named, tmp_path, "named.onnx")
    asked = Subject(model, plan_for(model, Precision.FP16, ["a | b"]), None, {}, Counter(model.node), "10.16.1")
    script = ModuleType("exported")
    exec(str(polygraphy_script(asked, "p.py").content), script.__dict__)
    assert {"a | b"} == script.BARRED
    for said, nodes in (
        ("a | b", ("a | b",)),
        ("a | b | its doc | (see x)", ("a | b",)),
        ("q | doc [1] | see it (Smith)", ("q",)),
        ("q | Local Function: f", ("q", "Local Function: f")),
        ("in | tb (then_branch) | iff (If)", ("in", "iff")),
    ):
        assert tuple(script.nodes_of(f"[ONNX Layer: {said}]")) == nodes


def test_times_of_layers_with_doc_strings_are_theirs_and_none_is_left_over(tmp_path: Path) -> None:
    model = load(proto("(float[4] x) => (float[4] y) { [p] a = Relu(x) [q] y = Exp(a) }"), tmp_path)
    names = names_of(onnx.load_model(model.path))
    text = """{"Layers": [
        {"Name": "k0", "LayerType": "Kgen", "Metadata": "[ONNX Layer: p | File model.py(3): f | return relu(x)]"},
        {"Name": "k1", "LayerType": "Kgen", "Metadata": "[ONNX Layer: q | Local Function: g]"}]}"""
    times = times_of_layers({"k0": 1.0, "k1": 2.0}, layers_of(text, names), model.layers)
    assert (times.times, times.rest) == ({"p": 1.0, "q": 2.0}, 0.0)
