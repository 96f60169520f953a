"""Plans in fp8 as strongly typed models: as exact as the emulation, and what TensorRT-RTX compiles of them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from models import Array, Flows, load, plan_for, proto
from rtx import drive, needs_rtx
from test_channel_scales import run, sqnr

from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.backends.tensorrt.missed import not_quantized
from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.errors import PlanError
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands
from precisionlab.plan.plan import Pin
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import TypedModel, save_typed, typed_model
from precisionlab.rewrite.typed.channels import channel_factors
from precisionlab.rewrite.typed.constants import quantised

FP8, FP16, FP32 = Precision.FP8, Precision.FP16, Precision.FP32
E4M3, HALF = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT16
RNG = np.random.default_rng(1)
W = (RNG.standard_normal((32, 24)) * np.geomspace(0.1, 1, 24)).astype(np.float32)
K = RNG.standard_normal((16, 8, 3, 3)).astype(np.float32)
BODIES = {
    "MatMul": ("(float[6,32] x) => (float[6,24] y) { [m] y = MatMul(x, w) }", {"w": W}),
    "Gemm": ("(float[6,32] x) => (float[6,24] y) { [m] y = Gemm<transB = 1>(x, w) }", {"w": W.T.copy()}),
    "Conv": ("(float[1,8,9,9] x) => (float[1,16,9,9] y) { [m] y = Conv<pads = [1,1,1,1]>(x, k) }", {"k": K}),
    "ConvTranspose": ("(float[1,16,5,5] x) => (float[1,8,7,7] y) { [m] y = ConvTranspose(x, k) }", {"k": K}),
    "two activations": (
        "(float[2,16,32] x) => (float[2,16,16] y) { t = Transpose<perm = [0,2,1]>(x) [m] y = MatMul(x, t) }", {},
    ),
}  # fmt: skip


def made(kind: str, folder: Path) -> Model:
    text, weights = BODIES[kind]
    return load(proto(text, weights), folder)


def table_of(model: Model, amax: float = 4.0) -> CalibrationTable:
    ranges = {name: Range(amax) for layer in model.layers for name in quantized_operands(model, layer)}
    return CalibrationTable(ranges, 1, FP8)


def typed(model: Model, around: Precision = FP16) -> TypedModel:
    return typed_model(model, plan_for(model, FP8, around=around), table_of(model))


def activation(model: Model) -> Array:
    shape = [dim for dim in model.inputs[0].shape or () if isinstance(dim, int)]
    return np.random.default_rng(2).standard_normal(shape).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("kind", BODIES)
def test_among_float32_a_typed_model_is_the_emulation(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    x = activation(model)
    emulated = Flows(model, plan_for(model, FP8), table_of(model))(x=x)["variant", "y"]
    result = typed(model, FP32)
    assert sqnr(emulated, run(result, x)) > 110
    kinds = {n.op_type: n.inputs[0].dtype for n in result.onnx.graph if n.op_type == "DequantizeLinear"}  # type: ignore[union-attr]
    assert kinds == {"DequantizeLinear": E4M3}
    assert result.onnx.opset_imports[""] >= 19


@pytest.mark.parametrize("kind", BODIES)
def test_among_half_it_is_as_exact_as_the_emulation_with_scales_in_half(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    x, result = activation(model), typed(model)
    flows = Flows(model, plan_for(model, FP8, around=FP16), table_of(model))(x=x)
    true = sqnr(flows["reference", "y"], flows["variant", "y"])
    assert sqnr(flows["reference", "y"], run(result, x)) > true - 1.5
    scales = [node.inputs[1] for node in result.onnx.graph if node.op_type == "DequantizeLinear"]
    assert {scale.dtype for scale in scales if scale is not None} == {HALF}


def test_weights_are_stored_in_fp8_with_a_scale_for_each_channel_of_a_convolution(tmp_path: Path) -> None:
    result = typed(made("Conv", tmp_path))
    (weight,) = (n for n in result.onnx.graph if n.op_type == "DequantizeLinear" and n.inputs[0].is_initializer())  # type: ignore[union-attr]
    stored, scale = weight.inputs[0], weight.inputs[1]
    assert stored is not None
    assert stored.const_value is not None
    assert stored.const_value.numpy().dtype == ml_dtypes.float8_e4m3fn
    assert scale is not None
    assert scale.shape == ir.Shape((16,))
    assert weight.attributes["axis"].as_int() == 0


def test_no_sum_of_a_product_with_one_scale_passes_half() -> None:
    step = float(np.float16(4 / 448))
    found = channel_factors(W, 1, step, FP8)
    assert found is not None
    steps = np.abs(quantised(W, found.scales, 1, FP8).astype(np.float64))
    assert steps.sum(0).max() * 448 * step * float(found.scale) <= 65504
    assert (found.scales >= weight_scales(W, 1, FP8.number_format) * (1 - 1e-6)).all()


def test_a_plan_in_fp8_without_its_own_ranges_is_refused_and_with_them_taken(tmp_path: Path) -> None:
    model = made("MatMul", tmp_path)
    ranges = table_of(model).ranges
    with pytest.raises(PlanError, match="runs layer m in fp8, which needs a calibration table"):
        typed_model(model, plan_for(model, FP8), CalibrationTable(ranges, 1))
    typed_model(model, plan_for(model, FP8), CalibrationTable(ranges, 1, others=(table_of(model),)))


def test_int8_and_fp8_stand_side_by_side_each_with_its_own_steps(tmp_path: Path) -> None:
    text = "(float[6,32] x) => (float[6,24] y, float[6,24] z) { [a] y = MatMul(x, w) [b] z = MatMul(x, w) }"
    model = load(proto(text, {"w": W}), tmp_path)
    ranges = {"x": Range(3.0)}
    table = CalibrationTable(ranges, 1, others=(CalibrationTable({"x": Range(4.0)}, 1, FP8),))
    plan = plan_for(model, Precision.INT8).with_pins([Pin("b", ("b",), FP8, "test")])
    x = activation(model)
    flows, alone = Flows(model, plan, table)(x=x), {}
    for name, precision in (("y", Precision.INT8), ("z", FP8)):
        alone[name] = Flows(model, plan_for(model, precision), table)(x=x)["variant", name]
        assert np.array_equal(flows["variant", name], alone[name])
    assert not np.array_equal(alone["y"], alone["z"])
    options = run(typed_model(model, plan, table), x)
    assert sqnr(alone["y"], options) > 110


# TensorRT-RTX


@needs_rtx
@pytest.mark.parametrize("target", ["SM89", "SM120"])
def test_the_compiler_has_kernels_in_fp8_but_of_a_transposed_convolution(target: str, tmp_path: Path) -> None:
    files = {}
    for kind in BODIES:
        (tmp_path / kind).mkdir()
        model = made(kind, tmp_path / kind)
        save_typed(typed(model), tmp_path / kind / "typed.onnx")
        files[tmp_path / kind / "typed.onnx"] = model
    for (path, model), built in zip(files.items(), drive("typed", "build", *files, f"--target={target}"), strict=True):
        assert built["errors"] == [], path
        missed = not_quantized(model, plan_for(model, FP8, around=FP16), layers_of(built["layers"]))
        assert missed == (("m",) if path.parent.name == "ConvTranspose" else ()), path


@needs_rtx
def test_gpus_before_ada_are_refused(tmp_path: Path) -> None:
    save_typed(typed(made("MatMul", tmp_path)), tmp_path / "typed.onnx")
    (built,) = drive("typed", "build", tmp_path / "typed.onnx", "--target=SM86")
    assert "fp8_e4m3" in " ".join(built["errors"])
