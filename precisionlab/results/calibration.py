"""What a calibration found, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Model


@dataclass(frozen=True)
class CalibrationFindings:
    """The ranges found, and where they were written.

    `table` holds the ranges of the chosen method, `methods` those of every method. `facts` is what the
    fingerprint says beside the ranges. `cache` is None for a shard, which has only its histograms.
    """

    model: Model
    table: CalibrationTable
    methods: Mapping[str, CalibrationTable]
    histograms: Mapping[str, Histogram]
    facts: Mapping[str, Any]
    folder: Path
    cache: Path | None
