"""Which layers an engine runs in INT8 against the plan, and how they are held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import load, proto

from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor
from precisionlab.backends.tensorrt.missed import not_quantized
from precisionlab.backends.tensorrt.pins import pins_of
from precisionlab.backends.tensorrt.strays import int8_beyond
from precisionlab.model import Model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.inside import missed_text

WEIGHTS = {"w": np.ones((2, 2, 1, 1), np.float32)}


@pytest.fixture
def pooled(tmp_path: Path) -> Model:
    """Two convolutions with a pooling between them."""
    body = "[one] a = Conv(x, w) [pool] b = MaxPool <kernel_shape = [2, 2]> (a) [two] y = Conv(b, w)"
    return load(proto(f"(float[1,2,4,4] x) => (float[1,2,3,3] y) {{ {body} }}", WEIGHTS), tmp_path)


def plan_of(model: Model, *held: str) -> PrecisionPlan:
    """All in int8, between layers in fp16, but for these in fp32."""
    pins = tuple(Pin(name, model.layer[name].nodes, Precision.FP32, "") for name in held)
    return PrecisionPlan(model.sha256, Precision.INT8, pins, Precision.FP16)


def kernel(nodes: str, takes: str, gives: str) -> EngineLayer:
    """A kernel that runs these nodes; `takes` and `gives` are as `b:int8`."""

    def tensors(text: str) -> tuple[EngineTensor, ...]:
        return tuple(EngineTensor(name, dtype, None) for name, dtype in (part.split(":") for part in text.split()))

    return EngineLayer(nodes, "Cask", tuple(nodes.split()), tensors(takes), tensors(gives))


@pytest.mark.parametrize(
    ("takes", "gives", "strays"),
    [
        ("a:int8", "b:int8", ("pool",)),
        ("a:fp16", "b:int8", ("pool",)),  # its result is stored so
        ("a:int8", "reformatted:int8", ("pool",)),
        ("a:int8", "b:fp16", ()),  # it takes what the convolution has given
        ("a:fp16", "b:fp16", ()),
    ],
)
def test_a_float_layer_strays_where_it_is_stored_or_only_fed_and_read_in_int8(
    pooled: Model, takes: str, gives: str, strays: tuple[str, ...]
) -> None:
    layers = [kernel("one", "x:int8", "a:int8"), kernel("pool", takes, gives), kernel("two", "b:int8", "y:fp32")]
    assert int8_beyond(pooled, plan_of(pooled), layers) == strays


def test_a_convolution_that_is_pinned_to_float_strays_too(pooled: Model) -> None:
    layers = [kernel("one", "x:int8", "a:int8"), kernel("pool", "a:int8", "b:fp16")]
    assert int8_beyond(pooled, plan_of(pooled, "one"), layers) == ("one",)


def test_without_int8_in_the_plan_or_without_layers_nothing_strays(pooled: Model) -> None:
    half = PrecisionPlan(pooled.sha256, Precision.FP16)
    assert int8_beyond(pooled, half, [kernel("pool", "a:int8", "b:int8")]) == ()
    assert int8_beyond(pooled, plan_of(pooled), ()) == ()


def test_what_the_model_itself_quantises_is_no_matter_of_the_plan(tmp_path: Path) -> None:
    body = """(float[1,2,4,4] x) => (float[1,2,3,3] y) {
        [pool] b = MaxPool <kernel_shape = [2, 2]> (x)
        [q] q = QuantizeLinear(b, s, z) [dq] d = DequantizeLinear(q, s, z)
        [conv] y = Conv(d, w)
    }"""
    model = load(proto(body, {**WEIGHTS, "s": np.float32(0.1), "z": np.int8(0)}), tmp_path)
    fused = EngineLayer("pool + q", "Cask", ("pool", "q"), (EngineTensor("x", "fp16", None),),
                        (EngineTensor("b", "int8", None),))  # fmt: skip
    assert int8_beyond(model, plan_of(model), [fused]) == ()


def test_float_layers_are_held_beside_int8_only_where_that_is_asked(pooled: Model) -> None:
    held = {pin.layer: pin.precision for pin in pins_of(pooled, plan_of(pooled, "two"))}
    assert held == {"two": Precision.FP32}
    every = {pin.layer: pin.precision for pin in pins_of(pooled, plan_of(pooled, "two"), hold_float=True)}
    assert every == {"pool": Precision.FP16, "two": Precision.FP32}
    half = PrecisionPlan(pooled.sha256, Precision.FP16)
    assert pins_of(pooled, half, hold_float=True) == (), "there is no int8 to be held from"


@pytest.mark.parametrize(
    ("takes", "missed"),
    [("x:int8", ()), ("x:fp16", ("one",)), ("x:fp8", ("one",)), ("", ())],
)
def test_a_quantized_layer_is_missed_where_its_kernel_takes_other_types(
    pooled: Model, takes: str, missed: tuple[str, ...]
) -> None:
    layers = (kernel("one", takes, "a:fp16"), kernel("two", "b:int8", "y:fp16"))
    assert not_quantized(pooled, plan_of(pooled), layers) == missed
    assert not_quantized(pooled, plan_of(pooled, "one"), layers) == ()
    facts = {"missed": list(missed)}
    assert missed_text(facts) == ("1 layer that the plan quantises was computed in floats: one" if missed else "")
    assert missed_text({}) == ""
