"""What a repair must leave as it is in a model with Q/DQ nodes of its own: all that int8 computes with.

Their scales were found for the numbers that they take now, and a product of dequantised operands runs in int8 only as
long as nothing stands between. So a quantizer takes the same tensor, made by the same node, and so does what moves
dequantised data, and a product of them. A repair that rounds otherwise than the original may stand in front of no
quantizer: one number that falls into the next step is a far larger error than the repair promises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.portable import is_quantizer
from precisionlab.model.repair import Exactness, Repair
from precisionlab.model.subgraphs import outer_values, subgraphs
from precisionlab.rewrite.repairs.base import refused

_MOVES = frozenset(
    [
        *("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Split", "Gather"),
        *("Concat", "Tile", "Pad", "Resize", "DepthToSpace", "SpaceToDepth", "MaxPool", "Relu", "Clip"),
    ]
)
"""What TensorRT moves a quantizer across, or folds into the product next to it."""
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN"})

_Taken = tuple[tuple[str, str] | None, ...]
"""What a node takes: the name of each input, and of the node that makes it."""


@dataclass(frozen=True)
class Quantized:
    """What each node of a graph takes, by its name, and which of them compute with quantised numbers."""

    taken: Mapping[str, _Taken]
    held: frozenset[str]

    @classmethod
    def of(cls, graph: ir.Graph) -> Quantized | None:
        """None where the graph has no quantizers."""
        nodes = list(graph.all_nodes())
        if not any(map(is_quantizer, nodes)):
            return None
        return cls({str(node.name): _taken(node) for node in nodes}, frozenset(_held(nodes)))

    def check(self, graph: ir.Graph, repair: Repair) -> None:
        """Raise PlanError where the repair that the graph has now changes what it must not."""
        now = {str(node.name): _taken(node) for node in graph.all_nodes()}
        changed = next((name for name in sorted(self.held) if now.get(name) != self.taken[name]), None)
        if changed is not None:
            raise refused(repair, f"node {changed!r} computes with quantised numbers, and would take others")
        if repair.exactness is Exactness.ROUNDING:
            different = {name for name, taken in now.items() if taken != self.taken.get(name)}
            if (behind := _quantizer_behind(graph, different)) is not None:
                raise refused(repair, f"it is not the same bits, and {behind!r} quantises what follows from it")


def _taken(node: ir.Node) -> _Taken:
    return tuple(None if value is None else (str(value.name), _maker(value)) for value in node.inputs)


def _maker(value: ir.Value) -> str:
    made = value.producer()
    return "" if made is None else str(made.name)


def _held(nodes: list[ir.Node]) -> Iterator[str]:
    """The quantizers, what moves dequantised data, and the products that take it."""
    waiting = [node for node in nodes if is_quantizer(node)]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield str(node.name)
        is_plain = node.domain in ONNX_DOMAINS
        if node.op_type == "QuantizeLinear" or (is_plain and node.op_type in _PRODUCTS):
            continue
        takers = [use.node for value in node.outputs for use in value.uses()]
        for taker in takers:
            if taker not in seen and taker.domain in ONNX_DOMAINS and taker.op_type in _MOVES | _PRODUCTS:
                seen.add(taker)
                waiting.append(taker)


def _quantizer_behind(graph: ir.Graph, names: set[str]) -> str | None:
    """The first quantizer, or node with one in its bodies, that takes what follows from these nodes."""
    reached: set[ir.Value] = set()
    for node in graph:
        inner = [one for _, body in subgraphs(node) for one in body.all_nodes()]
        is_reached = not reached.isdisjoint((*node.inputs, *outer_values(node)))
        is_reached = is_reached or any(one.name in names for one in inner)
        if is_reached and any(map(is_quantizer, (node, *inner))):
            return str(node.name)
        if is_reached or node.name in names:
            reached.update(node.outputs)
    return None
