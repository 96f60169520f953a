"""What a sweep found, as values that can be written, read back and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precisionlab.evaluate.values import ObservedValues
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.search.outcome import EngineVariant, PrecisionResult, Variant
from precisionlab.search.verdict import Terms


@dataclass(frozen=True)
class SampleNames:
    """The samples that chose the pins and those held out, in the order of a comparison's `each`."""

    chosen: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class SweepFindings:
    """The outcome of one sweep. `run` is what `run.json` holds, `engine` the fp32 engine where there is one.

    `values` is what the reference's tensors hold, as `histograms.json` keeps it.
    """

    model: Model
    reference: Variant
    precisions: tuple[PrecisionResult, ...]
    run: Mapping[str, Any]
    values: ObservedValues
    samples: SampleNames
    folder: Path | None = None
    engine: EngineVariant | None = None

    @property
    def met(self) -> bool:
        """Whether every precision swept has the verdict that its tolerance is met."""
        return all(result.met for result in self.precisions)

    @property
    def terms(self) -> Terms:
        """What all its verdicts hang on besides the figures."""
        return self.precisions[0].terms

    @property
    def plans(self) -> dict[str, PrecisionPlan]:
        """Precision → the plan found."""
        return {result.precision.value: result.plan for result in self.precisions}
