"""What becomes of constants that half cannot hold: the nearest number that it has, as TensorRT's builder has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import ROUNDED, Array, Flows, bits, load, plan_for, proto

from precisionlab.plan.arithmetic import ONNXRUNTIME, TENSORRT, Arithmetic, Constants
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import clamped_array, clamped_tensor, constant_array, is_clamped, rounded_array
from precisionlab.rewrite.observe import Flow

FP16, BF16, FP32 = Precision.FP16, Precision.BF16, Precision.FP32
LARGEST, LEAST = np.float32(65504), np.float32(2.0**-24)
BEYOND = np.float32(65520)  # the middle between half's largest and what would be the next: a tie goes up, to Inf
TINY = np.float32(2.0**-25)  # the middle between 0 and the smallest subnormal: a tie goes down, to 0
TOP, BOTTOM = np.finfo(np.float32).max, np.float32(2.0**-149)
EDGES = [
    *(0.0, -0.0, 1.0, 65503.0, 65504.0, 65519.996, 65520.0, 65520.004, 1e6, float(TOP)),
    *(float(np.nextafter(TINY, s)) for s in (np.float32(0), np.float32(1))),
    *(2.0**-25, 2.0**-24, 3 * 2.0**-25, 2.0**-14, 2.0**-15 + 2.0**-24, 2.0**-126, 2.0**-127, float(BOTTOM), 1e-12),
]
SIGNED = [sign * edge for edge in EDGES for sign in (1.0, -1.0)]
SPECIAL = [np.inf, -np.inf, np.nan]
FLOATS32 = hnp.arrays(np.uint32, st.integers(0, 40)).map(lambda pattern: pattern.view(np.float32))


def nearest_not_zero(value: float) -> float:
    """The nearest finite number of half that is not 0, by looking through all of them; ties as half rounds."""
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    distances = np.abs(halves.astype(np.float64) - min(abs(value), 1e5))  # beyond that float64 sees no difference
    (closest,) = np.nonzero(distances == distances.min())
    chosen = halves[closest[0]] if len(closest) == 1 else halves[closest][halves[closest].view(np.uint16) % 2 == 0][0]
    return float(np.copysign(float(chosen), value))


@given(FLOATS32)
@example(np.float32(SIGNED))
@example(np.float32(SPECIAL))
def test_what_half_holds_and_what_is_no_number_stays_bit_for_bit(array: Array) -> None:
    clamped = clamped_array(array, FP16)
    rounded = rounded_array(array, FP16)
    is_lost = np.isfinite(array) & (array != 0) & (np.isinf(rounded) | (rounded == 0))
    assert clamped.dtype == np.float32
    assert clamped.shape == array.shape
    assert np.array_equal(clamped.view(np.uint32)[~is_lost], array.view(np.uint32)[~is_lost])
    assert set(np.abs(clamped[is_lost])) <= {LARGEST, LEAST}
    assert np.array_equal(np.signbit(clamped), np.signbit(array))


@given(FLOATS32)
@example(np.float32(SIGNED))
def test_clamping_twice_is_clamping_once_and_rounding_then_loses_no_number(array: Array) -> None:
    clamped = clamped_array(array, FP16)
    assert np.array_equal(bits(clamped_array(clamped, FP16)), bits(clamped))
    held = constant_array(array, FP16, Constants.CLAMPED)
    assert np.array_equal(np.isfinite(held), np.isfinite(array))
    assert np.array_equal(held == 0, array == 0)
    assert np.array_equal(bits(clamped_array(held, FP16)), bits(held))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda value: value != 0))
def test_a_constant_becomes_the_nearest_finite_number_of_half_that_is_not_0(value: float) -> None:
    (held,) = constant_array(np.float32([value]), FP16, Constants.CLAMPED)
    assert held == nearest_not_zero(value)


@pytest.mark.parametrize("value", [edge for edge in SIGNED if edge != 0])
def test_at_its_ends_too(value: float) -> None:
    (held,) = constant_array(np.float32([value]), FP16, Constants.CLAMPED)
    assert held == nearest_not_zero(float(np.float32(value)))


def value_of(array: Array) -> ir.Value:
    return ir.Value(name="k", type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.tensor(array))


@pytest.mark.parametrize("number", [*SIGNED, *SPECIAL])
def test_whether_a_constant_is_clamped_is_whether_clamping_changes_it(number: float) -> None:
    array = np.float32([1, number])
    expected = not np.array_equal(bits(clamped_array(array, FP16)), bits(array))
    assert is_clamped(value_of(array), FP16) == expected
    assert expected == (abs(number) != np.inf and (abs(number) >= 65520 or 0 < abs(number) <= 2.0**-25))


@given(FLOATS32)
def test_whether_any_constant_is_clamped_is_whether_clamping_changes_it(array: Array) -> None:
    assert is_clamped(value_of(array), FP16) != np.array_equal(bits(clamped_array(array, FP16)), bits(array))


def test_a_clamped_tensor_is_made_when_it_is_read() -> None:
    array = np.float32([[1, 1e6], [-1e-12, 0.1]])
    tensor = clamped_tensor(ir.tensor(array), FP16)
    assert (tensor.dtype, tuple(tensor.shape.numpy())) == (ir.DataType.FLOAT, (2, 2))
    assert np.array_equal(tensor.numpy(), np.float32([[1, 65504], [-(2.0**-24), 0.1]]))  # 0.1 is not rounded yet


@pytest.mark.parametrize("precision", [BF16, FP32, Precision.INT8])
def test_no_other_precision_clamps(precision: Precision) -> None:
    array = np.float32([*SIGNED, *SPECIAL])
    assert np.array_equal(bits(clamped_array(array, precision)), bits(array))
    assert not is_clamped(value_of(array), precision)


def test_constants_of_other_types_are_not_clamped() -> None:
    for array in (np.array([1 << 40]), np.float64([1e300]), np.float16([6e-8])):
        kind = ir.DataType.from_numpy(array.dtype)
        value = ir.Value(name="k", type=ir.TensorType(kind), const_value=ir.tensor(array))
        assert not is_clamped(value, FP16)


# In graphs


def outputs(
    folder: Path,
    body: str,
    weights: Mapping[str, Array],
    x: Array,
    arithmetic: Arithmetic = TENSORRT,
    plan: tuple[Precision, tuple[Pin, ...]] = (FP16, ()),
) -> Array:
    """What the variant gives for one input."""
    model = load(proto(body, weights), folder)
    low = PrecisionPlan(model.sha256, *plan)
    return Flows(model, low, arithmetic=arithmetic)(x=x)[Flow.VARIANT, "y"]


SUM = '(float[3] x) => (float[3] y) { ["sum"] y = Add(x, k) }'
LOST = np.float32([1e6, -3.4e38, 1e-12])
HELD = [65504, -65504, 2.0**-24]


def test_a_layer_takes_a_clamped_constant_and_a_cast_is_as_it_always_is(tmp_path: Path) -> None:
    zeros = np.zeros(3, np.float32)
    assert outputs(tmp_path, SUM, {"k": LOST}, zeros).tolist() == HELD
    for arithmetic in (ROUNDED, ONNXRUNTIME):
        assert outputs(tmp_path, SUM, {"k": LOST}, zeros, arithmetic).tolist() == [np.inf, -np.inf, 0]


def test_an_infinite_constant_stays_so(tmp_path: Path) -> None:
    infinite = np.float32([np.inf, -np.inf, 1])
    assert outputs(tmp_path, SUM, {"k": infinite}, np.zeros(3, np.float32)).tolist() == [np.inf, -np.inf, 1]


@pytest.mark.parametrize("precision", [BF16, FP32])
def test_in_other_precisions_and_under_a_pin_nothing_is_clamped(tmp_path: Path, precision: Precision) -> None:
    zeros, weights = np.zeros(3, np.float32), {"k": np.float32([1e6, -3e38, 1e-12])}
    expected = rounded_array(weights["k"], precision)
    assert np.array_equal(outputs(tmp_path, SUM, weights, zeros, plan=(precision, ())), expected)
    pin = Pin("sum", ("sum",), precision, "test")
    # The pinned layer gives a half layer behind it nothing here: what it gives is the model's output.
    assert np.array_equal(outputs(tmp_path, SUM, weights, zeros, plan=(FP16, (pin,))), expected)


def test_a_value_that_overflows_on_its_way_is_not_clamped(tmp_path: Path) -> None:
    """Only constants are: 200 · 400 is Inf."""
    assert outputs(tmp_path, "(float[1] x) => (float[1] y) { y = Mul(x, k) }", {"k": np.float32([400])},
                   np.float32([200])).tolist() == [np.inf]  # fmt: skip


def test_a_clips_limits_are_rounded_and_not_clamped_so_that_they_hide_no_inf(tmp_path: Path) -> None:
    """TensorRT makes them parameters of its layer, in float32: a limit of 1e9 lets an Inf pass."""
    body = '(float[3] x) => (float[3] y) { ["square"] a = Mul(x, x) ["clip"] y = Clip(a, low, high) }'
    x = np.float32([1000, 2, 0])
    weights = {"low": np.float32(0.1), "high": np.float32(1e9)}
    assert outputs(tmp_path, body, weights, x).tolist() == [np.inf, 4, np.float16(0.1)]
    weights = {"low": np.float32(1e-12), "high": np.float32(6e4)}
    assert outputs(tmp_path, body, weights, x).tolist() == [60000, 4, 0]


def test_the_same_constant_is_clamped_where_it_is_data_and_not_where_it_is_a_limit(tmp_path: Path) -> None:
    body = '(float[2] x) => (float[2] y) { ["sum"] a = Mul(x, k) ["clip"] y = Clip(a, low, k) }'
    weights = {"low": np.float32(0), "k": np.float32(1e9)}
    assert outputs(tmp_path, body, weights, np.float32([1, 2])).tolist() == [65504, np.inf]


IF = """(float[3] x) => (float[3] y) {
    b = ReduceSum<keepdims = 0>(x) f = Cast<to = 9>(b)
    y = If (f) <then_branch = t () => (float[3] p) { p = Add(x, k) },
                else_branch = e () => (float[3] q) { q = Sub(x, k) }> }"""


@pytest.mark.parametrize("x", [[0, 0, 0], [1, 0, 0]])
def test_constants_are_clamped_in_the_branches_of_an_if(tmp_path: Path, x: list[float]) -> None:
    expected = np.float32(x) + (HELD if any(x) else [-value for value in HELD])
    found = outputs(tmp_path, IF, {"k": LOST}, np.float32(x))
    assert np.array_equal(found, rounded_array(expected.astype(np.float32), FP16))
    assert np.isinf(outputs(tmp_path, IF, {"k": LOST}, np.float32(x), ROUNDED)).any()


def test_constants_are_clamped_in_the_body_of_a_loop(tmp_path: Path) -> None:
    """A state that is added to at every turn: 6e-8 each, where a Cast adds nothing."""
    body = """(float[1] x) => (float[1] y) {
        y = Loop (turns, always, x) <body = b (int64 i, bool c, float[1] s) => (bool d, float[1] t) {
            d = Identity(c) t = Add(s, k) }> }"""
    weights = {"turns": np.int64(4), "always": np.bool_(True), "k": np.float32([1e-12])}
    zero = np.zeros(1, np.float32)
    assert outputs(tmp_path, body, weights, zero).tolist() == [4 * 2.0**-24]
    assert outputs(tmp_path, body, weights, zero, ROUNDED).tolist() == [0]


def test_a_body_s_own_constants_are_clamped(tmp_path: Path) -> None:
    body = """(float[1] x) => (float[1] y) {
        b = ReduceSum<keepdims = 0>(x) f = Cast<to = 9>(b)
        y = If (f) <then_branch = t () => (float[1] p) { k = Constant<value = float[1] {1000000.0}>() p = Mul(x, k) },
                    else_branch = e () => (float[1] q) { q = Neg(x) }> }"""
    assert outputs(tmp_path, body, {}, np.float32([1])).tolist() == [65504]
    assert outputs(tmp_path, body, {}, np.float32([1]), ROUNDED).tolist() == [np.inf]


def test_the_weights_of_a_recurrent_layer_are_clamped(tmp_path: Path) -> None:
    """A step of an RNN that adds what it takes: a weight of 1e6 lets 0 be 0, where Inf · 0 is NaN."""
    body = """(float[1,1,2] x) => (float[1,1,1] y) {
        a, y = RNN <hidden_size = 1, activations = ["Affine"], activation_alpha = [1.0], activation_beta = [0.0]>
            (x, W, R) }"""
    weights = {"W": np.float32([[[1e6, 1e-12]]]), "R": np.zeros((1, 1, 1), np.float32)}
    found = [outputs(tmp_path, body, weights, np.float32([[[0, 2]]]), a).item() for a in (TENSORRT, ROUNDED)]
    assert found[0] == 2.0**-23
    assert np.isnan(found[1])


def test_a_batch_normalization_s_scale_is_clamped_as_it_is_folded_and_not_as_it_is_written(tmp_path: Path) -> None:
    """Scale 1e6 with a variance of 1e12 is a factor of 1; 1 with a variance of 1e-12 and no epsilon one of 1e6."""
    body = "(float[1,3] x) => (float[1,3] y) { y = BatchNormalization<epsilon = 0.0>(x, s, b, m, v) }"
    weights = {
        "s": np.float32([1e6, 1, 1e-12]), "b": np.float32([0, 0, 1e9]), "m": np.zeros(3, np.float32),
        "v": np.float32([1e12, 1e-12, 1]),
    }  # fmt: skip
    x = np.float32([[0.5, 0.5, 0]])
    assert outputs(tmp_path, body, weights, x).tolist() == [[0.5, 32752, 65504]]
    assert np.isfinite(outputs(tmp_path, body, weights, x, ROUNDED)).tolist() == [[True, False, False]]


def test_behind_a_convolution_a_normalization_is_folded_in_float32_and_nothing_of_it_is_clamped(tmp_path: Path) -> None:
    body = """(float[1,1,1,1] x) => (float[1,1,1,1] y) {
        c = Conv(x, w) y = BatchNormalization<epsilon = 0.0>(c, s, b, m, v) }"""
    weights = {
        "w": np.ones((1, 1, 1, 1), np.float32), "s": np.float32([1e6]), "b": np.float32([0]), "m": np.float32([0]),
        "v": np.float32([1e14]),
    }  # fmt: skip
    x = np.full((1, 1, 1, 1), 8, np.float32)
    assert outputs(tmp_path, body, weights, x).item() == rounded_array(np.float32(0.8), FP16)


def test_a_plan_of_bf16_with_a_half_pin_clamps_in_that_layer_alone(tmp_path: Path) -> None:
    body = '(float[1] x) => (float[1] y) { ["one"] a = Mul(x, k) ["two"] y = Mul(a, k) }'
    model = load(proto(body, {"k": np.float32([1e-12])}), tmp_path)
    plan = PrecisionPlan(model.sha256, BF16, (Pin("two", ("two",), FP16, "test"),))
    values = Flows(model, plan)(x=np.float32([2.0**30]))
    assert values[Flow.VARIANT, "a"].item() == pytest.approx(2.0**30 * 1e-12, rel=2**-8)
    product = rounded_array(values[Flow.VARIANT, "a"], FP16) * LEAST
    assert values[Flow.VARIANT, "y"].item() == rounded_array(product, FP16)


def test_the_reference_keeps_its_constants(tmp_path: Path) -> None:
    model = load(proto(SUM, {"k": LOST}), tmp_path)
    values = Flows(model, plan_for(model, FP16))(x=np.zeros(3, np.float32))
    assert values[Flow.REFERENCE, "y"].tolist() == LOST.tolist()


@pytest.mark.parametrize("opset", [7, 17])
@pytest.mark.parametrize("beyond", [False, True])
def test_rows_of_a_large_table_are_those_of_the_table_that_half_holds(tmp_path: Path, opset: int, beyond: bool) -> None:
    table = np.zeros((2**14, 16), np.float32)
    numbers = [n for n in (*SIGNED, *SPECIAL) if beyond or not BEYOND <= abs(n) < np.inf]
    table.reshape(-1)[: len(numbers)] = numbers
    body = "(int64[n] ids) => (float[n, 16] y) { y = Gather(table, ids) }"
    model = load(proto(body, {"table": table}, opset=opset), tmp_path)
    flows = Flows(model, plan_for(model, FP16))
    found = flows(ids=np.arange(-8, 12))
    held = constant_array(table, FP16, Constants.CLAMPED)[np.arange(-8, 12)]
    for flow in (Flow.VARIANT, Flow.ALONE):
        assert np.array_equal(bits(found[flow, "y"]), bits(held))
    assert np.array_equal(bits(found[Flow.REFERENCE, "y"]), bits(table[np.arange(-8, 12)]))
    copies = [name for name in flows.constants if "clamped" in name]
    assert bool(copies) == (beyond or opset == 7)
