"""A recurrent node as a loop over its sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from precisionlab.model.recurrent import GATES, Direction, Recurrence, recurrence_of
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.recurrent.cells import Cell, Weights, cell_of
from precisionlab.rewrite.recurrent.steps import Steps

Inputs = Sequence[ir.Value | None]

FLOAT = ir.DataType.FLOAT
_INITIAL = (5, 6)
"""The inputs that the states begin from: initial_h, initial_c."""
_SLICE_INPUTS = 10
"""From this opset on Slice takes its ends as inputs."""
_RANKS = (4, 3, 3)
"""Of Y, Y_h, Y_c."""
_SWAP = (1, 0, 2)
_SEQUENCE_SECOND = (2, 0, 1, 3)
"""From (steps, directions, batch, size) to (batch, steps, directions, size)."""


def stepped(
    builder: GraphBuilder, node: ir.Node, inputs: Inputs, precision: Precision, prefix: str
) -> Sequence[ir.Value]:
    """What stands for the outputs of an LSTM, a GRU or an RNN that keeps its states in `precision`.

    A Loop for each direction, whose body is one step (`cells`). `inputs` are the node's own, by index, as values of the
    builder's graph that hold float32, rounded already; All outputs hold values of
    the precision, in float32; those that the node leaves out are values without a producer.

    In float32 nothing is rounded, and it is the operator: what a sample has behind its length is 0 in Y, and the states
    stay as they were; those of a sample whose length is 0 are 0, as ONNX Runtime gives them. Where the sequence itself
    has no steps they are the initial ones (there ONNX Runtime 1.32 gives what its memory held, and its GRU aborts).
    """
    recurrence = recurrence_of(node)
    steps = Steps(builder, f"{prefix}{node.name}", precision)
    given: list[ir.Value | None] = [*inputs, *[None] * (8 - len(inputs))]
    if recurrence.batch_first:
        given = _sequence_first(steps, given)
    ways = [_way(steps, recurrence, index, given) for index in range(len(recurrence.directions))]
    outputs = []
    for index, value in enumerate(node.outputs):
        if not value.name:
            outputs.append(ir.Value(name=""))
            continue
        parts = [way.sequence if index == 0 else way.states[index - 1] for way in ways]
        outputs.append(_joined(steps, parts, index == 0, recurrence.batch_first))
        outputs[-1].type, outputs[-1].shape = ir.TensorType(FLOAT), ir.Shape([None] * _RANKS[index])
    return outputs


def plain(builder: GraphBuilder, node: ir.Node, inputs: Inputs, prefix: str) -> Sequence[ir.Value]:
    """The outputs of the recurrent node itself, in float32, by way of what ONNX Runtime has of it.

    That is layout 0, and sequences that have a step: of none its states are what its memory held, and its GRU aborts
    the process (1.32). Where the length is not known, an empty sequence gets a step that is taken away again.
    """
    is_batch_first = recurrence_of(node).batch_first
    may_be_empty = builder.opset >= _SLICE_INPUTS and not _is_long(node, int(is_batch_first))
    if not is_batch_first and not may_be_empty:
        return builder.copy(node, inputs, {}, prefix, node.attributes).outputs
    steps = Steps(builder, f"{prefix}{node.name}", Precision.FP32)
    given = _sequence_first(steps, inputs) if is_batch_first else list(inputs)
    attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
    initial = [given[i] if i < len(given) else None for i in _INITIAL]
    length = None
    if may_be_empty:
        given[0], length = _with_a_step(steps, given[0])
    copied = builder.copy(node, given, {}, f"{prefix}plain/", attributes)
    outputs: list[ir.Value] = []
    for index, value in enumerate(copied.outputs):
        given_back = value
        if value.name and length is not None:
            given_back = _without_it(steps, value, length, index, initial)
        if value.name and is_batch_first:
            given_back = _batch_first(steps, given_back, index == 0)
        given_back.type, given_back.shape = ir.TensorType(FLOAT), ir.Shape([None] * _RANKS[index])
        outputs.append(given_back)
    return outputs


def _is_long(node: ir.Node, axis: int) -> bool:
    """Whether the sequence is known to have a step."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    length = None if shape is None else shape[axis]
    return isinstance(length, int) and length > 0


