"""Which scale a weight has in int8: of a weight on the left, one for each of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import Array, load, plan_for, proto

from precisionlab import sweep
from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.jobs.export import export_plan
from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import quantized_tensor
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.gates import weight_axis
from precisionlab.rewrite.observe import Flow, segments
from precisionlab.rewrite.real import RealCopier

R = np.random.default_rng(62)
ROWS = np.logspace(-2, 1, 16)
W = (R.standard_normal((16, 32)) * ROWS[:, None]).astype(np.float32)
STACK = (R.standard_normal((4, 32, 16)) * ROWS).astype(np.float32)
X = R.standard_normal((32, 20)).astype(np.float32)
AMAX = 3.0

MODELS = {  # the node, its weight, its other operand, the weight's axis
    "left": ("y = MatMul(w, x)", W, X, 0),
    "left of a vector": ("y = MatMul(w, x)", W, X[:, 0].copy(), 0),
    "left stack": ("y = MatMul(w, x)", STACK.transpose(0, 2, 1).copy(), X, 1),
    "right stack": ("y = MatMul(x, w)", STACK, X.T.copy(), 2),
    "Gemm": ("y = Gemm(w, x)", W, X, 0),
    "Gemm turned": ("y = Gemm<transA = 1>(w, x)", W.T.copy(), X, 1),
    "Gemm on the right": ("y = Gemm<transB = 1>(x, w)", W, X.T.copy(), 0),
}


def model_of(kind: str, folder: Path) -> Model:
    node, weight, x, _ = MODELS[kind]
    dims = ",".join("abc"[: weight.ndim if x.ndim > 1 else 1])
    shape = ",".join(map(str, x.shape))
    return load(proto(f"(float[{shape}] x) => (float[{dims}] y) {{ {node} }}", {"w": weight}), folder)


@pytest.mark.parametrize(("shape", "axis"), [((64, 40), 0), ((64, 40), 1), ((8, 3, 5), 2), ((7,), None), ((), None)])
def test_a_weight_in_steps_is_what_onnx_runtime_makes_of_it(shape: tuple[int, ...], axis: int | None) -> None:
    weight = np.asarray(R.standard_normal(shape) * np.exp(R.standard_normal(shape) * 4), np.float32)
    scales = weight_scales(weight, axis, Precision.INT8.number_format)
    kind = "" if axis is None else f"<axis = {axis}>"
    dims = ",".join(map(str, shape))
    body = f"q = QuantizeLinear{kind}(w, s, z)\ny = DequantizeLinear{kind}(q, s, z)"
    zeros = np.zeros(scales.shape, np.int8)
    model = proto(f"(float[{dims}] w) => (float[{dims}] y) {{ {body} }}", {"s": scales, "z": zeros})
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, {"w": weight})
    found = quantized_tensor(ir.tensor(weight), scales, axis, Precision.INT8).numpy()
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


def quantised(values: Array, scale: Array) -> Array:
    """Symmetric int8 and back, by NumPy alone."""
    return np.clip(np.rint(values / scale), -128, 127) * scale.astype(np.float64)


def by_hand(kind: str) -> Array:
    """The product of int8 operands: one scale for the activation, one a channel for the weight."""
    node, weight, x, axis = MODELS[kind]
    others = tuple(i for i in range(weight.ndim) if i != axis)
    low = quantised(weight, np.abs(weight).max(axis=others, keepdims=True) / np.float32(127))
    given = quantised(x, np.asarray(AMAX / 127, np.float32))
    low = low.T if "trans" in node else low
    return low @ given if "(w, x)" in node else given @ low


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("copier", [LayerCopier, RealCopier])
def test_emulation_and_integers_agree_with_numpy(kind: str, copier: type[LayerCopier], tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    (node,) = model.onnx.graph
    assert weight_axis(node, 0 if "(w" in MODELS[kind][0] else 1) == MODELS[kind][3]
    table = CalibrationTable({"x": Range(AMAX)}, 1)
    (segment,) = segments(model, plan_for(model, Precision.INT8), table, [list(model.layers)], Flow, Flow, copier)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = ir.to_proto(segment.graph).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (name,) = (name for name, key in segment.fetches.items() if key == (Flow.VARIANT, "y"))
    (found,) = session.run([name], dict.fromkeys(segment.feeds, MODELS[kind][2]))
    np.testing.assert_allclose(found, by_hand(kind), rtol=1e-4, atol=1e-4)


def decibel(true: Array, low: Array) -> float:
    return float(10 * np.log10((true**2).sum() / ((low - true) ** 2).sum()))


@pytest.mark.slow
def test_rows_of_very_different_size_need_no_pin_and_the_export_has_a_scale_for_each(tmp_path: Path) -> None:
    """One scale for all of them gives 4 dB: the smallest rows, divided by their size afterwards, are lost."""
    weights = {"w": W, "s": ROWS.astype(np.float32)[:, None]}
    model = load(proto("(float[32,20] x) => (float[16,20] y) { a = MatMul(w, x) y = Div(a, s) }", weights), tmp_path)
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    samples = [R.standard_normal((32, 20)).astype(np.float32) for _ in range(8)]
    for i, x in enumerate(samples):
        np.save(data / f"{i}.npy", x)
    result = sweep(model.path, data, precisions="int8", calibration="max", out=run, threads=1)
    assert result.precisions[0].met
    assert not result.precisions[0].plan.pins
    figure = result.precisions[0].low.comparison.worst("sqnr")

    true = np.stack([W.astype(np.float64) @ x / weights["s"] for x in samples])
    step = np.asarray(max(np.abs(x).max() for x in samples) / 127, np.float32)
    low = quantised(W, np.abs(W).max(axis=1, keepdims=True) / np.float32(127))
    by_numpy = np.stack([low @ quantised(x, step) / weights["s"] for x in samples])
    assert figure == pytest.approx(decibel(true, by_numpy), abs=0.3)

    export_plan(run / "plan.json", "typed-onnx", out=tmp_path / "typed.onnx")
    exported = onnx.load(tmp_path / "typed.onnx")
    assert [a.i for n in exported.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute] == [0]
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(tmp_path / "typed.onnx", options, providers=["CPUExecutionProvider"])
    given = np.stack([session.run(None, {"x": x})[0] for x in samples])
    assert decibel(true, given) == pytest.approx(figure, abs=0.3)
