"""The calibration method `auto`: candidates are run and compared, and the best is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from precisionlab.calibration.auto import cheapest_ranges
from precisionlab.calibration.table import CalibrationTable
from precisionlab.calibration.thresholds import AUTO
from precisionlab.compare.comparison import Comparison
from precisionlab.model import Model
from precisionlab.observer import Observer

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
