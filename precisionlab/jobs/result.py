"""What a job gives back to its user: its findings, with their tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from precisionlab.results.calibration import CalibrationFindings
from precisionlab.results.compare import CompareFindings
from precisionlab.results.sweep import SweepFindings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweepResult(SweepFindings):
    """The outcome of one sweep.

    `variants` and `layers` are the tables of `variants.csv` and `layers.csv`; their columns are documented in
    `precisionlab.report.columns`. A notebook shows the report's verdict and tables.
    """

    @cached_property
    def variants(self) -> pd.DataFrame:
        """One row for each variant and final output."""
        from precisionlab.report.tables import variants_table

        return variants_table(self)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row for each layer and low precision, in topological order."""
        from precisionlab.report.tables import layers_table

        return layers_table(self)

    def _repr_html_(self) -> str:
        """How a notebook shows it: the report's verdict and tables."""
        from precisionlab.report.html import render_fragment

        return render_fragment(self.run, self.variants, self.layers, self.plans)


@dataclass(frozen=True)
class CalibrationResult(CalibrationFindings):
    """The ranges found, and where they were written; see `CalibrationFindings`."""

    @cached_property
    def ranges(self) -> pd.DataFrame:
        """One row for each tensor; the columns are documented in `precisionlab.report.columns`."""
        from precisionlab.report.ranges import ranges_table

        return ranges_table(self)


@dataclass(frozen=True)
class CompareResult(CompareFindings):
    """A second model beside the first; see `CompareFindings`."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each float tensor that a layer gives, as `compare.csv` has them."""
        from precisionlab.report.compare import compare_table

        return compare_table(self)
