"""The front holds what is worth having and nothing else, whatever the order that it was found in."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from precisionlab.search.pareto import Point, best_within, cheapest_meeting, front

# Few values, so that ties are many.
NUMBERS = st.sampled_from([-math.inf, -30.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan])
POINTS = st.lists(
    st.builds(
        Point,
        st.lists(st.sampled_from("abc"), max_size=3, unique=True).map(tuple),
        NUMBERS,
        NUMBERS,
        st.booleans(),
        st.sampled_from(["estimated", "measured"]),
    ),
    max_size=12,
)


def point(error: float, cost: float, pins: str = "", meets: bool = True) -> Point:
    return Point(tuple(pins), error, cost, meets, "estimated")


def dominates(a: Point, b: Point) -> bool:
    return a.error <= b.error and a.cost <= b.cost and (a.error < b.error or a.cost < b.cost)


def has_nan(p: Point) -> bool:
    return math.isnan(p.error) or math.isnan(p.cost)


@given(POINTS)
def test_no_point_on_the_front_is_dominated(points: list[Point]) -> None:
    assert not any(dominates(other, p) for p in front(points) for other in points)


@given(POINTS)
def test_every_point_left_out_is_dominated_or_equal_to_one_with_no_more_pins_or_has_a_nan(points: list[Point]) -> None:
    found = front(points)
    for p in points:
        equal = [q for q in found if (q.error, q.cost) == (p.error, p.cost)]
        assert p in found or has_nan(p) or any(dominates(q, p) for q in found) or len(equal[0].pins) <= len(p.pins)


@given(POINTS)
def test_the_front_goes_from_cheap_to_exact_without_duplicates_or_nan(points: list[Point]) -> None:
    found = front(points)
    assert all(a.cost < b.cost and a.error > b.error for a, b in pairwise(found))
    assert not any(has_nan(p) for p in found)
    assert front(found) == found


@given(POINTS.flatmap(lambda points: st.tuples(st.just(points), st.permutations(points))), NUMBERS)
def test_the_order_of_the_points_does_not_matter(lists: tuple[list[Point], list[Point]], budget: float) -> None:
    one, other = lists
    assert front(one) == front(other)
    assert cheapest_meeting(one) == cheapest_meeting(other)
    assert best_within(one, budget) == best_within(other, budget)


@given(POINTS, NUMBERS)
@example([point(1.0, math.nan)], math.inf)
def test_choices_are_the_best_of_what_there_is(points: list[Point], budget: float) -> None:
    known = [p for p in points if not has_nan(p)]
    meeting, affordable = [p for p in known if p.meets], [p for p in known if p.cost <= budget]
    cheapest, best = cheapest_meeting(points), best_within(points, budget)
    assert (cheapest is None) == (not meeting)
    assert (best is None) == (not affordable)
    assert cheapest is None or (cheapest in meeting and not any(dominates(p, cheapest) for p in meeting))
    assert cheapest is None or cheapest.cost == min(p.cost for p in meeting)
    assert best is None or (best in affordable and best.error == min(p.error for p in affordable))
    assert best is None or any((p.error, p.cost) == (best.error, best.cost) for p in front(points))


def test_a_front_by_hand() -> None:
    plain, one, two = point(0.3, 1.0, meets=False), point(0.1, 2.0, "a"), point(0.0, 4.0, "ab")
    worse, same = point(0.2, 3.0, "b"), point(0.1, 2.0, "abc")
    points = [two, worse, same, one, plain, point(math.nan, 0.5)]
    assert front(points) == (plain, one, two)
    assert cheapest_meeting(points) == one
    assert best_within(points, 3.5) == one
    assert best_within(points, 4.0) == two
    assert best_within(points, 0.9) is None
    assert cheapest_meeting([plain]) is None
    assert front([]) == ()
