"""A repair: a part of the model that is computed another way, to the same result, so that it does not break."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


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

    def to_dict(self) -> dict[str, Any]:
        """The JSON object in a plan; `parameters` are the scales' exponents of 2."""
        return {
            "kind": self.kind,
            "exactness": self.exactness.value,
            "for": self.layer,
            "nodes": list(self.nodes),
            "parameters": dict(self.scales),
            "conditions": list(self.conditions),
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Repair:
        """What `to_dict` wrote. Raises ValueError that says what is wrong with anything else."""
        if not isinstance(data, Mapping):
            raise ValueError("a repair is a JSON object")
        kind, layer, scales = data.get("kind"), data.get("for"), data.get("parameters", {})
        if not isinstance(kind, str) or not isinstance(layer, str):
            raise ValueError("needs `kind` and `for`, the name of a layer")
        if not isinstance(scales, Mapping) or not all(type(scale) is int for scale in scales.values()):
            raise ValueError("`parameters` are whole numbers, exponents of 2")
        nodes = _texts(data, "nodes")
        if not nodes:
            raise ValueError("needs `nodes`, a list of ONNX node names")
        try:
            exactness = Exactness(data.get("exactness"))
        except ValueError:
            raise ValueError("`exactness` is bitwise or rounding") from None
        reason = data.get("reason", "")
        return cls(
            kind,
            exactness,
            layer,
            nodes,
            tuple((str(name), int(scale)) for name, scale in scales.items()),
            _texts(data, "conditions"),
            reason if isinstance(reason, str) else "",
        )


def _texts(data: Mapping[Any, Any], key: str) -> tuple[str, ...]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"`{key}` is a list of texts")
    return tuple(found)
