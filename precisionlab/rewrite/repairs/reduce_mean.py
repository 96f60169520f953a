"""A sum that is divided by its length behind: the mean, which no kernel lets leave the range of what it is of."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from precisionlab.model.names import all_names, new_name
from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Proposal, Sight, node_of, proposed, refused
from precisionlab.rewrite.repairs.passing import is_constant, scalar_of
from precisionlab.rewrite.repairs.reductions import axes_of, reduction
from precisionlab.rewrite.repairs.scaling import stand_in


class ReduceMean:
    """ReduceMean in the place of ReduceSum and a factor of one over the length."""

    name = "reduce_mean"
    title = "a mean in the place of a sum and a factor"

    def find(self, sight: Sight) -> Iterator[Proposal]:
        """One for each sum of a known length that breaks, where all that takes it divides by that length."""
        for node in sight.model.onnx.graph:
            if node.op_type == "ReduceSum":
                length = _length(node, sight)
                behind = _dividing(node, length) if length else ()
                if length and behind:
                    exactness = Exactness.BITWISE if length & (length - 1) == 0 else Exactness.ROUNDING
                    names = (str(node.name), *(str(other.name) for other in behind))
                    yield from proposed(sight, [node], self.name, exactness, names, (), (f"{length} are summed up",))

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Take the mean, and let the factors go. Raises PlanError where the graph has not what the repair names."""
        node = node_of(graph, repair)
        if node.op_type != "ReduceSum":
            raise refused(repair, f"node {node.name!r} is a {node.op_type}, not a ReduceSum")
        factors = [node_of(graph, repair, index) for index in range(1, len(repair.nodes))]
        names = set(all_names(graph))
        mean = reduction(graph, "ReduceMean", node.inputs[0], node)
        mean.name, mean.outputs[0].name = (
            new_name(f"{name}~mean", names) for name in (node.name, node.outputs[0].name)
        )
        mean.outputs[0].type, mean.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), node.outputs[0].shape
        graph.insert_after(node, mean)
        for factor in factors:
            stand_in(graph, factor.outputs[0], mean.outputs[0])


def _length(node: ir.Node, sight: Sight) -> int | None:
    """How many numbers are summed up; None where that is not known."""
    axes, value = axes_of(node), node.inputs[0]
    info = sight.model.tensors.get(str(value.name)) if value is not None else None
    if not axes or info is None or info.shape is None:
        return None
    length = 1
    for axis in axes:
        size = info.shape[axis]
        if not isinstance(size, int):
            return None
        length *= size
    return length


def _dividing(node: ir.Node, length: int) -> tuple[ir.Node, ...]:
    """The nodes behind, where each of them divides by the length; else none."""
    found = []
    for use in node.outputs[0].uses():
        other = use.node.inputs[1 - use.idx] if use.node.op_type in ("Mul", "Div") else None
        number = scalar_of(other) if is_constant(other) else None
        divides = number == length if use.node.op_type == "Div" and use.idx == 0 else False
        if use.node.op_type == "Mul" and number is not None:
            divides = abs(number * length - 1) < 1e-6
        if not divides:
            return ()
        found.append(use.node)
    return () if node.outputs[0].is_graph_output() else tuple(found)
