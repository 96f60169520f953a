"""The judge of `benchmarks.repairs` on small files, and how it reads an engine's kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import proto

from benchmarks.delivered import UnreadableError, kept_high, widened
from benchmarks.pins_judge import named, session
from benchmarks.repairs.compiled import Kernels, region_of
from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor
from precisionlab.model.repair import Exactness, Repair

ORIGINAL = proto("(float[2] x) => (float[2] y) { [a] u = Mul(x, w) [b] y = Tanh(u) }", {"w": np.float32(1.1)})
HALF = proto(
    "(float[2] x) => (float[2] y){ h = Cast<to=10>(x) [a] u = Mul(h, w) f = Cast<to=1>(u) [b] y = Tanh(f) }",
    {"w": np.float16(1.1)},
)
QUANTIZED = proto(
    "(float[2,2] x) => (float[2,2] y)"
    "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, z)"
    " [a] u = MatMul(d, v) [b] y = MatMul(u, v) }",
    {"s": np.float32(0.1), "z": np.int8(0), "w": np.eye(2, dtype=np.int8)},
)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return session(model).run(None, {"x": x})[0]


def test_a_file_is_judged_with_every_half_that_it_has_rounded_and_nothing_else() -> None:
    x = np.array([1.2345, -0.3], np.float32)

    expected = np.tanh((x.astype(np.float16) * np.float16(1.1)).astype(np.float32))
    np.testing.assert_allclose(run(widened(HALF), x), expected, rtol=1e-6)


def test_what_overflows_in_half_is_inf_in_its_judgement() -> None:
    found = proto("(float[1] x) => (float[1] y) { h = Cast<to=10>(x) u = Mul(h, h) y = Cast<to=1>(u) }")

    assert run(widened(found), np.array([300], np.float32)) == np.inf
    assert run(widened(found), np.array([200], np.float32)) == 40000


def test_a_constant_is_as_the_file_has_it() -> None:
    text = "(float[1] x) => (float[1] y) { h = Cast<to=10>(x) u = Add(h, c) y = Cast<to=1>(u) }"

    assert run(widened(proto(text, {"c": np.float16(-65504)})), np.zeros(1, np.float32)) == -65504


def test_a_file_that_takes_half_is_not_judged() -> None:
    with pytest.raises(UnreadableError, match="x is an input or output in half"):
        widened(proto("(float16[1] x) => (float[1] y) { y = Cast<to=1>(x) }"))


def test_nodes_that_give_float32_are_kept_high() -> None:
    assert kept_high(ORIGINAL, HALF, "fp16") == ("b",)
    assert kept_high(ORIGINAL, ORIGINAL, "fp16") == ("a", "b")


def test_products_of_what_is_not_quantised_are_kept_high() -> None:
    original = proto("(float[2,2] x) => (float[2,2] y) { [a] u = MatMul(x, v) [b] y = MatMul(u, v) }", {"v": np.eye(2)})

    assert kept_high(original, QUANTIZED, "int8") == ("b",)


def test_a_repaired_region_is_what_is_new_or_changed_and_what_lies_between() -> None:
    nodes = "[square] s = Mul({0}, {0}) [sum] t = ReduceSum(s) [mean] m = Mul(t, {1}) [other] y = Tanh(m)"
    ends = "(float[4] x) => (float[1] y)"
    constants = {"n": np.float32(0.25), "n4": np.float32(1), "k": np.float32(0.5)}
    original = named(proto(f"{ends} {{ {nodes.format('x', 'n')} }}", constants))
    repaired = named(proto(f"{ends} {{ [scaled] z = Mul(x, k) {nodes.format('z', 'n4')} }}", constants))
    repair = Repair("scale_sum_of_squares", Exactness.BITWISE, "sum", ("square", "mean"))

    assert region_of(original, repaired, [repair]) == {"scaled", "square", "sum", "mean"}
    assert region_of(original, original, []) == frozenset()


def test_kernels_are_told_by_what_they_run() -> None:
    def kernel(*nodes: str) -> EngineLayer:
        return EngineLayer("k", "kgen", nodes, (EngineTensor("t", "fp16", None),), ())

    attention, norm, product = ("MatMul", "Add", "Softmax", "MatMul"), ("ReduceMean", "Sqrt", "Div"), ("MatMul", "Erf")
    groups = (frozenset({"a", "b"}), frozenset({"c"}), frozenset({"d"}))
    layers = (kernel("a", "b"), kernel("c"), kernel("d"))
    before = Kernels(layers, groups, (attention, norm, product))
    after = Kernels(layers, (groups[0], frozenset({"c", "d"})), (attention, ("Sqrt", "Erf")))

    assert before.row(before, frozenset({"c"})) == {
        "kernels": 3,
        "reformats": 0,
        "fused": {"attention": 1, "normalisation": 1, "GELU": 1, "product with more": 1},
        "same": 3,
        "region": ["k: fp16 → "],
        "types": ["fp16"],
        "gone": [],
        "new": [],
    }
    row = after.row(before, frozenset())
    assert (row["same"], row["gone"], row["new"]) == (1, [["c"], ["d"]], [["c", "d"]])
    assert Kernels(failed="refused").row(before, frozenset()) == {"failed": "refused"}
