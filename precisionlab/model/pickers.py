"""How operators that pick rows by value decide, where constants tell it: NonMaxSuppression, masks of a threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SAME_ORDER = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast"})


@dataclass(frozen=True)
class Suppression:
    """A NonMaxSuppression with constant limits: the tensors it takes, and what it keeps of them.

    `most` boxes of each class, of scores above `score` if there is one, and of overlaps not above `iou`. Boxes are
    `centered` (x, y, width, height) or two corners.
    """

    boxes: str
    scores: str
    most: int
    iou: float
    score: float | None
    centered: bool


@dataclass(frozen=True)
class Threshold:
    """A comparison with a constant whose mask picks rows: of which tensor's values, in C order, and how."""

    values: str
    line: float
    operator: str

    def passes(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the values pass."""
        line = values.dtype.type(self.line)
        compare: dict[str, Callable[[Any, Any], Any]] = {
            "Greater": np.greater,
            "GreaterOrEqual": np.greater_equal,
            "Less": np.less,
            "LessOrEqual": np.less_equal,
        }
        return np.asarray(compare[self.operator](values, line), np.bool_)


def suppression_of(node: ir.Node) -> Suppression | None:
    """How a NonMaxSuppression goes about it; None where that hangs on the input."""
    if node.op_type != "NonMaxSuppression" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    limits: list[float | None] = []
    for value in (*node.inputs[2:5], *[None] * (5 - len(node.inputs))):
        constant = None if value is None else value.const_value
        if value is not None and constant is None:
            return None
        limits.append(None if constant is None else float(constant.numpy().reshape(-1)[0]))
    form = node.attributes.get("center_point_box")
    is_centered = form is not None and form.as_int() == 1
    boxes, scores = str(node.inputs[0].name), str(node.inputs[1].name)
    return Suppression(boxes, scores, int(limits[0] or 0), limits[1] or 0.0, limits[2], is_centered)


def threshold_of(picker: ir.Node) -> Threshold | None:
    """The comparison with a constant whose mask a NonZero or Compress goes by; None for any other."""
    places = {"NonZero": 0, "Compress": 1}
    if picker.op_type not in places:
        return None
    value, node = picker.inputs[places[picker.op_type]], None
    while value is not None and (node := value.producer()) is not None and node.op_type in _SAME_ORDER:
        value = node.inputs[0]
    if node is None or node.op_type not in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        return None
    values, line = node.inputs
    if values is None or line is None or line.const_value is None or line.const_value.size != 1:
        return None
    return Threshold(str(values.name), float(line.const_value.numpy().reshape(-1)[0]), node.op_type)
