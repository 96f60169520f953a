"""Exponentials of what lies below the largest of it: none is more than 1 then.

log(Σe^x + c) = M + log(Σe^(x − M) + e^(log c − M)) with M = max(x, log c), and e^x / Σe^x does not change where all x
are shifted. e^x leaves float16 from 11.1 on.
Source: P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA
Journal of Numerical Analysis 41 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Proposal, Sight, node_of, proposed, refused
from precisionlab.rewrite.repairs.front import Front
from precisionlab.rewrite.repairs.passing import is_constant, scalar_of
from precisionlab.rewrite.repairs.reductions import axes_of, has_known_axes, keeps_dims, over_axes
from precisionlab.rewrite.repairs.scaling import stand_in

_BOUND = 2.0**15
"""M stays within it: a row of −Inf is shifted by no Inf."""


@dataclass(frozen=True)
class _Sum:
    """Σe^x over what `over` reduces, or e^x of each of `exponents` added up with `added`, which is 0 or more.

    `node` takes it: a logarithm, or a quotient of one e^x and its sum.
    """

    node: ir.Node
    exponents: tuple[ir.Value, ...]
    over: ir.Node | None
    added: float
    exponentials: tuple[ir.Node, ...]


class ShiftExponential:
    """e^(x − M) in the place of e^x."""

    name = "shift_exponential"
    title = "exponentials of what lies below the largest"

    def find(self, sight: Sight) -> Iterator[Proposal]:
        """One for each logarithm of a sum of exponentials, and each quotient of one and its sum, that break."""
        for node in sight.model.onnx.graph:
            found = _sum(node)
            behind = [] if found is None else _behind(found)
            if found is not None and sight.may_replace(behind, found.exponents):
                yield from proposed(sight, behind, self.name, Exactness.ROUNDING, (str(node.name),))

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Shift what is raised. Raises PlanError where the node takes no sum of exponentials."""
        node = node_of(graph, repair)
        found = _sum(node)
        if found is None:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) takes no sum of exponentials")
        stand_in(graph, node.outputs[0], _rewritten(Front(graph, node), found))


def _rewritten(front: Front, found: _Sum) -> ir.Value:
    (first, *more), over = found.exponents, found.over
    largest = front.largest(first, over, keepdims=True) if over is not None else first
    others = [*more, *([front.number(math.log(found.added), "log")] if found.added else [])]
    bounds = (front.number(-_BOUND, "least"), front.number(_BOUND, "most"))
    largest = front.op("Min", front.op("Max", largest, *others, bounds[0]), bounds[1])
    parts = [front.op("Exp", front.op("Sub", value, largest)) for value in (first, *others)]
    total = parts[0]
    if over is not None:
        total = front.like(over, total)
    for part in parts[1:]:
        total = front.op("Add", total, part)
    if found.node.op_type == "Div":
        return front.op("Div", parts[0], total)
    if over is not None and not keeps_dims(over):
        largest = front.added(over_axes(front.graph, "Squeeze", largest, axes_of(over)))
    return front.op("Add", largest, front.op("Log", total))


def _behind(found: _Sum) -> list[ir.Node]:
    """The nodes from the exponentials to what takes their sum."""
    total = found.node.inputs[0 if found.node.op_type == "Log" else 1]
    made = total.producer() if total is not None else None
    return [*found.exponentials, *([made] if made is not None else []), found.node]


def _sum(node: ir.Node) -> _Sum | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Log":
        return _added_up(node, _producer(node.inputs[0])) or _reduced(node, _producer(node.inputs[0]))
    if node.op_type == "Div":
        found = _reduced(node, _producer(node.inputs[1]))
        is_share = found is not None and found.over is not None and node.inputs[0] is found.over.inputs[0]
        return found if is_share and found is not None and found.over is not None and keeps_dims(found.over) else None
    return None


def _reduced(node: ir.Node, total: ir.Node | None) -> _Sum | None:
    if total is None or total.op_type != "ReduceSum" or not has_known_axes(total):
        return None
    power = _producer(total.inputs[0])
    if power is None or power.op_type != "Exp" or power.inputs[0] is None:
        return None
    return _Sum(node, (power.inputs[0],), total, 0.0, (power,))


def _added_up(node: ir.Node, total: ir.Node | None) -> _Sum | None:
    if total is None or total.op_type != "Add":
        return None
    powers, added = list[ir.Node](), 0.0
    for value in total.inputs:
        power = _producer(value)
        if is_constant(value) and (number := scalar_of(value)) is not None and number > 0:
            added = number
        elif power is not None and power.op_type == "Exp" and power.inputs[0] is not None:
            powers.append(power)
        else:
            return None
    exponents = tuple(power.inputs[0] for power in powers if power.inputs[0] is not None)
    return _Sum(node, exponents, None, added, tuple(powers)) if exponents else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None
