"""The cost estimate is the roofline that it says it is: hand-computed on small models, and sane on a real one."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import Array, load, packaged, plan_for, proto

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.data import open_dataset
from precisionlab.errors import OptionError
from precisionlab.model import Model, load_model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.cost import CostModel, LayerCost, PlanCost, Reformat, plan_cost
from precisionlab.search.devices import DEVICES, DevicePeaks, find_device

FP32, FP16, BF16, FP8, INT8, _ = Precision.formats()
ORIENT = Path(__file__).parents[2] / "examples" / "prepared" / "orient"

# Round figures: a byte takes a second, and arithmetic is either free or all that counts.
BYTES = DevicePeaks("bytes", "memory alone", "sm1", dict.fromkeys(Precision, 1e30), 1.0, "made up")
OPERATIONS = DevicePeaks(
    "ops", "arithmetic alone", "sm2", {FP32: 1.0, FP16: 2.0, BF16: 2.0, INT8: 4.0}, 1e30, "made up"
)

Weights = Mapping[str, Array]


def conv(channels: int) -> Array:
    return np.ones((channels, channels, 1, 1), np.float32)


def model_of(folder: Path, body: str, weights: Weights | None = None) -> Model:
    return load(proto(body, weights), folder)


@pytest.fixture
def chain(tmp_path: Path) -> Model:
    """Three 1×1 Convs of 2 channels on 3×3, 18 elements everywhere, and 4 weights each."""
    return model_of(
        tmp_path,
        "(float[1,2,3,3] x) => (float[1,2,3,3] y) { [c1] a = Conv(x, w1) [c2] b = Conv(a, w2) [c3] y = Conv(b, w3) }",
        {name: conv(2) for name in ("w1", "w2", "w3")},
    )


def layers(cost: PlanCost) -> dict[str, LayerCost]:
    return {layer.layer: layer for layer in cost.layers}


def conversions(cost: PlanCost) -> set[tuple[str, str, str]]:
    return {(r.tensor, r.stored.value, r.wanted.value) for r in cost.reformats}


# One layer: the roofline


def test_a_layer_moves_its_inputs_weights_and_outputs_at_the_size_of_its_precision(chain: Model) -> None:
    for precision, size in ((FP32, 4), (FP16, 2), (BF16, 2)):
        cost = plan_cost(chain, plan_for(chain, precision), BYTES)
        assert [layer.bytes for layer in cost.layers] == [size * (18 + 4 + 18)] * 3
        assert [layer.seconds for layer in cost.layers] == [size * 40.0] * 3
        assert {layer.bound for layer in cost.layers} == {"memory"}


def test_a_multiply_add_is_two_operations(chain: Model) -> None:
    cost = plan_cost(chain, plan_for(chain, FP16), OPERATIONS)
    assert [layer.multiply_adds for layer in cost.layers] == [36] * 3  # 18 outputs, of 2 channels each
    assert [layer.seconds for layer in cost.layers] == [36.0] * 3  # 72 operations at 2 a second
    assert {layer.bound for layer in cost.layers} == {"compute"}


def test_the_longer_of_arithmetic_and_memory_counts_and_not_their_sum(chain: Model) -> None:
    # fp32: 160 bytes and 72 operations
    for peak, bandwidth, seconds, bound in ((1.0, 2.0, 80.0, "memory"), (0.5, 2.0, 144.0, "compute")):
        device = DevicePeaks("d", "d", "sm3", {FP32: peak}, bandwidth, "made up")
        cost = plan_cost(chain, plan_for(chain, FP32), device)
        assert cost.layers[0] == LayerCost("c1", FP32, 36, 160, seconds, bound)
        assert cost.seconds == 3 * seconds
        assert cost.device == "d"


def test_other_operators_are_bound_by_memory_alone(tmp_path: Path) -> None:
    model = model_of(tmp_path, "(float[10] x) => (float[10] y) { [e] a = Exp(x) [s] y = Add(a, x) }")
    cost = plan_cost(model, plan_for(model, FP32), OPERATIONS)
    assert [layer.bound for layer in cost.layers] == ["memory", "memory"]
    assert [layer.bytes for layer in cost.layers] == [80, 120]


def test_a_precision_that_the_device_does_not_have_is_refused_and_only_where_it_is_used(chain: Model) -> None:
    t4 = find_device("t4")
    with pytest.raises(OptionError, match=r"NVIDIA T4 16 GB does not compute in bf16; it has fp32, fp16, int8"):
        plan_cost(chain, plan_for(chain, BF16), t4)
    assert plan_cost(chain, plan_for(chain, BF16, pinned=("c1", "c2", "c3")), t4).seconds > 0


# Tensors between layers


def test_one_precision_needs_conversions_at_the_models_borders_alone(chain: Model) -> None:
    assert plan_cost(chain, plan_for(chain, FP32), BYTES).reformats == ()
    cost = plan_cost(chain, plan_for(chain, FP16), BYTES)
    assert cost.reformats == (Reformat("x", FP32, FP16, 108, 108.0), Reformat("y", FP16, FP32, 108, 108.0))
    assert cost.seconds == 3 * 80 + 2 * 108


def test_a_pin_in_the_middle_is_converted_into_and_out_of(chain: Model) -> None:
    plain = plan_cost(chain, plan_for(chain, FP16), BYTES)
    pinned = plan_cost(chain, plan_for(chain, FP16, pinned=("c2",)), BYTES)
    assert conversions(pinned) - conversions(plain) == {("a", "fp16", "fp32"), ("b", "fp32", "fp16")}
    assert pinned.seconds - plain.seconds == 80 + 2 * 108  # its own bytes double


def test_a_pin_at_the_input_takes_the_model_input_as_it_is(chain: Model) -> None:
    cost = plan_cost(chain, plan_for(chain, FP16, pinned=("c1",)), BYTES)
    assert conversions(cost) == {("a", "fp32", "fp16"), ("y", "fp16", "fp32")}


def test_consumers_of_one_precision_share_a_conversion(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        "(float[10] x) => (float[10] y, float[10] z, float[10] v)"
        "{ [e] a = Exp(x) [n] y = Neg(a) [s] z = Sin(a) [c] v = Cos(a) }",
    )
    assert conversions(plan_cost(model, plan_for(model, FP16, pinned=("n", "s")), BYTES)) == {
        ("x", "fp32", "fp16"),
        ("a", "fp16", "fp32"),
        ("v", "fp16", "fp32"),
    }


def test_int8_layers_hand_on_int8_and_the_last_one_what_is_around(chain: Model) -> None:
    cost = plan_cost(chain, plan_for(chain, INT8, around=FP16), BYTES)
    assert [layer.bytes for layer in cost.layers] == [40, 40, 18 + 4 + 36]
    assert conversions(cost) == {("x", "fp32", "int8"), ("y", "fp16", "fp32")}
    cost = plan_cost(chain, plan_for(chain, INT8), BYTES)
    assert [layer.bytes for layer in cost.layers] == [40, 40, 18 + 4 + 72]
    assert conversions(cost) == {("x", "fp32", "int8")}


def test_an_int8_tensor_that_float_layers_take_too_is_stored_once_and_converted(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        "(float[1,2,3,3] x) => (float[1,2,3,3] y, float[1,2,3,3] z)"
        "{ [c1] a = Conv(x, w1) [c2] y = Conv(a, w2) [e] z = Exp(a) }",
        {"w1": conv(2), "w2": conv(2)},
    )
    cost = plan_cost(model, plan_for(model, INT8, around=FP16), BYTES)
    assert layers(cost)["c1"].bytes == 18 + 4 + 18
    assert {("a", "int8", "fp16")} == {c for c in conversions(cost) if c[0] == "a"}
    # With the second Conv pinned nothing takes int8; then fp16 is stored, and the pin has it converted.
    cost = plan_cost(model, plan_for(model, INT8, pinned=("c2",), around=FP16), BYTES)
    assert layers(cost)["c1"].bytes == 18 + 4 + 36
    assert {("a", "fp16", "fp32")} == {c for c in conversions(cost) if c[0] == "a"}


def test_a_residual_and_a_bias_are_taken_in_what_is_around(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        "(float[1,2,3,3] x) => (float[1,2,3,3] y){ [c1] a = Conv(x, w1) [c2] b = Conv(a, w2, bias) [s] y = Add(b, x) }",
        {"w1": conv(2), "w2": conv(2), "bias": np.ones(2, np.float32)},
    )
    assert [layer.op_types for layer in model.layers] == [("Conv",), ("Conv", "Add")]
    cost = plan_cost(model, plan_for(model, INT8, around=FP16), BYTES)
    assert layers(cost)["c2"].bytes == (18 + 4) + 2 * (18 + 2) + 2 * 18
    assert conversions(cost) == {("x", "fp32", "int8"), ("x", "fp32", "fp16"), ("y", "fp16", "fp32")}


def test_tensors_of_other_types_keep_their_size_and_are_never_converted(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        "(float[10] x, int64[10] i) => (int64[10] j, float[10] y)"
        "{ [n] j = Neg(i) [g] c = Greater(x, x) [w] y = Where(c, x, x) }",
    )
    for precision, size in ((FP32, 4), (FP16, 2)):
        cost = plan_cost(model, plan_for(model, precision), BYTES)
        assert layers(cost)["n"].bytes == 160
        assert layers(cost)["g"].bytes == 40 + 10  # has no float output, and so stays float32
        assert layers(cost)["w"].bytes == 10 + 20 * size
        assert {tensor for tensor, _, _ in conversions(cost)} <= {"x", "y"}


def test_a_lookup_reads_the_rows_that_it_gives_and_not_the_table(tmp_path: Path) -> None:
    table = np.ones((1000, 8), np.float32)
    model = model_of(tmp_path, "(int64[3] i) => (float[3,8] y) { [g] y = Gather(table, i) }", {"table": table})
    assert layers(plan_cost(model, plan_for(model, FP16), BYTES))["g"].bytes == 24 * 2 + 3 * 8 + 24 * 2


def test_views_and_shapes_move_nothing_but_a_view_wants_its_precision(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        "(float[4,6] x) => (float[6,4] y, int64[2] s)"
        "{ [e] a = Exp(x) [v] b = Reshape(a, to) [n] y = Neg(b) [shape] s = Shape(a) }",
        {"to": np.array([6, 4])},
    )
    cost = plan_cost(model, plan_for(model, FP16), BYTES)
    assert layers(cost)["v"].bytes == 0
    assert layers(cost)["shape"].bytes == 16
    assert conversions(cost) == {("x", "fp32", "fp16"), ("y", "fp16", "fp32")}, "a shape needs no conversion"
    pinned = plan_cost(model, plan_for(model, FP16, pinned=("v",)), BYTES)
    assert conversions(pinned) - conversions(cost) == {("a", "fp16", "fp32"), ("b", "fp32", "fp16")}


def test_scales_of_a_resize_stay_float32(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        '(float[1,1,4,4] x) => (float[1,1,8,8] y) { [r] y = Resize<mode = "nearest">(x, , scales) }',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    assert layers(plan_cost(model, plan_for(model, FP16), BYTES))["r"].bytes == 2 * 16 + 4 * 4 + 2 * 64


def test_what_a_subgraph_takes_and_does_counts_once_for_branches_and_for_each_turn_of_a_loop(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        "(float[10] x, bool c) => (float[10] y) { [e] a = Exp(x) "
        "[i] y = If(c) <then_branch = t () => (float[10] p) { p = Neg(a) },"
        " else_branch = f () => (float[10] q) { r = Abs(a) q = Exp(r) }> }",
    )
    cost = plan_cost(model, plan_for(model, FP16), BYTES)
    # The condition, what it is handed and gives, and the two nodes of the longer branch.
    assert layers(cost)["i"].bytes == 1 + 2 * 10 + 2 * 10 + 2 * (2 * 20)
    assert conversions(cost) == {("x", "fp32", "fp16"), ("y", "fp16", "fp32")}

    loop = """(float[2,4] x, bool go) => (float[2,4] y) { [l] y = Loop(n, go, x) <body = b
        (int64 i, bool c, float[2,4] v) => (bool o, float[2,4] w) { o = Identity(c) w = MatMul(v, k) }> }"""
    constants = {"n": np.array(5), "k": np.ones((4, 4), np.float32)}
    model = model_of(tmp_path, loop, constants)
    found = layers(plan_cost(model, plan_for(model, FP16), BYTES))["l"]
    assert found.multiply_adds == 5 * 2 * 4 * 4
    assert model.layer["l"].weight_bytes == 64 + 8
    # What it is handed and gives, its constant (read from outside too), the number of turns; and in each turn all.
    assert found.bytes == 2 * (8 + 16 + 8) + 8 + 1 + 5 * 2 * (8 + 16 + 8)
    model = model_of(tmp_path, loop.replace("float[2,4] x,", "float[2,4] x, int64 n,"), {"k": constants["k"]})
    assert plan_cost(model, plan_for(model, FP16), BYTES).unknown == ("l",)


# What is not known, and what was measured


def test_layers_of_unknown_shape_are_named_and_count_nothing(tmp_path: Path) -> None:
    body = "(float[n] x, float[10] z) => (float[n] y, float[10] v) { [e] y = Exp(x) [c] v = Cos(z) }"
    model = model_of(tmp_path, body)
    cost = plan_cost(model, plan_for(model, FP16), BYTES)
    assert cost.unknown == ("e",)
    assert [layer.layer for layer in cost.layers] == ["c"]
    assert {tensor for tensor, _, _ in conversions(cost)} == {"z", "v"}
    measured = plan_cost(model, plan_for(model, FP16), BYTES, {("e", FP16): 5.0})
    assert measured.unknown == ()
    assert layers(measured)["e"] == LayerCost("e", FP16, 0, None, 5.0, "measured")


def test_measured_times_replace_estimates_of_that_precision_alone(chain: Model) -> None:
    measured = {("c2", FP16): 7.0, ("c2", FP32): 9.0, ("c3", INT8): 1.0}
    cost = plan_cost(chain, plan_for(chain, FP16), BYTES, measured)
    assert layers(cost)["c2"] == LayerCost("c2", FP16, 36, 80, 7.0, "measured")
    assert layers(cost)["c3"].bound == "memory"
    assert (cost.measured, cost.figures) == (1, "partly measured")
    assert cost.seconds == 7 + 2 * 80 + 2 * 108


def test_figures_say_what_the_sum_is_made_of(chain: Model) -> None:
    every = {(name, precision): 1.0 for name in ("c1", "c2", "c3") for precision in Precision}
    assert plan_cost(chain, plan_for(chain, FP32), BYTES).figures == "estimated"
    assert plan_cost(chain, plan_for(chain, FP32), BYTES, every).figures == "measured"
    fp16 = plan_cost(chain, plan_for(chain, FP16), BYTES, every)
    assert (fp16.measured, fp16.figures) == (3, "partly measured"), "the conversions are estimates still"


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_what_is_no_time_is_refused(chain: Model, seconds: float) -> None:
    with pytest.raises(OptionError, match=r"layer 'c2' in fp16 is (-1|nan|inf)"):
        CostModel(chain, BYTES, {("c2", FP16): seconds})


def test_a_time_of_a_layer_that_is_not_there_is_refused(chain: Model) -> None:
    with pytest.raises(OptionError, match=r"'other', which the model does not have"):
        CostModel(chain, BYTES, {("other", FP16): 1.0})


# Devices


def test_devices_are_found_by_name_in_any_case_and_the_choices_are_named() -> None:
    assert find_device(" A100 ") is DEVICES["a100"]
    choices = "a100 (sm80), h100 (sm90), orin (sm87), l4 (sm89), t4 (sm75)"
    with pytest.raises(OptionError, match=re.escape(f"unknown device 'v100'; use one of {choices}")):
        find_device("v100")
    assert find_device("SM89") is DEVICES["l4"]


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_a_device_computes_faster_in_fewer_bits_and_names_its_source(device: DevicePeaks) -> None:
    assert device.compute[FP32] < device.compute[FP16] < device.compute[INT8]
    assert device.compute[INT8] == pytest.approx(2 * device.compute[FP16], rel=0.01)
    assert device.compute.get(BF16, device.compute[FP16]) == device.compute[FP16]
    assert 1e11 < device.bandwidth < 1e13
    assert "NVIDIA" in device.source
    assert device is DEVICES[device.name]


# A real model


@pytest.fixture(scope="module")
def orient() -> Model:
    """The real model at the shapes of a sample: 55 layers, 33 of them int8's."""
    path = ORIENT / "orient.onnx"
    if path.is_file():
        model = load_model(path)
        return OnnxRuntimeBackend(model, next(iter(open_dataset(ORIENT / "data", model, 1, 0))), 1).model
    model, first = packaged("orient")
    return OnnxRuntimeBackend(model, first, 1).model


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_a_real_model_costs_less_in_fewer_bits_on_every_device(orient: Model, device: DevicePeaks) -> None:
    costs = CostModel(orient, device)
    fp32, fp16 = costs.of(plan_for(orient, FP32)), costs.of(plan_for(orient, FP16))
    int8, mixed = costs.of(plan_for(orient, INT8)), costs.of(plan_for(orient, INT8, around=FP16))
    assert fp32.unknown == fp16.unknown == int8.unknown == ()
    assert fp32.reformats == ()
    assert mixed.seconds < int8.seconds < fp16.seconds < fp32.seconds
    assert fp32.figures == "estimated"
    for cost in fp32, fp16, int8, mixed:
        assert cost.seconds == pytest.approx(sum(c.seconds for c in [*cost.layers, *cost.reformats]))


