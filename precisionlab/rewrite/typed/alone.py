"""Products in float32 that a compiler would take back to half, because they stand alone between Casts.

TensorRT-RTX 1.7.1 sees Cast to float32 → product → Cast to half, finds that what comes in and what goes out is half,
and compiles a half kernel, on every target that it has, without a warning: weights are rounded to half, and 1e6 is
stored as Inf. So it does with Conv, ConvTranspose, Einsum, MatMul, and a Gemm without bias, whatever only moves values
between (Reshape, Transpose, …), and for a Conv without bias whatever is added behind it, which becomes its bias. A
product is kept in float32 where anything else computes in float32 before or behind it.

And what reads step by step: where the sequence of an LSTM, GRU or RNN in float32 comes out of such a Cast, its builder
fails ("Mismatched number of elements in reshape op"), but for reversed and bidirectional ones. A subtraction between
keeps it from that too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from precisionlab.model.flow import ONNX_DOMAINS, subgraphs
from precisionlab.model.names import all_names, new_name
from precisionlab.model.opset import opset_of
from precisionlab.model.recurrent import is_recurrent
from precisionlab.precision import Precision
from precisionlab.rewrite.sums import CONVOLUTIONS, GEMM, MATMUL
from precisionlab.rewrite.typed.signature import FLOAT

_HALVES = frozenset(precision.number_format.element for precision in Precision.floats()) - {FLOAT}
_PRODUCTS = frozenset({*CONVOLUTIONS, GEMM, MATMUL, "Einsum"})
_MOVES = frozenset(
    {
        *("DepthToSpace", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "SpaceToDepth", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)
"""They compute nothing, so that a Cast goes through them. (A Slice or a Concat stops it.)"""
_FOLDED = frozenset({"Mul"})
"""A factor of 1 is folded away."""
_BIASES = frozenset({"Add", "Sub", "Sum"})
"""What is added behind a Conv, a constant or an activation, becomes its bias, or the kernel's end."""


class HoldAlone(InPlacePass):
    """A zero is taken from what a float32 product takes, where it would stand alone between Casts of half.

    x − 0 is x, of every x, a negative zero and NaN too. The subtraction is one more step of the kernel that casts, and
    holds the product in float32. It stands before the product because behind it a zero is folded into a Conv as its
    bias, and the compiler fails on one behind a convolution over one axis. The same before a recurrent node that reads
    forward out of a Cast.

    `summed` are the products in half that add up in float32: these are to be such kernels.
    """

    def __init__(self, summed: Collection[str]) -> None:
        self._summed = summed
        self.held: tuple[str, ...] = ()
        """The products that were held, by name."""

    def call(self, model: ir.Model) -> PassResult:
        """Put the subtractions in."""
        names = set(all_names(model.graph))
        for graph in _graphs(model.graph):
            made: dict[ir.Value, ir.Value] = {}
            zero: ir.Value | None = None
            for node in [n for n in graph if self._is_alone(n) or _reads_a_cast(n)]:
                index, value = next(_activations(node))
                if value not in made:
                    zero = zero or _zero(graph, names)
                    made[value] = _less(graph, node, value, zero, names, opset_of(model))
                node.replace_input_with(index, made[value])
                self.held += (str(node.name),)
        return PassResult(model, bool(self.held))

    def ensures(self, model: ir.Model) -> None:
        """No product stands alone."""
        if any(self._is_alone(node) or _reads_a_cast(node) for graph in _graphs(model.graph) for node in graph):
            raise PostconditionError("a product or recurrent node in float32 stands alone behind a Cast from half")

    def _is_alone(self, node: ir.Node) -> bool:
        if node.op_type not in _PRODUCTS or node.domain not in ONNX_DOMAINS or str(node.name) in self._summed:
            return False
        if node.op_type == GEMM and len(node.inputs) > 2 and node.inputs[2] is not None:
            return False
        taken = {_half_before(value) for _, value in _activations(node)}
        return len(taken) == 1 and None not in taken and _ends_in(node, taken.pop())


def _reads_a_cast(node: ir.Node) -> bool:
    """Whether it is a recurrent node that reads what was half forward."""
    if not is_recurrent(node) or node.attributes.get_string("direction", "forward") != "forward":
        return False
    sequence = node.inputs[0]
    return sequence is not None and sequence.const_value is None and _half_before(sequence) is not None


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for _, inner in subgraphs(node):
            yield from _graphs(inner)


def _activations(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The operands that are no constants, with their place."""
    operands = node.inputs if node.op_type == "Einsum" else node.inputs[:2]
    return ((i, value) for i, value in enumerate(operands) if value is not None and value.const_value is None)


def _half_before(value: ir.Value) -> ir.DataType | None:
    """The half type that the value was cast to float32 from, perhaps moved since; None where something computes it."""
    while (node := value.producer()) is not None and node.domain in ONNX_DOMAINS:
        source = node.inputs[0] if node.inputs else None
        if source is None:
            return None
        if node.op_type == "Cast":
            return source.dtype if source.dtype in _HALVES and _casts_to(node) == FLOAT else None
        if node.op_type in _FOLDED and source.const_value is not None:
            source = node.inputs[1]
        if node.op_type not in _MOVES | _FOLDED or source is None:
            return None
        value = source
    return None


def _ends_in(product: ir.Node, half: ir.DataType | None) -> bool:
    """Whether all that comes of the product is cast to the half type before anything computes with it in float32."""
    through = _MOVES | _FOLDED | (_BIASES if product.op_type in CONVOLUTIONS else frozenset())
    waiting, seen = [product.outputs[0]], set()
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return False
        for node, _ in value.uses():
            if node.op_type == "Cast" and _casts_to(node) == half:
                continue
            if node.op_type not in through or node.domain not in ONNX_DOMAINS:
                return False
            if node not in seen:
                seen.add(node)
                waiting.append(node.outputs[0])
    return True


def _casts_to(cast: ir.Node) -> ir.DataType:
    return ir.DataType(cast.attributes["to"].as_int())


def _less(graph: ir.Graph, consumer: ir.Node, value: ir.Value, zero: ir.Value, names: set[str], opset: int) -> ir.Value:
    """The value less zero, made before its consumer."""
    # Before opset 7 a scalar is broadcast only where that is said.
    attributes = [ir.AttrInt64("broadcast", 1)] if opset < 7 else []
    node = ir.Node("", "Sub", [value, zero], attributes, num_outputs=1, name=new_name(f"{value.name}_less_zero", names))
    given = node.outputs[0]
    given.name, given.type, given.shape = node.name, ir.TensorType(FLOAT), value.shape
    graph.insert_before(consumer, node)
    return given


def _zero(graph: ir.Graph, names: set[str]) -> ir.Value:
    tensor = ir.tensor(np.zeros((), np.float32))
    value = ir.Value(
        name=new_name("float32_zero", names), type=ir.TensorType(FLOAT), shape=ir.Shape(()), const_value=tensor
    )
    graph.register_initializer(value)
    return value
