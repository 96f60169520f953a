"""The emulation rounds as a low-precision engine does, and tells a layer's own fault from the inherited."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import (
    ROUNDED,
    Array,
    Flows,
    bits,
    calibrate,
    compared,
    examples,
    load,
    packaged,
    parts_of,
    plan_for,
    proto,
    sample,
)
from onnx.reference import ReferenceEvaluator

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import error_sums
from precisionlab.compare.task import Accuracy
from precisionlab.compare.tolerance import default_tolerance, meets, parse_tolerance
from precisionlab.data import Dataset, Sample
from precisionlab.errors import DataError, ModelError
from precisionlab.model import Model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import round_scalar
from precisionlab.rewrite.observe import Flow
from precisionlab.rewrite.plans import unquantizable

FLOATS = {Precision.FP16: np.float16, Precision.BF16: ml_dtypes.bfloat16}
LOW = [Precision.FP16, Precision.BF16, Precision.INT8]


def rounded(values: Array, precision: Precision = Precision.FP16) -> Array:
    """float32 values rounded to the precision by numpy, as float32."""
    with np.errstate(all="ignore"):
        return np.asarray(values, np.float32).astype(FLOATS[precision]).astype(np.float32)


def steps(rng: np.random.Generator, *shape: int, most: int = 4095, step: float = 1 / 16) -> Array:
    """Random multiples of a step: more digits than half has, but products and sums are exact in float32."""
    return (rng.integers(-most, most + 1, shape) * step).astype(np.float32)


def same(a: Comparison, b: Comparison) -> bool:
    """Whether two comparisons are alike to the last bit, NaN included; time aside."""
    return repr({**a.to_dict(), "seconds": 0}) == repr({**b.to_dict(), "seconds": 0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# Gates, bit for bit


@pytest.fixture(scope="module", params=["input", "output", "weight"])
def gate(request: pytest.FixtureRequest, folder: Path) -> Callable[[Array, Precision], Array]:
    """Puts an array through the gate at a layer's input, output or weight."""
    place = request.param
    node = {"input": "y = Identity(x)", "output": "y = Mul(x, one)", "weight": "y = Where(never, x, w)"}[place]

    def through(array: Array, precision: Precision) -> Array:
        weights = {
            "input": {},
            "output": {"one": np.float32(1)},
            "weight": {"w": array, "never": np.zeros(array.shape, bool)},
        }[place]
        model = load(proto(f"(float[N] x) => (float[N] y) {{ {node} }}", weights), folder)
        flows = Flows(model, plan_for(model, precision), arithmetic=ROUNDED)(x=array)
        assert np.array_equal(bits(flows[Flow.REFERENCE, "y"]), bits(array))
        assert np.array_equal(bits(flows[Flow.ALONE, "y"]), bits(flows[Flow.VARIANT, "y"]))
        return flows[Flow.VARIANT, "y"]

    return through


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_every_number_of_the_format_every_tie_and_their_neighbours_round_as_in_numpy(
    gate: Callable[[Array, Precision], Array], precision: Precision
) -> None:
    numbers = np.arange(65536, dtype=np.uint16).view(FLOATS[precision]).astype(np.float32)
    finite = np.unique(numbers[np.isfinite(numbers)])
    ties = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    largest = np.float32([65519.996, 65520, 65536, 3.3961775e38, 3.3961777e38, 3.4028235e38])
    with np.errstate(over="ignore"):
        around = [np.nextafter(ties, np.float32(s)) for s in (-np.inf, np.inf)]
    values = np.concatenate([numbers, ties, *around, largest, -largest, np.float32([1e-45, -1e-45])])
    assert np.array_equal(bits(gate(values, precision)), bits(rounded(values, precision)))


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@given(hnp.arrays(np.uint32, st.integers(1, 100)))
@settings(max_examples=examples(25))
def test_any_bits_round_as_in_numpy(
    gate: Callable[[Array, Precision], Array], precision: Precision, pattern: Array
) -> None:
    values = pattern.view(np.float32)
    assert np.array_equal(bits(gate(values, precision)), bits(rounded(values, precision)))


@given(st.floats(width=32))
def test_attributes_round_as_tensors_do(value: float) -> None:
    for precision in FLOATS:
        assert np.array_equal(
            round_scalar(value, precision), float(rounded(np.float32(value), precision)), equal_nan=True
        )
    assert round_scalar(1 / 3, Precision.FP32) == 1 / 3


IDENTITY = "(float[N,1] x) => (float[N,1] y) { y = MatMul(x, w) }"


