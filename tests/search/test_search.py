"""The search finds what breaks, pins no more than it must, and never claims what it has not measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import ROUNDED, Array, compared, load, plan_for, proto, sample

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import ErrorSums
from precisionlab.model import Layer, Model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Constants
from precisionlab.precision import Precision
from precisionlab.search.causes import CauseKind, causes
from precisionlab.search.nonfinite_origins import nonfinite_starts
from precisionlab.search.pins import Found, Verdict, find_pins, most_evaluations
from precisionlab.search.rank import Ranking, rank

# The search for pins, on evaluations made up


def names(count: int) -> tuple[str, ...]:
    return tuple(f"layer{i}" for i in range(count))


class Evaluations:
    """A made-up model: which sets of pins pass, and what was asked."""

    def __init__(
        self,
        passes: Callable[[frozenset[str]], bool],
        closeness: Callable[[frozenset[str]], float] = len,
        starts: Callable[[frozenset[str]], tuple[str, ...]] = lambda pins: (),
    ) -> None:
        self._passes, self._closeness, self._starts = passes, closeness, starts
        self.asked: list[frozenset[str]] = []

    def __call__(self, pins: frozenset[str]) -> Verdict:
        self.asked.append(pins)
        return Verdict(self._passes(pins), (0, self._closeness(pins)), self._starts(pins))

    def search(self, count: int, required: tuple[str, ...] = (), max_pins: int | None = None) -> Found:
        order = (*required, *(name for name in names(count) if name not in required))
        found = find_pins(Ranking(order, required), self, max_pins)
        assert found.pins in self.asked
        assert found.passes == self._passes(found.pins)
        assert len(self.asked) == len(set(self.asked)), "a set was evaluated twice"
        assert self.asked[0] == frozenset()
        return found


def needs(*bad: str) -> Callable[[frozenset[str]], bool]:
    """Passes as soon as all of these are pinned."""
    return lambda pins: pins >= set(bad)


def bits(mask: int, count: int) -> frozenset[str]:
    return frozenset(f"layer{i}" for i in range(count) if mask >> i & 1)


def test_two_bad_layers_of_a_hundred_are_found_and_no_other_is_pinned() -> None:
    assert Evaluations(needs("layer2", "layer97")).search(100) == Found(frozenset({"layer2", "layer97"}), True)


@given(st.integers(1, 120), st.data())
def test_planted_faults_are_found_exactly_wherever_they_stand(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=6))
    planted = frozenset(f"layer{i}" for i in bad)
    required = tuple(sorted(data.draw(st.sets(st.sampled_from(names(count)), max_size=4))))
    evaluations = Evaluations(needs(*planted))
    assert evaluations.search(count, required) == Found(planted, True)


@given(st.integers(2, 60), st.data())
def test_of_pairs_that_only_hurt_together_one_each_is_pinned(count: int, data: st.DataObject) -> None:
    place = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(place, place).filter(lambda p: p[0] != p[1]), min_size=1, max_size=4))

    def passes(pins: frozenset[str]) -> bool:
        return all(f"layer{a}" in pins or f"layer{b}" in pins for a, b in pairs)

    found = Evaluations(passes).search(count)
    assert found.passes
    assert len(found.pins) <= len(pairs)
    assert not any(passes(found.pins - {pin}) for pin in found.pins)


@given(st.integers(1, 6), st.integers(0, 2**64 - 1), st.integers(0, 7) | st.none(), st.integers(0, 63))
@example(1, 0, 0, 1)
def test_whatever_passes_and_whatever_does_not_the_result_holds_what_it_says(
    count: int, passing: int, max_pins: int | None, required: int
) -> None:
    """Passing sets at random: nothing monotone to rely on."""
    chosen = tuple(sorted(bits(required, count)))
    evaluations = Evaluations(
        lambda pins: bool(passing >> sum(1 << int(name.removeprefix("layer")) for name in pins) & 1)
    )
    found = evaluations.search(count, chosen, max_pins)
    if max_pins is not None:
        assert all(len(pins) <= max_pins for pins in evaluations.asked)
    if found.passes:
        rest = [found.pins - {pin} for pin in found.pins]
        assert all(pins in evaluations.asked for pins in rest), "a pin was kept without a try to release it"
        assert not any(Evaluations(evaluations._passes)(pins).passes for pins in rest)
    else:
        assert not any(evaluations._passes(pins) for pins in evaluations.asked)


@given(st.integers(1, 300), st.integers(0, 300))
def test_the_evaluations_until_a_set_passes_are_as_few_as_announced(count: int, deepest: int) -> None:
    bad = f"layer{min(deepest, count - 1)}"
    evaluations = Evaluations(needs(bad))
    evaluations.search(count)
    until = next(i for i, pins in enumerate(evaluations.asked, 1) if bad in pins)
    low = [pins for pins in evaluations.asked if pins == frozenset(names(len(pins)))]
    assert until <= most_evaluations(count)
    assert len(low) <= most_evaluations(count)


@given(st.integers(1, 60), st.data())
def test_the_evaluations_of_a_search_are_bounded(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=5))
    evaluations = Evaluations(needs(*(f"layer{i}" for i in bad)))
    evaluations.search(count)
    # Releasing halves the groups: each of the k layers to keep stands in the way of one group a round.
    rounds = 1 + math.ceil(math.log2(count + 1))
    assert len(evaluations.asked) <= most_evaluations(count) + (2 * len(bad) + 2) * rounds


def test_right_as_it_is_takes_one_evaluation() -> None:
    evaluations = Evaluations(lambda pins: True)
    assert evaluations.search(50, required=("layer3",)) == Found(frozenset(), True)
    assert len(evaluations.asked) == 1


def test_required_pins_that_turn_out_needless_are_released() -> None:
    found = Evaluations(needs("layer1")).search(20, required=("layer5", "layer1", "layer9"))
    assert found == Found(frozenset({"layer1"}), True)


def test_a_layer_where_nan_starts_anew_is_pinned_before_the_ranking_is_tried() -> None:
    """Pinning the first overflow only moves it behind: the next start is deep in the ranking."""
    chain = ("layer40", "layer70", "layer90")

    def starts(pins: frozenset[str]) -> tuple[str, ...]:
        return next(((name,) for name in chain if name not in pins), ())

    evaluations = Evaluations(needs(*chain), starts=starts)
    assert evaluations.search(100, required=("layer40",)) == Found(frozenset(chain), True)
    assert len(evaluations.asked) <= 4 + 2 * len(chain) + 2


def test_where_nothing_passes_the_nearest_plan_tried_is_returned() -> None:
    """A start that is itself already pinned must not keep the search from ending."""
    evaluations = Evaluations(
        lambda pins: False, closeness=lambda pins: -abs(len(pins) - 4), starts=lambda p: ("layer0",)
    )
    found = evaluations.search(10)
    assert not found.passes
    assert len(found.pins) == min((len(p) for p in evaluations.asked), key=lambda n: abs(n - 4))


def test_of_two_equally_near_plans_the_smaller_is_returned() -> None:
    assert Evaluations(lambda pins: False, closeness=lambda pins: 0.0).search(30) == Found(frozenset(), False)


def test_without_any_pin_allowed_only_the_bare_variant_is_evaluated() -> None:
    evaluations = Evaluations(needs("layer0"), starts=lambda pins: ("layer0",))
    assert evaluations.search(10, required=("layer0",), max_pins=0) == Found(frozenset(), False)
    assert evaluations.asked == [frozenset()]


def test_more_starts_than_pins_allowed_are_cut_to_the_limit() -> None:
    evaluations = Evaluations(lambda pins: False, starts=lambda pins: names(9))
    evaluations.search(20, required=("layer11",), max_pins=3)
    assert max(len(pins) for pins in evaluations.asked) == 3


def test_too_few_pins_allowed_ends_with_the_nearest_plan_within_them() -> None:
    bad = frozenset(names(5))
    found = Evaluations(lambda p: p >= bad, closeness=lambda p: len(p & bad)).search(40, max_pins=3)
    assert found == Found(frozenset(names(3)), False)


def test_a_model_without_layers_is_its_own_answer() -> None:
    assert Evaluations(lambda pins: False).search(0) == Found(frozenset(), False)


# The ranking


def sums(sqnr: float, nonfinite: int = 0) -> ErrorSums:
    return ErrorSums(elements=1, ref2=1.0, err2=10 ** (-sqnr / 10), out2=1.0, new_nonfinite=nonfinite, inf=nonfinite)


def layers(count: int) -> list[Layer]:
    return [Layer(n, (n,), ("Add",), (), (f"{n}.out", f"{n}.other"), (), None, False, 0, 0) for n in names(count)]


def test_layers_that_break_come_first_by_place_then_the_lowest_sqnr() -> None:
    introduced = {
        "layer0.out": sums(50),
        "layer1.out": sums(20),
        "layer2.out": sums(80, nonfinite=1),
        "layer3.out": sums(90),
        "layer3.other": sums(10),  # the worst of its outputs counts
        "layer4.out": sums(-math.inf, nonfinite=7),
    }
    assert rank(layers(5), introduced) == Ranking(
        ("layer2", "layer4", "layer3", "layer1", "layer0"), ("layer2", "layer4")
    )


def test_equal_layers_rank_by_place_and_layers_without_figures_last() -> None:
    introduced = {f"layer{i}.out": sums(30) for i in (1, 2, 3)}
    assert rank(layers(4), introduced).order == ("layer1", "layer2", "layer3", "layer0")


def test_a_nan_figure_makes_a_layer_neither_better_nor_lost() -> None:
    introduced = {"layer0.out": ErrorSums(), "layer0.other": sums(5), "layer1.out": sums(10), "layer2.out": ErrorSums()}
    assert rank(layers(3), introduced) == Ranking(("layer0", "layer1", "layer2"), ())


@given(st.permutations(range(6)), st.lists(st.integers(-20, 90), min_size=6, max_size=6), st.sets(st.integers(0, 5)))
def test_every_layer_is_ranked_once(order: list[int], sqnrs: list[int], broken: set[int]) -> None:
    introduced = {f"layer{i}.out": sums(sqnrs[i], int(i in broken)) for i in order}
    found = rank(layers(6), introduced)
    assert sorted(found.order) == sorted(names(6))
    assert found.required == found.order[: len(found.required)] == tuple(f"layer{i}" for i in sorted(broken))
    rest = [sqnrs[int(n.removeprefix("layer"))] for n in found.order[len(broken) :]]
    assert rest == sorted(rest)


# Where NaN and Inf start, and why, on real models


def run(
    folder: Path,
    body: str,
    weights: dict[str, Array],
    *values: float,
    pinned: tuple[str, ...] = (),
    arithmetic: Arithmetic = TENSORRT,
) -> Case:
    model = load(proto(body, weights), folder)
    found = compared(model, [sample(x=[list(values)])], Precision.FP16, pinned, arithmetic=arithmetic)
    return Case(model, found, set(pinned), arithmetic)


class Case:
    """A model, and what comparing it in fp16 found."""

    def __init__(
        self, model: Model, comparison: Comparison, pinned: set[str], arithmetic: Arithmetic = TENSORRT
    ) -> None:
        self.model, self.comparison, self.constants = model, comparison, arithmetic.constants
        self._low = {layer.name for layer in model.layers if layer.fixed is None} - pinned

    @property
    def starts(self) -> tuple[str, ...]:
        return nonfinite_starts(self.model, self.comparison, self._low)

    @property
    def causes(self) -> dict[str, str]:
        plan = plan_for(self.model, Precision.FP16)
        found = causes(self.model, plan, self.comparison.inherited, self.comparison.introduced, self.constants)
        return {name: cause.text for name, cause in found.items()}


CHAIN = "(float[1,2] x) => (float[1,2] y) { <A> a = Mul(x, big) <B> b = Mul(a, big) <C> y = Mul(b, tiny) }".replace(
    "<A>", '["A"]'
).replace("<B>", '["B"]').replace("<C>", '["C"]')  # fmt: skip
BIG = {"big": np.float32([300]), "tiny": np.float32([1e-3])}


def test_only_the_layer_where_inf_appears_is_a_start_not_those_that_pass_it_on(tmp_path: Path) -> None:
    case = run(tmp_path, CHAIN, BIG, 1, 2)
    assert case.comparison.nonfinite == ("b", "y")
    assert case.starts == ("B",)


def test_pinning_a_start_shows_the_next_one(tmp_path: Path) -> None:
    """B alone in float32 gives 90000, which C, in fp16, cannot take."""
    assert run(tmp_path, CHAIN, BIG, 1, 2, pinned=("B",)).starts == ("C",)
    assert run(tmp_path, CHAIN, BIG, 1, 2, pinned=("B", "C")).starts == ()


def test_nan_of_a_pinned_layer_is_laid_to_the_low_layers_before_it(tmp_path: Path) -> None:
    """`x / x` where x was rounded to zero: the division is in float32, its operands' maker is to blame."""
    body = (
        '(float[1,2] x) => (float[1,2] y) { ["before"] o = Neg(x) ["small"] a = Mul(o, tiny) ["keep"] k = Abs(a) '
        '["divide"] q = Div(k, k) ["after"] y = Neg(q) }'
    )
    weights, values = {"tiny": np.float32([1e-3])}, (1e-6, 2e-6)
    case = run(tmp_path, body, weights, *values, pinned=("divide",))
    assert case.comparison.nonfinite == ("q", "y")
    assert case.starts == ("keep",)
    # With that pinned too, the next before it; and in the end nothing is left to blame.
    assert run(tmp_path, body, weights, *values, pinned=("divide", "keep")).starts == ("small",)
    assert run(tmp_path, body, weights, *values, pinned=("divide", "keep", "small")).starts == ()


