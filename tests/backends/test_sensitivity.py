"""The final outputs' sensitivity to a layer is what comparing the plan with that one pin finds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import ROUNDED, Array, calibrate, load, plan_for, proto

from precisionlab.backends.base import Detail, Evaluation, SensitivityRequest
from precisionlab.backends.device import CPU
from precisionlab.backends.onnxruntime import DEFAULT_BUDGET, OnnxRuntimeBackend
from precisionlab.backends.sensitivity import SensitivityStages
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import Sensitivities, Sensitivity, from_plain, merged, to_plain, worst_sqnr
from precisionlab.data import Dataset, Sample
from precisionlab.model import Model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.toggle import stage_ends

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
SUMS = ("ref2", "err2", "ref_out", "out2", "max_error")

# Graphs that a cut into stages could get wrong. Each takes x, float32 (2, 8).
BODIES = {
    "residual branches": '(float[2,8] x) => (float[2,8] y) { ["a"] a = Tanh(x) ["b"] b = Mul(a, w) '
    '["c"] c = Sigmoid(b) ["sum"] s = Add(a, c) ["d"] d = Mul(s, x) ["last"] y = Add(d, a) }',
    "several outputs": '(float[2,8] x) => (float[2,8] y, float[2,8] z, float[2,1] m) { ["a"] a = Tanh(x) '
    '["b"] b = Mul(a, w) ["y"] y = Exp(b) ["z"] z = Sigmoid(a) ["m"] m = ReduceMean <axes = [1]> (z) }',
    "an output in the middle": '(float[2,8] x) => (float[2,8] a, float[2,8] y) { ["a"] a = Mul(x, w) '
    '["b"] b = Exp(a) ["y"] y = Mul(b, a) }',
    "a constant output": '(float[2,8] x) => (float[2,8] y, float[8] w) { ["a"] a = Mul(x, w) ["y"] y = Tanh(a) }',
    "integers on the way": "(float[2,8] x) => (float[2,8] y, int64[2,1] k) { "
    '["a"] a = Mul(x, w) ["arg"] k = ArgMax <axis = 1> (a) ["cast"] f = Cast <to = 1> (k) ["shape"] s = Shape(a) '
    '["flat"] r = Reshape(a, s) ["sum"] t = Add(r, f) ["y"] y = Tanh(t) }',
    "a shape that data decide": '(float[2,8] x) => (float[N] y, float[2,8] z) { ["a"] a = Mul(x, w) ["z"] z = Tanh(a) '
    '["more"] g = Greater(z, level) ["flat"] f = Reshape(g, all) ["pick"] p = Compress(z, f) ["y"] y = Exp(p) }',
    "If with captured values": '(float[2,8] x) => (float[2,8] y) { ["a"] a = Mul(x, w) ["b"] b = Tanh(a) '
    '["sum"] s = ReduceSum <keepdims = 0> (b) ["test"] c = Greater(s, zero) ["if"] i = If (c) '
    "<then_branch = one () => (float[2,8] t) { t = Mul(b, w) }, else_branch = two () => (float[2,8] e) "
    '{ e = Sub(a, b) }> ["y"] y = Sigmoid(i) }',
    "a layer that reaches no float output": '(float[2,8] x) => (float[2,8] y, int64[2,1] k) { ["a"] a = Mul(x, w) '
    '["lost"] l = Exp(a) ["arg"] k = ArgMax <axis = 1> (l) ["y"] y = Tanh(a) }',
    "layers beside each other": '(float[2,8] x) => (float[2,8] y, float[2,8] z) { ["a"] a = Mul(x, w) '
    '["b"] b = Div(x, w) ["y"] y = Tanh(a) ["z"] z = Tanh(b) }',
    "a sequence": '(float[2,8] x) => (float[2,8] y) { ["a"] a = Mul(x, w) ["split"] q = SplitToSequence <axis = 1> (a) '
    '["b"] b = Tanh(x) ["cat"] c = ConcatFromSequence <axis = 1> (q) ["y"] y = Add(c, b) }',
}
CONV = (
    '(float[1,3,6,6] x) => (float[1,5] y) { ["conv"] a = Conv <pads = [1, 1, 1, 1]> (x, k) ["relu"] b = Relu(a) '
    '["again"] c = Conv <pads = [1, 1, 1, 1]> (b, l) ["residual"] d = Add(c, b) ["relu2"] e = Relu(d) '
    '["pool"] p = GlobalAveragePool(e) ["flat"] f = Flatten(p) ["fc"] y = Gemm(f, m, n) }'
)


@dataclass(frozen=True)
class Work:
    """A model ready to be toggled, with samples and, for int8, ranges."""

    backend: OnnxRuntimeBackend
    samples: Sequence[Sample]
    table: CalibrationTable
    arithmetic: Arithmetic = TENSORRT

    @property
    def model(self) -> Model:
        return self.backend.model

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.model.layers)

    def alone(self, low: PrecisionPlan) -> SensitivityRequest:
        return self._request(plan_for(self.model, FP32), low)

    def restored(self, low: PrecisionPlan) -> SensitivityRequest:
        return self._request(low, plan_for(self.model, FP32))

    def _request(self, plan: PrecisionPlan, other: PrecisionPlan) -> SensitivityRequest:
        return SensitivityRequest(
            plan, other, self.names, self.table, judging_of(self.model), arithmetic=self.arithmetic
        )

    def sensitivities(
        self, request: SensitivityRequest, budget: int | None = None, threads: int | None = None
    ) -> Sensitivities:
        backend = self.backend
        if budget is not None or threads is not None:
            backend = OnnxRuntimeBackend(self.model, self.samples[0], threads or 1, budget or DEFAULT_BUDGET)
        return merged(list(backend.sensitivities(request, self.samples)))

    def compared(self, plan: PrecisionPlan) -> Comparison:
        return self.backend.compare(
            *(plan, self.table, self.samples, lambda done: None),
            metric=None,
            introduced=False,
            arithmetic=self.arithmetic,
        )

    def finals(self, plan: PrecisionPlan) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """The final outputs of reference and variant, sample by sample, in float64."""
        found = []
        for result in self.backend.results(
            Evaluation(plan, self.table, Detail.NONFINITE, True, judging_of(self.model), self.arithmetic), self.samples
        ):
            assert result.values is not None
            reference, variant = ({n: a.astype(np.float64) for n, a in side.items()} for side in result.values)
            found.append((reference, variant))
        return found


def work_for(model: Model, samples: Sequence[Sample], arithmetic: Arithmetic = TENSORRT) -> Work:
    backend = OnnxRuntimeBackend(model, samples[0], threads=1)
    return Work(backend, samples, calibrate(backend, samples), arithmetic)


def toggled(request: SensitivityRequest, model: Model, name: str) -> PrecisionPlan:
    """The plan with one pin that is the toggling of one layer."""
    layer = model.layer[name]
    pin = Pin(name, layer.nodes, precision_of(layer, request.other), "test")
    pins = [kept for kept in request.plan.pins if kept.layer != name]
    around = request.other.around if request.plan.default is FP32 else request.plan.around
    return replace(request.plan, pins=(*pins, pin), around=around)


def small(kind: str, folder: Path) -> Work:
    rng = np.random.default_rng(len(kind))
    if kind == "fused Conv and residual":
        weights = {
            "k": rng.standard_normal((4, 3, 3, 3)),
            "l": rng.standard_normal((4, 4, 3, 3)),
            "m": rng.standard_normal((4, 5)),
            "n": rng.standard_normal(5),
        }
        body, shape = CONV, (1, 3, 6, 6)
    else:
        weights = {"w": rng.uniform(0.5, 2, 8)}
        body, shape = BODIES[kind], (2, 8)
    arrays = {name: value.astype(np.float32) for name, value in weights.items()}
    for name, value in {"level": np.float32(0.1), "zero": np.float32(0), "all": np.array([-1])}.items():
        if f" {name})" in body:
            arrays[name] = value
    model = load(proto(body, arrays), folder)
    samples = [Sample(str(i), {"x": rng.standard_normal(shape, np.float32)}) for i in range(3)]
    return work_for(model, samples)


def assert_alike(found: ErrorSums, expected: ErrorSums, where: str) -> None:
    """Counts alike, SQNR within 0.01 dB, but for the last bits of float32, which a fusion may change."""
    for name, value in asdict(expected).items():
        mine = getattr(found, name)
        if name in SUMS and math.isfinite(value):
            scale = math.sqrt(expected.ref2) or 1.0
            if name == "err2":
                assert abs(math.sqrt(mine) - math.sqrt(value)) <= 1e-3 * math.sqrt(value) + 3e-7 * scale, (where, name)
            elif name == "max_error":
                assert mine == pytest.approx(value, rel=2e-2, abs=1e-6 * max(1.0, expected.max_ref)), (where, name)
            else:
                assert mine == pytest.approx(value, rel=1e-5, abs=1e-6 * scale), (where, name)
        elif isinstance(value, float):
            assert mine == pytest.approx(value, nan_ok=True), (where, name)
        else:
            assert mine == value, (where, name)
    if expected.sqnr < 90:
        assert found.sqnr == pytest.approx(expected.sqnr, abs=0.01), where


def assert_as_compared(work: Work, request: SensitivityRequest) -> None:
    found = work.sensitivities(request)
    assert set(found) == set(request.layers)
    for name in request.layers:
        expected = work.compared(toggled(request, work.model, name))
        floats = {output for output, errors in expected.outputs.items() if errors.errors is not None}
        assert set(found[name]) <= floats
        for output in floats:
            errors = expected.outputs[output].errors
            assert errors is not None
            if output in found[name]:
                assert_alike(found[name][output].errors, errors, f"{name} → {output}")
            else:
                assert errors.err2 == 0, f"{name} → {output}: it does reach that output"


PLANS = [(FP16, FP32), (BF16, FP32), (INT8, FP32), (INT8, FP16)]


def low_plan(model: Model, case: tuple[Precision, Precision]) -> PrecisionPlan:
    return plan_for(model, case[0], around=case[1])


@pytest.fixture(scope="module")
def digits(bundled: tuple[Model, Dataset]) -> Work:
    model, dataset = bundled
    return work_for(model, list(dataset)[:4])


# The same as with that one pin


@pytest.mark.parametrize("case", [PLANS[0], pytest.param(PLANS[1], marks=pytest.mark.thorough), PLANS[3]], ids="-".join)
@pytest.mark.parametrize("way", ["alone", "restored"])
def test_each_layer_of_a_real_model_does_what_the_plan_with_that_pin_does(
    digits: Work, way: str, case: tuple[Precision, Precision]
) -> None:
    assert_as_compared(digits, getattr(digits, way)(low_plan(digits.model, case)))


@pytest.mark.parametrize("kind", [*BODIES, "fused Conv and residual"])
def test_each_layer_of_any_graph_does_what_the_plan_with_that_pin_does(tmp_path: Path, kind: str) -> None:
    work = small(kind, tmp_path)
    cases = PLANS if kind == "fused Conv and residual" else PLANS[:1]
    for case in cases:
        low = low_plan(work.model, case)
        assert_as_compared(work, work.alone(low))
        assert_as_compared(work, work.restored(low))


def test_layers_are_toggled_beside_the_pins_that_the_plan_has(digits: Work) -> None:
    norm = ("/norm/square", "/norm/variance", "/norm/add_eps", "/norm/std")
    others = tuple(name for name in digits.names if name not in norm)
    plan = plan_for(digits.model, FP16, pinned=norm)
    assert_as_compared(
        digits, SensitivityRequest(plan, plan_for(digits.model, FP32), others, None, judging_of(digits.model))
    )


def test_a_layer_that_reaches_no_float_output_and_one_that_is_fixed_change_nothing(tmp_path: Path) -> None:
    lost = small("a layer that reaches no float output", tmp_path)
    found = lost.sensitivities(lost.alone(plan_for(lost.model, FP16)))
    assert lost.model.layer["lost"].fixed is None
    assert worst_sqnr(found["lost"]) == math.inf
    assert worst_sqnr(found["a"]) < 90
    whole = small("integers on the way", tmp_path)
    found = whole.sensitivities(whole.alone(plan_for(whole.model, FP16)))
    fixed = [layer.name for layer in whole.model.layers if layer.fixed is not None]
    assert {"arg", "shape"} <= set(fixed)
    assert {worst_sqnr(found[name]) for name in fixed} == {math.inf}


def test_no_layer_and_no_sample_give_no_sensitivities(digits: Work) -> None:
    low = plan_for(digits.model, FP16)
    assert (
        list(
            digits.backend.sensitivities(
                SensitivityRequest(plan_for(digits.model, FP32), low, (), None, judging_of(digits.model)),
                digits.samples,
            )
        )
        == []
    )
    assert list(digits.backend.sensitivities(digits.alone(low), [])) == []


# Whatever the threads, the cut and the split


def exact(sensitivities: Sensitivities) -> str:
    return repr(to_plain(sensitivities))


@pytest.mark.parametrize("case", [PLANS[0], PLANS[2]], ids="-".join)
def test_one_thread_and_two_give_the_same_bits(digits: Work, case: tuple[Precision, Precision]) -> None:
    request = digits.alone(low_plan(digits.model, case))
    assert exact(digits.sensitivities(request, threads=1)) == exact(digits.sensitivities(request, threads=2))


def test_each_sample_is_measured_by_itself(digits: Work) -> None:
    request = digits.alone(plan_for(digits.model, FP16))
    together = merged(list(digits.backend.sensitivities(request, digits.samples)))
    alone = [merged(list(digits.backend.sensitivities(request, [sample]))) for sample in digits.samples]
    assert exact(merged(alone)) == exact(together)


def test_sensitivities_stage_by_stage_are_those_part_by_part_but_for_last_bits(digits: Work) -> None:
    request = digits.alone(low_plan(digits.model, PLANS[2]))
    expected = digits.sensitivities(request)
    stages = SensitivityStages(digits.model, request, len(digits.samples), DEFAULT_BUDGET).each()
    found = [toggled_of(sample).sensitivities for toggled_of in stages for sample in digits.samples]
    for name, outputs in merged(found).items():
        for output, sensitivity in outputs.items():
            assert_alike(expected[name][output].errors, sensitivity.errors, name)


def test_a_second_round_makes_no_session_and_has_the_bits_that_it_has_alone(
    digits: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on from its journal has the first round from there."""
    request = digits.alone(plan_for(digits.model, FP16))
    few = replace(request, layers=digits.names[3::4])
    fresh = OnnxRuntimeBackend(digits.backend.model, digits.samples[0], 1)
    alone = merged(list(fresh.sensitivities(few, digits.samples[1:])))
    first = merged(list(digits.backend.sensitivities(request, digits.samples[:1])))
    assert set(first) == set(digits.names)
    monkeypatch.setattr(CPU, "session", None, raising=False)
    second = merged(list(digits.backend.sensitivities(few, digits.samples[1:])))
    assert exact(second) == exact(alone)


