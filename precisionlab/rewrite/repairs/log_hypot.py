"""The logarithm of a sum of squares, as that of a hypotenuse: what is squared lies between −1 and 1 then.

log(Σx² + e) = 2·log M + log(Σ(x/M)² + (√e/M)²) with M = max(|x|, √e): of a power spectrum neither the largest nor the
smallest fits into float16, of amplitudes both do.
Source: the scaled hypotenuse of C. B. Moler and D. Morrison, "Replacing square roots by Pythagorean sums", IBM Journal
of Research and Development 27 (1983), and of every `hypot` since.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from precisionlab.model.names import all_names, new_name
from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Proposal, Sight, node_of, proposed, refused
from precisionlab.rewrite.repairs.passing import is_constant, scalar_of
from precisionlab.rewrite.repairs.reductions import reduction, squeezed
from precisionlab.rewrite.repairs.region import squared
from precisionlab.rewrite.repairs.scaling import constant, stand_in

_LEAST = 2.0**-24
"""float16's smallest number: of a sum without an epsilon, M is at least this, so that zeros are not divided by."""


@dataclass(frozen=True)
class _Power:
    """log(Σ operands² + epsilon): of several operands, or of one, summed up by the node `over` (None: not at all)."""

    operands: tuple[ir.Value, ...]
    over: ir.Node | None
    epsilon: float
    log: ir.Node


class LogHypot:
    """2·log M + log Σ(x/M)² in the place of log Σx²."""

    name = "log_hypot"
    title = "a scaled hypotenuse in the place of a sum of squares"

    def find(self, sight: Sight) -> Iterator[Proposal]:
        """One for each logarithm of a sum of squares of which something breaks."""
        for node in sight.model.onnx.graph:
            power = _power(node)
            if power is not None and not any(map(sight.has_nonfinite, _values(power))):
                yield from proposed(sight, _behind(power), self.name, Exactness.ROUNDING, (str(node.name),))

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Take the logarithm so. Raises PlanError where the node is none of a sum of squares."""
        node = node_of(graph, repair)
        power = _power(node)
        if power is None:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) takes no logarithm of a sum of squares")
        _Rewrite(graph, power).run()


def _values(power: _Power) -> list[ir.Value]:
    """All that is computed, from the operands on: Inf in the place of a square is Inf with a hypotenuse too."""
    return [*power.operands, *(value for node in _behind(power) for value in node.outputs)]


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
    epsilon, value = 0.0, log.inputs[0]
    made = value.producer() if value is not None else None
    if made is not None and made.op_type in ("Add", "Max"):
        for index in (0, 1):
            number = scalar_of(made.inputs[index]) if is_constant(made.inputs[index]) else None
            if number is not None and number >= 0 and made.op_type == "Add":
                epsilon, value = number, made.inputs[1 - index]
                break
    return _sum_of(log, value, epsilon)


def _sum_of(log: ir.Node, value: ir.Value | None, epsilon: float) -> _Power | None:
    made = value.producer() if value is not None else None
    if made is None:
        return None
    if made.op_type == "ReduceSum" and made.inputs[0] is not None:
        square = made.inputs[0].producer()
        operand = _operand(square)
        return None if operand is None else _Power((operand,), made, epsilon, log)
    if made.op_type == "Add":
        operands = [_operand(v.producer() if v is not None else None) for v in made.inputs]
        found = tuple(operand for operand in operands if operand is not None)
        return _Power(found, None, epsilon, log) if len(found) == 2 else None
    operand = _operand(made)
    return None if operand is None else _Power((operand,), None, epsilon, log)


def _operand(square: ir.Node | None) -> ir.Value | None:
    return square.inputs[0] if square is not None and square.op_type in ("Mul", "Pow") and squared(square) else None


class _Rewrite:
    """Puts the new nodes in front of the logarithm, and takes its place."""

    def __init__(self, graph: ir.Graph, power: _Power) -> None:
        self._graph, self._power = graph, power
        self._names = set(all_names(graph))

    def run(self) -> None:
        power = self._power
        root = constant(self._graph, np.float32(math.sqrt(power.epsilon) or _LEAST), f"{power.log.name}~root")
        sizes = [self._op("Abs", operand) for operand in power.operands]
        if power.over is not None:
            sizes = [self._kept("ReduceMax", sizes[0])]
        largest = self._op("Max", *sizes, root)
        parts = [self._square(operand, largest) for operand in power.operands]
        if power.over is not None:
            parts = [self._kept("ReduceSum", parts[0])]
        if power.epsilon:
            parts.append(self._square(root, largest))
        total = parts[0]
        for part in parts[1:]:
            total = self._op("Add", total, part)
        two = constant(self._graph, np.float32(2), f"{power.log.name}~two")
        result = self._op("Add", self._op("Mul", self._op("Log", largest), two), self._op("Log", total))
        if power.over is not None and power.over.attributes.get_int("keepdims", 1) == 0:
            result = self._added(squeezed(self._graph, result, power.over))
        old = power.log.outputs[0]
        result.shape = old.shape
        stand_in(self._graph, old, result)

    def _square(self, value: ir.Value, largest: ir.Value) -> ir.Value:
        part = self._op("Div", value, largest)
        return self._op("Mul", part, part)

    def _kept(self, kind: str, value: ir.Value) -> ir.Value:
        """Reduced to size one, as what it was reduced from is divided by it."""
        assert self._power.over is not None
        return self._added(reduction(self._graph, kind, value, self._power.over, keepdims=True))

    def _op(self, kind: str, *inputs: ir.Value) -> ir.Value:
        return self._added(ir.Node("", kind, inputs, num_outputs=1))

    def _added(self, node: ir.Node) -> ir.Value:
        (output,) = node.outputs
        node.name = output.name = new_name(f"{self._power.log.name}~{node.op_type}", self._names)
        output.type = ir.TensorType(ir.DataType.FLOAT)
        self._graph.insert_before(self._power.log, node)
        return output
