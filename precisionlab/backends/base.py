"""What every backend can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.precision import PrecisionPlan

Progress = Callable[[int], None]
"""Called with the number of samples done."""


class Collector(Protocol):
    """Histograms of tensors in the reference, over whatever samples it is given."""

    def add(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Count the values of these samples."""
        ...

    def restore(self, histograms: Mapping[str, Histogram]) -> None:
        """Add what an earlier run has counted."""
        ...

    def histograms(self) -> dict[str, Histogram]:
        """What has been counted so far."""
        ...


class Backend(Protocol):
    """Builds variants of one model and compares them with the float32 reference."""

    name: str
    figures: str
    """Where its error figures come from: "emulated" or "measured"."""
    threads: int
    model: Model
    """The model at the shapes of the data."""

    def collector(self, tensors: Sequence[str]) -> Collector:
        """Takes the histograms of |x| of these float32 tensors from reference passes."""
        ...

    def compare(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        introduced: bool,
    ) -> Comparison:
        """Run the variant and the reference, and sum the errors of every layer's output.

        `introduced` asks for each layer's own error too, which costs about another plain pass.
        """
        ...

    def judge(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        known: Comparison,
    ) -> Comparison:
        """As `compare`, but of the layers' outputs only whether they hold a new NaN or Inf.

        `known` is an earlier comparison over the same samples.
        """
        ...