@pytest.mark.parametrize("way", ["alone", "restored"])
def test_where_the_stages_are_cut_changes_no_more_than_last_bits(digits: Work, way: str) -> None:
    request = getattr(digits, way)(low_plan(digits.model, PLANS[2]))
    cuts = {
        tuple(stage_ends(digits.model, frozenset(request.layers), samples, budget)): (samples, budget)
        for budget in (1, 20_000, 200_000, DEFAULT_BUDGET)
        for samples in (1, 4, 400)
    }
    assert len(cuts) >= 3, "the same cut would prove nothing"
    assert len(digits.model.layers) in map(len, cuts), "every layer its own stage"
    expected = digits.sensitivities(request)
    for samples, budget in cuts.values():
        stages = SensitivityStages(digits.model, request, samples, budget).each()
        found = merged([toggled_of(s).sensitivities for toggled_of in stages for s in digits.samples])
        for name, outputs in expected.items():
            for output, sensitivity in outputs.items():
                assert_alike(found[name][output].errors, sensitivity.errors, f"{samples}, {budget}: {name}")


@pytest.mark.parametrize("kind", BODIES)
def test_every_layer_its_own_stage_gives_the_same_in_any_graph(tmp_path: Path, kind: str) -> None:
    work = small(kind, tmp_path)
    for request in (work.alone(plan_for(work.model, FP16)), work.restored(plan_for(work.model, FP16))):
        whole = work.sensitivities(request)
        found = work.sensitivities(request, budget=1)
        assert set(found) == set(whole)
        for name, outputs in whole.items():
            assert set(found[name]) == set(outputs)
            for output, sensitivity in outputs.items():
                assert_alike(found[name][output].errors, sensitivity.errors, f"{name} → {output}")


