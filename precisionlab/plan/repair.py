"""A repair: a part of the model that is computed another way, to the same result, so that it does not break."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Exactness(str, Enum):
    """What a repair does to the model in float32."""

    BITWISE = "bitwise"
    """Nothing: the same bits on every sample."""
    ROUNDING = "rounding"
    """It rounds elsewhere: within 1e-5 of the original."""


@dataclass(frozen=True)
class Repair:
    """One repair of a model, by its own names; the constants that it needs are made of the model's own.

    `kind` is the name of the pass that finds and applies it, `layer` the layer that breaks without. `nodes` are those
    that it finds there, the first of them first, and `scales` the powers of two that it computes at, by what they are
    for. `conditions` say what it rests on besides, `reason` why it was tried.
    """

    kind: str
    exactness: Exactness
    layer: str
    nodes: tuple[str, ...]
    scales: tuple[tuple[str, int], ...] = ()
    conditions: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind} at {self.nodes[0]}"
