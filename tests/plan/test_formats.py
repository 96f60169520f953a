"""An Inf is forgiven only where the format of the layer that gives it could not hold the reference's value."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from models import ROUNDED, Array, compared, load, plan_for, proto, sample

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import default_tolerance, meets, parse_tolerance
from precisionlab.model import Model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.causes import causes

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8

RECIPROCAL = (
    '(float[2] a, float[2] b) => (float[2] y) { ["sub"] d = Sub(a, b) ["rec"] r = Reciprocal(d) '
    '["min"] y = Min(r, top) }'
)
"""Where the difference is rounded to 0, its reciprocal is Inf, and Min makes the Inf a value near the reference's."""


TOP = {"top": np.float32([6e4])}


def reciprocal(folder: Path, top: float = 1e5) -> Model:
    return load(proto(RECIPROCAL, {"top": np.float32([top])}), folder)


def mixed(model: Model, default: Precision, **pins: Precision) -> PrecisionPlan:
    """A plan that pins layers to precisions of their own."""
    found = tuple(Pin(name, model.layer[name].nodes, p, "test") for name, p in pins.items())
    return PrecisionPlan(model.sha256, default, found)


def measured(model: Model, plan: PrecisionPlan, arithmetic: Arithmetic = TENSORRT, /, **inputs: Array) -> Comparison:
    """The plan on one sample; the judgement that the search goes by must say the same of what is broken."""
    samples = [sample(**inputs)]
    backend = OnnxRuntimeBackend(model, samples[0], threads=1)
    low = backend.compare(plan, None, samples, lambda done: None, metric=None, introduced=True, arithmetic=arithmetic)
    judged = backend.judge(plan, None, samples, lambda done: None, metric=None, known=low, arithmetic=arithmetic)
    assert judged.broken == low.broken
    return low


def test_an_inf_in_bf16_that_bf16_could_hold_is_broken(tmp_path: Path) -> None:
    """bfloat16 has 8 bits: 1 and 1 − 1.0014e-5 are the same there, and 1/0 is Inf where 99 864 is meant."""
    a, b = np.float32([1, 3]), np.float32([1 - 1.0014e-5, 2])
    assert np.array_equal(a.astype(ml_dtypes.bfloat16)[:1], b.astype(ml_dtypes.bfloat16)[:1])
    reference = 1 / (a.astype(np.float64) - b)
    model = reciprocal(tmp_path)
    found = measured(model, plan_for(model, BF16), a=a, b=b)
    assert found.inherited["r"].max_ref == pytest.approx(float(reference[0]), rel=1e-6)
    assert found.inherited["r"].max_ref == pytest.approx(99864, rel=1e-3)
    assert found.worst("sqnr") > 40  # what stands behind hides it
    assert found.broken == ("r",)
    assert not meets(found, default_tolerance(BF16))
    assert found.inherited["r"].overflow == 0


def test_the_same_inf_in_fp16_is_what_its_format_makes_of_the_value(tmp_path: Path) -> None:
    """99 864 is Inf in any half: what that does is seen at the outputs, and who minds it can ask for none."""
    model = reciprocal(tmp_path)
    a, b = np.float32([1, 3]), np.float32([1 - 1.0014e-5, 2])
    found = measured(model, plan_for(model, FP16), ROUNDED, a=a, b=b)
    assert (found.inherited["r"].inf, found.inherited["r"].overflow, found.broken) == (1, 1, ())
    # Min's own constant, 1e5, is Inf in half too; but where it is clamped the output ends with half.
    assert found.worst("sqnr") == -math.inf
    found = measured(model, plan_for(model, FP16), a=a, b=b)
    assert (found.inherited["r"].inf, found.inherited["r"].overflow, found.broken) == (1, 1, ())
    assert found.inherited["y"].max_error == pytest.approx(99864 - 65504, rel=1e-2)
    model = reciprocal(tmp_path, 6e4)
    found = measured(model, plan_for(model, FP16), a=np.float32([1, 3]), b=np.float32([1 - 1.0014e-5, 2]))
    assert meets(found, default_tolerance(FP16))
    assert not meets(found, parse_tolerance(["nonfinite<=0"]))


