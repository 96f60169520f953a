"""What a backend that builds engines can do beside comparing: the code above it knows of no particular one."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from precisionlab.backends.base import Backend

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.backend import Inside
    from precisionlab.backends.tensorrt.jobs import EngineTimes
    from precisionlab.calibration.table import CalibrationTable
    from precisionlab.data import Sample
    from precisionlab.plan.plan import PrecisionPlan
    from precisionlab.precision import Precision


class EngineBackend(Backend):
    """Builds each plan as an engine. It judges without being told what the reference has of NaN and Inf.

    `notes` are what was seen on the way and belongs into the report: engines that looking has changed, and the like.
    """

    is_typed: bool = False
    """Whether each layer has the type that its model gives it; else what one layer may have, all may."""
    notes: list[str]

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What measured figures depend on, `backend` and `device` among it.

        With another of these none is taken over from an earlier run.
        """

    @property
    @abstractmethod
    def device(self) -> str:
        """What engines run on, or are compiled for."""

    @property
    @abstractmethod
    def can_run(self) -> bool:
        """Whether engines can be run here; else they are only compiled, and nothing is measured."""

    @property
    @abstractmethod
    def precisions(self) -> frozenset[Precision]:
        """The low precisions that its kernels may have."""

    @abstractmethod
    def inside(self, plan: PrecisionPlan, table: CalibrationTable | None) -> Inside:
        """What the engine of a plan really is: what became of each pin, and the types that each layer runs in."""

    @abstractmethod
    def kernels(self, precision: Precision) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """The ONNX nodes that each kernel of an engine in this precision runs, by profile. Raises BuildError."""

    @abstractmethod
    def times(self, plan: PrecisionPlan, table: CalibrationTable | None, sample: Sample) -> EngineTimes:
        """How long the engine takes for one sample, and what in it."""
