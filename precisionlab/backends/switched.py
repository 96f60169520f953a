"""Sessions that all plans of a search share: what is pinned is an input of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from precisionlab.backends.device import CPU, Device, Running
from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Model
from precisionlab.plan.arithmetic import Arithmetic
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Segment, cut
from precisionlab.rewrite.switched import base_of, differing, has_bodies, switched_parts

_LAID_OUT = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
"""ONNX Runtime lays the channels of these out in blocks on a CPU, from one to the next: not through branches, where
it would take longer, and add a pooling up in another order."""


def can_be_switched(model: Model, plan: PrecisionPlan, arithmetic: Arithmetic, device: Device) -> bool:
    """Whether the plan is one of those that sessions can be made for all together, and pins anything."""
    pinned = [name for name, precision in plan.pinned().items() if precision is Precision.FP32]
    if not pinned or not arithmetic.is_float32:
        return False
    if device is CPU and any(_LAID_OUT.intersection(layer.op_types) for layer in model.layers):
        return False
    has_insides = any(layer.inside for layer in model.layers)
    return not has_insides and not any(has_bodies(model, model.layer[name]) for name in pinned)


class SwitchedSessions:
    """The sessions for all plans that differ from one in their pins to float32."""

    def __init__(
        self,
        model: Model,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        arithmetic: Arithmetic,
        budget: int,
        device: Device,
    ) -> None:
        """`budget` is how much a graph may show for a sample."""
        copier = copier_of(arithmetic)
        self._copier = copier(GraphBuilder(model.onnx), model, table)
        self._model = model
        parts = cut(model, 1, budget)
        self._parts = list(switched_parts(model, base_of(plan), table, parts, copier))
        self._sessions = [device.session(part.graph) for part in self._parts]

    def of(self, plan: PrecisionPlan) -> list[tuple[Segment, Running]]:
        """The plan's segments, and what runs them."""
        pinned = {name for name, precision in plan.pinned().items() if precision is Precision.FP32}
        tensors = differing(self._model, plan, self._copier)
        ready: list[tuple[Segment, Running]] = []
        for part, session in zip(self._parts, self._sessions, strict=True):
            switches = {own: np.asarray(layer in pinned) for own, layer in part.switches.items()}
            ready.append((part.segment(tensors), _Switched(session, switches)))
        return ready

    def close(self) -> None:
        """Let go of the sessions."""
        for session in self._sessions:
            session.close()


class _Switched:
    """A session with its switches set."""

    def __init__(self, session: Running, switches: Mapping[str, Any]) -> None:
        self._session, self._switches = session, switches

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        return self._session.run({**feeds, **self._switches})

    def close(self) -> None:
        """Others use the session: it stays."""
