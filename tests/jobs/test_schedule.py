"""A budget is for the whole sweep: what cannot be left out is kept, the rest is shared; and what is left is told."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import proto

from precisionlab.cli import progress
from precisionlab.cli.console import Console
from precisionlab.compare.comparison import Comparison
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.sweep_schedule import BY_ITSELF, Foretelling, Schedule, announcement
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.outcome import Variant
from precisionlab.search.pins import most_evaluations, most_left
from precisionlab.system.deadline import BudgetExhausted
from precisionlab.system.observer import Foretold, Silent
from precisionlab.system.wording import duration

FP16, INT8 = Precision.FP16, Precision.INT8
REPORT = 0.5 + 0.005 * 100  # of 100 layers, for each precision


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def took(chosen: float, held_out: float | None = None, met: bool = False) -> Variant:
    """A variant that was measured in so many seconds, on 8 samples, and on 4 that were held out."""

    def compared(samples: int, seconds: float) -> Comparison:
        return Comparison(samples, {}, {}, {}, seconds=seconds)

    other = None if held_out is None else compared(4, held_out)
    return Variant("x", PrecisionPlan("0" * 64, FP16), compared(8, chosen), "emulated", (), met, other)


def begun(budget: float | None, *precisions: Precision, spent: float = 0.0) -> tuple[Schedule, Clock]:
    """A sweep of 100 layers whose float32 took 2 s, and all until now so many."""
    clock = Clock()
    schedule = Schedule(budget, clock)
    clock.now += spent
    schedule.begin(took(2.0), precisions, 100)
    return schedule, clock


def test_what_cannot_be_left_out_is_kept_and_the_search_gets_the_rest() -> None:
    schedule, clock = begun(60, FP16, spent=5)
    assert schedule.needed == pytest.approx(6 + 6 + 1.0)  # as it is, the plan found, the report
    assert schedule.to_search().left == pytest.approx(55 - 13)
    clock.now += 9
    schedule.compared(took(8.0, 1.0))
    assert schedule.needed == pytest.approx(9 + 1.0), "the plan takes what the precision as it is took"
    deadline = schedule.to_search()
    assert deadline.left == pytest.approx(46 - 10)
    clock.now += 36
    with pytest.raises(BudgetExhausted, match="the budget of 60 s is spent"):
        deadline.check()
    schedule.finished()
    assert schedule.needed == pytest.approx(1.0)


def test_precisions_share_evenly_and_what_one_leaves_is_for_those_behind_it() -> None:
    schedule, clock = begun(125, FP16, INT8, spent=5)
    report = 1.5
    schedule.compared(took(10.0))
    kept = 10 + (10 + 10) + report
    assert schedule.to_search().left == pytest.approx((120 - kept) / 2)
    schedule.finished()  # it was right at once
    assert schedule.to_search().left == pytest.approx(120 - 20 - report)
    clock.now += 10
    schedule.compared(took(10.0))
    assert schedule.to_search().left == pytest.approx(110 - 10 - report)


def test_where_the_budget_is_too_small_it_is_said_how_much_it_takes_and_nothing_is_searched() -> None:
    schedule, clock = begun(10, FP16, spent=5)
    assert schedule.said.startswith("the budget of 10 s is too small: what cannot be left out takes about 18 s (")
    with pytest.raises(BudgetExhausted):
        schedule.to_search().check()
    assert schedule.left == "about 13 s left at most"
    clock.now += 30
    assert schedule.left == "about 13 s left at most", "however late it is, that much is to come"
    enough, _ = begun(60, FP16, spent=5)
    assert enough.said.startswith("of the budget of 60 s about 13 s are kept for what cannot be left out (")
    assert enough.said.endswith("and 42 s are for int8 ranges, repairs, ranking and search")


def test_engines_are_kept_time_for_by_what_that_of_float32_took() -> None:
    schedule = Schedule(1000, clock := Clock())
    schedule.begin(took(2.0), [FP16], 100, engine=100.0)
    assert schedule.needed == pytest.approx((6 + 100) + (6 + 200) + 1.0)
    clock.now += 106
    schedule.compared(took(6.0))
    assert schedule.needed == pytest.approx(206 + 1.0)


def test_the_first_comparison_loads_libraries_too_and_the_samples_held_out_tell_what_one_takes() -> None:
    schedule = Schedule(None, Clock())
    schedule.begin(took(9.0, 0.5), [FP16], 100)
    assert schedule.needed == pytest.approx(2 * 3 * (1.0 + 0.5) + 1.0)


def test_what_is_left_is_told_without_a_search_and_with_one_until_it_is_known_which() -> None:
    schedule, clock = begun(None, FP16)
    assert schedule.to_search().left is None
    assert schedule.said == ""
    search = 5 * 2 + 2 * (most_evaluations(100) + most_left(11))
    assert schedule.left == f"about {REPORT + 2:.0f} s left, about {duration(13 + search)} with a search"
    schedule.compared(took(6.0))
    # Repairs are tried first, and may be all that it takes.
    assert schedule.left == f"about {duration(7 + 10)} left, about {duration(7 + search)} with a search"
    clock.now += 20
    assert schedule.left == f"about {7 + 2} s left, about {duration(7 + search - 8)} with a search"
    schedule.searching(30.0)
    assert schedule.left == "about 37 s left"
    clock.now += 20
    assert schedule.left == "about 17 s left"


def test_what_is_left_of_tries_goes_by_what_the_sets_take_that_are_still_to_be_tried() -> None:
    schedule, clock = begun(None, Precision.INT8)
    schedule.compared(took(6.0))
    schedule.trying(240.0)
    assert schedule.left.startswith(f"about {duration(7 + 240)} left, ")
    clock.now += 60
    assert schedule.left.startswith(f"about {duration(7 + 180)} left, ")
    schedule.trying(120.0)  # fewer than was thought
    assert schedule.left.startswith(f"about {duration(7 + 120)} left, ")
    schedule.finished()
    assert schedule.left == "about 1 s left"


def test_of_precisions_that_are_still_to_come_nobody_knows_whether_they_are_searched_for() -> None:
    schedule, _ = begun(None, FP16, Precision.INT8)
    schedule.compared(took(6.0))
    schedule.searching(30.0)
    search = 48 * 2 + 2 * (most_evaluations(100) + most_left(11))
    report = 2 * REPORT - 0.5
    sure, with_it = report + 6 + 30 + 2, report + 6 + 30 + 12 + search
    assert schedule.left == f"about {duration(sure)} left, about {duration(with_it)} with a search"


def test_what_is_left_of_each_layer_by_itself_is_told_too_and_comes_last() -> None:
    clock = Clock()
    schedule = Schedule(None, clock)
    schedule.begin(took(3.0), [FP16], 100, by_itself=0.5)
    each = 2 * 100 * 0.5 * 3 / BY_ITSELF
    schedule.compared(took(9.0))
    schedule.searching(30.0)
    assert schedule.left == f"about {duration(REPORT + 9 + 30 + each)} left"
    schedule.searched()
    assert schedule.left == f"about {duration(REPORT + each)} left"
    clock.now += 20
    assert schedule.left == f"about {duration(REPORT + each - 20)} left"
    schedule.finished()
    assert schedule.left == "about 1 s left"


def test_of_a_precision_that_is_right_as_it_is_no_search_is_to_come() -> None:
    schedule, _ = begun(None, FP16)
    schedule.compared(took(6.0, met=True))
    assert schedule.left == "about 1 s left"


def test_where_a_plan_is_given_no_search_is_to_come() -> None:
    schedule = Schedule(None, Clock())
    schedule.begin(took(2.0), [FP16], 100, searched=False)
    assert schedule.left == "about 13 s left"


def test_nothing_is_told_before_anything_is_known() -> None:
    assert Schedule(None, Clock()).left == ""
    assert Schedule(60, Clock()).left == "about 60 s left at most"


def test_how_much_there_is_to_do_is_announced_in_passes_and_not_in_seconds() -> None:
    text = announcement((FP16, INT8), 17, 48, searched=True)
    assert text.startswith(
        "4 passes over 48 samples at least: fp32, what its tensors hold, fp16 and int8 as they are; "
    )
    assert "up to 12 plans until one does" in text
    assert " s" not in text.replace(" samples", "").replace(" s,", "")
    assert announcement((FP16,), 17, 1, searched=False) == (
        "3 passes over 1 sample at least: fp32, what its tensors hold, fp16 as it is, and the plan"
    )


def test_a_log_has_what_is_left_at_the_end_of_a_stage_s_line_and_no_line_more() -> None:
    stream = io.StringIO()
    lines = progress._Lines(Console(file=stream, width=200))
    assert isinstance(lines, Foretold)
    schedule = Schedule(90, clock := Clock())
    told = Foretelling(lines, schedule)
    told.stage("fp16, plan 3: 2 pins", 8)
    clock.now += 30
    told.advance(4)
    told.note("  2 pins: holds")
    told.stage("fp16, plan 4: 1 pin", 8)
    assert stream.getvalue().splitlines() == [
        "fp16, plan 3: 2 pins (8 samples) · about 1.5 min left at most",
        "  2 pins: holds",
        "fp16, plan 4: 1 pin (8 samples) · about 60 s left at most",
    ]


def test_in_a_terminal_a_long_title_gives_way_to_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress() as bars:
        told = Foretelling(bars, Schedule(90, Clock()))
        told.stage("fp16 with 1 repair, constants not clamped and a name", 48)
        told.advance(48)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    assert any(re.fullmatch(r"fp16 with 1 repair, const… \S+ +48/48 about 1\.5 min left at most *", x) for x in lines)
    assert max(map(len, lines)) <= 80


def test_an_observer_that_wants_no_such_thing_is_told_as_before() -> None:
    assert not isinstance(Silent(), Foretold)
    Foretelling(Silent(), Schedule(9, Clock())).stage("fp16", 8)


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.lefts: list[str] = []

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        self.notes.append(title)

    def left(self, text: str) -> None:
        self.lefts.append(text)

    def advance(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(("budget", "is_enough"), [("0.001s", False), ("10m", True)])
def test_a_sweep_does_what_cannot_be_left_out_whatever_the_budget(tmp_path: Path, budget: str, is_enough: bool) -> None:
    body = "(float[1,4] x) => (float[1,4] y) { a = Mul(x, big) b = Mul(a, little) y = Relu(b) }"
    constants = {"big": np.float32([1e6]), "little": np.float32([1e-6])}
    onnx.save_model(proto(body, constants), tmp_path / "m.onnx")
    (tmp_path / "data").mkdir()
    for index in range(4):
        np.save(tmp_path / "data" / f"{index}.npy", np.float32([[1, 2, 3, 4 + index]]))
    heard = Heard()
    result = sweep(
        tmp_path / "m.onnx", tmp_path / "data", precisions="fp16", budget=budget, threads=1, repair=False,
        ladder="fp32", out=tmp_path / "run", observer=heard,
    )  # fmt: skip
    (found,) = result.precisions
    said = [note for note in heard.notes if "budget" in note]
    assert ("too small" in said[0]) != is_enough
    assert found.low.comparison.samples
    assert found.mixed.met == is_enough
    assert (found.verdict.state.value == "not finished") != is_enough
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(heard.lefts) > 2
    assert all(text.endswith("left at most") for text in heard.lefts if text)
