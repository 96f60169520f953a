"""Plans in int4: emulated and as strongly typed models, which are the same, and what TensorRT-RTX compiles of them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Array, Flows, load, plan_for, proto
from rtx import drive, needs_rtx
from test_channel_scales import run, sqnr

from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.backends.tensorrt.missed import not_fused, not_quantized
from precisionlab.calibration.blocks import Blocks, block_scales, dequantized_blocks
from precisionlab.calibration.table import CalibrationTable, block_table
from precisionlab.model import Model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for as low_plan
from precisionlab.rewrite.typed import TypedModel, save_typed, typed_model
from precisionlab.search.size import weight_bytes

INT4, FP16, BF16, FP32 = Precision.INT4, Precision.FP16, Precision.BF16, Precision.FP32
RNG = np.random.default_rng(3)
W = RNG.standard_normal((256, 32)).astype(np.float32)
B = RNG.standard_normal(32).astype(np.float32)
BODIES = {
    "MatMul": ("(float[6,256] x) => (float[6,32] y) { [m] y = MatMul(x, w) }", {"w": W}),
    "with a batch": ("(float[2,6,256] x) => (float[2,6,32] y) { [m] y = MatMul(x, w) }", {"w": W}),
    "Gemm": ("(float[6,256] x) => (float[6,32] y) { [m] y = Gemm(x, w, b) }", {"w": W, "b": B}),
    "turned": ("(float[6,256] x) => (float[6,32] y) { [m] y = Gemm<transB = 1>(x, w, b) }", {"w": W.T.copy(), "b": B}),
    "odd": ("(float[6,256] x) => (float[6,31] y) { [m] y = MatMul(x, w) }", {"w": W[:, :31].copy()}),
}
OTHERS = {
    "left": ("(float[32,6] x) => (float[256,6] y) { [m] y = MatMul(w, x) }", {"w": W}),
    "stack": ("(float[2,6,64] x) => (float[2,6,64] y) { [m] y = MatMul(x, w) }", {"w": W.reshape(2, 64, 64)}),
    "short": ("(float[6,16] x) => (float[6,32] y) { [m] y = MatMul(x, w) }", {"w": W[:16].copy()}),
    "in no whole blocks": ("(float[6,200] x) => (float[6,32] y) { [m] y = MatMul(x, w) }", {"w": W[:200].copy()}),
    "convolution": (
        "(float[1,32,4,4] x) => (float[1,64,4,4] y) { [m] y = Conv(x, w) }", {"w": W[:64].reshape(64, 32, 1, 1).copy()},
    ),
    "two activations": ("(float[2,6,32] x, float[2,32,6] t) => (float[2,6,6] y) { [m] y = MatMul(x, t) }", {}),
}  # fmt: skip
TABLE = block_table(Blocks(64))


def made(kind: str, folder: Path) -> Model:
    text, weights = {**BODIES, **OTHERS}[kind]
    return load(proto(text, weights), folder)


def plan_of(model: Model, around: Precision = FP16, table: CalibrationTable = TABLE) -> PrecisionPlan:
    return low_plan(model, INT4, table, around=around, calibration="mse")


def typed(model: Model, around: Precision = FP16) -> TypedModel:
    return typed_model(model, plan_of(model, around), TABLE)


def activation(model: Model) -> Array:
    shape = [dim for dim in model.inputs[0].shape or () if isinstance(dim, int)]
    return np.random.default_rng(2).standard_normal(shape).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("kind", BODIES)
def test_the_emulation_is_the_float_product_with_the_weight_that_comes_back(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    x, weight, axis = activation(model), model.onnx.graph.initializers["w"].const_value, int(kind == "turned")
    assert weight is not None
    scales = block_scales(weight.numpy(), axis, 64, INT4.number_format)
    back = dequantized_blocks(weight.numpy(), scales, axis, INT4.number_format)
    text, constants = BODIES[kind]
    exact = load(proto(text, {**constants, "w": back}), tmp_path, "back.onnx")
    emulated = Flows(model, plan_of(model, FP32), TABLE)(x=x)
    assert np.array_equal(emulated["variant", "y"], Flows(exact, plan_for(exact, FP32))(x=x)["reference", "y"])
    assert 15 < sqnr(emulated["reference", "y"], emulated["variant", "y"]) < 26
    half = Flows(model, plan_of(model), TABLE)(x=x)["variant", "y"]
    assert np.array_equal(half, Flows(exact, plan_for(exact, FP16))(x=x)["variant", "y"])


@pytest.mark.parametrize("around", [FP32, FP16])
@pytest.mark.parametrize("kind", BODIES)
def test_a_typed_model_is_the_emulation(kind: str, around: Precision, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    x, result = activation(model), typed(model, around)
    onnx.checker.check_model(ir.to_proto(result.onnx), full_check=True)
    emulated = Flows(model, plan_of(model, around), TABLE)(x=x)["variant", "y"]
    assert sqnr(emulated, run(result, x)) > (110 if around is FP32 else 55)
    (node,) = (n for n in result.onnx.graph if n.op_type == "DequantizeLinear")
    low, scale = node.inputs
    assert low is not None
    assert low.dtype == ir.DataType.INT4
    assert scale is not None
    assert scale.dtype == around.number_format.element
    assert (node.attributes["axis"].as_int(), node.attributes["block_size"].as_int()) == (int(kind == "turned"), 64)
    assert result.onnx.opset_imports[""] >= 21


def test_among_bfloat16_the_scales_are_the_same(tmp_path: Path) -> None:
    model = made("MatMul", tmp_path)
    found = {}
    for around in (FP16, BF16):
        (node,) = (n for n in typed(model, around).onnx.graph if n.op_type == "DequantizeLinear")
        found[around] = [
            v.const_value.numpy().astype(np.float32) for v in node.inputs if v is not None and v.const_value
        ]
    assert all(np.array_equal(a, b) for a, b in zip(found[FP16], found[BF16], strict=True))
    assert found[FP16][0].astype(ml_dtypes.int4).astype(np.float32).min() == -8


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_without_such_a_weight_are_in_the_float_around(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    assert not model.layer["m"].takes(INT4)
    assert precision_of(model.layer["m"], plan_of(model)) is FP16
    assert not [n for n in typed(model).onnx.graph if n.op_type == "DequantizeLinear"]


def test_a_weight_that_is_not_finite_is_pinned_with_the_reason(tmp_path: Path) -> None:
    bad = W.copy()
    bad[0, 0] = np.nan
    model = load(proto(BODIES["MatMul"][0], {"w": bad}), tmp_path)
    (pin,) = plan_of(model).pins
    assert (pin.precision, pin.reason) == (FP32, "weight w holds values that are not finite")
    assert plan_of(made("MatMul", tmp_path)).pins == ()


def test_bytes_of_weights_are_those_of_the_typed_file(tmp_path: Path) -> None:
    for kind in BODIES:
        model = made(kind, tmp_path)
        save_typed(typed(model), tmp_path / "typed.onnx")
        held = onnx.load(tmp_path / "typed.onnx").graph.initializer
        assert sum(len(t.raw_data) for t in held) == weight_bytes(model, plan_of(model)), kind


def test_a_weight_beyond_half_stays_in_float32_with_a_note(tmp_path: Path) -> None:
    wide = W.copy()
    wide[0, 0] = 65000
    result = typed(load(proto(BODIES["MatMul"][0], {"w": wide}), tmp_path))
    assert any("w reaches 6.93e+04, which fp16 does not hold" in note for note in result.notes)


# TensorRT-RTX


@needs_rtx
@pytest.mark.thorough
@pytest.mark.parametrize("target", ["SM89", "SM120"])
def test_the_compiler_dequantises_within_the_product_but_of_odd_columns(target: str, tmp_path: Path) -> None:
    files = {}
    for kind in BODIES:
        (tmp_path / kind).mkdir()
        model = made(kind, tmp_path / kind)
        save_typed(typed(model), tmp_path / kind / "typed.onnx")
        files[tmp_path / kind / "typed.onnx"] = model
    for (path, model), built in zip(files.items(), drive("typed", "build", *files, f"--target={target}"), strict=True):
        assert built["errors"] == [], path
        layers = layers_of(built["layers"])
        assert not_fused(model, plan_of(model), layers) == (("m",) if path.parent.name == "odd" else ()), path
        assert not_quantized(model, plan_of(model), layers) == ()


@needs_rtx
@pytest.mark.thorough
def test_turing_is_refused(tmp_path: Path) -> None:
    save_typed(typed(made("MatMul", tmp_path)), tmp_path / "typed.onnx")
    (built,) = drive("typed", "build", tmp_path / "typed.onnx", "--target=SM75")
    assert "int4" in " ".join(built["errors"])
