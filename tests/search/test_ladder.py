"""Pins come down the ladder as far as holds, none is needless, and options say what they mean."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precisionlab.errors import OptionError
from precisionlab.plan.arithmetic import TENSORRT
from precisionlab.precision import Precision
from precisionlab.search.ladder import Assignment, lower_rungs, without_needless
from precisionlab.search.options import (
    Minimize,
    Options,
    check_ladder,
    parse_around,
    parse_ladder,
    parse_minimize,
    parse_precisions,
)
from precisionlab.system.deadline import BudgetExhausted
from precisionlab.system.parsing import parse_duration, parse_share

FP32, FP16, BF16, FP8, INT8, INT4 = Precision.formats()
RUNGS = {precision: precision.rungs for precision in Precision.low()}
LADDERS = [*RUNGS.values(), (FP32,), (BF16, FP32), (FP16, FP32), (FP16, BF16)]


class World:
    """A made-up model: which assignments pass, and what was asked. `allowed` evaluations are in the budget."""

    def __init__(self, passes: Callable[[Assignment], bool], allowed: float = math.inf) -> None:
        self._passes, self.allowed = passes, allowed
        self.asked: list[dict[str, Precision]] = []

    def __call__(self, assignment: Assignment) -> bool:
        if len(self.asked) >= self.allowed:
            raise BudgetExhausted
        self.asked.append(dict(assignment))
        return self._passes(assignment)


def names(count: int) -> list[str]:
    return [f"layer{i}" for i in range(count)]


def chance(seed: int, what: object) -> bool:
    """True for a third of all things, the same in each process."""
    return zlib.crc32(repr((seed, what)).encode()) % 3 == 0


@st.composite
def monotone(draw: st.DrawFn, rungs: tuple[Precision, ...]) -> tuple[list[str], Callable[[Assignment], bool]]:
    """Layers whose errors add up, and pairs that harm each other; less with each rung, none in fp32.

    All in fp32 passes. A layer that is not pinned errs most.
    """
    pins = names(draw(st.integers(1, 9)))
    steps = st.integers(0, 20)
    errors: dict[tuple[str, Precision | None], int] = {}
    for name in pins:
        error = 0
        errors[name, FP32] = 0
        for rung in (*reversed([r for r in rungs if r is not FP32]), None):
            error += draw(steps)
            errors[name, rung] = error
    pairs = draw(st.lists(st.tuples(st.sampled_from(pins), st.sampled_from(pins)), max_size=4))
    tolerance = draw(st.integers(0, 60))

    def passes(assignment: Assignment) -> bool:
        own = {name: errors[name, assignment.get(name)] for name in pins}
        return sum(own.values()) + sum(own[a] * own[b] for a, b in pairs) <= tolerance

    return pins, passes


worlds = st.sampled_from(LADDERS).flatmap(lambda rungs: st.tuples(st.just(rungs), monotone(rungs)))


# The rungs


@given(worlds)
def test_what_comes_down_passes_and_no_pin_could_come_down_further(
    drawn: tuple[tuple[Precision, ...], tuple[list[str], Callable[[Assignment], bool]]],
) -> None:
    rungs, (pins, passes) = drawn
    world = World(passes)
    found = lower_rungs(pins, rungs, world)
    assert passes(found)
    assert list(found) == pins
    assert set(found.values()) <= {*rungs, FP32}
    assert found == dict.fromkeys(pins, FP32) or found in world.asked, "not what was evaluated"
    for name, rung in found.items():
        earlier = rungs[: rungs.index(rung)] if rung in rungs else rungs
        for lower in earlier:
            assert not passes({**found, name: lower}), f"{name} could come down to {lower}"


@given(st.sampled_from(LADDERS), st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(0, 40) | st.none())
def test_in_any_world_the_result_was_evaluated_and_passes(
    rungs: tuple[Precision, ...], count: int, seed: int, allowed: int | None
) -> None:
    """Nothing monotone to rely on: assignments pass at random, all in fp32 does."""
    pins = names(count)

    def passes(assignment: Assignment) -> bool:
        return set(assignment.values()) == {FP32} or chance(seed, sorted(assignment.items()))

    world = World(passes, math.inf if allowed is None else allowed)
    found = lower_rungs(pins, rungs, world)
    assert passes(found)
    assert found == dict.fromkeys(pins, FP32) or found in world.asked


@given(worlds, st.integers(0, 60))
def test_whenever_the_budget_is_spent_what_is_left_passes(
    drawn: tuple[tuple[Precision, ...], tuple[list[str], Callable[[Assignment], bool]]], allowed: int
) -> None:
    rungs, (pins, passes) = drawn
    world = World(passes, allowed)
    found = lower_rungs(pins, rungs, world)
    assert passes(found)
    assert list(found) == pins
    # Never worse than what was seen to pass on the first rung that anything could come down to.
    below = [sum(rung is not FP32 for rung in asked.values()) for asked in world.asked if passes(asked)]
    assert sum(rung is not FP32 for rung in found.values()) >= max(below, default=0)


def test_each_pin_gets_the_first_rung_that_holds() -> None:
    needs = {"layer0": FP16, "layer1": FP32, "layer2": BF16, "layer3": FP16}
    order = [FP16, BF16, FP32]

    def passes(assignment: Assignment) -> bool:
        return all(order.index(assignment[name]) >= order.index(least) for name, least in needs.items())

    assert lower_rungs(names(4), (FP16, BF16, FP32), passes) == needs


def test_bf16_for_range_where_fp16_overflows_and_fp16_for_digits_where_bf16_has_too_few() -> None:
    """Neither is the lower one: each pin needs its own."""

    def passes(assignment: Assignment) -> bool:
        return assignment["layer0"] in (BF16, FP32) and assignment["layer1"] in (FP16, FP32)

    assert lower_rungs(names(2), RUNGS[INT8], passes) == {"layer0": BF16, "layer1": FP16}
    assert lower_rungs(names(2), (BF16, FP16), passes) == {"layer0": BF16, "layer1": FP16}


def test_a_rung_is_tried_on_those_alone_that_can_have_it() -> None:
    world = World(lambda assignment: True)
    found = lower_rungs(names(3), (FP16, BF16, FP32), world, lambda name, rung: rung is not FP16 or name == "layer1")
    assert found == {"layer0": BF16, "layer1": FP16, "layer2": BF16}
    assert not any(asked["layer0"] is FP16 or asked["layer2"] is FP16 for asked in world.asked)


def test_a_ladder_of_fp32_alone_asks_nothing() -> None:
    world = World(lambda assignment: True)
    assert lower_rungs(names(3), (FP32,), world) == dict.fromkeys(names(3), FP32)
    assert lower_rungs([], RUNGS[INT8], world) == {}
    assert world.asked == []


def test_where_all_come_down_one_evaluation_says_so() -> None:
    world = World(lambda assignment: True)
    assert set(lower_rungs(names(50), RUNGS[INT8], world).values()) == {RUNGS[INT8][0]}
    assert len(world.asked) == 1


@given(st.integers(1, 64), st.data())
def test_the_evaluations_of_a_rung_are_few(count: int, data: st.DataObject) -> None:
    stay = data.draw(st.sets(st.sampled_from(names(count)), max_size=4))
    world = World(lambda assignment: all(assignment[name] is FP32 for name in stay))
    found = lower_rungs(names(count), (BF16, FP32), world)
    assert {name for name, rung in found.items() if rung is FP32} == stay
    rounds = 1 + math.ceil(math.log2(count + 1))
    assert len(world.asked) <= 1 + (2 * len(stay) + 2) * rounds


# Pins that are not needed any more


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_the_rest_passes_and_every_single_pin_of_it_is_needed(count: int, seed: int) -> None:
    start: Mapping[str, Precision] = dict.fromkeys(names(count), BF16)

    def passes(assignment: Assignment) -> bool:
        return len(assignment) == count or chance(seed, sorted(assignment))

    world = World(passes)
    found = without_needless(start, world)
    assert found.items() <= start.items()
    assert passes(found)
    assert found == start or found in world.asked
    for name in found:
        assert not passes({k: v for k, v in found.items() if k != name}), f"{name} is needless"


@given(st.integers(1, 8), st.integers(0, 2**8 - 1))
def test_in_a_monotone_world_just_the_needed_pins_are_left_the_least_suspect_tried_first(
    count: int, needed: int
) -> None:
    keep = {name for i, name in enumerate(names(count)) if needed >> i & 1}
    world = World(lambda assignment: set(assignment) >= keep)
    start = {name: FP16 if i % 2 else FP32 for i, name in enumerate(names(count))}
    assert without_needless(start, world) == {name: rung for name, rung in start.items() if name in keep}
    assert set(start) - set(world.asked[0]) == {names(count)[-1]}


def test_of_two_pins_that_fix_the_same_the_more_suspect_stays() -> None:
    assert without_needless({"worst": FP32, "other": FP32}, lambda assignment: len(assignment) > 0) == {"worst": FP32}


def test_a_budget_spent_in_the_midst_is_told() -> None:
    with pytest.raises(BudgetExhausted):
        without_needless(dict.fromkeys(names(3), FP32), World(lambda assignment: True, allowed=1))


# The options


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (None, None),
        ("fp32", (FP32,)),
        ("fp16,fp32", (FP16, FP32)),
        (" FP32 , bf16", (FP32, BF16)),
        (["fp32", "fp16", "fp32"], (FP32, FP16)),
        (("bf16", "fp16", "fp32"), (BF16, FP16, FP32)),
    ],
)
def test_a_ladder_is_read(given_: str | list[str] | None, expected: tuple[Precision, ...] | None) -> None:
    assert parse_ladder(given_) == expected


@pytest.mark.parametrize("text", ["", "fp16", "fp16,bf16", "fp32,fp64", ",", "fp32,", [], ["int8"]])
def test_a_ladder_without_fp32_or_with_what_cannot_fix_is_refused(text: str | list[str]) -> None:
    refused(lambda: parse_ladder(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("5%", 0.05), ("0", 0.0), ("0%", 0.0), (0, 0.0), (0.05, 0.05), ("12.5 %", 0.125), (" 100% ", 1.0),
     ("250%", 2.5), (1e-3, 1e-3), ("1e-2", 0.01)],
)  # fmt: skip
def test_a_share_is_read(text: str | float | None, expected: float | None) -> None:
    assert parse_share(text, "spend") == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    "text", ["", "%", "five", "5%%", "-1", "-5%", -0.1, "nan", math.nan, "inf", math.inf, "nan%", "1", 1.0, 5]
)
def test_what_is_no_share_is_refused_with_the_options_name(text: str | float) -> None:
    assert refused(lambda: parse_share(text, "spend")).startswith("spend ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("90s", 90), ("90", 90), (90, 90), (1.5, 1.5), ("30m", 1800), ("1h", 3600), ("1h30m", 5400),
     ("1h1m1s", 3661), ("1h5", 3605), (" 2m ", 120), ("0.5h", 1800), ("0s", 0), (0, 0), ("1.5s", 1.5)],
)  # fmt: skip
def test_a_duration_is_read(text: str | float | None, expected: float | None) -> None:
    assert parse_duration(text, "budget") == expected


@pytest.mark.parametrize(
    "text", ["", " ", "m", "s", "1d", "1m1h", "-1s", -1, "1 h", "1e3", "inf", math.inf, "nan", "1h30m10x"]
)
def test_what_is_no_duration_is_refused_with_the_options_name(text: str | float) -> None:
    assert refused(lambda: parse_duration(text, "budget")).startswith("budget ")


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_hours_minutes_and_seconds_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s", "budget") == hours * 3600 + minutes * 60 + seconds


@given(st.floats(1e-3, 1e7))
def test_any_number_of_seconds_is_a_duration(seconds: float) -> None:
    assert parse_duration(seconds, "budget") == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [1e-5, 1e16])
def test_a_very_short_or_long_number_of_seconds_is_a_duration_too(seconds: float) -> None:
    assert parse_duration(seconds, "budget") == seconds


def test_what_to_minimize_is_read() -> None:
    assert parse_minimize("pins") is parse_minimize(" Pins ") is Minimize.PINS
    assert parse_minimize("COST") is Minimize.COST
    for text in ("", "costs", "pins,cost"):
        assert "minimize pins or cost" in refused(lambda text=text: parse_minimize(text))


def test_precisions_and_around_are_the_low_and_the_float_ones() -> None:
    assert parse_precisions("int8,fp16,int8") == (INT8, FP16)
    assert [parse_around(p) for p in ("fp32", "fp16", "bf16")] == [FP32, FP16, BF16]
    for text in ("", "fp32", "fp16,fp32"):
        refused(lambda text=text: parse_precisions(text))
    refused(lambda: parse_around("int8"))


def test_without_a_tolerance_each_precision_has_its_own() -> None:
    assert [str(b) for p in (FP16, BF16, INT8) for b in Options().tolerance_of(p)] == [
        "sqnr>=30",
        "sqnr>=30",
        "sqnr>=20",
    ]


def test_the_rungs_of_a_precision_are_above_it_and_end_with_fp32() -> None:
    for low, rungs in RUNGS.items():
        assert low not in rungs
        assert rungs[-1] is FP32
        assert len(set(rungs)) == len(rungs)
    assert set(RUNGS) == {FP16, BF16, FP8, INT8, INT4}
    assert [low for low, rungs in RUNGS.items() if {INT8, FP8} & set(rungs)] == [FP8, INT8, INT4]  # each the other


def refused(read: Callable[[], object]) -> str:
    """What the OptionError says; one sentence."""
    with pytest.raises(OptionError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_quantized_rung_is_for_pins_of_the_other_alone() -> None:
    check_ladder((INT8, FP32), (FP8,), TENSORRT)
    check_ladder((FP8, FP16, FP32), (FP16, INT8), TENSORRT)
    said = refused(lambda: check_ladder((INT8, FP32), (FP16,), TENSORRT))
    assert said == "ladder: int8: pins of fp8 or int4 alone may have it, beside --precisions fp8 or int4; leave it"