def test_each_layer_of_a_real_model_pinned_alone_costs_no_less_itself(orient: Model) -> None:
    costs = CostModel(orient, find_device("orin"))
    plain = costs.of(plan_for(orient, FP16))
    ends = {info.name for info in (*orient.inputs, *orient.outputs)}
    for layer in orient.layers:
        pinned = costs.of(plan_for(orient, FP16, pinned=(layer.name,)))
        assert layers(pinned)[layer.name].seconds >= layers(plain)[layer.name].seconds
        if layer.fixed is None and ends.isdisjoint((*layer.inputs, *layer.outputs)):
            assert conversions(pinned) > conversions(plain)
            assert pinned.seconds > plain.seconds


Plans = Callable[[Model], PrecisionPlan]


@st.composite
def plans(draw: st.DrawFn) -> Plans:
    default, around = draw(st.sampled_from(Precision.formats())), draw(st.sampled_from((FP32, FP16, BF16)))
    pins = draw(st.dictionaries(st.integers(0, 40), st.sampled_from(Precision), max_size=12))

    def of(model: Model) -> PrecisionPlan:
        names = [(model.layers[i].name, precision) for i, precision in pins.items()]
        pinned = tuple(Pin(name, model.layer[name].nodes, precision, "test") for name, precision in names)
        return PrecisionPlan(model.sha256, default, pinned, around)

    return of