def test_nan_of_a_layer_that_cannot_be_given_a_precision_is_laid_to_those_before_it(tmp_path: Path) -> None:
    """What is done to each tensor of a sequence stays in float32, and divides by what fp16 has rounded to zero."""
    body = (
        '(float[1,2] x) => (float[1,2] y) { ["small"] a = Mul(x, tiny) ["hold"] s = SequenceConstruct(a) '
        '["call"] m = SequenceMap <body = g (float[1,2] v) => (float[1,2] w) { w = Reciprocal(v) }> (s) '
        '["take"] y = SequenceAt(m, first) }'
    )
    model = load(proto(body, {"tiny": np.float32([1e-3]), "first": np.int64(0)}), tmp_path)
    assert model.layer["call"].fixed is not None
    comparison = compared(model, [sample(x=[[1e-6, 2e-6]])])
    assert comparison.nonfinite == ("y",)
    # Nobody looks into a sequence: who takes a tensor out of it is asked first.
    assert Case(model, comparison, set()).starts == ("take",)
    assert Case(model, comparison, {"take"}).starts == ("small",)


def test_nothing_broken_has_no_starts(tmp_path: Path) -> None:
    assert run(tmp_path, CHAIN, {**BIG, "big": np.float32([3])}, 1, 2).starts == ()


