"""One step of an LSTM, a GRU or an RNN, with what of it is stored in the precision.

Source: onnx-tensorrt's importers of LSTM, GRU and RNN (onnxOpImporters.cpp, 10.1) make an ILoop of MatrixMultiply,
ElementWise and Activation layers, whose states are IRecurrenceLayers. In a half network each layer gives half unless it
is fused with the next: a chain of elementwise layers behind a multiplication is, and its sums stay in float32 until the
last one is stored. So this is rounded:

- the sum that goes into an activation, once: X·Wᵀ + H·Rᵀ + biases + peepholes (clipped before);
- what each activation gives;
- what goes into another multiplication: r ⊙ H, or H·Rᵀ + Rb before the reset gate is applied;
- the states, at every step: C = f ⊙ C + i ⊙ c and H = o ⊙ h(C), H = (1 − z) ⊙ h + z ⊙ H.

The other reading, every layer of the loop rounded by itself (both products, and each sum of a gate, too), costs 1.2 dB
more of an LSTM and 2 dB of a GRU in fp16 (random weights, 400 steps). It is not taken: compilers do fuse such chains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from precisionlab.model.recurrent import Direction, Recurrence
from precisionlab.rewrite.recurrent.steps import Steps


@dataclass(frozen=True)
class Weights:
    """Of one direction: `hidden` R (gates · size, size), `hidden_bias` the R half of B, `peepholes` of P, if any."""

    hidden: ir.Value
    hidden_bias: ir.Value | None
    peepholes: ir.Value | None


class Cell(Protocol):
    """One step: from H·W of the input with its biases, (batch, gates · size), and the states to the next states."""

    states: int

    def step(self, steps: Steps, sums: ir.Value, states: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """The next states, each (batch, size) and rounded; the first is what the layer gives."""
        ...


def cell_of(recurrence: Recurrence, direction: Direction, weights: Weights, outside: Steps) -> Cell:
    """The cell of a direction; `outside` makes what is the same at every step."""
    return _CELLS[recurrence.op_type](recurrence, direction, weights, outside)


class _Cell:
    states = 1

    def __init__(self, recurrence: Recurrence, direction: Direction, weights: Weights, outside: Steps) -> None:
        self._recurrence = recurrence
        self._functions = direction.activations
        self._weights = weights
        self._size = recurrence.hidden_size

    def _gate(self, steps: Steps, sums: ir.Value, function: int) -> ir.Value:
        """An activation of a sum: clipped and rounded, and rounded again."""
        taken = steps.rounded(steps.clipped(sums, self._recurrence.clip))
        return steps.rounded(steps.activated(taken, self._functions[function]))

    @staticmethod
    def _product(steps: Steps, state: ir.Value, weight: ir.Value, added: ir.Value) -> ir.Value:
        return steps.op("Gemm", [state, weight, added], transB=1)


class _RnnCell(_Cell):
    """H = f(X·Wᵀ + H·Rᵀ + Wb + Rb)."""

    def step(self, steps: Steps, sums: ir.Value, states: Sequence[ir.Value]) -> Sequence[ir.Value]:
        return [self._gate(steps, self._product(steps, states[0], self._weights.hidden, sums), 0)]


class _GruCell(_Cell):
    """z, r = f(X·Wᵀ + H·Rᵀ + Wb + Rb); h = g(X·Wᵀ + (r ⊙ H)·Rᵀ + Rb + Wb), or g(X·Wᵀ + r ⊙ (H·Rᵀ + Rb) + Wb)."""

    def __init__(self, recurrence: Recurrence, direction: Direction, weights: Weights, outside: Steps) -> None:
        super().__init__(recurrence, direction, weights, outside)
        sizes = [2 * self._size, self._size]
        self._hidden = outside.split(weights.hidden, sizes, 0)
        bias = weights.hidden_bias
        self._bias = outside.scalar(0) if bias is None else outside.split(bias, sizes, 0)[1]

    def step(self, steps: Steps, sums: ir.Value, states: Sequence[ir.Value]) -> Sequence[ir.Value]:
        (state,) = states
        gates, candidate = steps.split(sums, [2 * self._size, self._size], 1)
        gates = self._gate(steps, self._product(steps, state, self._hidden[0], gates), 0)
        update, reset = steps.split(gates, [self._size, self._size], 1)
        if self._recurrence.linear_before_reset:
            linear = steps.rounded(self._product(steps, state, self._hidden[1], self._bias))
            candidate = steps.op("Add", [candidate, steps.op("Mul", [reset, linear])])
        else:
            left = steps.rounded(steps.op("Mul", [reset, state]))
            candidate = self._product(steps, left, self._hidden[1], candidate)
        candidate = self._gate(steps, candidate, 1)
        new = steps.op("Mul", [steps.op("Sub", [steps.scalar(1), update]), candidate])
        return [steps.rounded(steps.op("Add", [new, steps.op("Mul", [update, state])]))]


class _LstmCell(_Cell):
    """i, o, f, c of X·Wᵀ + H·Rᵀ + Wb + Rb (+ P ⊙ C); C = f ⊙ C + i ⊙ c; H = o ⊙ h(C)."""

    states = 2

    def __init__(self, recurrence: Recurrence, direction: Direction, weights: Weights, outside: Steps) -> None:
        super().__init__(recurrence, direction, weights, outside)
        peepholes = weights.peepholes
        self._peepholes = None if peepholes is None else outside.split(peepholes, [self._size] * 3, 0)

    def step(self, steps: Steps, sums: ir.Value, states: Sequence[ir.Value]) -> Sequence[ir.Value]:
        hidden, cell = states
        size = self._size
        sums = self._product(steps, hidden, self._weights.hidden, sums)
        if self._peepholes is None:
            gates, candidate = steps.split(sums, [3 * size, size], 1)
            enter, leave, forget = steps.split(self._gate(steps, gates, 0), [size] * 3, 1)
        else:
            enter, leave, forget, candidate = steps.split(sums, [size] * 4, 1)
            enter = self._gate(steps, self._peeped(steps, enter, cell, 0), 0)
            forget = self._gate(steps, self._peeped(steps, forget, cell, 2), 0)
        if self._recurrence.coupled:
            forget = steps.rounded(steps.op("Sub", [steps.scalar(1), enter]))
        candidate = self._gate(steps, candidate, 1)
        kept, new = steps.op("Mul", [forget, cell]), steps.op("Mul", [enter, candidate])
        cell = steps.rounded(steps.op("Add", [kept, new]))
        if self._peepholes is not None:
            leave = self._gate(steps, self._peeped(steps, leave, cell, 1), 0)
        # ONNX Runtime does not clip what goes into h, TensorRT does: there the bound is of the cell's state too.
        shown = steps.rounded(steps.activated(cell, self._functions[2]))
        return [steps.rounded(steps.op("Mul", [leave, shown])), cell]

    def _peeped(self, steps: Steps, value: ir.Value, cell: ir.Value, index: int) -> ir.Value:
        assert self._peepholes is not None
        return steps.op("Add", [value, steps.op("Mul", [self._peepholes[index], cell])])


_CELLS: Mapping[str, type[_RnnCell] | type[_GruCell] | type[_LstmCell]] = {
    "LSTM": _LstmCell,
    "GRU": _GruCell,
    "RNN": _RnnCell,
}
