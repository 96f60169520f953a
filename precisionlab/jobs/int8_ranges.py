"""The int8 ranges of one model: those by the default method, and where they do not hold the best of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precisionlab.calibration.methods import AUTO, DEFAULT_METHOD
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.ranges import chosen_ranges, compared_with, held_to
from precisionlab.search.pinning import figures_text

Methods = Mapping[str, CalibrationTable]
"""By each calibration method the int8 ranges of a model."""


@dataclass(frozen=True)
class Ranges:
    """The int8 ranges of one model, and the method that found them; neither where the precision needs none.

    `figures` is a line for the user: what several methods were chosen from by; empty where there was no choice.
    """

    method: str | None = None
    table: CalibrationTable | None = None
    figures: str = ""


NO_RANGES = Ranges()


def int8_ranges(
    evaluator: Evaluator, methods: Methods, tolerance: Tolerance, trying: Evaluator | None = None
) -> Ranges:
    """The ranges by the default method; where these do not hold, the best of all, with which `trying` compares.

    They cost nothing at run time, pins do. They are judged with float32 around the int8 layers, whatever is there: what
    fp16 does is not theirs to fix. The held-out samples may refute the default's, as they do a set of pins; which
    others are taken then they have no say in.
    """
    refuted = _refuted(evaluator, methods[DEFAULT_METHOD], tolerance)
    if not refuted:
        return Ranges(DEFAULT_METHOD, methods[DEFAULT_METHOD])
    evaluator.observer.note(f"int8 with {DEFAULT_METHOD} ranges{refuted}: trying others before any pin")
    return best_ranges(trying or evaluator, methods)


def best_ranges(evaluator: Evaluator, methods: Methods) -> Ranges:
    """The ranges under which int8 loses least, of all methods, on the samples that choose."""
    found = ranges_of_method(evaluator, methods, AUTO)
    return Ranges(DEFAULT_METHOD, found.table) if found.table == methods[DEFAULT_METHOD] else found


def ranges_of_method(evaluator: Evaluator, methods: Methods, method: str) -> Ranges:
    """The ranges by one method, or with `auto` the best of all."""
    found = chosen_ranges(evaluator, methods, method)
    return Ranges(method, found.table, found.figures)


def _refuted(evaluator: Evaluator, default: CalibrationTable, tolerance: Tolerance) -> str:
    """By which figures the default's ranges do not hold; empty where they do."""
    low = compared_with(evaluator, DEFAULT_METHOD, default, introduced=True)
    if not meets(low, tolerance):
        return f": {figures_text(low, tolerance)}"
    held_out = held_to(evaluator, DEFAULT_METHOD, default)
    if held_out is None or meets(held_out, tolerance):
        return ""
    return f": {figures_text(held_out, tolerance)} on the held-out samples"