def _with_a_step(steps: Steps, x: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """The sequence, of one step of zeros where it has none; and its own length, int64 (1,)."""
    shape = steps.op("Shape", [x])
    length, rest = steps.split(shape, [1, 2], 0)
    has_any = steps.cast(steps.cast(length, ir.DataType.BOOL), ir.DataType.INT64)
    sizes = steps.op("Concat", [steps.op("Sub", [steps.integers([1]), has_any]), rest], axis=0)
    zeros = steps.op("Tile", [steps.constant(np.zeros((1, 1, 1), np.float32), "none"), sizes])
    return steps.op("Concat", [x, zeros], axis=0), length


def _without_it(
    steps: Steps, value: ir.Value, length: ir.Value, index: int, initial: Sequence[ir.Value | None]
) -> ir.Value:
    """Y as long as the sequence was; a state of no steps as it began."""
    if index == 0:
        return steps.op("Slice", [value, steps.integers([0]), length, steps.integers([0])])
    return steps.chosen(steps.is_below(steps.integers([0]), length), value, initial[index - 1])


@dataclass(frozen=True)
class _Way:
    """What one direction gives: `sequence` (steps, 1, batch, size), and the last states, each (batch, size)."""

    sequence: ir.Value
    states: Sequence[ir.Value]


def _way(steps: Steps, recurrence: Recurrence, index: int, inputs: Inputs) -> _Way:
    direction = recurrence.directions[index]
    w, r, bias, first_h, first_c, peepholes = (
        None if value is None else steps.op("Gather", [value, steps.integers(index)], axis=0)
        for value in (*inputs[1:4], *inputs[5:8])
    )
    x = inputs[0]
    assert x is not None
    assert w is not None
    assert r is not None
    sums, hidden_bias = _input_sums(steps, recurrence, x, w, bias)
    cell = cell_of(recurrence, direction, Weights(r, hidden_bias, peepholes), steps)
    initial = [first_h, first_c][: cell.states]
    extent = _extent(steps, x, recurrence.hidden_size)
    lengths = None if inputs[4] is None else steps.unsqueeze(steps.cast(inputs[4], ir.DataType.INT64), 1)
    body = _body(steps, cell, direction, sums, extent.length, lengths)
    names = [steps.name(what) for what in (*("H", "C")[: cell.states], "Y", *["places"] * direction.reverse)]
    states = [extent.zeros() if value is None else value for value in initial]
    looped = steps.builder.ops("Loop", [extent.length, None, *states], names, body=body)
    last, sequence = list(looped[: cell.states]), looped[cell.states]
    if direction.reverse:
        sequence = steps.op("Gather", [sequence, looped[-1]], axis=0)
    if lengths is not None:
        begun = steps.is_below(steps.integers(0), lengths)
        last = [steps.chosen(begun, value, None) for value in last]
    return _Way(extent.whole(sequence), last)


def _input_sums(
    steps: Steps, recurrence: Recurrence, x: ir.Value, w: ir.Value, bias: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    """X·Wᵀ of all steps at once, (steps, batch, gates · size), with the biases that nothing comes before; and Rb."""
    products = steps.op("MatMul", [x, steps.op("Transpose", [w], perm=[1, 0])])
    if bias is None:
        return products, None
    size = recurrence.hidden_size
    rows = GATES[recurrence.op_type] * size
    own, hidden = steps.split(bias, [rows, rows], 0)
    added = hidden
    if recurrence.linear_before_reset and recurrence.op_type == "GRU":  # the reset gate is applied to the last of Rb
        none = steps.constant(np.zeros(size, np.float32), "none")
        added = steps.op("Concat", [steps.split(hidden, [rows - size, size], 0)[0], none], axis=0)
    return steps.op("Add", [products, steps.op("Add", [own, added])]), hidden


def _body(
    outside: Steps, cell: Cell, direction: Direction, sums: ir.Value, length: ir.Value, lengths: ir.Value | None
) -> ir.Graph:
    """One turn of the loop: takes the turn's number, a condition and the states, gives them anew, and H for Y.

    In reverse also the place in the sequence, by which Y is put in order: from the last one on, and before a sample's
    last step nothing happens.
    """
    steps = outside.inside()
    turn, going = (
        steps.builder.input(ir.Value(shape=ir.Shape([])), steps.name(what), dtype)
        for what, dtype in (("turn", ir.DataType.INT64), ("going", ir.DataType.BOOL))
    )
    before = [
        steps.builder.input(ir.Value(shape=ir.Shape([None, None])), steps.name("before"), FLOAT)
        for _ in range(cell.states)
    ]
    place = turn
    if direction.reverse:
        place = steps.op("Sub", [steps.op("Sub", [length, steps.integers(1)]), turn])
    states = cell.step(steps, steps.op("Gather", [sums, place], axis=0), before)
    if lengths is None:
        shown = steps.op("Identity", [states[0]])
    else:
        is_within = steps.is_below(place, lengths)
        shown = steps.chosen(is_within, states[0], None)
        states = [steps.chosen(is_within, new, old) for new, old in zip(states, before, strict=True)]
    for value in (*states, shown):
        value.type, value.shape = ir.TensorType(FLOAT), ir.Shape([None, None])
    outputs = [steps.op("Identity", [going]), *states, shown, *[place] * direction.reverse]
    outputs[0].type, outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    place.type, place.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    return steps.builder.body(outputs, steps.name("step"))


@dataclass(frozen=True)
class _Extent:
    """How long the sequence is, and how many samples there are: int64, without axes and with one."""

    steps: Steps
    length: ir.Value
    lengths: ir.Value
    batch: ir.Value
    size: int

    def zeros(self) -> ir.Value:
        """A state of zeros, (batch, size)."""
        one = self.steps.constant(np.zeros((1, self.size), np.float32), "none")
        return self.steps.op("Tile", [one, self._shape(self.batch, self.steps.integers([1]))])

    def whole(self, sequence: ir.Value) -> ir.Value:
        """The sequence with an axis of directions; where there are no steps, a loop does not know the batch either."""
        ones, size = self.steps.integers([1]), self.steps.integers([self.size])
        return self.steps.op("Reshape", [sequence, self._shape(self.lengths, ones, self.batch, size)])

    def _shape(self, *sizes: ir.Value) -> ir.Value:
        return self.steps.op("Concat", sizes, axis=0)


def _extent(steps: Steps, x: ir.Value, size: int) -> _Extent:
    shape = steps.op("Shape", [x])
    length, lengths, batch = (steps.op("Gather", [shape, steps.integers(at)], axis=0) for at in (0, [0], [1]))
    return _Extent(steps, length, lengths, batch, size)


def _joined(steps: Steps, parts: Sequence[ir.Value], is_sequence: bool, is_batch_first: bool) -> ir.Value:
    """The directions' parts as the operator gives them."""
    whole = parts if is_sequence else [steps.unsqueeze(part, 0) for part in parts]
    value = steps.op("Concat", whole, axis=int(is_sequence)) if len(whole) > 1 else whole[0]
    return _batch_first(steps, value, is_sequence) if is_batch_first else value


def _batch_first(steps: Steps, value: ir.Value, is_sequence: bool) -> ir.Value:
    """An output of layout 0 as layout 1 has it."""
    return steps.op("Transpose", [value], perm=list(_SEQUENCE_SECOND)) if is_sequence else _swapped(steps, value)


def _swapped(steps: Steps, value: ir.Value) -> ir.Value:
    """With its first two axes the other way round."""
    return steps.op("Transpose", [value], perm=list(_SWAP))


def _sequence_first(steps: Steps, inputs: Inputs) -> list[ir.Value | None]:
    """The inputs of layout 1 as layout 0 has them."""
    turned = (0, *_INITIAL)
    return [_swapped(steps, v) if i in turned and v is not None else v for i, v in enumerate(inputs)]