@pytest.fixture(scope="module")
def quantised(folder: Path) -> Callable[[Array, float], Array]:
    """The int8 gate of an activation, alone: the weight, 127, is what one step of 1 holds exactly."""
    model = load(proto(IDENTITY, {"w": np.float32([[127]])}), folder)

    def through(x: Array, amax: float) -> Array:
        flows = Flows(model, plan_for(model, Precision.INT8), CalibrationTable({"x": Range(amax)}, 1))
        return flows(x=x[:, None])[Flow.VARIANT, "y"][:, 0] / np.float32(127)

    return through


@given(st.integers(-60, 60), hnp.arrays(np.int32, st.integers(1, 200), elements=st.integers(-2000, 2000)))
@settings(max_examples=examples(60))
def test_int8_rounds_half_to_even_and_saturates_as_in_float64(
    quantised: Callable[[Array, float], Array], exponent: int, eighths: Array
) -> None:
    scale = 2.0**exponent  # a power of two, so that nothing but the gate rounds
    x = eighths / 8 * scale
    expected = np.clip(np.round(x / scale), -128, 127) * scale
    assert np.array_equal(quantised(x.astype(np.float32), 127 * scale), expected.astype(np.float32))


@given(st.floats(2.0**-100, 2.0**100), hnp.arrays(np.float32, st.integers(1, 100), elements=st.floats(-2, 2, width=32)))
@settings(max_examples=examples(60))
def test_int8_with_any_range_is_within_half_a_step_of_float64(
    quantised: Callable[[Array, float], Array], amax: float, shares: Array
) -> None:
    scale = float(np.float32(amax / 127))
    x = (shares.astype(np.float64) * amax).astype(np.float32)
    # In float32, as TensorRT does: x / scale may round to a tie that float64 does not see.
    levels = np.clip(np.rint(x / np.float32(scale)), -128, 127)
    assert np.array_equal(quantised(x, amax), levels * np.float32(scale) * np.float32(127) / np.float32(127))
    inside = np.abs(x.astype(np.float64)) <= amax
    assert np.all(np.abs(levels * scale - x)[inside] <= scale * (0.5 + 127 * 2.0**-23))


def test_int8_takes_infinity_for_the_end_of_its_range(quantised: Callable[[Array, float], Array]) -> None:
    assert quantised(np.float32([np.inf, -np.inf, 1e38]), 127.0).tolist() == [127, -128, 127]


# Layers in int8, exactly


INT8_LAYERS = {
    "Conv": ("(float[2,4,5,5] x) => (float[A,B,C,D] y) { y = Conv<pads = [1, 0, 1, 0], strides = [2, 1]>(x, w) }",
             (6, 4, 3, 2), 0),
    "depthwise": ("(float[2,4,5,5] x) => (float[A,B,C,D] y) { y = Conv<group = 4>(x, w) }", (4, 1, 3, 3), 0),
    "ConvTranspose": ("(float[2,4,3,3] x) => (float[A,B,C,D] y) { y = ConvTranspose<strides = [2, 2]>(x, w) }",
                      (4, 6, 3, 3), 1),
    "Gemm": ("(float[3,4] x) => (float[A,B] y) { y = Gemm(x, w, z) }", (4, 6), 1),
    "Gemm transB": ("(float[3,4] x) => (float[A,B] y) { y = Gemm<transB = 1>(x, w, z) }", (6, 4), 0),
    "Gemm transA": ("(float[4,3] x) => (float[A,B] y) { y = Gemm<transA = 1>(x, w, z) }", (4, 6), 1),
    "MatMul": ("(float[2,3,4] x) => (float[A,B,C] y) { y = MatMul(x, w) }", (4, 6), 1),
    "MatMul batched": ("(float[2,3,4] x) => (float[A,B,C] y) { y = MatMul(x, w) }", (2, 4, 6), 2),
    "MatMul weight first": ("(float[4,5] x) => (float[A,B] y) { y = MatMul(w, x) }", (6, 4), 0),
}  # fmt: skip


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize("kind", INT8_LAYERS)
def test_an_int8_layer_is_what_float64_makes_of_its_quantised_operands(folder: Path, kind: str, opset: int) -> None:
    body, shape, axis = INT8_LAYERS[kind]
    zero = {"z": np.float32([0])} if "z)" in body else {}  # Gemm needs one before opset 11
    rng = np.random.default_rng(0)
    # Each channel has its own largest value, 127 steps of a power of two; quarters of a step are rounded away.
    across = tuple(i for i in range(len(shape)) if i != axis)
    step = np.ones((1,) * len(shape)) if axis is None else np.exp2(-np.arange(shape[axis])).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )  # fmt: skip
    levels = rng.integers(-127 * 4, 127 * 4 + 1, shape) / 4
    np.put_along_axis(
        levels.reshape(-1) if axis is None else levels,
        *_first(levels, axis),
        127,
        axis=0 if axis is None else across[0],
    )
    w = (levels * step).astype(np.float32)
    model = load(proto(body, {"w": w, **zero}, opset=opset), folder)
    size = [int(d) for d in model.inputs[0].shape or ()]
    x = (rng.integers(-4 * 140, 4 * 140 + 1, size) / 4 * 0.5).astype(np.float32)
    plan = plan_for(model, Precision.INT8)
    found = Flows(model, plan, CalibrationTable({"x": Range(127 * 0.5)}, 1))(x=x)
    assert np.all(np.abs(w).max(axis=across if axis is not None else None, keepdims=True) == 127 * step)
    x64 = np.clip(np.round(x.astype(np.float64) / 0.5), -128, 127) * 0.5
    w64 = np.clip(np.round(w / step), -128, 127) * step
    double = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g {body}'.replace("float", "double")
    )
    for name, value in {"w": w64, **zero}.items():
        double.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float64), name))
    (expected,) = ReferenceEvaluator(double).run(None, {"x": x64})
    assert np.array_equal(found[Flow.VARIANT, "y"], expected)
    assert not np.array_equal(found[Flow.REFERENCE, "y"], expected)


