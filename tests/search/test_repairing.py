"""The search for repairs ends when its budget does, with what it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from repairing import breaking, repair_of, samples_in

from precisionlab.compare.tolerance import default_tolerance, meets, parse_tolerance
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Source, prepare
from precisionlab.jobs.repair_trials import Means, RepairTrials
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.certificate import is_worse
from precisionlab.search.repairing import find_repairs
from precisionlab.system.deadline import Deadline, Watched
from precisionlab.system.observer import Silent

BOUNDS = default_tolerance(Precision.FP16)


class Steps:
    """A clock that goes on by one each time that it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def trials_in(folder: Path, steps: float | None) -> RepairTrials:
    """Repairs of a model that needs one, tried until so many steps are done."""
    model, data = breaking(folder), samples_in(folder, 2)
    ready = prepare(model, Source(data, {}, None, 0, 0.0, skip_bad=False), None, 1, None, Silent())
    watched = Watched(Silent(), Deadline(steps, clock=Steps()))

    def opened(of: Model) -> Means:
        made = ready.of(of, 1) if of.repairs else ready
        evaluator = made.evaluator(NoJournal(), Silent(), ready.judging(BOUNDS))
        return Means(replace(evaluator, observer=watched), made.local.look)

    return RepairTrials(opened(model), Precision.FP16, Precision.FP32, BOUNDS, opened)


@pytest.mark.parametrize("steps", [1, 5, 12, 20, 30, 40])
def test_a_budget_ends_it_anywhere_with_what_was_kept_until_then(tmp_path: Path, steps: int) -> None:
    said: list[str] = []
    found = find_repairs(trials_in(tmp_path, steps), Precision.FP16, BOUNDS, said.append)
    assert len(found.repairs) <= 2
    if not found.repairs:
        assert "is spent while repairs were tried: none so far" in said[-1]


def test_without_an_end_it_finds_what_makes_it_right(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, None)
    found = find_repairs(trials, Precision.FP16, BOUNDS, lambda text: None)
    assert [repair.kind for repair in found.repairs] == ["scale_sum_of_squares"]
    assert meets(trials.judged(found.repairs), BOUNDS)


@pytest.mark.parametrize(("steps", "proofs"), [(1, 0), (None, 1)])
def test_a_proof_that_the_budget_does_not_allow_is_missing(tmp_path: Path, steps: int | None, proofs: int) -> None:
    trials = trials_in(tmp_path, steps)
    plan = replace(PrecisionPlan("", Precision.FP16), repairs=(repair_of(),))
    assert len(trials.releases(plan)) == proofs


def test_what_holds_without_is_kept_where_it_loses_more_than_a_decibel(tmp_path: Path) -> None:
    """Its squares overflow, and what is left of the output without them is right for who asks for nothing."""
    trials, loose = trials_in(tmp_path, None), parse_tolerance(["sqnr>=-1000"])
    right, without = trials.judged((repair_of(),)), trials.judged(())
    assert is_worse(right, without, BOUNDS), "it does not hold"
    assert is_worse(right, without, loose), "it holds, with much less"
    assert not is_worse(right, right, BOUNDS)
    assert not is_worse(without, right, loose), "better is not worse"
