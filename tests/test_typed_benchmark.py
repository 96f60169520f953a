"""The figures of `benchmarks.typed` that are counted, not measured."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from models import proto

from benchmarks.pins_judge import named
from benchmarks.typed import borders, explained, low_nodes

ORIGINAL = named(proto("(float[2,3] x, int32[6] i) => (float[2,3] y) { a = Exp(x) y = Tanh(a) f = Cast<to=1>(i) }"))
HALF = named(
    proto(
        "(float[2,3] x, int32[6] i) => (float[2,3] y)"
        "{ a = Exp(x) b = Cast<to=10>(a) c = Tanh(b) y = Cast<to=1>(c) f = Cast<to=10>(i)"
        " s = Shape(x) t = Cast<to=6>(s) }"
    )
)
HALF.graph.node[2].name = "node_of_y"
ELEMENTS = {"x": 6, "i": 6, "a": 6, "y": 6, "f": 6}


def test_bytes_are_those_read_and_written_by_every_cast_to_or_from_a_float_type() -> None:
    assert borders(ORIGINAL, ORIGINAL, ELEMENTS) == (1, 6 * (4 + 4), 0)
    assert borders(ORIGINAL, HALF, ELEMENTS) == (3, 6 * (4 + 2) + 6 * (2 + 4) + 6 * (4 + 2), 0)


def test_a_cast_whose_size_nobody_knows_is_counted_and_told_of() -> None:
    assert borders(ORIGINAL, HALF, {"i": 6}) == (3, 6 * (4 + 2), 2)


def test_low_nodes_are_those_that_give_half_and_no_casts() -> None:
    assert low_nodes(HALF) == {"node_of_y": "fp16"}
    assert low_nodes(ORIGINAL) == {}


def test_stale_types_in_a_tools_model_do_not_count() -> None:
    stale = onnx.ModelProto()
    stale.CopyFrom(HALF)
    stale.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT16, [2, 3]))
    assert low_nodes(stale) == {"node_of_y": "fp16"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"note": "ONNX does not define X in fp16"}, "left in fp32 by the rewrite"),
        ({"verdict": "not found", "got": [], "kind": "Reshape"}, "a copy or a view"),
        ({"verdict": "not found", "got": [], "kind": "Mul"}, "merged into another layer's kernel"),
        ({"verdict": "not found", "got": [], "kind": "Gather"}, "a copy or a view"),
        ({"fused": 3}, "runs other layers too"),
        ({"kind": "MaxPool"}, "rounded before or behind to the same; TensorRT's network has it as asked"),
        ({}, "a kernel of its own that takes and gives fp32; TensorRT's network has it as asked"),
        ({"network": ["fp32"]}, "TensorRT's network has it in fp32"),
        ({"verdict": "overridden", "got": ["int8"], "kind": "MaxPool"}, "moved behind the QuantizeLinear"),
        ({"asked": "int4", "verdict": "overridden", "kind": "MatMul"}, "dequantised by a kernel of its own"),
        ({"verdict": "overridden", "got": ["int8"], "kind": "Softmax"}, "not explained: overridden, int8"),
    ],
)
def test_an_exception_is_explained_by_what_is_known_of_it_alone(changes: dict[str, Any], words: str) -> None:
    found = {"kind": "Exp", "asked": "fp16", "got": ["fp32"], "verdict": "honoured", "network": ["fp16"], "fused": 0}
    assert words in explained({**found, "note": "", **changes})