def _first(levels: Array, axis: int | None) -> tuple[Array]:
    """Indices of the first entry of each channel along another axis (of the whole, where axis is None)."""
    if axis is None:
        return (np.zeros(1, np.int64),)
    along = next(i for i in range(levels.ndim) if i != axis)
    return (np.zeros([1 if i == along else n for i, n in enumerate(levels.shape)], np.int64),)


def test_a_channel_of_zeros_and_a_tensor_of_zeros_stay_zero(folder: Path) -> None:
    w = np.float32([[1, 0], [2, 0]])
    model = load(proto("(float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }", {"w": w}), folder)
    found = compared(model, [sample(x=[[0, 0]])], Precision.INT8)
    assert (found.inherited["y"].elements, found.inherited["y"].err2, found.inherited["y"].nonfinite) == (2, 0, 0)
    plan = plan_for(model, Precision.INT8)
    y = Flows(model, plan, CalibrationTable({"x": Range(127.0)}, 1))(x=[[127, 1]])[Flow.VARIANT, "y"]
    assert y[0, 1] == 0
    assert y[0, 0] == pytest.approx(130, rel=2**-22)  # a weight of 63.5 steps is taken for 64: 128 + 2


def test_around_says_what_int8_leaves_beside_it(folder: Path) -> None:
    body = "(float[4,4] x) => (float[4,4] y) { h = MatMul(x, w) r = Exp(h) y = MatMul(r, w) }"
    model = load(proto(body, {"w": np.eye(4, dtype=np.float32) / 3}), folder)
    first, middle, last = model.layers
    for around in (Precision.FP32, Precision.FP16, Precision.BF16):
        plan = plan_for(model, Precision.INT8, [last.name], around)
        assert [precision_of(layer, plan) for layer in (first, middle, last)] == [
            Precision.INT8,
            around,
            Precision.FP32,
        ]
        x = np.random.default_rng(0).random((4, 4), np.float32)
        found = Flows(model, plan, CalibrationTable({"x": Range(1.0), "r": Range(2.0)}, 1))(x=x)
        r = found[Flow.VARIANT, "r"]
        assert (Flow.ALONE, "r") in found or around is Precision.FP32
        if around is Precision.FP32:
            assert not any(np.array_equal(r, rounded(r, precision)) for precision in FLOATS)
        else:
            assert np.array_equal(r, rounded(r, around))


@pytest.mark.parametrize(
    ("broken", "word"), [("weight", "weight w"), ("range", "not finite in the reference"), ("none", "no range")]
)
def test_a_layer_that_int8_cannot_hold_says_why(folder: Path, broken: str, word: str) -> None:
    w = np.full((2, 2), np.inf if broken == "weight" else 1, np.float32)
    model = load(proto("(float[2,2] x) => (float[2,2] y) { y = MatMul(x, w) }", {"w": w}), folder)
    ranges = {} if broken == "none" else {"x": Range(1.0, nonfinite=3 if broken == "range" else 0)}
    (node,) = model.node.values()
    assert word in (unquantizable(node, CalibrationTable(ranges, 1)) or "")
    assert unquantizable(node, CalibrationTable({"x": Range(1.0)}, 1)) is None or broken == "weight"


