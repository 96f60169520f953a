"""Typed models hold the constants that the emulation computes with, and say which of them were clamped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import Array, load, packaged, plan_for, proto

from precisionlab.model import Model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.toggle import whole
from precisionlab.rewrite.typed import TypedModel, typed_model

FP16, BF16 = Precision.FP16, Precision.BF16
LEAST = 2.0**-24


def run(model: ir.Model, feeds: Mapping[str, Any]) -> list[Array]:
    """What ONNX Runtime's CPU makes of it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def both(model: Model, x: Array, arithmetic: Arithmetic = TENSORRT, precision: Precision = FP16) -> tuple[Array, Array]:
    """What the typed model gives, and what the emulation does."""
    plan, feeds = plan_for(model, precision), {"x": x}
    (found,) = run(typed_model(model, plan, None, arithmetic.constants).onnx, feeds)
    graph, _ = whole(model, plan, None, copier_of(arithmetic))
    (emulated,) = run(graph, feeds)
    return found, emulated


def held(result: TypedModel) -> dict[str, Array]:
    """All constants that are in half."""
    return {
        str(name): value.const_value.numpy()
        for name, value in result.onnx.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT16 and value.const_value is not None
    }


SUM = "(float[3] x) => (float[3] y) { y = Add(x, k) }"
LOST = np.float32([1e6, -3.4e38, 1e-12])


def test_constants_that_half_cannot_hold_are_written_as_the_nearest_and_a_note_names_them(tmp_path: Path) -> None:
    model = load(proto(SUM, {"k": LOST}), tmp_path)
    result = typed_model(model, plan_for(model, FP16), None)
    assert held(result)["k"].astype(np.float32).tolist() == [65504, -65504, LEAST]
    (note,) = result.clamped
    assert note == (
        "1 constant that fp16 cannot hold is clamped to the nearest that it can, as TensorRT's builder does where "
        "types are weak: k (-3.4e+38 → -65504); strongly typed TensorRT computes with what this file holds"
    )
    assert [array.tolist() for array in both(model, np.zeros(3, np.float32))] == [[65504, -65504, LEAST]] * 2


def test_constants_that_half_holds_need_no_note(tmp_path: Path) -> None:
    model = load(proto(SUM, {"k": np.float32([65519, 1e-7, np.inf])}), tmp_path)
    result = typed_model(model, plan_for(model, FP16), None)
    assert result.clamped == ()
    assert held(result)["k"].astype(np.float32).tolist() == [65504, np.float32(np.float16(1e-7)), np.inf]


def test_where_they_are_to_be_rounded_they_are_what_a_cast_makes_of_them(tmp_path: Path) -> None:
    model = load(proto(SUM, {"k": LOST}), tmp_path)
    result = typed_model(model, plan_for(model, FP16), None, Constants.ROUNDED)
    assert held(result)["k"].tolist() == [np.inf, -np.inf, 0]
    assert result.clamped == ()
    rounded = Arithmetic(constants=Constants.ROUNDED)
    assert [array.tolist() for array in both(model, np.zeros(3, np.float32), rounded)] == [[np.inf, -np.inf, 0]] * 2


def test_in_bf16_nothing_is_clamped(tmp_path: Path) -> None:
    model = load(proto(SUM, {"k": LOST}), tmp_path)
    result = typed_model(model, plan_for(model, BF16), None)
    assert result.clamped == ()
    (value,) = (v for v in result.onnx.graph.initializers.values() if v.dtype == ir.DataType.BFLOAT16)
    assert value.const_value is not None
    assert value.const_value.numpy().astype(np.float32)[1] == -np.inf


def test_the_note_names_those_beyond_half_first_then_the_smallest_and_counts_the_others(tmp_path: Path) -> None:
    names = "abcde"
    terms = " ".join(f"{n}1 = Add({p}, {n})" for n, p in zip(names, ["x", *(f"{n}1" for n in names)], strict=False))
    model = load(
        proto(
            f"(float[4] x) => (float[4] y) {{ {terms} y = Neg(e1) }}",
            {
                "a": np.float32([1e-9, 1, 1, 1]), "b": np.float32([1e-12]), "c": np.float32([2, 3, 4, 5]),
                "d": np.float32([1e5]), "e": np.float32([1, -1e-20, 1, 1]),
            },
        ),
        tmp_path,
    )  # fmt: skip
    (note,) = typed_model(model, plan_for(model, FP16), None).clamped
    assert note.startswith("4 constants that fp16 cannot hold are clamped to the nearest that it can")
    assert "weak: d (1e+05 → 65504), b (1e-12 → 5.9605e-08), a (1e-09 → 5.9605e-08) and 1 more; strongly" in note


def test_a_pinned_layer_s_constant_stays_in_float32(tmp_path: Path) -> None:
    model = load(proto(SUM, {"k": LOST}), tmp_path)
    result = typed_model(model, plan_for(model, FP16, ["node_of_y"]), None)
    assert (held(result), result.clamped) == ({}, ())


