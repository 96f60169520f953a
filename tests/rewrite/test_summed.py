"""A matrix product in half that adds up in float32: emulated so, typed so, and compiled so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import Array, Flows, bits, load, plan_for, proto, sample
from rtx import drive, needs_rtx

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.model import Model
from precisionlab.model.opset import opset_of
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Sums
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.toggle import whole
from precisionlab.rewrite.typed import TypedModel, save_typed, typed_model

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
FP16, SUMS32 = Precision.FP16, Precision.FP16_SUMS32
RNG = np.random.default_rng(0)
WEIGHTS: dict[str, Array] = {
    "w": RNG.normal(size=(64, 64)).astype(np.float32),
    "b": RNG.normal(size=64).astype(np.float32),
    "k": RNG.normal(size=(4, 1, 3, 3)).astype(np.float32),
}
BODIES = {
    "alone": "y = MatMul(x, w)",
    "bias and activation": "a = Relu(x) m = MatMul(a, w) s = Add(m, b) r = Relu(s) y = Tanh(r)",
    "Gemm": "a = Relu(x) g = Gemm <alpha = 0.3, beta = 2.0, transB = 1> (a, w, b) y = Tanh(g)",
    "of activations": "a = Relu(x) t = Transpose <perm = [1, 0]> (x) h = Tanh(t) y = MatMul(a, h)",
    "in a row": "a = MatMul(x, w) c = Tanh(a) y = MatMul(c, w)",
}


def model_of(body: str, folder: Path, opset: int = 17) -> Model:
    """The model of these nodes, from x to y, with a constant only where it is used."""
    used = {name: value for name, value in WEIGHTS.items() if f"{name})" in body or f"{name}," in body}
    width = 32 if "Transpose" in body else 64
    return load(proto(f"(float[32,64] x) => (float[32,{width}] y) {{ {body} }}", used, opset=opset), folder)


def summed(model: Model, default: Precision = FP16) -> PrecisionPlan:
    """The plan with each layer pinned that can be."""
    pins = (Pin(layer.name, layer.nodes, SUMS32, "test") for layer in model.layers if layer.is_matrix_product)
    return plan_for(model, default).with_pins(pins)


def products(result: TypedModel) -> list[ir.Node]:
    return [node for node in result.onnx.graph if node.op_type in ("Gemm", "MatMul")]


def run(model: ir.Model, x: Array) -> Array:
    """What ONNX Runtime's CPU makes of it, node by node: its optimiser would fold the Casts of weights."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def emulated(model: Model, plan: PrecisionPlan, x: Array) -> Array:
    graph, names = whole(model, plan, None)
    data = ir.to_proto(graph).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run([names["y"]], {"x": x})[0]


# The emulation


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_with_sums_in_half_a_pinned_product_is_what_it_is_in_fp16_with_sums_in_float32(
    body: str, tmp_path: Path
) -> None:
    model, inputs = model_of(body, tmp_path), sample(x=RNG.normal(size=(32, 64)).astype(np.float32))
    half = Arithmetic(sums=Sums.HALF)
    wanted = Flows(model, plan_for(model, FP16))(**inputs.inputs)
    pinned = Flows(model, summed(model), arithmetic=half)(**inputs.inputs)
    assert wanted.keys() == pinned.keys()
    assert all(np.array_equal(bits(pinned[key]), bits(wanted[key])) for key in wanted)
    backend = OnnxRuntimeBackend(model, inputs, threads=1)
    variants = [(summed(model), half), (plan_for(model, FP16), TENSORRT), (plan_for(model, FP16), half)]
    figures = [
        backend.compare(plan, None, [inputs], lambda done: None, metric=None, introduced=False, arithmetic=how)
        for plan, how in variants
    ]
    with_pins, in_float32, in_half = (found.worst("sqnr") for found in figures)
    assert with_pins == in_float32 > in_half


def test_for_any_other_layer_it_is_fp16(tmp_path: Path) -> None:
    body = "c = Conv(x, k) y = Tanh(c)"
    model = load(proto(f"(float[1,1,8,8] x) => (float[1,4,6,6] y) {{ {body} }}", {"k": WEIGHTS["k"]}), tmp_path)
    pins = [Pin(layer.name, layer.nodes, SUMS32, "test") for layer in model.layers]
    plan = plan_for(model, Precision.FP32).with_pins(pins)
    assert {precision_of(layer, plan) for layer in model.layers} == {FP16}


