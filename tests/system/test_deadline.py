"""A budget of time ends work between samples, and is shared by what comes one after the other."""

from __future__ import annotations

import pytest

from precisionlab.system.deadline import BudgetExhausted, Deadline, Watched
from precisionlab.system.observer import Silent
from precisionlab.system.wording import duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_ends_without_a_budget() -> None:
    deadline = Deadline(None)
    deadline.check()
    assert deadline.left is None
    assert deadline.part(0.5).left is None


def test_a_part_ends_earlier_and_tells_of_the_whole() -> None:
    clock = Clock()
    whole = Deadline(120, clock=clock)
    half = whole.part(0.5)
    clock.now += 60
    whole.check()
    with pytest.raises(BudgetExhausted, match="the budget of 2 min is spent"):
        half.check()
    clock.now += 60
    with pytest.raises(BudgetExhausted, match="the budget of 2 min is spent"):
        whole.check()
    assert whole.part(0.5).left == 0


def test_work_ends_between_two_samples() -> None:
    clock = Clock()
    observer = Watched(Silent(), Deadline(10, clock=clock))
    observer.stage("plan 1", 3)
    observer.advance(1)
    clock.now += 11
    observer.note("a note ends nothing")
    with pytest.raises(BudgetExhausted):
        observer.advance(2)
    with pytest.raises(BudgetExhausted):
        observer.stage("plan 2", 3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.01, "0.1 s"), (0.5, "0.5 s"), (89, "89 s"), (90, "1.5 min"), (120, "2 min"), (596, "9.9 min"),
     (599, "10 min"), (3600, "60 min")],
)  # fmt: skip
def test_a_time_is_told_to_two_digits_or_so(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_part_can_be_moved_to_the_end_of_another() -> None:
    clock = Clock()
    whole = Deadline(120, clock=clock)
    half = whole.part(0.5)
    clock.now += 60
    half.move_to(whole)
    half.check()
    assert half.left == 60