# Introduced and inherited


def test_introduced_and_inherited_errors_are_those_of_numpy(folder: Path) -> None:
    rng = np.random.default_rng(1)
    x, w, v = steps(rng, 64), steps(rng, 64), steps(rng, 64)
    body = "(float[64] x) => (float[64] c) { a = Mul(x, w) b = Neg(a) c = Mul(b, v) }"
    model = load(proto(body, {"w": w, "v": v}), folder)
    found = compared(model, [sample(x=x)])
    r = rounded
    a, b, c = x * w, -(x * w), -(x * w) * v
    var_a = r(r(x) * r(w))
    var_c = r(-var_a * r(v))
    inherited = {"a": (a, var_a), "b": (b, -var_a), "c": (c, var_c)}
    introduced = {"a": (a, var_a), "b": (b, r(-a)), "c": (c, r(r(b) * r(v)))}
    half = Precision.FP16.number_format
    assert found.inherited == {name: error_sums(*pair, half) for name, pair in inherited.items()}
    assert found.introduced == {name: error_sums(*pair, half) for name, pair in introduced.items()}
    assert found.outputs["c"].errors == error_sums(*inherited["c"])


def test_a_fused_layer_rounds_at_its_borders_and_not_inside(folder: Path) -> None:
    rng = np.random.default_rng(2)
    x, z = steps(rng, 5, 8), steps(rng, 5, 3)
    w, b = steps(rng, 8, 3, most=63), steps(rng, 3)
    body = "(float[5,8] x, float[5,3] z) => (float[5,3] y) { h = MatMul(x, w) a = Add(h, b) s = Add(a, z) y = Relu(s) }"
    model = load(proto(body, {"w": w, "b": b}), folder)
    assert len(model.layers) == 1
    found = compared(model, [sample(x=x, z=z)])
    # The bias stands behind the MatMul and is added in the accumulator's float32, as it is.
    inner = rounded(x).astype(np.float64) @ rounded(w) + b + rounded(z)
    exact = x.astype(np.float64) @ w + b + z
    expected = error_sums(np.maximum(exact, 0).astype(np.float32), rounded(np.maximum(inner, 0)))
    assert found.introduced == found.inherited == {"y": expected}
    assert np.array_equal(inner, inner.astype(np.float32))


