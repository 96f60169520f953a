"""The pass that gives every node its type: Casts at borders, constants converted, Q/DQ before int8 operands."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model.blocks import WEIGHT
from precisionlab.model.flow import ONNX_DOMAINS, is_shape_input, outer_values, subgraphs
from precisionlab.model.graph import TensorInfo
from precisionlab.model.opset import opset_of
from precisionlab.plan.arithmetic import Constants
from precisionlab.rewrite.batchnorm import folded_batchnorm
from precisionlab.rewrite.channel_scales import factors_shape, weight_by_channel
from precisionlab.rewrite.gates import weight_axis
from precisionlab.rewrite.typed.assignment import Assignment, BodyTypes
from precisionlab.rewrite.typed.channels import ChannelFactors, channel_factors, step_of
from precisionlab.rewrite.typed.constants import Written, held, is_exact
from precisionlab.rewrite.typed.signature import FLOAT, Places, is_float, places
from precisionlab.rewrite.typed.tensor_pool import Stock

# They take a float of any type, and give the same of each.
_TAKE_ANY = frozenset({"Cast", "Shape", "Size"})
# Their operands' types are tied to each other and to the output's, as the model has it.
_TIED = frozenset({"CastLike", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_NOWHERE = Places((), ())


@dataclass(frozen=True)
class _Split:
    """A weight's one scale and its channels' factors, with their axis, their shape behind the product, and its name."""

    factors: ChannelFactors
    axis: int
    shape: tuple[int, ...]
    name: str


class TypesPass(InPlacePass):
    """Types a float32 graph as assigned.

    1. A node takes its float inputs, constants included, in its type, and gives its float outputs in it. Shapes,
       integers and booleans stay as they are, and so do inputs that ONNX has in float32 only (a Resize's scales).
    2. A tensor is cast once for each type that its consumers want and that is not its own. Widening casts are
       seen through: what is narrowed again is taken from before them. So are the model's own Casts from integers
       and truth values, where half is the same by one Cast; they go where nothing takes their float32.
    3. A quantized node takes its two operands by way of QuantizeLinear and DequantizeLinear (weights: quantised ahead,
       DequantizeLinear alone), in the type that the node computes in. A matrix product in half takes its weight with
       one scale; what its channels have of that multiplies what the product gives.
    4. BatchNormalization in half takes its parameters folded. A matrix product that adds up in float32 takes what is
       half by way of a Cast to float32, and what it gives is cast back at once.
    5. An If, Loop or Scan takes and gives its floats in its type, its bodies too, which are typed alike inside. Other
       nodes with subgraphs, calls of functions and custom operators take float32. Nodes without a float output (a
       comparison, an ArgMax), and those that the conversion of the opset has put in, take what they are given where
       that changes no value.
    6. A Cast that rounds to half in the model's file casts to the type that it is assigned.
    7. The graph's inputs and outputs have the names and types that they have in the model's file.
    """

    def __init__(
        self,
        assignment: Assignment,
        tensors: Mapping[str, TensorInfo],
        table: CalibrationTable | None,
        original: Collection[str],
        halves: Mapping[str, ir.DataType],
        bodies: Mapping[ir.Graph, BodyTypes] = MappingProxyType({}),
        constants: Constants = Constants.CLAMPED,
    ) -> None:
        """`original` are the names of the model's own nodes, `tensors` those of the graph in float32.

        `halves` are the inputs and outputs that the model's file has in half, with their type there, `bodies` what the
        graphs inside nodes are typed as. `constants` says what becomes of those that half cannot hold.
        """
        self._assignment = assignment
        self._tensors = tensors
        self._table = table
        self._original = original
        self._halves = halves
        self._bodies = bodies
        self._constants = constants
        self._captured: dict[str, TensorInfo] = {}
        self._factors: dict[ir.Node, _Split] = {}
        self._typed: dict[ir.Node, tuple[ir.DataType, Places]] = {}
        self.casts: tuple[ir.Node, ...] = ()
        self.widened: tuple[ir.Node, ...] = ()
        """Casts around products that add up in float32: these may undo another, which has rounded."""
        self.clamped: Sequence[Written] = ()

    def requires(self, model: ir.Model) -> None:
        """Every assigned node is there, and may have its type at the model's opset."""
        nodes = {str(node.name): node for node in model.graph}
        for name, dtype in self._assignment.dtypes.items():
            if name not in nodes:
                raise PreconditionError(f"node {name} is not in the graph")
            if dtype != FLOAT and not places(nodes[name], dtype, opset_of(model), self._tensors).outputs:
                raise PreconditionError(f"{nodes[name].op_type} {name} cannot compute in {dtype.name}")

    def call(self, model: ir.Model) -> PassResult:
        """Type the graph in place."""
        functions = frozenset((f.domain, f.name) for f in model.functions.values())
        stock = Stock(model.graph, self._tensors, self._halves, self._constants)
        self._type(model.graph, stock, opset_of(model), functions)
        self.clamped = stock.clamped
        return PassResult(model, stock.changed)

    def _type(self, graph: ir.Graph, stock: Stock, opset: int, functions: frozenset[tuple[str, str]]) -> None:
        """Type the nodes of one graph, and those of the bodies in them."""
        constants = [v for v in graph.initializers.values() if is_float(v, self._tensors) and v.uses()]
        for node in list(graph):
            dtype, where = self._typing(node, opset, functions, stock)
            if str(node.name) in self._assignment.split:
                self._factors[node] = self._split(node)
            self._take(node, dtype, where, stock)
            for _, inner in subgraphs(node):
                if inner in self._bodies:
                    self._type_body(inner, stock, opset, functions)
            if str(node.name) in self._assignment.summed:
                stock.narrowed(node, dtype)
                dtype = FLOAT
            elif node in self._factors:
                split = self._factors[node]
                stock.multiplied(node, split.factors.factors.reshape(split.shape), split.name)
            for index in where.outputs:
                stock.set_type(node.outputs[index], dtype)
            if node.op_type == "ConstantOfShape" and dtype != FLOAT:
                node.attributes["value"] = _filling(node, dtype, self._constants)
            if node.op_type == "Cast" and where.outputs:
                node.attributes["to"] = ir.AttrInt64("to", int(dtype))
            self._typed[node] = dtype, where
        stock.keep_outputs()
        stock.drop_unused(constants)
        stock.drop_passed_over()
        self.casts += tuple(stock.casts)
        self.widened += tuple(stock.widened)

    def _type_body(self, graph: ir.Graph, around: Stock, opset: int, functions: frozenset[tuple[str, str]]) -> None:
        """Type a body: all floats at its border have one type, whatever its nodes compute in."""
        types = self._bodies[graph]
        tensors = ChainMap(self._captured, dict(types.tensors))
        border = {
            str(value.name): types.border for value in (*graph.inputs, *graph.outputs) if is_float(value, types.tensors)
        }
        assignment = Assignment(types.dtypes, {})
        inside = TypesPass(assignment, tensors, None, types.dtypes, border, self._bodies, self._constants)
        inside._type(graph, Stock(graph, tensors, border, self._constants, around), opset, functions)
        inside.ensures_types()
        self.casts += inside.casts

    def ensures(self, model: ir.Model) -> None:
        """Every node takes and gives its type, and no Cast undoes another."""
        self.ensures_types()
        for cast in self.casts:
            source = cast.inputs[0]
            producer = None if source is None else source.producer()
            if source is None or source.dtype == cast.outputs[0].dtype or producer in self.casts:
                raise PostconditionError(f"Cast {cast.name} is not needed")
            if not cast.outputs[0].uses() and not cast.outputs[0].is_graph_output():
                raise PostconditionError(f"nothing takes what Cast {cast.name} gives")

    def ensures_types(self) -> None:
        """Every node takes and gives its type."""
        for node, (dtype, where) in self._typed.items():
            is_summed = str(node.name) in self._assignment.summed
            wanted = FLOAT if is_summed else self._assignment.dtypes.get(str(node.name), dtype)
            for value in (*(node.inputs[i] for i in where.inputs), *(node.outputs[i] for i in where.outputs)):
                if value is None or self._dtype(value) != wanted or dtype != wanted:
                    raise PostconditionError(f"{node.op_type} {node.name}: {value} is not {wanted.name}")

    def _dtype(self, value: ir.Value) -> ir.DataType | None:
        """The value's type; one that is not marked is as it was."""
        known = self._tensors.get(str(value.name))
        return value.dtype if value.dtype is not None or known is None else known.dtype

    def _typing(
        self, node: ir.Node, opset: int, functions: frozenset[tuple[str, str]], stock: Stock
    ) -> tuple[ir.DataType, Places]:
        """The type that the node computes in, and which of its inputs and outputs have it."""
        name = str(node.name)
        if name in self._assignment.dtypes:
            dtype = self._assignment.dtypes[name]
            return dtype, places(node, dtype, opset, self._tensors)
        holds_graphs = any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        )
        if holds_graphs or (node.domain, node.op_type) in functions or node.domain not in ONNX_DOMAINS:
            return FLOAT, _NOWHERE
        known = [self._tensors[v.name].dtype if v.name in self._tensors else None for v in node.outputs if v.name]
        opaque = None in known  # a sequence takes over the type of what is put in, and hands it on unseen
        if node.op_type in _TIED | _TAKE_ANY or opaque or (FLOAT in known and name in self._original):
            return FLOAT, _NOWHERE
        return self._following(node, opset, stock)

    def _following(self, node: ir.Node, opset: int, stock: Stock) -> tuple[ir.DataType, Places]:
        """The one type that all of the node's activations have, where its constants are exact in it; else float32."""
        floats = {
            i: v
            for i, v in enumerate(node.inputs)
            if v is not None and is_float(v, self._tensors) and not is_shape_input(node, i)
        }
        given = {stock.type_of(v) for v in floats.values() if v.const_value is None}
        dtype = given.pop() if len(given) == 1 else FLOAT
        if dtype is None or dtype == FLOAT:
            return FLOAT, _NOWHERE
        where = places(node, dtype, opset, self._tensors)
        exact = all(v.const_value is None or is_exact(v.const_value.numpy(), dtype) for v in floats.values())
        outputs = sum(is_float(v, self._tensors) for v in node.outputs)
        if not exact or len(where.inputs) < len(floats) or len(where.outputs) < outputs:
            return FLOAT, _NOWHERE
        return dtype, where

    def _split(self, node: ir.Node) -> _Split:
        """How the scale of a quantized product's weight is parted."""
        found = weight_by_channel(node)
        assert found is not None
        assert self._table is not None
        index, axis = found
        weight, other = node.inputs[index], node.inputs[1 - index]
        assert weight is not None
        assert weight.const_value is not None
        assert other is not None
        precision = self._assignment.quantized[str(node.name)]
        step = step_of(self._table, str(other.name), precision)
        factors = channel_factors(weight.const_value.numpy(), axis, step, precision)
        shape = factors_shape(node, index, self._tensors)
        assert factors is not None
        assert shape is not None
        return _Split(factors, axis, shape, str(weight.name))

    def _take(self, node: ir.Node, dtype: ir.DataType, where: Places, stock: Stock) -> None:
        """Give the node each float input in the type that it takes it in, and float32 to its subgraphs."""
        captured = dtype if any(graph in self._bodies for _, graph in subgraphs(node)) else FLOAT
        for outer in sorted(outer_values(node), key=lambda value: str(value.name)):
            if is_float(outer, self._tensors) and (cast := stock.in_type(outer, captured, node)) is not outer:
                _replace_captured(node, outer, cast)
                self._captured[str(cast.name)] = replace(self._tensors[str(outer.name)], name=str(cast.name))
        if node.domain in ONNX_DOMAINS and node.op_type in _TAKE_ANY:
            return
        folded = folded_batchnorm(node) if dtype != FLOAT else None
        for index, value in enumerate(tuple(node.inputs)):
            if value is None or not is_float(value, self._tensors):
                continue
            wanted = dtype if index in where.inputs else FLOAT
            if index < 2 and str(node.name) in self._assignment.quantized:
                taken = self._quantised(node, index, value, wanted, stock)
            elif folded is not None and index in folded:
                taken = stock.folded(folded[index], wanted, f"{node.name}_{value.name}")
            else:
                taken = stock.in_type(value, wanted, node)
            if str(node.name) in self._assignment.summed:
                taken = stock.wide(taken, node)
            if taken is not value:
                node.replace_input_with(index, taken)
        if folded is not None:
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)

    def _quantised(self, node: ir.Node, index: int, value: ir.Value, dtype: ir.DataType, stock: Stock) -> ir.Value:
        split, precision = self._factors.get(node), self._assignment.quantized[str(node.name)]
        if split is not None and value.const_value is not None:
            return stock.split_weight(value, split.axis, split.factors, node, precision)
        if precision.is_weight_only:
            if index != WEIGHT:
                return stock.in_type(value, dtype, node)
            assert self._table is not None
            return stock.blocked_weight(value, self._table.of(precision), dtype, node)
        if value.const_value is not None:
            return stock.quantised_weight(value, weight_axis(node, index), dtype, node, precision)
        assert self._table is not None
        scale = np.asarray(self._table.scale(str(value.name), precision), np.float32)
        return stock.quantised_activation(value, scale, dtype, node, precision)


def _filling(node: ir.Node, dtype: ir.DataType, constants: Constants) -> ir.Attr:
    """ConstantOfShape's value, a tensor of one element, in the type."""
    value = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
    return ir.AttrTensor("value", ir.tensor(held(value, dtype, constants), dtype=dtype))


def _replace_captured(node: ir.Node, value: ir.Value, replacement: ir.Value) -> None:
    """Let the subgraphs of the node refer to another outer value."""
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        graphs += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = replacement
            for inner in graph:
                for index, taken in enumerate(inner.inputs):
                    if taken is value:
                        inner.replace_input_with(index, replacement)
                _replace_captured(inner, value, replacement)