def test_an_inf_well_below_halfs_end_is_broken(tmp_path: Path) -> None:
    """24 390 fits, and no error that a sound variant has lifts it over the end; 1 and 1 − 4.1e-5 are one in half."""
    model = reciprocal(tmp_path, 3e4)
    found = measured(model, plan_for(model, FP16), a=np.float32([1, 3]), b=np.float32([1 - 4.1e-5, 2]))
    assert 24000 < found.inherited["r"].max_ref < 25000
    assert (found.inherited["r"].unforced_inf, found.broken) == (1, ("r",))


def test_an_inf_of_a_value_near_the_end_is_rounding(tmp_path: Path) -> None:
    """A subnormal's error is large: what it takes is off by 0.2 %, and that lifts the reciprocal over the end."""
    body = '(float[1] x) => (float[1] y) { ["rec"] r = Reciprocal(x) ["min"] y = Min(r, top) }'
    model = load(proto(body, TOP), tmp_path)
    x = np.float32([256.4 * 2.0**-24])  # rounded to 256 · 2^-24, whose reciprocal, 65 536, is beyond half
    assert 65504 > 1 / x[0] > 65000
    assert 1 / np.float64(x.astype(np.float16)[0]) > 65520
    found = measured(model, plan_for(model, FP16), x=x)
    assert (found.inherited["r"].inf, found.inherited["r"].overflow, found.broken) == (1, 0, ())
    assert meets(found, default_tolerance(FP16))


def test_an_overflow_elsewhere_in_the_tensor_excuses_no_other_inf(tmp_path: Path) -> None:
    """Two Infs in one tensor: 1/1e-5 is beyond half, 1/(4.5e-5) is not and comes from what was rounded to 0."""
    model = reciprocal(tmp_path, 6e4)
    a, b = np.float32([1e-5, 1]), np.float32([0, 1 - 4.5e-5])
    plan = plan_for(model, FP16)
    backend = OnnxRuntimeBackend(model, sample(a=a, b=b), threads=1)
    found = backend.compare(plan, None, [sample(a=a, b=b)], lambda done: None, metric=None, introduced=True)
    errors = found.inherited["r"]
    assert (errors.inf, errors.overflow, errors.unforced_inf) == (2, 1, 1)
    assert found.broken == ("r",)


@pytest.mark.parametrize(("pinned", "broken"), [(FP32, ("r",)), (BF16, ("r",)), (FP16, ())])
def test_a_pinned_layer_is_judged_by_its_pin(tmp_path: Path, pinned: Precision, broken: tuple[str, ...]) -> None:
    """A float32 division by what an fp16 layer has rounded to 0 is no overflow: float32 holds 99 864."""
    model = reciprocal(tmp_path, 6e4)
    plan = mixed(model, FP16, rec=pinned)
    found = measured(model, plan, a=np.float32([1, 3]), b=np.float32([1 - 1.0014e-5, 2]))
    assert found.inherited["r"].inf == 1
    assert found.broken == broken
    assert found.inherited["r"].overflow == (pinned is FP16)


def test_an_inf_in_a_part_that_the_model_has_in_double_is_judged_as_any_other(tmp_path: Path) -> None:
    """Engines have no double: a layer of doubles is given a precision like others, and bfloat16 holds 99 864."""
    body = (
        '(float[2] a, float[2] b) => (float[2] y) { ["sub"] d = Sub(a, b) ["up"] u = Cast<to: int = 11>(d) '
        '["rec"] r = Reciprocal(u) ["down"] f = Cast<to: int = 1>(r) ["min"] y = Min(f, top) }'
    )
    model = load(proto(body, TOP), tmp_path)
    found = measured(model, plan_for(model, BF16), a=np.float32([1, 3]), b=np.float32([1 - 1.0014e-5, 2]))
    assert found.worst("sqnr") > 40
    assert found.broken == ("r",)