def test_overflow_is_named_with_the_value_and_what_takes_it_too(tmp_path: Path) -> None:
    case = run(tmp_path, CHAIN, BIG, 1, 2)
    assert case.causes == {
        "B": "the first Inf appears here: overflow: values up to 1.8e+05, fp16 ends at 65504",
        "C": "its input overflows: values up to 1.8e+05, fp16 ends at 65504",
    }


MASK = '(float[1,2] x) => (float[1,2] y) { ["mask"] m = Mul(x, lowest) ["soft"] y = Softmax(m) }'
"""What exporters write into attention masks: (1 − mask) · −3.4e38."""
LOWEST = {"lowest": np.float32(np.finfo(np.float32).min)}


def test_a_mask_constant_that_a_cast_makes_infinite_is_named_as_0_times_that_is_nan(tmp_path: Path) -> None:
    case = run(tmp_path, MASK, LOWEST, 0, 1, arithmetic=ROUNDED)
    assert case.causes["mask"].startswith("the first NaN appears here: constant -3.4e+38 becomes −inf in fp16")


def test_a_mask_constant_that_is_clamped_is_named_and_masks_as_well(tmp_path: Path) -> None:
    case = run(tmp_path, MASK, LOWEST, 0, 1)
    assert case.causes == {"mask": "constant -3.4e+38 is clamped to -65504, the nearest that fp16 has"}
    assert (case.comparison.nonfinite, case.starts) == ((), ())
    assert case.comparison.worst("sqnr") == math.inf  # both have (1, 0) behind the Softmax


