"""INT8 products with a scale for each channel in a half model: typed so that no sum is harmed, else emulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, Flows, examples, load, plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands
from precisionlab.plan.arithmetic import Arithmetic, Sums
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import TypedModel, save_typed, typed_model
from precisionlab.rewrite.typed.channels import channel_factors
from precisionlab.rewrite.typed.constants import quantised

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
FP16 = Precision.FP16
K, N, ROWS = 512, 24, 8
SCALES = np.geomspace(0.2, 1.0, N)
KINDS = {
    "right": ("x", [ROWS, K], "MatMul(x, w)", [ROWS, N], False),
    "left": ("x", [K, ROWS], "MatMul(v, x)", [N, ROWS], True),
    "of a vector": ("x", [K], "MatMul(v, x)", [N], True),
    "batches": ("x", [2, ROWS, K], "MatMul(x, w)", [2, ROWS, N], False),
    "one row": ("x", [1, K], "MatMul(x, w)", [1, N], False),
    "Gemm": ("x", [ROWS, K], "Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, v, b)", [ROWS, N], True),
}


def weights(size: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((K, N)) * SCALES / np.sqrt(K) * size).astype(np.float32)
    return {"w": weight, "v": np.ascontiguousarray(weight.T), "b": rng.standard_normal(N).astype(np.float32) * size}


def model_of(kind: str, folder: Path, size: float = 1.0) -> Model:
    name, shape, body, given, turned = KINDS[kind]
    used = {k: v for k, v in weights(size).items() if k == ("v" if turned else "w") or (k == "b" and "b)" in body)}
    text = f"(float{shape} {name}) => (float{given} y) {{ [m] y = {body} }}".replace(" ", " ")
    return load(proto(text, used), folder)


def table_of(model: Model, amax: float) -> CalibrationTable:
    return CalibrationTable({n: Range(amax) for layer in model.layers for n in quantized_operands(model, layer)}, 1)


def activation(model: Model, size: float = 1.0) -> Array:
    shape = [dim for dim in model.inputs[0].shape or () if isinstance(dim, int)]
    return (np.random.default_rng(2).standard_normal(shape) * size).astype(np.float16).astype(np.float32)


def typed(model: Model, table: CalibrationTable, around: Precision = FP16) -> TypedModel:
    return typed_model(model, plan_for(model, Precision.INT8, around=around), table)


def run(result: TypedModel, x: Array) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(result.onnx).SerializeToString()
    return np.asarray(ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])


def sqnr(reference: Array, found: Array) -> float:
    wanted = reference.astype(np.float64)
    with np.errstate(all="ignore"):
        return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


def weight_scale(result: TypedModel) -> ir.Value:
    (node,) = (n for n in result.onnx.graph if n.op_type == "DequantizeLinear" and n.inputs[0].is_initializer())  # type: ignore[union-attr]
    scale = node.inputs[1]
    assert scale is not None
    return scale


# The factors


@settings(max_examples=examples(40))
@given(
    step=st.floats(1e-6, 100.0),
    size=st.floats(1e-6, 100.0),
    spread=st.floats(0, 6),
    rows=st.integers(1, 600),
    on_the_left=st.booleans(),
)
def test_no_sum_passes_half_and_no_channel_s_range_shrinks(
    step: float, size: float, spread: float, rows: int, on_the_left: bool
) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((rows, 5)) * 10 ** np.linspace(-spread, 0, 5) * size).astype(np.float32)
    weight, axis = (weight.T, 0) if on_the_left else (weight, 1)
    step = float(np.float16(max(step, 6e-8)))
    found = channel_factors(weight, axis, step, Precision.INT8)
    if found is None:
        return
    levels = quantised(weight, found.scales, axis, Precision.INT8).astype(np.float64)
    sums = np.abs(levels).sum(axis=1 - axis).max() * 128
    assert sums * step * float(found.scale) <= 65504
    assert float(found.scale) > 0
    assert (found.scales >= weight_scales(weight, axis, Precision.INT8.number_format) * (1 - 1e-6)).all()
    assert np.isfinite(found.factors.astype(np.float32)).all()
    assert (found.factors > 0).all()


def test_factors_that_half_does_not_hold_are_none() -> None:
    assert channel_factors(np.full((600, 2), 1e4, np.float32), 1, 500.0, Precision.INT8) is None


# The typed model


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_model_has_one_scale_in_the_product_and_is_as_exact_as_the_emulation(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    table, x = table_of(model, 4.0), activation(model)
    result = typed(model, table)
    assert weight_scale(result).shape == ir.Shape(())
    assert weight_scale(result).dtype == HALF
    assert result.notes == () or "left in fp32" not in " ".join(result.notes)
    emulated = Flows(model, plan_for(model, Precision.INT8, around=FP16), table)
    flows = emulated(x=x)
    assert sqnr(flows["variant", "y"], run(result, x)) > 40
    true = sqnr(flows["reference", "y"], flows["variant", "y"])
    assert sqnr(flows["reference", "y"], run(result, x)) > true - 1.5  # other levels, as exact


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_scales_that_are_0_in_half_are_not_lost(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path, size=1e-3)
    table, x = table_of(model, 4e-3), activation(model, 1e-3)
    true = Flows(model, plan_for(model, Precision.INT8, around=FP16), table)(x=x)
    assert (np.float16(4e-3 / 127 * weight_scales(weights(1e-3)["w"], 1, Precision.INT8.number_format)) == 0).any()
    assert sqnr(true["reference", "y"], run(typed(model, table), x)) > 20


@pytest.mark.parametrize("around", [Precision.FP32, Precision.BF16])
def test_around_other_floats_the_scales_stay_the_channels(around: Precision, tmp_path: Path) -> None:
    model = model_of("right", tmp_path)
    assert weight_scale(typed(model, table_of(model, 4.0), around)).shape == ir.Shape((N,))


def test_what_half_cannot_scale_is_left_in_float32_with_a_note(tmp_path: Path) -> None:
    model = model_of("right", tmp_path, size=1e7)
    result = typed(model, table_of(model, 6e4))
    assert "left in fp32" in " ".join(result.notes)
    assert weight_scale(result).dtype == FLOAT


# The emulation of what other tools write


@pytest.mark.parametrize("kind", KINDS)
def test_with_integer_sums_in_half_those_beyond_65504_are_inf(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    table, x = table_of(model, 2.0), activation(model, 4.0)
    plan = plan_for(model, Precision.INT8, around=FP16)
    plain = Flows(model, plan, table)(x=x)["variant", "y"]
    found = Flows(model, plan, table, arithmetic=Arithmetic(integers=Sums.HALF))(x=x)["variant", "y"]
    assert np.isfinite(plain).all()
    assert np.isinf(found).any()
    same = np.isfinite(found)
    assert same.any()
    assert sqnr(plain[same], found[same]) > 50


def test_with_integer_sums_in_half_channels_whose_scales_vanish_give_0(tmp_path: Path) -> None:
    model = model_of("right", tmp_path, size=1e-5)
    table, x = table_of(model, 4e-3), activation(model, 1e-3)
    plan = plan_for(model, Precision.INT8, around=FP16)
    found = Flows(model, plan, table, arithmetic=Arithmetic(integers=Sums.HALF))(x=x)["variant", "y"]
    assert not found[np.isfinite(found)].any()  # where a sum is Inf, Inf · 0 is NaN


# TensorRT-RTX


@needs_rtx
def test_the_compiler_has_the_one_scale_in_the_gemm_and_keeps_the_factors_behind_it(tmp_path: Path) -> None:
    files = []
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        model = model_of(kind, folder)
        save_typed(typed(model, table_of(model, 4.0)), folder / "typed.onnx")
        files.append(folder / "typed.onnx")
    for kind, built in zip(KINDS, drive("typed", "build", *files), strict=True):
        assert built["errors"] == [], kind
        lines = built["layers"].split("\n")
        product, *behind = [line for line in lines if "LayerType: gemm" in line or "_channels" in line]
        assert "LayerType: gemm" in product
        assert "m_channels" in "".join(behind)
        assert len(built["factors"]) == 1, kind
        assert built["factors"] != [1.0], kind


@needs_rtx
def test_without_that_the_gemm_gives_its_sums_unscaled(tmp_path: Path) -> None:
    """The other side of the rule that the emulation has."""
    model = model_of("right", tmp_path)
    result = typed(model, table_of(model, 4.0))
    for node in list(result.onnx.graph):
        if node.op_type == "Mul":
            factors, source = node.inputs[1].const_value.numpy(), weight_scale(result)  # type: ignore[union-attr]
            scales = np.asarray(factors.astype(np.float32) * source.const_value.numpy(), np.float16)  # type: ignore[union-attr]
            source.const_value, source.shape = ir.tensor(scales), ir.Shape((N,))
            dequantise = next(use.node for use in source.uses())
            dequantise.attributes["axis"] = ir.AttrInt64("axis", 1)
            zero = ir.Value(name="zeros", const_value=ir.tensor(np.zeros(N, np.int8)))
            zero.type, zero.shape = ir.TensorType(ir.DataType.INT8), ir.Shape((N,))
            result.onnx.graph.register_initializer(zero)
            dequantise.replace_input_with(2, zero)
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0], replace_graph_outputs=True)  # type: ignore[arg-type]
            result.onnx.graph.remove(node, safe=True)
    save_typed(result, tmp_path / "naive.onnx")
    (built,) = drive("typed", "build", tmp_path / "naive.onnx")
    assert built["errors"] == []
    assert built["factors"] == [1.0]