def test_statistics_of_several_samples_are_the_sums_of_each(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    samples = list(dataset)[:3]
    whole, parts = compared(model, samples), [compared(model, [s]) for s in samples]
    for name, found in whole.inherited.items():
        added = reduce(operator.add, (part.inherited[name] for part in parts))
        assert (found.elements, found.overflow, found.nonfinite) == (added.elements, added.overflow, added.nonfinite)
        assert found.err2 == pytest.approx(added.err2, rel=1e-12, nan_ok=True)
    assert whole.outputs["logits"].top1.total == 3


def test_without_introduced_the_rest_is_the_same(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    full, brief = (compared(model, list(dataset), introduced=flag) for flag in (True, False))
    assert brief.introduced == {}
    assert repr(brief.inherited) == repr(full.inherited)
    assert repr(brief.outputs) == repr(full.outputs)


# Pins


def test_a_pinned_layer_takes_and_gives_float32(folder: Path) -> None:
    rng = np.random.default_rng(3)
    x, w = steps(rng, 50), steps(rng, 50)
    model = load(
        proto(
            "(float[50] x) => (float[50] c) { a = Mul(x, w) b = Mul(a, k) c = Neg(b) }",
            {"w": w, "k": np.float32(3.0009766)},
        ),
        folder,
    )
    k, r = np.float32(3.0009766), rounded
    flows = Flows(model, plan_for(model, Precision.FP16, ["node_of_b"]))(x=x)
    a = r(r(x) * r(w))
    assert np.array_equal(flows[Flow.VARIANT, "a"], a)
    assert np.array_equal(flows[Flow.VARIANT, "b"], a * k)  # neither the constant nor the product is rounded
    assert np.array_equal(flows[Flow.VARIANT, "c"], -r(a * k))
    assert (Flow.ALONE, "b") not in flows
    first = Flows(model, plan_for(model, Precision.FP16, ["node_of_a"]))(x=x)
    assert np.array_equal(first[Flow.VARIANT, "a"], x * w)
    assert np.array_equal(first[Flow.VARIANT, "b"], r(r(x * w) * r(k)))


def test_a_pin_may_give_another_precision_than_float32(folder: Path) -> None:
    model = load(proto("(float[3] x) => (float[3] b) { a = Mul(x, x) b = Neg(a) }"), folder)
    plan = PrecisionPlan(model.sha256, Precision.FP16, (Pin("node_of_a", ("node_of_a",), Precision.BF16, "range"),))
    x = np.float32([300, 1.001, 7.77])
    found = Flows(model, plan)(x=x)
    assert np.array_equal(found[Flow.VARIANT, "a"], rounded(rounded(x, Precision.BF16) ** 2, Precision.BF16))
    assert found[Flow.VARIANT, "b"][0] == -np.inf  # half cannot take what bfloat16 gives


@pytest.mark.parametrize("precision", LOW)
def test_a_plan_that_pins_every_layer_gives_the_reference_bit_for_bit(
    bundled: tuple[Model, Dataset], precision: Precision
) -> None:
    model, dataset = bundled
    pinned = compared(model, list(dataset), precision, [layer.name for layer in model.layers])
    assert pinned.introduced == {}
    for name, errors in pinned.inherited.items():
        assert (errors.err2, errors.max_error, errors.nonfinite, errors.underflow) == (0, 0, 0, 0), name
    assert meets(pinned, parse_tolerance(["sqnr>=1000", "top1>=1", "max_error<=0"]))


def test_layers_before_a_low_one_are_the_reference_and_layers_behind_are_not(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    low = "/block2/pointwise/conv"
    found = compared(model, list(dataset), pinned=[layer.name for layer in model.layers if layer.name != low])
    order = [layer.name for layer in model.layers]
    changed = [layer.name for layer in model.layers if any(found.inherited[o].err2 for o in layer.outputs)]
    assert changed == order[order.index(low) :]
    assert list(found.introduced) == list(model.layer[low].outputs)
    assert found.introduced == {name: found.inherited[name] for name in found.introduced}


def test_the_reference_is_the_model_itself(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    flows = Flows(model, plan_for(model, Precision.FP16))
    session = ort.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    for data in dataset:
        image = data.inputs["image"]
        (logits,) = session.run(None, {"image": image})
        # Another fusion, another order of adding up 9 to 32 products a layer: units in the last place.
        assert flows(image=image)[Flow.REFERENCE, "logits"] == pytest.approx(logits, rel=1e-4, abs=1e-4)


# What breaks in half


def test_an_overflow_inside_gives_inf_although_the_result_would_fit(folder: Path) -> None:
    model = load(proto("(float[1] x) => (float[1] y) { h = Mul(x, x) y = Sqrt(h) }"), folder)
    fp16, bf16 = (compared(model, [sample(x=[300])], precision) for precision in (Precision.FP16, Precision.BF16))
    assert (fp16.inherited["h"].overflow, fp16.inherited["h"].inf, fp16.inherited["y"].inf) == (1, 1, 1)
    assert fp16.introduced["y"].inf == 1  # its input, 90000, is beyond half too
    assert fp16.inherited["y"].overflow == 0
    assert fp16.worst("sqnr") == -math.inf
    assert not meets(fp16, default_tolerance(Precision.FP16))
    assert meets(bf16, default_tolerance(Precision.BF16))
    pinned = compared(model, [sample(x=[300])], pinned=["node_of_h", "node_of_y"])
    assert meets(pinned, default_tolerance(Precision.FP16))


def test_a_half_precision_copy_on_the_cpu_says_fine_where_the_emulation_tells_the_truth(folder: Path) -> None:
    body = "(float[1] x) => (float[1] y) { h = Cast<to = 10>(x) m = Mul(h, h) s = Sqrt(m) y = Cast<to = 1>(s) }"
    half = proto(body)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(half.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (trap,) = session.run(None, {"x": np.float32([300])})
        assert trap.tolist() == [300]  # numpy, and any engine, gives inf: half(300)² is beyond 65504
    with np.errstate(over="ignore"):
        assert np.sqrt(np.float16([300]) ** 2).tolist() == [np.inf]
    model = load(proto("(float[1] x) => (float[1] y) { m = Mul(x, x) y = Sqrt(m) }"), folder)
    assert Flows(model, plan_for(model, Precision.FP16))(x=[300])[Flow.VARIANT, "y"].tolist() == [np.inf]


SWALLOWED = {
    "ReduceMax": "y = ReduceMax<axes = [0], keepdims = 1>(l)",
    "Clip": "y = Clip(l, low, high)",
    "Max": "y = Max(l, low)",
    "NaN before ReduceMax": "s = Sub(l, l) t = Add(s, x) y = ReduceMax<axes = [0], keepdims = 1>(t)",
    "Relu": "y = Relu(l)",
}


@pytest.mark.parametrize("by", SWALLOWED)
def test_a_constant_that_a_cast_makes_0_is_found_although_the_output_looks_fine(folder: Path, by: str) -> None:
    body = f"(float[3] x) => (float[M] y) {{ a = Add(x, tiny) l = Log(a) {SWALLOWED[by]} }}"
    weights = {"tiny": np.float32(1e-10), "low": np.float32(-5), "high": np.float32(5)}
    used = {name: w for name, w in weights.items() if f" {name})" in body or f" {name}," in body}
    model = load(proto(body, used), folder)
    found = compared(model, [sample(x=[0, 1, 2])], arithmetic=ROUNDED)
    assert found.inherited["a"].underflow == 1
    assert (found.inherited["l"].inf, found.inherited["l"].new_nonfinite) == (1, 1)
    assert found.introduced["l"].inf == 0 or found.introduced["a"].underflow == 1
    assert "l" in found.nonfinite
    assert not meets(found, default_tolerance(Precision.FP16))
    assert not meets(found, parse_tolerance(["sqnr>=-1000"]))
    pinned = compared(model, [sample(x=[0, 1, 2])], pinned=["node_of_a", "node_of_l"], arithmetic=ROUNDED)
    assert meets(pinned, default_tolerance(Precision.FP16))


def test_0_times_a_mask_is_nan_where_a_cast_makes_it_infinite_and_0_where_it_is_clamped(folder: Path) -> None:
    body = "(float[1,4] m) => (float[1,4] y) { n = Sub(one, m) y = Mul(n, lowest) }"
    model = load(proto(body, {"one": np.float32(1), "lowest": np.float32(-3.4028235e38)}), folder)
    found = compared(model, [sample(m=[[1, 1, 1, 0]])], arithmetic=ROUNDED)
    assert (found.introduced["y"].nan, found.introduced["y"].inf) == (3, 1)
    assert found.inherited["n"].nonfinite == 0
    assert math.isnan(found.worst("sqnr"))
    clamped = compared(model, [sample(m=[[1, 1, 1, 0]])])
    assert clamped.nonfinite == ()
    assert clamped.introduced["y"].max_error == np.float32(3.4028235e38) - 65504


def test_a_variance_beyond_half_inside_a_layer_does_no_harm(folder: Path) -> None:
    rng = np.random.default_rng(0)
    stats = {
        "w": 100 * rng.standard_normal((4, 3, 1, 1), np.float32), "s": np.ones(4, np.float32),
        "b": np.zeros(4, np.float32), "m": np.full(4, 1e5, np.float32), "v": np.full(4, 3e9, np.float32),
    }  # fmt: skip
    fused = load(
        proto(
            "(float[1,3,8,8] x) => (float[1,4,8,8] y) { c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }", stats
        ),
        folder,
    )
    assert len(fused.layers) == 1
    found = compared(fused, [sample(x=rng.standard_normal((1, 3, 8, 8), np.float32))])
    assert found.nonfinite == ()
    assert found.worst("sqnr") > 60
    del stats["w"]
    alone = load(
        proto("(float[1,4,8,8] x) => (float[1,4,8,8] y) { y = BatchNormalization(x, s, b, m, v) }", stats), folder
    )
    assert compared(alone, [sample(x=rng.standard_normal((1, 4, 8, 8), np.float32))]).nonfinite == ()


def test_the_alpha_of_a_hard_sigmoid_is_rounded(folder: Path) -> None:
    x = (np.arange(-96, 97) / 32).astype(np.float32)
    model = load(
        proto("(float[193] x) => (float[193] y) { y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) }"), folder
    )
    y = Flows(model, plan_for(model, Precision.FP16))(x=x)[Flow.VARIANT, "y"]
    alpha = float(np.float16(1 / 6))
    assert np.array_equal(y, rounded(np.clip(alpha * x.astype(np.float64) + 0.5, 0, 1).astype(np.float32)))
    assert not np.array_equal(y, rounded(np.clip(x.astype(np.float64) / 6 + 0.5, 0, 1).astype(np.float32)))


@pytest.mark.parametrize(("op", "attributes", "expected"), [
    ("Clip", "<min = -0.1, max = 5.3>", [-0.1, 0.5, 5.3]),
    ("Pad", "<pads = [1, 1], value = 0.1>", [0.1, -3, 0.5, 7, 0.1]),
])  # fmt: skip
def test_bounds_and_fillings_given_as_attributes_are_rounded(
    folder: Path, op: str, attributes: str, expected: list[float]
) -> None:
    model = load(proto(f"(float[3] x) => (float[M] y) {{ y = {op}{attributes}(x) }}", opset=9), folder)
    y = Flows(model, plan_for(model, Precision.FP16))(x=[-3, 0.5, 7])[Flow.VARIANT, "y"]
    assert np.array_equal(y, rounded(np.float32(expected)))


def test_default_operands_are_rounded_too(folder: Path) -> None:
    model = load(proto("(float[3] x) => (float[3] y) { y = LeakyRelu(x) }"), folder)
    x = np.float32([-100, -7.5, 2])
    y = Flows(model, plan_for(model, Precision.FP16))(x=x)[Flow.VARIANT, "y"]
    assert np.array_equal(y, rounded(np.where(x < 0, np.float32(np.float16(0.01)) * x, x)))


# Segments, threads, memory


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOW)
def test_threads_do_not_change_a_bit_and_segments_no_more_than_the_last(
    bundled: tuple[Model, Dataset], precision: Precision
) -> None:
    """Where the model is cut, ONNX Runtime may pool in another order: the last bit of a float32, 2⁻²⁴, is free."""
    model, dataset = bundled
    samples = list(dataset)
    whole = compared(model, samples, precision, around=Precision.FP16)
    backend = OnnxRuntimeBackend(model, samples[0])
    budgets = (1, 20_000, 1 << 28)
    assert [parts_of(backend.model, budget) for budget in budgets] == [len(model.layers), 6, 1]
    for budget in budgets:
        one, *others = (
            compared(model, samples, precision, around=Precision.FP16, threads=threads, budget=budget)
            for threads in (1, 2, 3)
        )
        assert all(same(other, one) for other in others), budget
        assert one.nonfinite == whole.nonfinite
        assert one.worst("sqnr") == pytest.approx(whole.worst("sqnr"), abs=0.1, nan_ok=True)
        for name, errors in whole.inherited.items():
            assert one.inherited[name].max_ref == pytest.approx(errors.max_ref, rel=2**-20)


def test_ranges_are_the_largest_magnitudes_of_the_reference(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    samples = list(dataset)
    tables = [
        calibrate(OnnxRuntimeBackend(model, samples[0], threads, budget), samples)
        for threads, budget in ((1, 1 << 28), (2, 1 << 28), (1, 1))
    ]
    assert tables[0] == tables[1]
    for name, found in tables[2].ranges.items():
        assert found.amax == pytest.approx(tables[0].ranges[name].amax, rel=2**-20)
    flows = Flows(model, plan_for(model, Precision.FP32))
    seen = [flows(**data.inputs) for data in samples]
    for name, found in tables[0].ranges.items():
        largest = max(float(np.abs(values[Flow.REFERENCE, name]).max()) for values in seen)
        assert found.amax == pytest.approx(largest, rel=2**-20)  # the flows beside it fuse otherwise
    assert tables[0].samples == len(samples)


def test_no_more_samples_are_read_ahead_than_run_side_by_side(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    (first, *_), read, ahead = list(dataset), 0, []

    def samples() -> Iterator[Sample]:
        nonlocal read
        for _ in range(12):
            read += 1
            yield first

    backend = OnnxRuntimeBackend(model, first, threads=2)
    backend.compare(
        plan_for(model, Precision.FP16),
        None,
        samples(),
        lambda done: ahead.append(read - done),
        metric=None,
        introduced=False,
    )
    assert len(ahead) == 12
    assert max(ahead) <= 2


def test_an_error_while_reading_samples_comes_through(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled

    def samples() -> Iterator[Sample]:
        yield from list(dataset)[:3]
        raise DataError("4.npz: broken")

    backend = OnnxRuntimeBackend(model, next(iter(dataset)), threads=2)
    with pytest.raises(DataError, match=r"4\.npz"):
        backend.compare(
            plan_for(model, Precision.FP16), None, samples(), lambda done: None, metric=None, introduced=True
        )


def test_a_sample_that_the_model_cannot_run_is_one_sentence(bundled: tuple[Model, Dataset]) -> None:
    model, _ = bundled
    with pytest.raises(ModelError) as caught:
        OnnxRuntimeBackend(model, sample(image=np.zeros((1, 2, 8, 8), np.float32)))
    assert "\n" not in str(caught.value)


def test_samples_of_several_shapes_are_compared_together(folder: Path) -> None:
    model = load(proto("(float[N,M] x) => (float[N,M] y) { h = Exp(x) y = Neg(h) }"), folder)
    data = [sample(x=np.ones(shape, np.float32)) for shape in ((1, 3), (4, 5), (2, 1))]
    for budget in (1, 1 << 28):
        found = compared(model, data, budget=budget)
        assert found.inherited["y"].elements == 3 + 20 + 2


def test_an_output_whose_size_depends_on_the_values_counts_as_changed(folder: Path) -> None:
    body = "(float[4] x) => (float[M] y) { g = Greater(x, t) c = Compress(x, g) y = Neg(c) }"
    model = load(proto(body, {"t": np.float32(1)}), folder)
    body = body.replace("g = Greater(x, t)", "h = Mul(x, t) g = Greater(h, t)")
    model = load(proto(body, {"t": np.float32(1)}), folder)
    found = compared(model, [sample(x=[0.5, 1.0001, 2, 3])])  # 1.0001 is 1 in half, and not greater
    assert (found.inherited["y"].reshaped, found.inherited["y"].nonfinite) == (1, 0)


# The task


def test_the_task_metric_is_taken_of_reference_and_variant(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    found = compared(model, list(dataset), metric=lambda: Accuracy("logits"))
    assert (found.metric_name, found.higher_is_better) == ("accuracy", True)
    flows = Flows(model, plan_for(model, Precision.FP16))
    for flow, metric in ((Flow.REFERENCE, found.reference_metric), (Flow.VARIANT, found.metric)):
        outputs = [flows(**s.inputs)[flow, "logits"] for s in dataset]
        right = [not np.isnan(o).any() and str(o.argmax()) == s.label for o, s in zip(outputs, dataset, strict=True)]
        assert metric == sum(right) / len(right)
    assert found.metric_drop == 1.0


def test_the_bundled_model_overflows_in_half_and_three_pins_repair_it(bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    samples = list(dataset)
    broken = compared(model, samples)
    assert broken.nonfinite[0] == "/norm/square_out"
    assert not meets(broken, default_tolerance(Precision.FP16))
    names = ["/norm/square", "/norm/variance", "/norm/add_eps", "/norm/std"]
    repaired = compared(model, samples, pinned=names, metric=lambda: Accuracy("logits"))
    assert meets(repaired, default_tolerance(Precision.FP16))
    assert repaired.metric == repaired.reference_metric


# Real models, where their packages are installed


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "holds"), [
    ("magika", Precision.FP16, False), ("magika", Precision.BF16, True), ("minilm", Precision.FP16, True),
    ("orient", Precision.FP16, True),
])  # fmt: skip
@pytest.mark.slow
def test_real_models_break_in_half_where_they_break_on_a_gpu(name: str, precision: Precision, holds: bool) -> None:
    model, data = packaged(name)
    found = compared(model, [data], precision, threads=2)
    assert (found.nonfinite == ()) == holds
    assert meets(found, parse_tolerance(["sqnr>=10"])) == holds


@pytest.mark.slow
@pytest.mark.thorough
def test_minilm_is_nan_in_half_where_a_cast_makes_its_mask_infinite() -> None:
    model, data = packaged("minilm")
    found = compared(model, [data], threads=2, arithmetic=ROUNDED)
    assert math.isnan(found.worst("sqnr"))
    assert not meets(found, parse_tolerance(["sqnr>=10"]))
    (mask,) = (layer.name for layer in model.layers if layer.name.endswith("auto_model/Mul_1"))
    assert meets(compared(model, [data], threads=2, arithmetic=ROUNDED, pinned=[mask]), parse_tolerance(["sqnr>=50"]))


@pytest.mark.slow
def test_segments_of_a_real_model_change_nothing() -> None:
    # Whether ONNX Runtime makes a Gemm of MatMul and Add depends on ranks that it knows; one unit in the last place.
    model, data = packaged("magika")
    whole = compared(model, [data])
    for budget in (1, 1_000_000):
        assert same(compared(model, [data], budget=budget), whole), budget