def test_a_sum_with_a_clamped_mask_is_told_to_stay_within_half_though_the_reference_does_not(tmp_path: Path) -> None:
    body = '(float[1,2] x) => (float[1,2] y) { ["mask"] m = Mul(x, lowest) ["scores"] s = Add(m, x) y = Exp(s) }'
    case = run(tmp_path, body, LOWEST, 0, 1)
    assert case.comparison.nonfinite == ()
    assert case.causes["scores"] == (
        "the reference has values up to 3.4e+38, fp16 ends at 65504; what comes here stays below that"
    )
    pinned = run(tmp_path, body, LOWEST, 0, 1, pinned=("mask",))
    assert "s" in pinned.comparison.nonfinite  # what is handed on in float32 is beyond half there
    assert "overflow: values up to 3.4e+38, fp16 ends at 65504" in pinned.causes["scores"]


def test_a_constant_that_underflows_in_a_cast_is_named(tmp_path: Path) -> None:
    body = '(float[1,2] x) => (float[1,2] y) { ["eps"] a = Add(x, small) ["log"] y = Log(a) }'
    case = run(tmp_path, body, {"small": np.float32([1e-10])}, 0, 1, arithmetic=ROUNDED)
    # The sum loses its constant, which breaks nothing yet; the logarithm of it gives −inf.
    assert case.comparison.nonfinite == ("y",)
    assert case.causes == {
        "eps": "constant 1e-10 becomes 0 in fp16",
        "log": "the first Inf appears here: its input underflows: values that are not 0 become 0 in fp16",
    }
    alone = '(float[1,2] x) => (float[1,2] y) { ["divide"] y = Div(x, small) }'
    case = run(tmp_path, alone, {"small": np.float32([1e-10])}, 0, 1e-9, arithmetic=ROUNDED)
    assert case.causes == {"divide": "the first NaN appears here: constant 1e-10 becomes 0 in fp16"}


