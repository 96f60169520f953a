"""Copies layers into a graph in a precision, with rounding gates at their borders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Layer, Model
from precisionlab.model.blocks import WEIGHT
from precisionlab.model.flow import (
    FLOATS,
    KEEPS_VALUES,
    SHAPE_FLOW,
    is_control,
    is_shape_input,
    is_sized,
    outer_values,
    subgraphs,
)
from precisionlab.model.graph import Body, Scope
from precisionlab.model.lift import OWN
from precisionlab.model.recurrent import is_recurrent
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Sums
from precisionlab.plan.assign import around_of, computed_in, is_reference, precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.batchnorm import folded_batchnorm
from precisionlab.rewrite.bodies import BodyCopy, finished, node_with_bodies, peaks_of
from precisionlab.rewrite.builder import Environment, GraphBuilder
from precisionlab.rewrite.constants import UNCLAMPED, constant_array
from precisionlab.rewrite.gates import Gates, has_rounded_attributes, rounded_attributes, weight_axis
from precisionlab.rewrite.integer_sums import product_scales, rounded_sums
from precisionlab.rewrite.parted import rounded_behind
from precisionlab.rewrite.recurrent import plain, stepped


class LayerCopier:
    """Copies layers into one graph: as they are, or in another precision with gates at the borders.

    A float layer rounds its float inputs, its weights and its outputs; a quantized layer quantises the
    two operands of its Conv, Gemm or MatMul, and gives its output in the precision of the float layers
    around it. Behind the Conv of a fused layer nothing is rounded: BatchNormalization, scales and activation
    are folded into its weights or computed in the accumulator's float32. A layer without one (what a compiler
    fuses of other operators) has neither: each of its nodes is rounded as if it were a layer of its own. Its kernel
    may be more exact than that, but half's range holds inside it too: TensorRT itself warns of layer normalisations
    that overflow there. A BatchNormalization that is not behind a Conv takes its scale and shift in the precision.

    The bodies of an If, Loop or Scan are layers of their own in its precision: what it hands to them is rounded, and so
    is what they hand back, a loop's state at every turn. Of their tensors in `watched` the largest values are shown.
    """

    usual: Arithmetic = TENSORRT
    """How it computes where nothing else is asked for."""

    def __init__(
        self,
        builder: GraphBuilder,
        model: Model,
        table: CalibrationTable | None,
        watched: frozenset[ir.Value] = frozenset(),
        arithmetic: Arithmetic | None = None,
    ) -> None:
        """`arithmetic` None: the usual one."""
        self._builder = builder
        self._model: Scope = model
        self._arithmetic = arithmetic or self.usual
        self._table = table
        self._gates = Gates(builder, table, self._arithmetic.constants)
        self._weights: Environment = {}
        self._batchnorms: dict[tuple[ir.Node, Precision], dict[int, ir.Value]] = {}
        self._delivered = {info.name: OWN[info.dtype] for info in model.outputs if info.dtype in OWN}
        self._watched = watched
        self._peaks: dict[ir.Value, ir.Value] = {}
        self._keeps_own = self._has_own = False

    def reference(self, layer: Layer, source: Mapping[ir.Value, ir.Value], prefix: str) -> dict[ir.Value, ir.Value]:
        """Copy a layer as it is, in float32, or in double where the model has it so."""
        self._gates.exact = True
        try:
            return self.copy(layer, source, Precision.FP32, Precision.FP32, prefix)
        finally:
            self._gates.exact = False

    def planned(
        self, layer: Layer, source: Mapping[ir.Value, ir.Value], plan: PrecisionPlan, prefix: str
    ) -> dict[ir.Value, ir.Value]:
        """Copy a layer as the plan has it; a final output that the file has in half is rounded, whatever the plan."""
        if is_reference(plan) or layer.fixed == SHAPE_FLOW:
            return self.reference(layer, source, prefix)
        self._has_own = layer.has_own_inside
        self._keeps_own = layer.has_own_inside and layer.name not in plan.pinned()
        given = self.copy(layer, source, precision_of(layer, plan), around_of(layer, plan), prefix)
        self._keeps_own = self._has_own = False
        if self._delivered:
            for value, copied in given.items():
                if (half := self._delivered.get(str(value.name))) is not None:
                    given[value] = self._gates.activation(copied, half, str(value.name))
        return given

    def switched(
        self,
        layer: Layer,
        source: Mapping[ir.Value, ir.Value],
        switch: ir.Value,
        plans: tuple[PrecisionPlan, PrecisionPlan],
    ) -> dict[ir.Value, ir.Value]:
        """Copy a layer as the first plan has it where `switch`, a bool (), is true, else as the second has it."""
        old: list[ir.Value] = []
        bodies: dict[str, ir.Graph] = {}
        for name, prefix, plan in zip(("then_branch", "else_branch"), ("pinned/", "variant/"), plans, strict=True):
            branch = copy(self)
            branch._builder = self._builder.inner()
            branch._gates = self._gates.within(branch._builder)
            given = branch.planned(layer, source, plan, prefix)
            old = list(given)
            outputs = [branch._made_here(value) for value in given.values()]
            bodies[name] = branch._builder.body(outputs, name)
        made = self._builder.choice(switch, [str(value.name) for value in old], bodies)
        for value, new in zip(old, made, strict=True):
            known = self._model.tensors[str(value.name)]
            new.type = None if known.dtype is None else ir.TensorType(known.dtype)
            new.shape = value.shape if is_sized(value) else None
        return dict(zip(old, made, strict=True))

    def blended(
        self, layer: Layer, source: Mapping[ir.Value, ir.Value], switch: ir.Value, plan: PrecisionPlan
    ) -> dict[ir.Value, ir.Value]:
        """Copy a layer as the plan has it, but as float32 has it where `switch`, a bool (), is true.

        Both are computed in one: only what is rounded is chosen, value by value. See `can_be_blended`.
        """
        self._gates.switch = switch
        try:
            return self.copy(layer, source, precision_of(layer, plan), around_of(layer, plan), "variant/")
        finally:
            self._gates.switch = None

    def can_be_blended(self, layer: Layer, plan: PrecisionPlan) -> bool:
        """Whether the layer under the plan is the same nodes as in float32, but for what they are given and give."""
        nodes, precision = [self._model.node[name] for name in layer.nodes], computed_in(layer, plan)
        border = around_of(layer, plan) if precision.is_quantized else precision
        if any(is_control(node) or is_recurrent(node) for node in nodes):
            return False
        parted = rounded_behind(nodes, precision, self._arithmetic.fusing) if self._fuses(layer, precision) else nodes
        is_folded = [False, *(before not in parted for before in nodes[:-1])]  # into what stands in front
        if any(self._folded(node, border) for node, folded in zip(nodes, is_folded, strict=True) if not folded):
            return False
        if not self._delivered.keys().isdisjoint(layer.outputs) or self._unscaled(nodes[0], precision, border):
            return False
        constants = self._arithmetic.constants
        return not any(has_rounded_attributes(node, precision, constants) for node in nodes)

    def _made_here(self, value: ir.Value) -> ir.Value:
        """The value, as a graph inside may give it: one that is made in it."""
        if self._builder.home(value) is self._builder:
            return value
        return self._builder.op("Identity", [value], f"{value.name}:handed")

    def is_exact(self, layer: Layer, plan: PrecisionPlan) -> bool:
        """Whether the plan computes the layer as the reference does."""
        if is_reference(plan) or layer.fixed == SHAPE_FLOW:
            return True
        tensors = (self._model.tensors[name] for name in (*layer.inputs, *layer.weights, *layer.outputs))
        if precision_of(layer, plan) is not Precision.FP32 or any(t.dtype == ir.DataType.DOUBLE for t in tensors):
            return False
        return not layer.has_own_inside and self._delivered.keys().isdisjoint(layer.outputs)

    def take_peaks(self) -> dict[ir.Value, ir.Value]:
        """For each watched tensor in the bodies copied since the last call float32 (2,): its largest and least value.

        Over all turns of a loop, and with 0; NaN both where there was one.
        """
        found = {value: finished(self._builder, peaks) for value, peaks in self._peaks.items()}
        self._peaks.clear()
        return found

    def copy(
        self,
        layer: Layer,
        source: Mapping[ir.Value, ir.Value],
        precision: Precision,
        around: Precision,
        prefix: str,
    ) -> dict[ir.Value, ir.Value]:
        """Copy a layer that takes its inputs from `source`; returns its outputs' stand-ins."""
        precision = precision.stored_as
        blocks, precision = (precision, around) if precision.is_weight_only else (None, precision)
        inside: dict[ir.Value, ir.Value] = {}
        nodes = [self._model.node[name] for name in layer.nodes]
        border = around if precision.is_quantized else precision
        fuses = self._fuses(layer, precision)
        parted = rounded_behind(nodes, precision, self._arithmetic.fusing) if fuses else frozenset(nodes)
        for before, node in zip([None, *nodes], nodes, strict=False):
            first = before is None
            foldable = before is not None and before not in parted
            folded = {} if foldable else self._folded(node, border)
            inputs = [
                folded[i]
                if i in folded
                else self._gates.blocks(node, (blocks, border), self._weights)
                if blocks is not None and first and i == WEIGHT
                else self._input(node, i, value, source, inside, precision if first and i < 2 else border, foldable)
                for i, value in enumerate(node.inputs)
            ]
            around_node = outer_values(node)
            captured = {v: source[v] for v in around_node if v in source}
            captured.update((v, self._builder.weight(v, self._weights)) for v in around_node if v.is_initializer())
            attributes = rounded_attributes(node, precision, self._arithmetic.constants)
            if folded:
                attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
            scales = self._unscaled(node, precision, border) if first else None
            if scales is None:
                outputs = self._node(node, inputs, captured, prefix, attributes, precision)
                if _is_lookup(node):
                    outputs = [self._looked_up(node, outputs[0], precision if first else border)]
            else:
                outputs = [rounded_sums(self._builder, node, inputs, scales, prefix, attributes)]
            for old, new in zip(node.outputs, outputs, strict=True):
                inside[old] = new
                known = self._model.tensors.get(str(old.name))
                if known is not None and known.dtype is not None:
                    new.type = ir.TensorType(known.dtype)
                if len(nodes) > 1 and node in parted and old.name:
                    inside[old] = self._output(old, new, [node], border)
        return {
            v: self._output(v, inside[v], nodes, border) for v in nodes_outputs(nodes) if str(v.name) in layer.outputs
        }

    def _looked_up(self, node: ir.Node, rows: ir.Value, precision: Precision) -> ir.Value:
        """What a node takes of a table of constants."""
        table = node.inputs[0]
        assert table is not None
        known = self._model.tensors.get(str(table.name))
        return self._gates.taken(rows, table, precision) if known and known.dtype in FLOATS else rows

    def _fuses(self, layer: Layer, precision: Precision) -> bool:
        """Whether what stands behind the layer's first node is computed in its accumulator."""
        return layer.quantizable

    def _unscaled(self, node: ir.Node, precision: Precision, border: Precision) -> NDArray[np.float32] | None:
        """The scales by which a product's integer sums are multiplied behind it, in their shape; None: within it."""
        if self._arithmetic.integers is Sums.FLOAT32 or not precision.is_quantized or border is not Precision.FP16:
            return None
        return product_scales(node, self._table, self._model.tensors, precision)

    def _folded(self, node: ir.Node, precision: Precision) -> Mapping[int, ir.Value]:
        """A BatchNormalization's parameters by input index, as a kernel in half is handed them.

        They are folded in float32 before they are rounded: a variance beyond 65504 does no harm.
        """
        if node.op_type != "BatchNormalization" or not precision.is_low_float or self._is_double(node):
            return {}
        key = (node, precision)
        if key not in self._batchnorms:
            self._batchnorms[key] = {
                index: self._builder.constant(
                    ir.tensor(constant_array(array, precision, self._arithmetic.constants)),
                    f"{node.name}:{index}:{precision}",
                )
                for index, array in (folded_batchnorm(node) or {}).items()
            }
        return self._batchnorms[key]

    def _node(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        captured: Mapping[ir.Value, ir.Value],
        prefix: str,
        attributes: Mapping[str, ir.Attr],
        precision: Precision,
    ) -> Sequence[ir.Value]:
        """What one node of a layer becomes; the values that stand for its outputs."""
        if is_recurrent(node) and precision.is_low_float:
            stored = stepped(self._builder, node, inputs, precision, prefix)
            for value in stored:
                self._gates.mark_rounded(value, precision)
            return stored
        if is_recurrent(node):
            return plain(self._builder, node, inputs, prefix)
        is_plain = precision is Precision.FP32 and not self._watched and (self._gates.exact or not self._has_own)
        if not is_control(node) or is_plain:
            return self._builder.copy(node, inputs, captured, prefix, attributes).outputs
        bodies = {
            name: self._within(self._model.bodies[graph])._body(captured, precision, prefix)
            for name, graph in subgraphs(node)
        }
        outputs, peaks = node_with_bodies(self._builder, node, inputs, prefix, attributes, bodies)
        self._peaks.update(peaks)
        return outputs

    def _within(self, body: Body) -> LayerCopier:
        """The same for a graph inside: constants, and what is rounded already, are shared."""
        inside = copy(self)
        inside._builder, inside._model, inside._peaks = self._builder.inner(), body, {}
        inside._gates = self._gates.within(inside._builder)
        return inside

    def _body(self, around: Mapping[ir.Value, ir.Value], precision: Precision, prefix: str) -> BodyCopy:
        """Copy all layers of a body, which refers to the values of `around`."""
        assert isinstance(self._model, Body)
        graph, tensors = self._model.graph, self._model.tensors
        source = dict(around)
        for value in graph.inputs:
            known = tensors[str(value.name)].dtype
            source[value] = self._builder.input(value, f"{prefix}{value.name}", known)
            if known in FLOATS and precision is not Precision.FP32:
                self._gates.mark_rounded(source[value], precision)
        for layer in self._model.layers:
            own = _precision_inside(layer, precision, self._keeps_own)
            outputs = self.copy(layer, source, own, own, prefix)
            source.update(outputs)
            for value in outputs.keys() & self._watched:
                shape = tensors[str(value.name)].shape
                is_double = tensors[str(value.name)].dtype == ir.DataType.DOUBLE
                self._peaks[value] = peaks_of(self._builder, source[value], shape, is_double)
        return BodyCopy(self._builder, [self._handed(v, source, precision) for v in graph.outputs], self._peaks)

    def _handed(self, value: ir.Value, source: Mapping[ir.Value, ir.Value], precision: Precision) -> ir.Value:
        """What a body gives, rounded; made in the body itself, as ONNX Runtime wants it."""
        known = self._model.tensors.get(str(value.name))
        if known is None or known.dtype not in FLOATS:
            given = self._builder.weight(value, self._weights) if value.is_initializer() else source[value]
        elif value.is_initializer():
            given = self._gates.weight(value, precision, None, self._weights)
        else:
            given = self._gates.activation(source[value], precision, str(value.name))
        return self._made_here(given)

    def _input(
        self,
        node: ir.Node,
        index: int,
        value: ir.Value | None,
        source: Mapping[ir.Value, ir.Value],
        inside: Mapping[ir.Value, ir.Value],
        precision: Precision,
        foldable: bool,
    ) -> ir.Value | None:
        if value is None:
            return None
        if value in inside:
            return inside[value]
        known = self._model.tensors.get(str(value.name))
        is_data = known is not None and known.dtype in FLOATS and not is_shape_input(node, index)
        if value.is_initializer():
            if not is_data:
                return self._builder.weight(value, self._weights)
            if _is_lookup(node):
                return self._gates.table(value, precision, self._weights)
            # What a kernel is not handed: folded in float32, or no constants to fold.
            if foldable or node.op_type == "BatchNormalization":
                precision = Precision.FP32
            if node.op_type in UNCLAMPED:
                return self._gates.limit(value, precision, self._weights)
            return self._gates.weight(value, precision, weight_axis(node, index), self._weights)
        return self._gates.activation(source[value], precision, str(value.name)) if is_data else source[value]

    def _is_double(self, node: ir.Node) -> bool:
        return self._model.tensors[str(node.outputs[0].name)].dtype == ir.DataType.DOUBLE

    def _output(self, old: ir.Value, new: ir.Value, nodes: list[ir.Node], border: Precision) -> ir.Value:
        dtype = self._model.tensors[str(old.name)].dtype
        if dtype not in FLOATS or (border is Precision.FP32 and dtype == ir.DataType.FLOAT):
            return new
        if is_control(nodes[0]) or (len(nodes) == 1 and nodes[0].op_type in KEEPS_VALUES and not _is_lookup(nodes[0])):
            self._gates.mark_rounded(new, border)
        return self._gates.activation(new, border, str(old.name))


def _precision_inside(layer: Layer, precision: Precision, keeps_own: bool) -> Precision:
    """The precision of a layer in a body that runs in this one; islands of half keep theirs where they may."""
    if keeps_own and layer.own is not None and (layer.is_island or layer.fixed is not None):
        return layer.own
    return Precision.FP32 if layer.fixed is not None else precision


def _is_lookup(node: ir.Node) -> bool:
    """Gather from a constant table: rounding what is gathered is the same as rounding the table, and cheaper."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and table.is_initializer()


def nodes_outputs(nodes: list[ir.Node]) -> list[ir.Value]:
    """All outputs of the nodes that have a name."""
    return [v for node in nodes for v in node.outputs if v.name]