def test_each_toggled_layer_is_in_one_stage(digits: Work) -> None:
    layers = digits.model.layers
    for chosen in (digits.names, digits.names[3:4], digits.names[::3], digits.names[-1:]):
        for budget in (1, 20_000, DEFAULT_BUDGET):
            ends = stage_ends(digits.model, frozenset(chosen), 8, budget)
            assert ends == sorted(set(ends))
            assert max(i for i, layer in enumerate(layers) if layer.name in chosen) < ends[-1] <= len(layers)
    request = replace(digits.alone(plan_for(digits.model, FP16)), layers=digits.names[::3])
    assert tuple(digits.sensitivities(request)) == digits.names[::3]


# The gain


def test_the_gain_is_what_float64_finds(digits: Work) -> None:
    low = low_plan(digits.model, PLANS[2])
    request = digits.alone(low)
    found = digits.sensitivities(request)
    whole = digits.finals(low)
    for name in request.layers:
        alone = digits.finals(toggled(request, digits.model, name))
        for output, sensitivity in found[name].items():
            gain = size = 0.0
            for (reference, variant), (_, mine) in zip(whole, alone, strict=True):
                error, own = variant[output] - reference[output], mine[output] - reference[output]
                gain += float((error**2).sum() - ((error - own) ** 2).sum())
                size += float(np.abs(error * own).sum() + (own**2).sum())
            assert sensitivity.gain == pytest.approx(gain, abs=1e-3 * size + 1e-9), name


