"""One layer in both runs, and by how much its error changed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precisionlab.compare.metrics import SQNR
from precisionlab.report.cells import records_of
from precisionlab.report.diff.figures import Change
from precisionlab.report.redraw import RunFiles
from precisionlab.report.views import LayerView, layer_view

_LEAST_DB, _MOST_DB = -60.0, 120.0  # beyond these all is lost, or nothing


@dataclass(frozen=True)
class LayerChange:
    """One layer in both runs under one precision, without pins."""

    precision: str
    layer: str
    kind: str
    introduced: Change
    inherited: Change

    @property
    def weight(self) -> tuple[float, float]:
        """What it is ordered by: by how many dB its own error changed, then the error that has come together there."""
        return abs(_between(self.introduced)), abs(_between(self.inherited))


def _between(change: Change) -> float:
    """The change in dB between what counts as lost and as right, so that no ∞ outweighs all others."""
    if change.before is None or change.after is None:
        return 0.0
    low, high = map(_bounded, (change.before, change.after))
    return high - low


def _bounded(decibel: float) -> float:
    return _LEAST_DB if math.isnan(decibel) else min(max(decibel, _LEAST_DB), _MOST_DB)


def layers_of(files: RunFiles) -> dict[tuple[str, str], LayerView]:
    """Each row of `layers.csv`, by precision and layer."""
    return {(str(row["precision"]), str(row["layer"])): layer_view(row) for row in records_of(files.layers)}


def layer_change(key: tuple[str, str], old: LayerView, new: LayerView) -> LayerChange:
    """One row in both runs; `key` is its precision and layer."""
    introduced = Change(SQNR, old.introduced, new.introduced)
    return LayerChange(*key, new.kind, introduced, Change(SQNR, old.inherited, new.inherited))
