"""A product that is pinned to float32 alone: no compiler may find that Casts stand around it and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Array, bits, load, plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.model import Model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import TypedModel, save_typed, typed_model

WEIGHT = 1.2345678  # rtxdrive/typed.py looks for it in engines
ROWS, IMAGE, SERIES = "4,64", "4,16,8,8", "4,16,32"


def weights(*shape: int) -> Array:
    return np.full(shape, WEIGHT, np.float32)


W: dict[str, Array] = {
    "w": weights(64, 32),
    "v": weights(64, 64),
    "k": weights(16, 16, 3, 3),
    "q": weights(16, 4, 1, 1),
    "t": weights(16, 8, 2, 2),
    "s": weights(16, 16, 3),
    "bias": np.full(16, 0.5, np.float32),
    "row": np.full(32, 0.5, np.float32),
    "channel": np.full((1, 16, 1, 1), 0.5, np.float32),
    "one": np.float32(1),
    "flat": np.array([-1, 32]),
    "wide": np.array([4, 16, 64]),
}
CONV = "Conv <kernel_shape = [3,3], pads = [1,1,1,1]>"
ALONE = {
    "MatMul": (ROWS, "m = MatMul(a, w)", "m"),
    "MatMul, one row": ("1,64", "m = MatMul(a, w)", "m"),
    "Gemm without bias": (ROWS, "m = Gemm(a, w)", "m"),
    "Einsum": (ROWS, 'm = Einsum <equation = "ij,jk->ik"> (a, w)', "m"),
    "of activations": ("2,4,64", "t0 = Transpose <perm = [0,2,1]> (a) t1 = Sin(t0) m = MatMul(a, t1)", "m"),
    "Conv": (IMAGE, f"m = {CONV}(a, k)", "m"),
    "Conv, one image": ("1,16,8,8", f"m = {CONV}(a, k)", "m"),
    "Conv with a bias": (IMAGE, f"m = {CONV}(a, k, bias)", "m"),
    "Conv of groups": (IMAGE, "m = Conv <group = 4> (a, q)", "m"),
    "Conv over one axis": (SERIES, "m = Conv <kernel_shape = [3], pads = [1,1]> (a, s)", "m"),
    "ConvTranspose": (IMAGE, "m = ConvTranspose <kernel_shape = [2,2], strides = [2,2]> (a, t)", "m"),
    "a Reshape behind": (ROWS, "m = MatMul(a, w) r = Reshape(m, flat)", "m r"),
    "a Transpose before": ("64,4", "p = Transpose <perm = [1,0]> (a) m = MatMul(p, w)", "p m"),
    "a bias behind a Conv": (IMAGE, f"m = {CONV}(a, k) r = Add(m, channel)", "m r"),
    "a residual behind a Conv": (IMAGE, f"e = Tanh(x) m = {CONV}(a, k) r = Add(m, e)", "m r"),
    "a factor of one": (ROWS, "m = MatMul(a, w) r = Mul(m, one)", "m r"),
}
KEPT = {
    "a bias": (ROWS, "m = MatMul(a, w) r = Add(m, row)", "m r"),
    "Gemm with bias": (ROWS, "m = Gemm(a, w, row)", "m"),
    "an activation behind": (IMAGE, f"m = {CONV}(a, k) r = Relu(m)", "m r"),
    "an activation before": (IMAGE, f"p = Neg(a) m = {CONV}(p, k)", "p m"),
    "two in a row": (ROWS, "m = MatMul(a, v) r = MatMul(m, w)", "m r"),
    "a part of it": (ROWS, "m = MatMul(a, w) r, rr = Split <axis = 0> (m)", "m r"),
}


def model_of(shape: str, body: str, folder: Path, behind: bool = True) -> Model:
    """From x, by way of an Exp, these nodes and a Sin behind the last of them, to y."""
    last = "r" if " r = " in body or " r, " in body else "m"
    text = f"{{ a = Exp(x) {body} {'y = Sin' if behind else 'y = Identity'}({last}) }}"
    used = {name: value for name, value in W.items() if f"{name})" in body or f"{name}," in body}
    model = onnx.shape_inference.infer_shapes(proto(f"(float[{shape}] x) => (float y) {text}", used))
    shape_of = {info.name: info.type.tensor_type.shape for info in model.graph.value_info}
    model.graph.output[0].type.tensor_type.shape.CopyFrom(shape_of[last])
    return load(model, folder)


def pinned(model: Model, tensors: str, default: Precision = Precision.FP16) -> PrecisionPlan:
    """All in half, but for the layers that give these tensors."""
    held = [layer for layer in model.layers if set(layer.nodes) & {f"node_of_{name}" for name in tensors.split()}]
    return plan_for(model, default, [layer.name for layer in held])


def subtractions(result: TypedModel) -> list[ir.Node]:
    return [node for node in result.onnx.graph if node.op_type == "Sub"]


@pytest.mark.parametrize("default", [Precision.FP16, Precision.BF16], ids=str)
@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE)
def test_a_zero_is_taken_from_what_a_product_takes_that_stands_alone(
    case: tuple[str, str, str], default: Precision, tmp_path: Path
) -> None:
    shape, body, tensors = case
    model = model_of(shape, body, tmp_path)
    result = typed_model(model, pinned(model, tensors, default), None)
    (less,) = subtractions(result)
    zero = less.inputs[1]
    assert zero is not None
    assert zero.const_value is not None
    assert (zero.dtype, zero.const_value.numpy().tolist()) == (ir.DataType.FLOAT, 0.0)
    (use,) = less.outputs[0].uses()
    assert use.node.name == "node_of_m"
    assert {str(n.name) for n in result.onnx.graph} >= set(model.node)


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_nothing_is_added_where_something_else_computes_in_float32_too(
    case: tuple[str, str, str], tmp_path: Path
) -> None:
    shape, body, tensors = case
    model = model_of(shape, body, tmp_path)
    assert subtractions(typed_model(model, pinned(model, tensors), None)) == []


def test_nothing_is_added_where_the_product_gives_a_float32_output_of_the_model(tmp_path: Path) -> None:
    model = model_of(ROWS, "m = MatMul(a, w)", tmp_path, behind=False)
    assert subtractions(typed_model(model, pinned(model, "m y"), None)) == []


def test_a_product_in_half_that_adds_up_in_float32_stays_alone(tmp_path: Path) -> None:
    model = model_of(ROWS, "m = MatMul(a, w)", tmp_path)
    pin = Pin("node_of_m", ("node_of_m",), Precision.FP16_SUMS32, "test")
    assert subtractions(typed_model(model, plan_for(model, Precision.FP16).with_pins([pin]), None)) == []


def test_products_of_one_tensor_share_what_holds_them(tmp_path: Path) -> None:
    body = "(float[4,64] x) => (float[4,32] y, float[4,32] z) {"
    body += " a = Exp(x) m = MatMul(a, w) y = Sin(m) n = MatMul(a, w) z = Sin(n) }"
    model = load(proto(body, {"w": W["w"]}), tmp_path)
    result = typed_model(model, pinned(model, "m n"), None)
    (less,) = subtractions(result)
    assert {use.node.name for use in less.outputs[0].uses()} == {"node_of_m", "node_of_n"}


def test_what_is_added_changes_no_bit_of_any_value(tmp_path: Path) -> None:
    import onnxruntime as ort

    model = proto("(float[8] x) => (float[8] y) { y = Sub(x, zero) }", {"zero": np.float32(0)})
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.array([0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, 3.0], np.float32)
    (y,) = session.run(None, {"x": x})
    assert np.array_equal(bits(y), bits(x))


# The compiler


def held_as(paths: list[Path], target: str) -> list[list[bool]]:
    """Of each model whether TensorRT-RTX's engine holds its weights as float32, and as half."""
    built = drive("typed", "build", *paths, f"--target={target}")
    assert [found["errors"] for found in built] == [[]] * len(paths)
    return [found["weights"] for found in built]


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(
    "target", ["SM89", *(pytest.param(target, marks=pytest.mark.thorough) for target in ("SM80", "SM120"))]
)
def test_tensorrt_rtx_holds_the_weights_in_float32_then(target: str, tmp_path: Path) -> None:
    cases = {name: case for name, case in ALONE.items() if name != "of activations"}
    paths = [tmp_path / f"{index}.onnx" for index in range(len(cases))]
    for path, (shape, body, tensors) in zip(paths, cases.values(), strict=True):
        model = model_of(shape, body, tmp_path)
        save_typed(typed_model(model, pinned(model, tensors), None), path)
    assert dict(zip(cases, held_as(paths, target), strict=True)) == {name: [True, False] for name in cases}


@pytest.mark.slow
@needs_rtx
def test_without_it_tensorrt_rtx_takes_the_pin_back(tmp_path: Path) -> None:
    """Why it is added: should a later version keep such a product, nothing of this is needed any more."""
    cases = ["MatMul", "MatMul, one row", "Conv with a bias", "a bias behind a Conv", "a Transpose before"]
    paths = [tmp_path / f"{index}.onnx" for index in range(len(cases))]
    for path, (shape, body, tensors) in zip(paths, map(ALONE.__getitem__, cases), strict=True):
        model = model_of(shape, body, tmp_path)
        result = typed_model(model, pinned(model, tensors), None)
        (less,) = subtractions(result)
        ir.convenience.replace_all_uses_with(less.outputs[0], less.inputs[0])  # type: ignore[arg-type]
        result.onnx.graph.remove(less, safe=True)
        save_typed(result, path)
    assert dict(zip(cases, held_as(paths, "SM89"), strict=True)) == {name: [False, True] for name in cases}