def test_the_gain_of_a_layer_that_is_all_of_the_error_is_all_of_it(tmp_path: Path) -> None:
    """All others are exact in fp16: |D|² − |D − d|² with D = d."""
    body = '(float[2,8] x) => (float[2,8] y) { ["n"] a = Neg(x) ["bad"] b = Mul(a, w) ["twice"] y = Add(b, b) }'
    model = load(proto(body, {"w": np.float32(np.arange(1, 9) / 3)}), tmp_path)
    samples = [Sample(str(i), {"x": np.full((2, 8), i + 1, np.float32)}) for i in range(3)]
    work = work_for(model, samples)
    low = plan_for(model, FP16)
    found = work.sensitivities(work.alone(low))["bad"]["y"]
    whole = work.compared(low).outputs["y"].errors
    assert whole is not None
    assert whole.err2 > 0
    # The sum behind rounds once more, to a number twice as large: nothing is lost there.
    assert found.gain == pytest.approx(whole.err2, rel=1e-6)
    assert work.sensitivities(work.alone(low))["n"]["y"].gain == 0


# NaN and Inf


NAN = (
    '(float[1,2] x) => (float[1,2] y, float[1,2] z) { ["ok"] a = Neg(x) ["small"] b = Mul(a, tiny) '
    '["divide"] c = Div(b, b) ["y"] y = Neg(c) ["z"] z = Exp(x) }'
)


