"""The logarithm of a sum of squares, as that of a hypotenuse: what is squared lies between −1 and 1 then.

log(Σx² + e) = 2·log M + log(Σ(x/M)² + (√e/M)²) with M = max(|x|, √e): of a power spectrum neither the largest nor the
smallest fits into float16, of amplitudes both do. The sum may be a filter bank's, M is over all that it adds up then;
what it picks may be far below M, so that the quotients are 2^g as large as they may be. A floor, log max(Σx², e), is
one of the quotients alike.
Source: the scaled hypotenuse of C. B. Moler and D. Morrison, "Replacing square roots by Pythagorean sums", IBM Journal
of Research and Development 27 (1983), and of every `hypot` since.
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
from precisionlab.rewrite.repairs.power_steps import Step, step_of
from precisionlab.rewrite.repairs.region import squared
from precisionlab.rewrite.repairs.scaling import stand_in

_LEAST = 2.0**-24
"""float16's smallest number: of a sum without an epsilon, M is at least this, so that zeros are not divided by."""
_MOST, _FURTHEST = 14, 7
"""Powers of two: sums of squared quotients stay below the first, the quotients at the second."""
_SCALE = "quotients"


@dataclass(frozen=True)
class _Power:
    """log(steps(Σ operands²) + epsilon), or of the larger of the two where it `is_floor`.

    The steps are in the order in which they are taken, of what the squares give: of one operand, or of two that are
    added up.
    """

    log: ir.Node
    operands: tuple[ir.Value, ...]
    steps: tuple[Step, ...]
    epsilon: float
    is_floor: bool


class LogHypot:
    """2·log M + log Σ(x/M)² in the place of log Σx²."""

    name = "log_hypot"
    title = "a scaled hypotenuse in the place of a sum of squares"

    def find(self, sight: Sight) -> Iterator[Proposal]:
        """One for each logarithm of a sum of squares of which something breaks."""
        for node in sight.model.onnx.graph:
            power = _power(node)
            behind = [] if power is None else _behind(power)
            if power is not None and sight.may_replace(behind, power.operands) and _has_ranks(power, sight):
                gain = _gain(power, sight)
                scales = ((_SCALE, gain),) if gain else ()
                yield from proposed(sight, behind, self.name, Exactness.ROUNDING, (str(node.name),), scales)

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Take the logarithm so. Raises PlanError where the node is none of a sum of squares."""
        node = node_of(graph, repair)
        power, gain = _power(node), dict(repair.scales).get(_SCALE, 0)
        if power is None:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) takes no logarithm of a sum of squares")
        if not isinstance(gain, int) or not 0 <= gain <= _FURTHEST:
            raise refused(repair, f"`{_SCALE}` is a power of two from 0 to {_FURTHEST}")
        stand_in(graph, node.outputs[0], _rewritten(Front(graph, node), power, gain))


def _rewritten(front: Front, power: _Power, gain: int) -> ir.Value:
    root = front.number(math.sqrt(power.epsilon) or _LEAST, "root")
    two = front.number(2, "two")
    sizes = [front.op("Abs", operand) for operand in power.operands]
    largest = sizes[0] if len(sizes) == 1 else front.op("Max", *sizes)
    for step in power.steps:
        largest = step.largest(front, largest)
    largest = front.op("Max", largest, root)
    back = largest
    for step in reversed(power.steps):
        back = step.back(front, back)

    def square(value: ir.Value, by: ir.Value) -> ir.Value:
        quotient = front.op("Div", value, by)
        if gain:
            quotient = front.op("Mul", quotient, front.number(2.0**gain, "gain"))
        return front.op("Mul", quotient, quotient)

    parts = [square(operand, back) for operand in power.operands]
    total = parts[0] if len(parts) == 1 else front.op("Add", *parts)
    for step in power.steps:
        total = step.of(front, total)
    if power.epsilon:
        total = front.op("Max" if power.is_floor else "Add", total, square(root, largest))
    base = front.op("Mul", front.op("Log", largest), two)
    if gain:
        base = front.op("Sub", base, front.number(2 * gain * math.log(2), "gained"))
    return front.op("Add", base, front.op("Log", total))


def _gain(power: _Power, sight: Sight) -> int:
    """How far the squares may be scaled up, where a filter bank may pick small ones of them."""
    if not any(step.node.op_type == "MatMul" for step in power.steps):
        return 0
    bound = float(len(power.operands))
    for step in power.steps:
        info = sight.model.tensors.get(str(step.taken.name))
        bound *= step.factor(None if info is None else info.shape)
    return max(0, min(_FURTHEST, math.floor((_MOST - math.log2(bound)) / 2))) if bound > 0 else 0


def _has_ranks(power: _Power, sight: Sight) -> bool:
    """Whether what a filter bank takes has the axis that it adds up over."""
    for step in power.steps:
        info = sight.model.tensors.get(str(step.taken.name))
        if step.node.op_type == "MatMul" and (info is None or info.shape is None or len(info.shape) <= step.index):
            return False
    return True


def _behind(power: _Power) -> list[ir.Node]:
    """The nodes from the squares to the logarithm."""
    found, waiting = [power.log], [power.log]
    while waiting:
        node = waiting.pop()
        for value in node.inputs:
            made = value.producer() if value is not None and value not in power.operands else None
            if made is not None and made not in found:
                found.append(made)
                waiting.append(made)
    return found


def _power(log: ir.Node) -> _Power | None:
    if log.op_type != "Log" or log.domain not in ("", "ai.onnx"):
        return None
    epsilon, is_floor, value = 0.0, False, log.inputs[0]
    made = value.producer() if value is not None else None
    if made is not None and (found := _floor(made)) is not None:
        epsilon, value = found
        is_floor = made.op_type != "Add"
    steps: list[Step] = []
    while value is not None and (step := step_of(value.producer())) is not None:
        steps.insert(0, step)
        value = step.taken
    operands = _operands(value.producer() if value is not None else None)
    return None if operands is None else _Power(log, operands, tuple(steps), epsilon, is_floor)


def _floor(node: ir.Node) -> tuple[float, ir.Value] | None:
    """What is added, or the least that is let pass, and what it is done to; None for a node that does neither."""
    if node.op_type == "Clip" and (len(node.inputs) < 2 or any(value is not None for value in node.inputs[2:])):
        return None
    places = {"Add": (0, 1), "Max": (0, 1), "Clip": (1,)}.get(node.op_type, ())
    if len(node.inputs) > 2 and node.op_type == "Max":
        return None
    for index in places:
        number = scalar_of(node.inputs[index]) if is_constant(node.inputs[index]) else None
        value = node.inputs[1 - index]
        if number is not None and number >= 0 and value is not None:
            return number, value
    return None


def _operands(node: ir.Node | None) -> tuple[ir.Value, ...] | None:
    """What a node squares, or the two values whose squares it adds up."""
    if node is None:
        return None
    if node.op_type == "Add":
        parts = [_operand(value.producer() if value is not None else None) for value in node.inputs]
        found = tuple(part for part in parts if part is not None)
        return found if len(found) == len(parts) else None
    operand = _operand(node)
    return None if operand is None else (operand,)


def _operand(square: ir.Node | None) -> ir.Value | None:
    return square.inputs[0] if square is not None and square.op_type in ("Mul", "Pow") and squared(square) else None
