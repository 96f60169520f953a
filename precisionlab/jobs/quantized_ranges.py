"""The quantized ranges of one model: those by the default method, and where they do not hold the best of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from precisionlab.calibration.methods import AUTO, default_method
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.ranges import Methods, chosen_ranges, compared_with, held_to, named_method
from precisionlab.search.pinning import figures_text


@dataclass(frozen=True)
class Ranges:
    """The ranges of one model in a precision, and the method that found them; neither where the precision needs none.

    `figures` is a line for the user: what several methods were chosen from by; empty where there was no choice.
    """

    method: str | None = None
    table: CalibrationTable | None = None
    figures: str = ""


NO_RANGES = Ranges()


def ranges_that_hold(
    evaluator: Evaluator,
    methods: Methods,
    tolerance: Tolerance,
    trying: Evaluator | None = None,
    others: Callable[[], Methods] = dict,
) -> Ranges:
    """The ranges by the default method; where these do not hold, the best of all, with which `trying` compares.

    They cost nothing at run time, pins do. They are judged with float32 around the layers, whatever is there: what
    fp16 does is not theirs to fix. The held-out samples may refute the default's, as they do a set of pins; which
    others are taken then they have no say in. `others` finds further methods, which are tried then alone.
    """
    usual, table = next(iter(methods.items()))
    refuted = _refuted(evaluator, table, tolerance)
    if not refuted:
        return Ranges(usual, table)
    kind = "ranges" if table.precision.needs_ranges else "scales"
    evaluator.observer.note(f"{table.precision} with {usual} {kind}{refuted}: trying others before any pin")
    return best_ranges(trying or evaluator, {**methods, **others()})


def best_ranges(evaluator: Evaluator, methods: Methods) -> Ranges:
    """The ranges under which the precision loses least, of all methods, on the samples that choose."""
    found = ranges_of_method(evaluator, methods, AUTO)
    usual, table = next(iter(methods.items()))
    return Ranges(usual, table) if found.table == table else found


def ranges_of_method(evaluator: Evaluator, methods: Methods, method: str) -> Ranges:
    """The ranges by one method, or with `auto` the best of all."""
    found = chosen_ranges(evaluator, methods, method)
    return Ranges(named_method(method, found.table), found.table, found.figures)


def _refuted(evaluator: Evaluator, default: CalibrationTable, tolerance: Tolerance) -> str:
    """By which figures the default's ranges do not hold; empty where they do."""
    usual = default_method(default.precision)
    low = compared_with(evaluator, usual, default, introduced=True)
    if not meets(low, tolerance):
        return f": {figures_text(low, tolerance)}"
    held_out = held_to(evaluator, usual, default)
    if held_out is None or meets(held_out, tolerance):
        return ""
    return f": {figures_text(held_out, tolerance)} on the held-out samples"