def test_a_layer_that_alone_gives_nan_has_nan_and_it_is_counted(tmp_path: Path) -> None:
    """0 / 0 where fp16 rounds the constant, or both operands, to zero: what `small` and `divide` do, each alone."""
    model = load(proto(NAN, {"tiny": np.float32([1e-9])}), tmp_path)
    work = work_for(model, [Sample(str(i), {"x": np.float32([[i, 2]]) + 1}) for i in range(3)], ROUNDED)
    request = work.alone(plan_for(model, FP16))
    found = work.sensitivities(request)
    for name in ("small", "divide"):
        sensitivity = found[name]["y"]
        assert (sensitivity.errors.nan, sensitivity.errors.new_nan, sensitivity.errors.new_nonfinite) == (6, 6, 6)
        assert math.isnan(sensitivity.errors.sqnr)
        assert math.isnan(sensitivity.gain)
        assert math.isnan(worst_sqnr(found[name]))
    assert found["ok"]["y"].errors.nan == 0
    assert found["z"]["y"].errors.nan == 0
    assert found["z"]["z"].errors.sqnr < 90
    assert_as_compared(work, request)
    assert_as_compared(work, work.restored(plan_for(model, FP16)))


def test_with_constants_clamped_a_layer_alone_is_what_comparing_it_alone_finds(tmp_path: Path) -> None:
    """What was NaN above is a number: the constant is 6e-8 in half, and not 0."""
    model = load(proto(NAN, {"tiny": np.float32([1e-9])}), tmp_path)
    work = work_for(model, [Sample(str(i), {"x": np.float32([[i, 2]]) + 1}) for i in range(3)])
    request = work.alone(plan_for(model, FP16))
    assert work.sensitivities(request)["small"]["y"].errors.nan == 0
    assert_as_compared(work, request)
    assert_as_compared(work, work.restored(plan_for(model, FP16)))


