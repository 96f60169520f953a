"""What every backend can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.precision import PrecisionPlan

Progress = Callable[[int], None]
"""Called with the number of samples done."""


class Backend(Protocol):
    """Builds variants of one model and compares them with the float32 reference."""

    name: str
    figures: str
    """Where its error figures come from: "emulated" or "measured"."""
    threads: int
    model: Model
    """The model at the shapes of the data."""

    def collect_ranges(self, samples: Iterable[Sample], tensors: Sequence[str], progress: Progress) -> CalibrationTable:
        """The largest magnitude of each of these float32 tensors in the reference."""
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