def test_a_small_constant_that_is_clamped_is_named_where_it_does_harm(tmp_path: Path) -> None:
    """Nothing is NaN or Inf, but 1 / 1e-10 was meant and 1 / 6e-8 is what comes."""
    alone = '(float[1,2] x) => (float[1,2] y) { ["divide"] y = Div(x, small) }'
    case = run(tmp_path, alone, {"small": np.float32([1e-10])}, 0, 1e-6)
    assert case.causes == {"divide": "constant 1e-10 is clamped to 5.9605e-08, the nearest that fp16 has"}
    assert case.comparison.nonfinite == ()
    assert run(tmp_path, alone, {"small": np.float32([1e-4])}, 0, 1e-6).causes == {}


def test_a_root_of_what_underflows_is_named_with_the_division_behind_it(tmp_path: Path) -> None:
    """A variance of 1e-12 is 0 in half; its root's error is nothing beside a root of 1, and the division breaks."""
    body = '(float[1,2] x) => (float[1,2] y) { ["square"] a = Mul(x, x) ["root"] r = Sqrt(a) ["over"] y = Div(x, r) }'
    case = run(tmp_path, body, {}, 1e-6, 1)
    assert case.causes["root"] == "its input underflows: values that are not 0 become 0 in fp16"
    assert case.causes["over"].endswith("its input underflows: values that are not 0 become 0 in fp16")
    assert "root" not in run(tmp_path, body, {}, 1e-3, 1).causes


def test_a_healthy_layer_has_no_cause(tmp_path: Path) -> None:
    """Small weights underflow in every model; that alone is no cause."""
    body = '(float[1,2] x) => (float[1,2] y) { ["sum"] y = Add(x, small) }'
    assert run(tmp_path, body, {"small": np.float32([1e-10])}, 1, 2).causes == {}


def test_in_a_plan_of_two_precisions_each_layer_breaks_in_its_own(tmp_path: Path) -> None:
    """Under int8 with fp16 around, the layers around overflow as in fp16, and the reason says so."""
    body = '(float[1,2] x) => (float[1,2] y) { ["mm"] m = MatMul(x, w) ["square"] s = Mul(m, m) ["root"] y = Sqrt(s) }'
    model = load(proto(body, {"w": np.eye(2, dtype=np.float32)}), tmp_path)
    comparison = compared(model, [sample(x=[[1000, 2]])], Precision.INT8, around=Precision.FP16)
    plan = plan_for(model, Precision.INT8, around=Precision.FP16)
    found = causes(model, plan, comparison.inherited, comparison.introduced)
    assert found["square"].text == "the first Inf appears here: overflow: values up to 1e+06, fp16 ends at 65504"
    assert "mm" not in found


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_the_cause_names_the_precision_and_its_end(tmp_path: Path, precision: Precision) -> None:
    body = '(float[1,2] x) => (float[1,2] y) { ["mul"] a = Mul(x, big) ["back"] y = Mul(a, tiny) }'
    model = load(proto(body, {"big": np.float32([3.4e38]), "tiny": np.float32([1e-38])}), tmp_path)
    comparison = compared(model, [sample(x=[[1, 0.5]])], precision, arithmetic=ROUNDED)
    plan = plan_for(model, precision)
    found = causes(model, plan, comparison.inherited, comparison.introduced, Constants.ROUNDED)
    assert f"becomes inf in {precision}" in found["mul"].text
    assert found["mul"].kinds == (CauseKind.FIRST, CauseKind.CONSTANT_OVERFLOWS, CauseKind.OVERFLOW)


def test_constants_are_clamped_in_fp16_alone(tmp_path: Path) -> None:
    """bf16 ends where float32 does: TensorRT says nothing of its constants."""
    model = load(proto(MASK, {"lowest": np.float32(-3.4e38)}), tmp_path)
    for precision, nonfinite in ((Precision.FP16, ()), (Precision.BF16, ("m", "y"))):
        found = compared(model, [sample(x=[[0, 1]])], precision)
        assert found.nonfinite == nonfinite
        kinds = causes(model, plan_for(model, precision), found.inherited, found.introduced)["mask"].kinds
        assert (CauseKind.CONSTANT_CLAMPED in kinds) == (precision is Precision.FP16)
        assert (CauseKind.CONSTANT_OVERFLOWS in kinds) == (precision is Precision.BF16)
