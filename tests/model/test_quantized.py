"""What a model is quantised to by its own nodes is found wherever they stand, and what follows from it for a plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import compared, load, plan_for, proto, sample
from onnx import TensorProto, helper, numpy_helper
from quantized import explicit, in_body, in_function

from precisionlab.backends.session import Session
from precisionlab.backends.tensorrt.explicit import quantization_flags
from precisionlab.backends.tensorrt.network import NetworkLayer, NetworkTensor
from precisionlab.backends.tensorrt.pins import enabled_in
from precisionlab.calibration.cache import read_cache, write_cache
from precisionlab.calibration.lint import lint
from precisionlab.errors import PlanError
from precisionlab.model.measurable import quantized_already
from precisionlab.model.quantized import own_flags
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.plan.weak import check_weak
from precisionlab.precision import Precision


@pytest.mark.parametrize(
    ("model", "node"),
    [
        (explicit(whole=False), "x_Q"),
        (in_body(), "iq"),
        (in_function(), "call/fq"),
        (in_function(inlined=False), "fq"),
    ],
    ids=["graph", "body", "function", "function not inlined"],
)
def test_they_are_found_in_the_graph_in_bodies_and_in_functions(
    model: onnx.ModelProto, node: str, tmp_path: Path
) -> None:
    loaded = load(model, tmp_path)
    assert own_flags(loaded) == {"INT8": node}
    assert "is quantised already in part" in (quantized_already(loaded) or "")
    found = lint(read_cache(write_cache({"x": 0.1}, "10.9.0"), "c"), loaded, None)
    assert [finding.kind for finding in found if finding.kind == "explicit"] == ["explicit"]


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.INT8])
@pytest.mark.parametrize("op", ["Relu(m)", "Clip(m, a, b)"])
def test_no_relu_before_such_nodes_is_taken_away(dtype: int, op: str, tmp_path: Path) -> None:
    """ONNX Runtime's optimiser does so before FP8, as if 0 were its least value, and refuses a Clip there."""
    body = f"""(float[4] x) => (float[4] y) {{ n = Neg(x) m = Neg(n) r = {op} q = QuantizeLinear(r, s, z)
        d = DequantizeLinear(q, s, z) y = Exp(d) }}"""
    weights = {"s": np.float32(0.25)} | ({"a": np.float32(0), "b": np.float32(9)} if "Clip" in op else {})
    model = proto(body, weights, opset=19, ir_version=9)
    model.graph.initializer.append(helper.make_tensor("z", dtype, [], bytes(1), raw=True))
    given = Session(load(model, tmp_path).onnx, 1).run({"x": np.float32([-2, -0.5, 0.5, 2])})
    assert np.allclose(given["y"], np.exp([0, 0, 0.5, 2]))


def test_a_model_without_such_nodes_needs_nothing(tmp_path: Path) -> None:
    model = load(proto("(float[1,4] x) => (float[1,4] y) { [a] y = Relu(x) }"), tmp_path)
    assert own_flags(model) == {}
    assert quantized_already(model) is None


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.INT8])
def test_a_model_quantised_to_such_types_is_compared(dtype: int, tmp_path: Path) -> None:
    """ONNX Runtime has no kernel that tells the shape of an FP8 or INT4 tensor."""
    loaded = load(fake_quantised(dtype), tmp_path)
    found = compared(loaded, [sample(x=[[1.0, -0.5, 0.25, 2.0]])])
    assert found.worst("sqnr") > 40


@pytest.mark.parametrize(
    ("dtype", "flag"),
    [
        (TensorProto.FLOAT8E4M3FN, "FP8"),
        (TensorProto.INT4, "INT4"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.UINT8, "INT8"),
        (TensorProto.INT16, None),
    ],
)
def test_the_flag_is_that_of_the_quantised_type(dtype: int, flag: str | None, tmp_path: Path) -> None:
    assert own_flags(load(fake_quantised(dtype), tmp_path)) == ({} if flag is None else {flag: "q"})


def fake_quantised(dtype: int) -> onnx.ModelProto:
    """A model that quantises its input to this type, and takes it back."""
    model = proto(
        "(float[1,4] x) => (float[1,4] y) { [q] a = QuantizeLinear(x, s, z) [d] b = DequantizeLinear(a, s, z) "
        "[e] y = Exp(b) }",
        {"s": np.float32(0.1)},
        opset=21,
        ir_version=10,
    )
    model.graph.initializer.append(onnx.helper.make_tensor("z", dtype, [], [0]))
    return model


def test_int8_beside_them_is_refused_where_types_do_not_stand_in_the_model(tmp_path: Path) -> None:
    model = load(explicit(whole=False), tmp_path)
    with pytest.raises(PlanError, match=r"layer 'conv1' in int8.*\('x_Q'\).*typed-onnx"):
        check_weak(model, plan_for(model, Precision.INT8))
    check_weak(model, plan_for(model, Precision.INT8, ["conv1"]))
    check_weak(model, plan_for(model, Precision.FP16))


def test_a_plan_whose_int8_touches_no_layer_enables_none(tmp_path: Path) -> None:
    whole, part = load(explicit(whole=True), tmp_path, "whole.onnx"), load(explicit(whole=False), tmp_path)
    plain = PrecisionPlan(whole.sha256, Precision.INT8, around=Precision.FP16)
    assert enabled_in(whole, plain) == {Precision.FP16}
    assert enabled_in(part, PrecisionPlan(part.sha256, Precision.INT8)) == {Precision.INT8}


def layer(kind: str, takes: str, gives: str) -> NetworkLayer:
    return NetworkLayer(0, "l", kind, (), (NetworkTensor("a", takes),), (NetworkTensor("b", gives),))


def test_a_network_tells_its_own_quantisation_by_layers_that_quantise() -> None:
    quantize, dequantize = layer("QUANTIZE", "fp32", "fp8"), layer("DEQUANTIZE", "int4", "fp16")
    assert quantization_flags([layer("CONVOLUTION", "int8", "int8"), layer("UNARY", "fp32", "fp32")]) == ()
    assert quantization_flags([quantize, dequantize]) == ("FP8", "INT4")
    assert quantization_flags([layer("QUANTIZE", "fp32", "fp32")]) == ("INT8",), "8.6 calls it a float"


def test_what_a_constant_is_quantised_to_counts_too(tmp_path: Path) -> None:
    model = proto("(float[1,4] x) => (float[1,4] y) { [d] w = DequantizeLinear(q, s) [m] y = Mul(x, w) }",
                  {"s": np.float32(0.1)})  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.int8), "q"))
    assert own_flags(load(model, tmp_path)) == {"INT8": "d"}
