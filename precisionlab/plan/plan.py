"""A default precision, and the layers pinned to another with the reason why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from precisionlab.model.repair import Repair
from precisionlab.precision import Precision

PLAN_SCHEMA = 2
READ_SCHEMAS = (1, PLAN_SCHEMA)
"""Those that are read: the first has no repairs."""


@dataclass(frozen=True)
class Pin:
    """One layer that is given another precision than the plan's default, and why."""

    layer: str
    nodes: tuple[str, ...]
    precision: Precision
    reason: str


@dataclass(frozen=True)
class PrecisionPlan:
    """A default precision, and the layers pinned to another with the reason why.

    A pin to fp32 means that the nodes named take and give float32 values. `around` is the precision
    of the layers that int8 does not touch (every layer that is not a Conv, ConvTranspose, Gemm or
    MatMul); it only matters where the default is int8. `calibration` is the method that found the int8
    ranges; None where none were needed. `repairs` are made to the model first, in this order: nodes and layers are
    those of the repaired model then. `block` is the most numbers that one scale of an int4 weight is of; None where no
    layer is in a precision for weights alone.
    """

    model_sha256: str
    default: Precision
    pins: tuple[Pin, ...] = ()
    around: Precision = Precision.FP32
    calibration: str | None = None
    repairs: tuple[Repair, ...] = ()
    block: int | None = None

    def pinned(self) -> dict[str, Precision]:
        """Layer name → the precision that it is pinned to."""
        return {pin.layer: pin.precision for pin in self.pins}

    @cached_property
    def _by_layer(self) -> Mapping[str, Precision]:
        return self.pinned()

    def pin_of(self, layer: str) -> Precision | None:
        """The precision that the layer of this name is pinned to; None where it is not."""
        return self._by_layer.get(layer)

    @property
    def precisions(self) -> frozenset[Precision]:
        """The default and those of the pins."""
        return frozenset({self.default, *(pin.precision for pin in self.pins)})

    def with_pins(self, pins: Iterable[Pin]) -> PrecisionPlan:
        """The same plan with these pins in place of its own."""
        return replace(self, pins=tuple(pins))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `plan.json`."""
        return {
            "schema": PLAN_SCHEMA,
            "model": {"sha256": self.model_sha256},
            "default": self.default.value,
            "around": self.around.value,
            **({} if self.calibration is None else {"calibration": self.calibration}),
            **({} if self.block is None else {"block": self.block}),
            "repairs": [repair.to_dict() for repair in self.repairs],
            "pins": [
                {
                    "layer": pin.layer,
                    "nodes": list(pin.nodes),
                    "precision": pin.precision.value,
                    "reason": pin.reason,
                }
                for pin in self.pins
            ],
        }
