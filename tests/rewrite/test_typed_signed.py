"""uint8 that a model quantises to by itself stands in a typed model as int8, which TensorRT reads as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Array, load, plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.backends.converted import SourceRun
from precisionlab.backends.session import Session
from precisionlab.data import open_dataset
from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import TypedModel, save_typed, typed_model
from precisionlab.rewrite.typed.signed import is_unsigned

RNG = np.random.default_rng(0)
X = "(float[4,8] x) => (float[4,8] y)"
QDQ = X + " { a = Relu(x) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Neg(d) }"
UINT8 = {"s": np.float32(4 / 255), "z": np.uint8(0)}
WEIGHT = X + " { w = DequantizeLinear<axis=1>(q, s, z) y = MatMul(x, w) }"


def typed(body: str, weights: Mapping[str, Any], folder: Path, spread: float = 1.0, opset: int = 17) -> TypedModel:
    """The FP16 model, tried on eight samples whose values spread so far."""
    model = load(proto(body, weights, opset=opset), folder)
    for index in range(8):
        shape = tuple(map(int, model.inputs[0].shape or ()))
        values = RNG.standard_normal(shape) * spread
        is_bytes = model.inputs[0].dtype == ir.DataType.UINT8
        np.save(folder / f"{index}.npy", np.abs(values * 80).astype(np.uint8) if is_bytes else values.astype("f4"))
    return typed_model(model, plan_for(model, Precision.FP16), None, beside=of(model, folder))


def of(model: Model, folder: Path) -> SourceRun:
    return SourceRun(model, open_dataset(folder, model, None, 0), 1)


def values(found: TypedModel, feed: Array) -> Array:
    """What it gives; in halves, as ONNX Runtime computes them."""
    result: Array = Session(found.onnx.clone(), 1).run({"x": feed})["y"]
    return np.array(result)


def types(found: TypedModel) -> set[ir.DataType]:
    """The types of the quantised values: of zero points, and constants."""
    return {
        value.const_value.dtype
        for node in found.onnx.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for value in node.inputs
        if value is not None and value.const_value is not None and value.const_value.dtype.itemsize == 1
    }


def test_an_activation_from_0_on_has_wider_steps_for_the_same_range(tmp_path: Path) -> None:
    found = typed(QDQ, UINT8, tmp_path)
    (note,) = found.notes
    assert note.startswith(
        "2 nodes that quantise to uint8, which TensorRT reads as int8, do so to int8, with steps 255/127 as large for "
        "the same range (with the same steps: to "
    )
    assert types(found) == {ir.DataType.INT8}
    x = np.linspace(-1, 4, 32, dtype=np.float32).reshape(4, 8)
    assert np.abs(values(found, x) + np.maximum(x, 0)).max() < 4 / 127 / 2 + 1e-3


def test_steps_stay_where_no_sample_has_values_above_half_of_the_range(tmp_path: Path) -> None:
    found = typed(QDQ, UINT8, tmp_path, spread=0.3)
    (note,) = found.notes
    assert "with the same steps, as no sample has much above half of the range (with wider: to " in note
    assert note.endswith("the outputs agree with the model's to the last bit")


def test_what_is_below_0_stays_0_without_a_relu_before(tmp_path: Path) -> None:
    body = X + " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Neg(d) }"
    found = typed(body, UINT8, tmp_path)
    assert values(found, np.full((4, 8), -2, np.float32)).max() == 0
    relu = typed(QDQ, UINT8, tmp_path)
    assert sum(node.op_type == "Relu" for node in relu.onnx.graph) == 1


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (QDQ, {"s": np.float32(1 / 32), "z": np.uint8(128)}),
        (
            X + " { q = QuantizeLinear(x, s, z) r = Reshape(q, n) d = DequantizeLinear(r, s, z) y = Reshape(d, m) }",
            {"s": np.float32(1 / 32), "z": np.uint8(128), "n": np.array([32]), "m": np.array([4, 8])},
        ),
        (
            WEIGHT,
            {
                "q": RNG.integers(0, 256, (8, 8), np.uint8),
                "s": np.full(8, 1 / 64, np.float32),
                "z": np.full(8, 128, np.uint8),
            },
        ),
        (
            WEIGHT,
            {
                "q": RNG.integers(0, 128, (8, 8), np.uint8),
                "s": np.full(8, 1 / 64, np.float32),
                "z": np.arange(8, dtype=np.uint8),
            },
        ),
        (
            "(uint8[4,8] x) => (float[4,8] y) { d = DequantizeLinear(x, s, z) y = Neg(d) }",
            {"s": np.float32(1 / 64), "z": np.uint8(3)},
        ),
    ],
)
def test_values_that_int8_holds_are_the_same(body: str, weights: Mapping[str, Any], tmp_path: Path) -> None:
    found = typed(body, weights, tmp_path)
    assert found.notes[0].endswith("the outputs agree with the model's to the last bit")
    assert not any(map(is_unsigned, found.onnx.graph.all_nodes()))
    onnx.checker.check_model(ir.to_proto(found.onnx), full_check=True)


def test_weights_too_wide_for_int8_have_wider_steps(tmp_path: Path) -> None:
    weights = {"q": RNG.integers(0, 256, (8, 8), np.uint8), "s": np.full(8, 1 / 64, np.float32)}
    found = typed(WEIGHT, {**weights, "z": np.zeros(8, np.uint8)}, tmp_path)
    assert 40 < float(found.notes[0].rsplit("to ", 1)[1].removesuffix(" dB")) < 70
    assert types(found) == {ir.DataType.INT8}


@pytest.mark.parametrize(
    ("body", "weights", "told"),
    [
        (QDQ, {"s": np.float32(1 / 32), "z": np.uint8(3)}, "node node_of_q has the zero point 3, and TensorRT has no"),
        (
            X + " { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Cast<to=1>(q) y = Add(d, c) }",
            UINT8,
            r"node node_of_c \(Cast\) takes uint8 of node node_of_q",
        ),
        (
            "(float[4,8] x) => (float[4,4] y, float[4,4] k) { m = Mul(x, v) a = Relu(m) q = QuantizeLinear(a, s, z) "
            "d = DequantizeLinear(q, s, z) y, k = Split<axis=1>(d, h) }",
            {**UINT8, "v": np.repeat(np.array([0.01, 2], np.float32), 4), "h": np.array([4, 4])},
            r"it quantises to uint8, which TensorRT has not, and in int8 its outputs agree with its own to .* dB alone",
        ),
    ],
)
def test_what_int8_cannot_hold_is_refused(body: str, weights: Mapping[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=told):
        typed(body, weights, tmp_path)


@needs_rtx
def test_tensorrt_takes_it_as_int8(tmp_path: Path) -> None:
    """A Conv behind uint8 of a Relu, as NNCF writes it."""
    weights = {
        **UINT8,
        "w": RNG.standard_normal((8, 3, 3, 3)).astype("f4"),
        "v": np.full((4, 8, 1, 1), 100, np.int8),
        "t": np.float32(0.01),
    }
    body = """(float[1,3,16,16] x) => (float[1,4,14,14] y) {
        c = Conv(x, w) a = Relu(c) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z)
        u = DequantizeLinear(v, t) y = Conv(d, u) }"""
    save_typed(typed(body, {**weights, "s": np.float32(0.1)}, tmp_path), tmp_path / "typed.onnx")
    (answer,) = drive("typed", "build", tmp_path / "typed.onnx")
    assert answer["errors"] == []
    assert "Int8" in answer["layers"]
