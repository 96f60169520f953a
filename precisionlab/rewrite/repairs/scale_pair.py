"""Two products, the first scaled down by a power of two and the second up.

What the first gives leaves float16, though what the second makes of it does not. The first one's weights and bias times
2^-k give 2^-k of it, through activations and pooling that are homogeneous, and a constant behind (the weights of the
next, a factor) takes it back. Nothing is added to the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Sight, ends_at, node_of, refused, scale_of
from precisionlab.rewrite.repairs.region import Fits, Region, UnscalableError, apply, ends_of, is_constant, region_of

_SOURCES = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Mul"})
_FURTHEST = 24
_SCALE = "weights"


class ScalePair:
    """Weights of a product times 2^-k, and what stands behind times 2^k."""

    name = "scale_pair"
    title = "one product scaled down, and the next up"

    def find(self, sight: Sight) -> Iterator[Repair]:
        """One for each product with constant weights that gives what the precision cannot hold."""
        graph = sight.model.onnx.graph
        for node in graph:
            if _weights(node) is None:
                continue
            layer = sight.layer_of(node)
            if layer not in sight.broken:
                continue
            found = _least(graph, node, sight)
            if found is not None:
                scale, region = found
                ends = tuple(str(n.name) for n in ends_of(region))
                yield Repair(self.name, Exactness.BITWISE, layer, (str(node.name), *ends), ((_SCALE, -scale),))

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Scale weights. Raises PlanError where the node has none, or the scale is not taken back behind it."""
        node = node_of(graph, repair)
        if _weights(node) is None:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) has no constant weights")
        try:
            region = _region(graph, node, scale_of(repair, _SCALE), ends_at(repair))
        except UnscalableError:
            raise refused(repair, f"the scale of node {node.name!r} cannot be taken back behind it") from None
        apply(graph, region, "")


def _weights(node: ir.Node) -> int | None:
    """The input that holds the constant weights of a product; None where there is none."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _SOURCES:
        return None
    return next((index for index in (1, 0) if is_constant(node.inputs[index])), None)


def _region(graph: ir.Graph, node: ir.Node, exponent: int, fits: Fits) -> Region:
    """What follows where the node gives 2^`exponent` of what it gave."""
    index = _weights(node)
    assert index is not None
    value = node.outputs[0]
    uses = [(use.node, use.idx) for use in value.uses()]
    if value.is_graph_output() or any(taking.graph is not graph for taking, _ in uses):
        raise UnscalableError
    region = region_of(graph, value, exponent, uses, fits, may_restore=False)
    constants = {**region.constants, (node, index): exponent}
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if not is_constant(node.inputs[2]):
            raise UnscalableError
        constants[node, 2] = exponent
    return replace(region, uses=frozenset(), constants=constants)


def _least(graph: ir.Graph, node: ir.Node, sight: Sight) -> tuple[int, Region] | None:
    for scale in range(1, _FURTHEST + 1):
        try:
            region = _region(graph, node, -scale, sight.fits)
        except UnscalableError:
            return None
        inner = {node.outputs[0]: -scale, **region.exponents}
        if all(sight.fits(value, exponent) for value, exponent in inner.items()):
            return scale, region
    return None