def test_an_inf_that_a_half_layer_makes_of_what_it_takes_is_forced(tmp_path: Path) -> None:
    """The float32 layer before it gives 1e5, which any half layer has to take as Inf; the outputs say what it does."""
    body = (
        '(float[1] x) => (float[1] y) { ["big"] h = Mul(x, thousand) ["small"] s = Mul(h, little) '
        '["end"] y = Min(s, one) }'
    )
    weights = {"thousand": np.float32([1000]), "little": np.float32([2e-4]), "one": np.float32([1])}
    model = load(proto(body, weights), tmp_path)
    found = measured(model, mixed(model, FP16, big=FP32), x=np.float32([100]))
    assert (found.inherited["h"].inf, found.inherited["s"].inf) == (0, 1)
    assert found.inherited["s"].max_ref == pytest.approx(20)
    assert found.broken == ()
    assert meets(found, default_tolerance(FP16))  # min(20, 1) and min(Inf, 1) are both 1
    assert not meets(found, parse_tolerance(["nonfinite<=0"]))


@pytest.mark.parametrize(("around", "broken", "overflows"), [(FP16, (), 1), (BF16, ("r",), 0)])
def test_what_int8_layers_give_is_judged_by_what_is_around(
    tmp_path: Path, around: Precision, broken: tuple[str, ...], overflows: int
) -> None:
    """x·w is exact in int8, and its distance from c underflows in half and in bfloat16 alike, where 87 381 is meant."""
    body = (
        '(float[1,2] x, float[1,2] c) => (float[1,2] y) { ["mm"] h = MatMul(x, w) ["sub"] d = Sub(h, c) '
        '["rec"] r = Reciprocal(d) ["min"] y = Min(r, top) }'
    )
    model = load(proto(body, {"w": np.eye(2, dtype=np.float32), "top": np.float32([6e4])}), tmp_path)
    given = {"x": np.float32([[1, 1]]), "c": np.float32([[1 - 12 * 2**-20, 0.5]])}
    found = compared(model, [sample(**given)], INT8, around=around)
    assert found.inherited["r"].max_ref == np.float32(2**20 / 12)
    assert (found.inherited["r"].inf, found.inherited["h"].err2) == (1, 0)
    assert (found.broken, found.inherited["r"].overflow) == (broken, overflows)


def test_causes_name_the_format_of_the_layer(tmp_path: Path) -> None:
    """An overflow is told of the format that the layer's outputs are held in, int8's float surroundings included."""
    body = '(float[1,2] x) => (float[1,2] y) { ["mm"] h = MatMul(x, w) ["root"] y = Sqrt(h) }'
    weights = {"w": np.eye(2, dtype=np.float32) * 1e5}
    model = load(proto(body, weights), tmp_path)
    samples = [sample(x=np.float32([[1, 2]]))]
    told = {}
    for around in (FP32, FP16, BF16):
        found = compared(model, samples, INT8, around=around)
        told[around] = causes(model, plan_for(model, INT8, around=around), found.inherited, found.introduced)
    assert told[FP16]["mm"].text == "the first Inf appears here: overflow: values up to 2e+05, fp16 ends at 65504"
    assert told[FP32] == {}
    assert "mm" not in told[BF16]


FOURTH = (
    '(float[2] x) => (float[2] y) { ["add"] a = Add(x, k) ["sub"] h = Sub(a, k) ["square"] s = Mul(h, h) '
    '["fourth"] p = Mul(s, s) ["tanh"] y = Tanh(p) }'
)
"""Half has steps of 16 at 30 000: 13.3 becomes 16, and its fourth power 65 536, where 31 290 is meant."""


@pytest.mark.parametrize(("other", "broken"), [(100.0, ()), (0.0, ("p",))])
def test_an_inherited_error_that_makes_a_product_too_large_is_rounding_beside_others_that_are(
    tmp_path: Path, other: float, broken: tuple[str, ...]
) -> None:
    model = load(proto(FOURTH, {"k": np.float32([3e4])}), tmp_path)
    found = measured(model, plan_for(model, FP16), x=np.float32([13.3, other]))
    assert found.inherited["p"].unforced_inf == 1
    assert found.worst("sqnr") > 40  # what stands behind hides it
    assert found.broken == broken
