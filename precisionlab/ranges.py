"""The INT8 ranges of a job: all methods from one pass, and `auto`, which runs and compares them and takes the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from precisionlab.calibration.auto import cheapest_ranges
from precisionlab.calibration.table import CalibrationTable
from precisionlab.calibration.thresholds import AUTO, DEFAULT_METHOD, METHODS, table_of
from precisionlab.compare.comparison import Comparison
from precisionlab.evaluator import Evaluator
from precisionlab.model import Model
from precisionlab.observer import Observer
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.rewrite.flow import int8_operands, with_held_pins

Compare = Callable[[str, CalibrationTable, bool], Comparison]
"""Compares the INT8 model under a table, by its name; the flag asks for each layer's own error too."""


def best_table(
    model: Model, methods: Mapping[str, CalibrationTable], compare: Compare, see: Observer
) -> CalibrationTable:
    """The table under which the INT8 model loses least: one method for all tensors, or the cheapest for each.

    Each candidate is run and compared, and judged by the relative error of the worst final output.
    """
    found = {name: compare(name, table, True) for name, table in methods.items()}
    mixed = cheapest_ranges(model, methods, {name: comparison.introduced for name, comparison in found.items()})
    losses = {name: comparison.worst("rel_l2") for name, comparison in found.items()}
    losses[AUTO] = compare("the cheapest method for each tensor", mixed, False).worst("rel_l2")
    best = min(losses, key=lambda name: (math.isnan(losses[name]), losses[name]))
    figures = ", ".join(f"{name} {loss:.3g}" for name, loss in losses.items())
    see.note(f"  relative error of the final output by ranges: {figures}; taken: {best}")
    return mixed if best == AUTO else methods[best]


def ranges_by_method(evaluator: Evaluator) -> Mapping[str, CalibrationTable]:
    """By each method the ranges of every tensor that an int8 layer quantises; from one pass."""
    model, chosen, see = evaluator.model, evaluator.chosen, evaluator.see
    operands = dict.fromkeys(name for layer in model.layers for name in int8_operands(model, layer))
    see.stage("int8 ranges", len(chosen))
    collector = evaluator.backend.collector(tuple(operands))
    collector.add(chosen, see.advance)
    found = collector.histograms()
    return {name: table_of(found, name, len(chosen)) for name in METHODS}


def chosen_ranges(evaluator: Evaluator, methods: Mapping[str, CalibrationTable], method: str) -> CalibrationTable:
    """The ranges by one method, or with `auto` the best of all."""
    if method != AUTO:
        return methods[method]
    return best_table(evaluator.model, methods, partial(compared_with, evaluator), evaluator.see)


def compared_with(evaluator: Evaluator, name: str, table: CalibrationTable, introduced: bool) -> Comparison:
    """The int8 model under these ranges, with float32 around its int8 layers."""
    model = evaluator.model
    plan = with_held_pins(model, PrecisionPlan(model.sha256, Precision.INT8), table)
    title = "int8" if name == DEFAULT_METHOD else f"int8, ranges by {name}"
    return evaluator.compare(title, plan, table, introduced=introduced)
