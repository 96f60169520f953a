"""Of the plans that were evaluated the one taken is dominated by none."""

from __future__ import annotations

import math
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from precisionlab.precision import Precision
from precisionlab.search.pinning.choice import Aim, Trial, best, better_than, order_of

FP32, FP16 = Precision.FP32, Precision.FP16


def trial(number: int, pins: int, cost: float, error: float, passes: bool = True, broken: int = 0) -> Trial:
    key = frozenset((f"layer{number}.{i}", FP32) for i in range(pins))
    return Trial(key, pins, cost, (-broken, -error), passes)


# Few values, so that ties are common.
trials = st.lists(
    st.builds(
        trial,
        st.integers(0, 9),
        st.integers(0, 4),
        st.sampled_from([1.0, 2.0, 3.0]),
        st.sampled_from([0.0, 1.0, 2.0, math.inf]),
        st.booleans(),
        st.integers(0, 1),
    ),
    max_size=12,
)


def is_dominated(one: Trial, other: Trial) -> bool:
    """By the three figures, worked out anew."""
    mine, its = ((t.pins, t.cost, -t.closeness[0], -t.closeness[1]) for t in (one, other))
    worse_error, equal_error = its[2:] < mine[2:], its[2:] == mine[2:]
    return its[0] <= mine[0] and its[1] <= mine[1] and (worse_error or equal_error) and its != mine


@given(trials, st.sampled_from(Aim))
def test_no_plan_that_passes_dominates_the_one_taken(tried: list[Trial], aim: Aim) -> None:
    found = best(tried, aim)
    passing = [t for t in tried if t.passes]
    assert (found is None) == (not passing)
    if found is not None:
        assert not any(is_dominated(found, other) for other in passing)
        assert better_than(found, tried, aim) == []


@given(trials, st.sampled_from(Aim))
def test_whatever_dominates_a_plan_comes_before_it_by_every_aim(tried: list[Trial], aim: Aim) -> None:
    for one, other in combinations(tried, 2):
        assert one.dominates(other) == is_dominated(other, one)
        if one.dominates(other):
            assert order_of(aim, one) < order_of(aim, other)


def test_of_two_layers_in_fp16_and_the_same_in_fp32_the_cheaper_and_better_is_taken() -> None:
    """A conversion to fp16 and back may cost more than fp32 does."""
    half = Trial(frozenset({("a", FP16), ("b", FP16)}), 2, 1.02, (0, 0.2), True)
    full = Trial(frozenset({("a", FP32), ("b", FP32)}), 2, 1.01, (0, 3.0), True)
    for aim in Aim:
        assert best([half, full], aim) == full
    assert better_than(half, [half, full], Aim.PINS) == [full]


def test_each_aim_takes_what_it_is_about() -> None:
    few, cheap, right = trial(0, 1, 3, 2), trial(1, 2, 1, 2), trial(2, 3, 3, 0)
    assert [best([few, cheap, right], aim) for aim in (Aim.PINS, Aim.COST, Aim.ERROR)] == [few, cheap, right]
    assert best([trial(0, 0, 0, 0, passes=False)], Aim.PINS) is None