# The typed model


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_product_alone_is_float32_and_what_it_takes_and_gives_is_half(body: str, tmp_path: Path) -> None:
    model = model_of(body, tmp_path)
    result = typed_model(model, summed(model), None)
    assert len(products(result)) == sum(layer.is_matrix_product for layer in model.layers)
    for node in products(result):
        assert str(node.name) in model.node
        assert len(node.inputs) == 2
        assert not {"alpha", "beta"} & node.attributes.keys()
        for value in node.inputs:
            widening = None if value is None else value.producer()
            assert widening is not None
            assert (widening.op_type, widening.inputs[0].dtype) == ("Cast", HALF)  # type: ignore[union-attr]
        (use,) = node.outputs[0].uses()
        assert (use.node.op_type, use.node.outputs[0].dtype) == ("Cast", HALF)
    others = [n for n in result.onnx.graph if n.op_type not in ("Cast", "Gemm", "MatMul")]
    assert {value.dtype for node in others for value in node.outputs} <= {HALF}
    assert {value.dtype for value in result.onnx.graph.initializers.values()} <= {HALF}
    assert result.casts == sum(node.op_type == "Cast" for node in result.onnx.graph)
    assert result.notes == ()


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_onnx_runtimes_run_of_it_is_the_emulations_but_for_the_rounding_between_its_nodes(
    body: str, tmp_path: Path
) -> None:
    model, x = model_of(body, tmp_path), RNG.normal(size=(32, 64)).astype(np.float32)
    wanted = emulated(model, summed(model), x).astype(np.float64)
    found = run(typed_model(model, summed(model), None).onnx, x)
    if len(model.node) == 1:  # nothing else is rounded, and no other kernel of ONNX Runtime's computes in half
        assert np.array_equal(found, wanted)
    assert 10 * np.log10((wanted**2).sum() / max(((found - wanted) ** 2).sum(), 1e-30)) > 60


def test_a_float32_operand_is_rounded_to_half_first(tmp_path: Path) -> None:
    model = model_of(BODIES["bias and activation"], tmp_path)
    result = typed_model(model, summed(model, Precision.FP32), None)
    (product,) = products(result)
    way, value = [], product.inputs[0]
    while value is not None and (cast := value.producer()) is not None and cast.op_type == "Cast":
        way.append(value.dtype)
        value = cast.inputs[0]
    assert way == [FLOAT, HALF]
    assert value is not None
    assert (value.name, value.dtype or FLOAT) == ("a", FLOAT)


def test_a_gemm_that_must_have_a_bias_at_the_models_opset_is_had_at_a_newer_one(tmp_path: Path) -> None:
    model = model_of("g = Gemm(x, w, b) y = Tanh(g)", tmp_path, opset=9)
    result = typed_model(model, summed(model), None)
    assert opset_of(result.onnx) == 11
    assert any("converted from opset 9 to 11" in note for note in result.notes)
    x = RNG.normal(size=(32, 64)).astype(np.float32)
    assert np.abs(run(result.onnx, x) - emulated(model, summed(model), x)).max() < 4e-3


# The compiler


@pytest.mark.slow
@needs_rtx
def test_tensorrt_rtx_compiles_it_to_a_half_kernel_that_adds_up_in_float32(tmp_path: Path) -> None:
    """Its log has Half in and out; the engine says of the GEMM's sums what it does not say of a plain one's."""
    paths = []
    for name, body in BODIES.items():
        for plan_of in (summed, lambda model: plan_for(model, FP16)):
            model = model_of(body, tmp_path)
            paths.append(tmp_path / f"{name} {len(paths)}.onnx")
            save_typed(typed_model(model, plan_of(model), None), paths[-1])
    built = drive("typed", "build", *paths)
    for (name, body), pinned, plain in zip(BODIES.items(), built[::2], built[1::2], strict=True):
        count = body.count("MatMul") + body.count("Gemm")
        assert (pinned["errors"], plain["errors"]) == ([], [])
        assert pinned["accumulation"] == [2] * count, name
        assert plain["accumulation"] == [0] * count, name
        kernels = [line for line in pinned["layers"].splitlines() if "Fc" in line]
        assert len(kernels) == count
        taken = [line.partition("Outputs:")[0] for line in kernels]
        assert all("Datatype: Half" in text and "Datatype: Float" not in text for text in taken), taken


@pytest.mark.slow
@needs_rtx
def test_with_a_bias_in_float32_behind_the_product_the_kernel_would_take_float32_weights(tmp_path: Path) -> None:
    """Why nothing but the product is float32 there, and no zeros are added to keep it so."""
    body = """(float16[32,64] x) => (float16[32,64] y) {
        a = Relu(x) f = Cast <to = 1> (a) v = Cast <to = 1> (w) m = MatMul(f, v) s = Add(m, b) h = Cast <to = 10> (s)
        y = Tanh(h)
    }"""
    weights = {"w": WEIGHTS["w"].astype(np.float16), "b": np.zeros(64, np.float32)}
    path = tmp_path / "bias.onnx"
    path.write_bytes(proto(body, weights).SerializeToString())
    (built,) = drive("typed", "build", path)
    (kernel,) = [line for line in built["layers"].splitlines() if "Fc" in line]
    taken, _, _ = kernel.partition("Outputs:")
    assert "Datatype: Float" in taken
    assert "Datatype: Half" not in taken
