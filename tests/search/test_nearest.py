"""Which of the plans tried is taken where none is right."""

from __future__ import annotations

import functools
import math
import operator

import numpy as np

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import Agreement, error_sums
from precisionlab.compare.output import OutputErrors
from precisionlab.compare.tolerance import parse_tolerance
from precisionlab.precision import Precision
from precisionlab.search.pinning.choice import Key
from precisionlab.search.pinning.nearest import nearest, strictly_nearest

ASKED = parse_tolerance(["sqnr>=60"])


def pins(count: int) -> Key:
    return frozenset((f"layer{i}", Precision.FP32) for i in range(count))


def of_samples(*noise: float) -> Comparison:
    """One output of signal 1 with so much noise in each sample."""
    each = tuple(OutputErrors(error_sums(np.float32([1, 0]), np.float32([1, n])), Agreement(0, 0)) for n in noise)
    return Comparison(len(noise), {}, {}, {"y": functools.reduce(operator.add, each)}, {"y": each})


def test_a_pin_that_all_samples_but_one_are_better_with_is_kept_though_that_one_rules_the_sum() -> None:
    """One page of 24 that stands between two classes: with pins its error fell the other way."""
    tried = {pins(0): of_samples(*[0.02] * 23, 0.3), pins(3): of_samples(*[0.005] * 23, 0.35)}
    assert strictly_nearest(tried, ASKED) == pins(0)
    assert nearest(tried, ASKED) == pins(3)


def test_a_plan_that_is_worse_beyond_chance_is_not_nearest_for_its_typical_sample() -> None:
    tried = {pins(0): of_samples(*[0.05] * 20), pins(3): of_samples(*[0.001] * 10, *[0.9] * 10)}
    assert nearest(tried, ASKED) == pins(0)


def test_of_plans_that_are_the_same_the_one_with_the_fewest_pins_is_nearest() -> None:
    tried = {pins(count): of_samples(*[0.1, 0.2] * 8) for count in (4, 1, 2)}
    assert nearest(tried, ASKED) == pins(1)


def test_a_bound_from_above_and_too_few_samples_for_an_interval_are_taken_as_they_are() -> None:
    worse, better = of_samples(*[0.02] * 23, 0.35), of_samples(*[0.005] * 23, 0.3)
    assert nearest({pins(0): worse, pins(1): better}, parse_tolerance(["max_error<=0.001"])) == pins(1)
    few = {pins(0): of_samples(0.02, 0.3), pins(1): of_samples(0.001, 0.35)}
    assert nearest(few, ASKED) == pins(0)


def test_a_plan_under_which_a_sample_breaks_is_never_nearest_beside_one_that_is_whole() -> None:
    tried = {pins(2): of_samples(*[0.0] * 19, math.nan), pins(1): of_samples(*[0.9] * 20)}
    assert nearest(tried, ASKED) == pins(1)
