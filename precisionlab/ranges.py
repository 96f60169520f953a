"""The calibration method `auto`: candidates are run and compared, and the best is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping

from precisionlab.backends.base import Backend
from precisionlab.calibration.auto import cheapest_ranges
from precisionlab.calibration.table import CalibrationTable
from precisionlab.calibration.thresholds import AUTO
from precisionlab.compare.errors import ErrorSums
from precisionlab.data import Dataset
from precisionlab.observer import Observer
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.rewrite.flow import with_held_pins


def best_table(
    backend: Backend, dataset: Dataset, methods: Mapping[str, CalibrationTable], see: Observer
) -> CalibrationTable:
    """The table under which the INT8 model loses least: one method for all tensors, or the cheapest for each.

    Each candidate is run and compared; among equals the mixed one stays behind the single methods.
    """
    plan = PrecisionPlan(backend.model.sha256, Precision.INT8)
    introduced: dict[str, Mapping[str, ErrorSums]] = {}
    losses: dict[str, float] = {}
    for name, table in methods.items():
        see.stage(f"auto: {name}", len(dataset))
        found = backend.compare(
            with_held_pins(backend.model, plan, table), table, dataset, see.advance, metric=None, introduced=True
        )
        introduced[name] = found.introduced
        losses[name] = found.worst("rel_l2")
    mixed = cheapest_ranges(backend.model, methods, introduced)
    see.stage("auto: the cheapest for each tensor", len(dataset))
    found = backend.compare(
        with_held_pins(backend.model, plan, mixed), mixed, dataset, see.advance, metric=None, introduced=False
    )
    losses[AUTO] = found.worst("rel_l2")
    for name, loss in losses.items():
        see.note(f"  {name}: relative error of the final output {loss:.3g}")
    best = min(losses, key=lambda name: (math.isnan(losses[name]), losses[name]))
    return mixed if best == AUTO else methods[best]
