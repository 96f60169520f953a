"""A budget of time ends work between samples, and is shared by what comes one after the other."""

from __future__ import annotations

import pytest

from precisionlab.system.deadline import BudgetExhausted, Deadline, Watched
from precisionlab.system.observer import Silent


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