def test_one_broken_sample_makes_the_sum_nan_and_not_the_other_samples(tmp_path: Path) -> None:
    model = load(proto(NAN, {"tiny": np.float32([1e-4])}), tmp_path)
    work = work_for(model, [Sample("good", {"x": np.float32([[1, 2]])}), Sample("bad", {"x": np.float32([[1e-5, 2]])})])
    parts = list(work.backend.sensitivities(work.alone(plan_for(model, FP16)), work.samples))
    by_sample = [merged(parts[i::2]) for i in range(2)]
    assert [math.isnan(part["small"]["y"].errors.sqnr) for part in by_sample] == [False, True]
    assert math.isnan(merged(parts)["small"]["y"].errors.sqnr)
    assert merged(parts)["small"]["y"].errors.nan == 1


def test_an_overflow_at_the_output_is_counted(tmp_path: Path) -> None:
    body = '(float[1,2] x) => (float[1,2] y) { ["a"] a = Neg(x) ["big"] y = Mul(a, thousand) }'
    model = load(proto(body, {"thousand": np.float32([1000])}), tmp_path)
    work = work_for(model, [Sample("s", {"x": np.float32([[1, 100]])})])
    request = work.alone(plan_for(model, FP16))
    sensitivity = work.sensitivities(request)["big"]["y"]
    assert (sensitivity.errors.inf, sensitivity.errors.new_nonfinite) == (1, 1)
    assert sensitivity.errors.sqnr == -math.inf
    assert_as_compared(work, request)