def test_a_clip_s_limits_are_rounded_and_not_clamped(tmp_path: Path) -> None:
    body = "(float[3] x) => (float[3] y) { a = Mul(x, x) y = Clip(a, low, high) }"
    model = load(proto(body, {"low": np.float32(1e-12), "high": np.float32(1e9)}), tmp_path)
    result = typed_model(model, plan_for(model, FP16), None)
    assert {name: array.item() for name, array in held(result).items()} == {"low": 0, "high": np.inf}
    assert result.clamped == ()


def test_a_constant_that_is_a_limit_here_and_data_there_is_written_twice(tmp_path: Path) -> None:
    body = "(float[2] x) => (float[2] y) { a = Mul(x, k) y = Clip(a, low, k) }"
    model = load(proto(body, {"low": np.float32(0), "k": np.float32(1e9)}), tmp_path)
    result = typed_model(model, plan_for(model, FP16), None)
    assert sorted(array.item() for array in held(result).values()) == [0, 65504, np.inf]
    found, emulated = both(model, np.float32([1, 2]))
    assert found[0] == emulated[0] == 65504
    assert len(result.clamped) == 1


IF = """(float[3] x) => (float[3] y) {
    b = ReduceSum<keepdims = 0>(x) f = Cast<to = 9>(b)
    y = If (f) <then_branch = t () => (float[3] p) { p = Add(x, k) },
                else_branch = e () => (float[3] q) { q = Sub(x, k) }> }"""


@pytest.mark.parametrize("first", [0, 1])
def test_constants_of_bodies_are_clamped_and_named(tmp_path: Path, first: float) -> None:
    model = load(proto(IF, {"k": LOST}), tmp_path)
    (note,) = typed_model(model, plan_for(model, FP16), None).clamped
    assert "k (-3.4e+38 → -65504)" in note
    found, emulated = both(model, np.float32([first, 0, 0]))
    assert np.isfinite(found).all()
    assert found.tolist() == emulated.tolist()


def test_a_limit_that_only_a_body_takes_is_not_clamped(tmp_path: Path) -> None:
    body = """(float[2] x) => (float[2] y) {
        b = ReduceSum<keepdims = 0>(x) f = Cast<to = 9>(b)
        y = If (f) <then_branch = t () => (float[2] p) { s = Mul(x, x) p = Clip(s, low, high) },
                    else_branch = e () => (float[2] q) { q = Neg(x) }> }"""
    model = load(proto(body, {"low": np.float32(0), "high": np.float32(1e9)}), tmp_path)
    result = typed_model(model, plan_for(model, FP16), None)
    assert result.clamped == ()
    assert np.inf in [array.item() for array in held(result).values()]


def test_a_folded_normalization_is_clamped_as_the_emulation_has_it(tmp_path: Path) -> None:
    """A scale of 1e-9 underflows in half; one beyond half leaves the layer in float32, which a note says."""
    body = "(float[1,2] x) => (float[1,2] y) { y = BatchNormalization<epsilon = 0.0>(x, s, b, m, v) }"
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    model = load(proto(body, {"s": np.float32([1e-9, 1]), "b": zeros, "m": zeros, "v": ones}), tmp_path)
    (note,) = typed_model(model, plan_for(model, FP16), None).clamped
    assert "node_of_y_s (1e-09 → 5.9605e-08)" in note
    found, emulated = both(model, np.float32([[4, 4]]))
    assert found.tolist() == emulated.tolist() == [[4 * LEAST, 4]]


def test_what_a_tensor_is_filled_with_is_clamped(tmp_path: Path) -> None:
    body = "(float[N] x) => (float[N] y) { s = Shape(x) f = ConstantOfShape<value=float[1]{1e6}>(s) y = Add(x, f) }"
    model = load(proto(body), tmp_path)
    found, emulated = both(model, np.zeros(2, np.float32))
    assert found.tolist() == emulated.tolist() == [65504, 65504]
    rounded = Arithmetic(constants=Constants.ROUNDED)
    assert [np.isinf(array).all() for array in both(model, np.zeros(2, np.float32), rounded)] == [True, True]


def test_a_table_that_rows_are_taken_from_is_clamped(tmp_path: Path) -> None:
    body = "(float[2] x) => (float[2] y) { i = Cast<to = 7>(x) y = Gather(table, i) }"
    model = load(proto(body, {"table": np.float32([1e6, 1e-12, 0.1])}), tmp_path)
    found, emulated = both(model, np.float32([0, 1]))
    assert found.tolist() == emulated.tolist() == [65504, LEAST]
    (found, emulated) = both(model, np.float32([2, 2]))
    assert found.tolist() == emulated.tolist() == [np.float32(np.float16(0.1))] * 2


@pytest.mark.slow
@pytest.mark.thorough
def test_the_typed_minilm_has_no_nan_and_where_its_mask_is_cast_it_has() -> None:
    model, data = packaged("minilm")
    for constants, is_right in ((Constants.CLAMPED, True), (Constants.ROUNDED, False)):
        result = typed_model(model, plan_for(model, FP16), None, constants)
        values = run(result.onnx, {info.name: data.inputs[info.name] for info in model.inputs})
        assert all(np.isfinite(value).all() for value in values) == is_right
        assert any("-3.4e+38 → -65504" in note for note in result.clamped) == is_right