def test_sums_in_float32_cost_what_fp16_costs_and_need_no_conversion(orient: Model) -> None:
    pins = [Pin(x.name, x.nodes, Precision.FP16_SUMS32, "test") for x in orient.layers if x.is_matrix_product]
    assert pins
    for device in DEVICES.values():
        plain, summed = (plan_cost(orient, plan_for(orient, FP16).with_pins(held), device) for held in ((), pins))
        assert (summed.seconds, summed.reformats) == (plain.seconds, plain.reformats)
        assert Precision.FP16_SUMS32 in {cost.precision for cost in summed.layers}


@given(first=plans(), second=plans())
@pytest.mark.slow
def test_a_cost_does_not_depend_on_what_was_asked_before(orient: Model, first: Plans, second: Plans) -> None:
    device = find_device("h100")
    costs = CostModel(orient, device)
    costs.of(first(orient))
    plan = second(orient)
    assert costs.of(plan) == plan_cost(orient, plan, device)
    assert costs.seconds(plan) == costs.of(plan).seconds


@given(drawn=plans())
def test_every_layer_is_in_the_precision_of_the_rewrite_and_no_conversion_is_idle(orient: Model, drawn: Plans) -> None:
    plan = drawn(orient)
    cost = plan_cost(orient, plan, BYTES)
    assert {c.layer: c.precision for c in cost.layers} == {n: precision_of(x, plan) for n, x in orient.layer.items()}
    keys: list[tuple[Any, ...]] = [(r.tensor, r.wanted) for r in cost.reformats]
    assert len(keys) == len(set(keys))
    assert all(r.stored is not r.wanted and r.bytes > 0 for r in cost.reformats)
    stored = [{r.stored for r in cost.reformats if r.tensor == tensor} for tensor, _ in keys]
    assert all(len(found) == 1 for found in stored), "a tensor is stored once"


@pytest.mark.slow
def test_a_thousand_layers_take_milliseconds(tmp_path: Path) -> None:
    body = "".join(f" [n{i}] t{i + 1} = Exp(t{i})" for i in range(1000))
    model = model_of(tmp_path, f"(float[10] t0) => (float[10] t1000) {{ {body} }}")
    costs = CostModel(model, BYTES)
    plan = plan_for(model, FP16, pinned=[f"n{i}" for i in range(0, 1000, 2)])
    times = []
    for _ in range(5):
        started = time.perf_counter()
        costs.seconds(plan)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1, "a pass over 1,000 layers takes about 3 ms; looking through all pins for each took seconds"