def test_a_value_that_rounding_alone_puts_at_a_level_is_a_near_tie(tmp_path: Path) -> None:
    """A value just above the level is rounded down to it: one fewer is picked."""
    body = (
        '(float[1,2] x) => (float[N] y) { ["a"] a = Mul(x, one) ["more"] g = Greater(a, level) '
        '["flat"] f = Reshape(g, all) ["pick"] y = Compress(a, f) }'
    )
    weights = {"one": np.float32([1]), "level": np.float32(1), "all": np.array([-1])}
    model = load(proto(body, weights), tmp_path)
    work = work_for(model, [Sample("s", {"x": np.float32([[1.0001, 3]])})])
    request = work.alone(plan_for(model, FP16))
    sensitivity = work.sensitivities(request)["a"]["y"]
    assert sensitivity.errors.ref_mismatch == 0
    assert (sensitivity.errors.ref2, sensitivity.errors.err2) == (9, 0)  # the other value, which is exact
    assert_as_compared(work, request)


# Merging, and the journal

numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-3, 3).map(float)
amounts = numbers.filter(lambda value: not value < 0)
counts = st.integers(0, 1000)
sums = st.builds(
    ErrorSums, counts, amounts, amounts, numbers, amounts, amounts, amounts, counts, counts, counts, counts, counts,
    counts, counts, counts, counts,
)  # fmt: skip
parts_ = st.lists(
    st.dictionaries(
        st.sampled_from("abc"),
        st.dictionaries(st.sampled_from("yz"), st.builds(Sensitivity, sums, numbers)),
        max_size=3,
    ),
    max_size=5,
)


@given(parts_)
def test_the_journal_gives_back_what_was_written(parts: list[Sensitivities]) -> None:
    for part in parts:
        assert exact(from_plain(json.loads(json.dumps(to_plain(part))))) == exact(part)


@given(parts_, st.integers(0, 5))
def test_merging_adds_each_sensitivity_of_each_layer_once(parts: list[Sensitivities], cut: int) -> None:
    total = merged(parts)
    assert set(total) == {name for part in parts for name in part}
    for name, outputs in total.items():
        assert set(outputs) == {output for part in parts for output in part.get(name, {})}
        for output, sensitivity in outputs.items():
            mine = [part[name][output] for part in parts if output in part.get(name, {})]
            assert sensitivity.errors.elements == sum(m.errors.elements for m in mine)
            assert sensitivity.errors.nan == sum(m.errors.nan for m in mine)
            assert repr(sensitivity.along) == repr(_added([m.along for m in mine]))
    split = merged([merged(parts[:cut]), merged(parts[cut:])])
    assert {(n, o) for n in split for o in split[n]} == {(n, o) for n in total for o in total[n]}


def _added(values: list[float]) -> float:
    total = values[0]
    for value in values[1:]:
        total += value
    return total


def test_merging_changes_none_of_the_parts(digits: Work) -> None:
    parts = list(digits.backend.sensitivities(digits.alone(plan_for(digits.model, FP16)), digits.samples))
    before = [exact(part) for part in parts]
    merged(parts)
    merged(parts)
    assert [exact(part) for part in parts] == before


def test_any_split_of_the_samples_merges_to_the_same(digits: Work) -> None:
    request = digits.alone(low_plan(digits.model, PLANS[2]))
    parts = list(digits.backend.sensitivities(request, digits.samples))
    whole = merged(parts)
    rng = np.random.default_rng(0)
    for _ in range(10):
        order = rng.permutation(len(parts))
        cut = int(rng.integers(0, len(parts) + 1))
        split = merged([merged([parts[i] for i in order[:cut]]), merged([parts[i] for i in order[cut:]])])
        for name, outputs in whole.items():
            for output, sensitivity in outputs.items():
                mine = asdict(split[name][output].errors)
                assert mine == pytest.approx(asdict(sensitivity.errors), rel=1e-12)
                assert split[name][output].along == pytest.approx(sensitivity.along, rel=1e-9, abs=1e-12)
