"""What single layers' errors let one expect makes a search shorter, and its result no worse."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precisionlab.search.expectation import NOTHING, Expectation
from precisionlab.search.pins import Found, Verdict, find_pins, most_evaluations
from precisionlab.search.rank import Ranking

NAMES = tuple(f"layer{i}" for i in range(40))


class Errors:
    """A made-up model whose layers' errors add up; as many times `allowed` as is left is the excess of a plan."""

    def __init__(self, errors: Sequence[float], allowed: float, harms: Sequence[float] | None = None) -> None:
        self.errors = {f"layer{i}": error for i, error in enumerate(errors)}
        self.allowed = allowed
        seen = dict(zip(self.errors, harms or errors, strict=True))
        self.expected = Expectation(seen)
        self.order = tuple(sorted(seen, key=lambda name: -seen[name]))
        self.asked: list[frozenset[str]] = []

    def __call__(self, pins: frozenset[str]) -> Verdict:
        self.asked.append(pins)
        left = math.fsum(error for name, error in self.errors.items() if name not in pins)
        excess = left / self.allowed
        return Verdict(excess <= 1, (0, -excess), (), excess)

    def search(self, expected: Expectation, max_pins: int | None = None) -> tuple[Found, int]:
        self.asked = []
        found = find_pins(Ranking(self.order, ()), self, max_pins, expected)
        assert len(set(self.asked)) == len(self.asked)
        return found, len(self.asked)


def diffuse(seed: int, layers: int) -> list[float]:
    drawn = random.Random(seed)
    return [drawn.lognormvariate(0, 1) for _ in range(layers)]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60, unique=True), st.floats(0.01, 0.99))
def test_where_errors_add_up_the_same_pins_are_found(errors: list[float], share: float) -> None:
    model = Errors(errors, share * math.fsum(errors))
    found, _ = model.search(model.expected)
    assert found.passes
    assert found == model.search(NOTHING)[0]


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_of_a_diffuse_error_the_search_takes_three_quarters_of_the_plans_or_less(share: float) -> None:
    plans = []
    for seed in range(6):
        errors = diffuse(seed, 92)
        model = Errors(errors, share * math.fsum(errors))
        (found, few), (before, many) = model.search(model.expected), model.search(NOTHING)
        assert found == before
        assert few < many
        plans.append((few, many))
    assert sum(few for few, _ in plans) < 0.77 * sum(many for _, many in plans)


@given(st.integers(2, 100), st.integers(1, 3), st.floats(1.5, 1e6))
def test_of_a_concentrated_error_no_more_plans_are_evaluated_than_without(layers: int, bad: int, excess: float) -> None:
    errors = [*[100.0] * bad, *[1e-6] * layers]
    model = Errors(errors, math.fsum(errors) / excess)
    found, plans = model.search(model.expected)
    before, all_plans = model.search(NOTHING)
    assert found == before
    assert plans <= all_plans


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 2**32), st.integers(0, 70) | st.none())
def test_whatever_single_errors_say_the_result_holds_and_no_pin_of_it_can_go(
    layers: int, share: float, seed: int, max_pins: int | None
) -> None:
    """Sums were 0.3 to 390 times what layers made together: here each layer's error is wrong by so much."""
    errors, drawn = diffuse(seed, layers), random.Random(seed)
    model = Errors(errors, share * math.fsum(errors), [error * drawn.uniform(0.3, 390) for error in errors])
    found, plans = model.search(model.expected, max_pins)
    assert max_pins is None or len(found.pins) <= max_pins
    assert found.passes or max_pins is not None
    if found.passes:
        assert all(found.pins - {pin} in model.asked for pin in found.pins)
        assert not any(model(found.pins - {pin}).passes for pin in found.pins)
        until = next(i for i, pins in enumerate(model.asked, 1) if model(pins).passes)
        assert until <= most_evaluations(layers)
    assert plans <= most_evaluations(layers) + 4 * layers + 2 * layers * max(1, math.ceil(math.log2(layers + 1)))


@given(st.lists(st.floats(0.5, 1), min_size=20, max_size=60), st.floats(0, 60))
def test_of_a_diffuse_error_the_first_prefix_is_the_shortest_that_leaves_no_more_than_is_allowed(
    errors: list[float], allowed: float
) -> None:
    harms = {f"layer{i}": error for i, error in enumerate(errors)}
    count = Expectation(harms).first(tuple(harms), allowed)
    assert 1 <= count <= len(errors)
    left = list(harms.values())[count:]
    assert math.fsum(left) <= allowed * (1 + 1e-9)
    assert count == 1 or math.fsum([errors[count - 1], *left]) > allowed * (1 - 1e-9)


def test_where_the_bound_says_nothing_a_diffuse_error_is_halved() -> None:
    alike = dict.fromkeys(NAMES, 0.5)
    assert Expectation(alike).first(NAMES, math.nan) == 20
    assert Expectation(alike).first(NAMES, 2.0) == 36


@pytest.mark.parametrize("allowed", [math.nan, 2.0])
def test_another_error_is_doubled_from_one_layer(allowed: float) -> None:
    for worst in (1e6, math.nan, math.inf):
        assert Expectation({**dict.fromkeys(NAMES, 0.5), "layer0": worst}).first(NAMES, allowed) == 1
    assert NOTHING.first(NAMES, allowed) == 1
    assert NOTHING.first((), allowed) == 1


def test_what_is_allowed_is_not_known_where_a_layer_was_not_measured_or_the_error_is_no_number() -> None:
    expected = Expectation({"a": 3.0, "b": 1.0})
    assert expected.allowed(["a", "b"], 2.0) == 2.0
    assert math.isnan(expected.allowed(["a", "b", "c"], 2.0))
    assert math.isnan(expected.allowed(["a", "b"], math.inf))
    assert math.isnan(expected.allowed(["a", "b"], math.nan))
    assert math.isnan(expected.allowed(["a", "b"], 0.5)), "right already, and yet asked: another bound fails"


def test_groups_are_given_up_on_only_far_beyond_what_is_left_to_give() -> None:
    expected = Expectation({"a": 3.0, "b": 1.0})
    assert expected.is_hopeless(["a", "b"], 1.0, 0.9)
    assert not expected.is_hopeless(["a", "b"], 1.0, 0.1)
    assert not expected.is_hopeless(["a", "c"], 1.0, 0.9)
    assert not expected.is_hopeless(["a", "b"], math.nan, 0.9)
