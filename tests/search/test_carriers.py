"""How many layers carry an error, and which their errors do not tell apart."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precisionlab.compare.errors import error_sums
from precisionlab.compare.sensitivity import Sensitivity
from precisionlab.search.carriers import SHARE, Carriers, carriers_of, tied
from precisionlab.search.rank import Ranking, rank_by_sensitivity

ERRORS = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=60)


@given(ERRORS)
def test_the_carriers_make_nine_tenths_and_one_fewer_does_not(errors: list[float]) -> None:
    found = carriers_of(errors)
    assert found is not None
    assert found.layers == len(errors)
    worst = sorted(errors, reverse=True)
    assert math.fsum(worst[: found.carrying]) >= SHARE * math.fsum(errors) * (1 - 1e-5)
    assert math.fsum(worst[: found.carrying - 1]) < SHARE * math.fsum(errors)


@given(ERRORS, st.integers(-30, 30), st.randoms())
def test_neither_the_order_nor_the_unit_of_errors_says_who_carries_them(
    errors: list[float], exponent: int, shuffled: object
) -> None:
    mixed = [math.ldexp(error, exponent) for error in errors]
    shuffled.shuffle(mixed)  # type: ignore[attr-defined]
    assert carriers_of(mixed) == carriers_of(errors)


@given(st.integers(4, 200))
def test_an_error_that_all_layers_make_alike_is_diffuse_and_one_that_a_single_layer_makes_is_not(layers: int) -> None:
    alike = carriers_of([0.25] * layers)
    assert alike == Carriers(math.ceil(round(0.9 * layers, 6)), layers)
    assert alike.is_diffuse
    single = carriers_of([1.0, *[1e-6] * (layers - 1)])
    assert single == Carriers(1, layers)
    assert not single.is_diffuse


def test_from_the_root_of_all_layers_on_an_error_is_diffuse() -> None:
    """Finding k of L takes about 2·log2(k) plans by doubling, log2(L) by halves."""
    assert Carriers(39, 92).is_diffuse
    assert Carriers(11, 100).is_diffuse
    assert not Carriers(10, 100).is_diffuse
    assert not Carriers(3, 3).is_diffuse


@pytest.mark.parametrize("errors", [[], [0.0, 0.0], [1.0, math.nan], [math.inf, 1.0]])
def test_of_no_error_and_of_one_that_is_no_number_nobody_carries_a_part(errors: list[float]) -> None:
    assert carriers_of(errors) is None
    assert carriers_of([*filter(math.isfinite, errors), 2.0]) is not None


def test_one_sentence_says_how_many_layers_it_is_spread_over() -> None:
    said = "the error is diffuse: 39 of 92 layers make 90 % of it, by what each does alone"
    assert Carriers(39, 92).words(92) == said
    assert Carriers(1, 33).words(33) == "1 of 33 layers makes 90 % of the error, by what each does alone"
    assert Carriers(2, 20).words(92).startswith("2 of the 20 layers measured make")
    assert Carriers.from_dict(Carriers(39, 92).to_dict()) == Carriers(39, 92)


def test_layers_whose_harm_is_the_same_are_tied_and_those_without_any_are_not() -> None:
    harms = {"a": 3.0, "b": 2.0, "c": 2.0 * (1 - 1e-9), "d": 1.9, "e": 0.0, "f": 0.0, "g": math.nan, "h": math.nan}
    assert list(tied(tuple(harms), harms)) == [(1, 3)]
    assert list(tied(("x", "y"), {})) == []


@given(st.lists(st.sampled_from([0.0, 0.5, 0.5 * (1 + 1e-9), 1.0, 2.0]), max_size=30))
def test_ties_are_runs_of_the_ranking_that_nothing_could_be_added_to(values: list[float]) -> None:
    harms = {f"layer{i}": value for i, value in enumerate(sorted(values, reverse=True))}
    order = tuple(harms)
    runs = list(tied(order, harms))
    within = {at for start, end in runs for at in range(start, end)}
    assert all(end - start > 1 for start, end in runs)
    assert all(harms[order[start]] == pytest.approx(harms[order[end - 1]], rel=1e-6) for start, end in runs)
    alone = [harms[name] for at, name in enumerate(order) if at not in within and harms[name]]
    assert all(a > b * (1 + 1e-6) for a, b in pairwise(alone))


# Their place in the ranking


def moving(error: float) -> dict[str, Sensitivity]:
    """What a layer does to one output of ones that it moves by so much."""
    reference = np.ones(4, np.float32)
    return {"y": Sensitivity(error_sums(reference, (reference + error).astype(np.float32)), 0.0)}


FIRST = Ranking(("product", "transposed", "worse", "idle", "resting"), ())
ALONE = {"product": 0.5, "transposed": 0.5, "worse": 1.0, "idle": 0.0, "resting": 0.0}
SENSITIVITIES = {name: moving(error) for name, error in ALONE.items()}


def test_of_layers_that_do_the_same_the_one_that_costs_least_to_pin_stands_first() -> None:
    costs = {"product": 5.0, "transposed": 1.0, "worse": 9.0, "idle": 3.0, "resting": 1.0}
    found = rank_by_sensitivity(FIRST, SENSITIVITIES, cost=costs.__getitem__)
    assert found.order == ("worse", "transposed", "product", "idle", "resting")


def test_of_layers_that_do_and_cost_the_same_the_order_of_before_stands() -> None:
    assert rank_by_sensitivity(FIRST, SENSITIVITIES).order == ("worse", "product", "transposed", "idle", "resting")


@given(st.permutations(list(ALONE)))
def test_the_ranking_does_not_hang_on_the_order_that_layers_were_measured_in(names: list[str]) -> None:
    shuffled = {name: SENSITIVITIES[name] for name in names}
    assert rank_by_sensitivity(FIRST, shuffled) == rank_by_sensitivity(FIRST, SENSITIVITIES)


def test_required_pins_and_what_breaks_an_output_keep_their_order_whatever_they_cost() -> None:
    first = Ranking(("early", "late", "nan", "other nan", "a"), ("early", "late"))
    measured = {"early": moving(1.0), "late": moving(1.0), "nan": moving(math.nan), "other nan": moving(math.nan)}
    order = rank_by_sensitivity(first, {**measured, "a": moving(1.0)}, cost=lambda name: -len(name)).order
    assert order == ("early", "late", "nan", "other nan", "a")
