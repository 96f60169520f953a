"""A plan's quantized layers as a Q/DQ model for ONNX Runtime, with the plan's own scales.

Not by onnxruntime's quantizer: that gives the quantised tensor to all that take it, the pinned layers among them, and
adjusts ranges of its own accord. Here QuantizeLinear and DequantizeLinear stand before the two operands of each
quantized layer alone, with zero point 0, weights per channel and stored quantised, no quantised bias.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from google.protobuf.message import EncodeError

from precisionlab.calibration.grid import rounded_to_grid, spread_along
from precisionlab.calibration.table import CalibrationTable, weight_scales
from precisionlab.errors import ModelError, PlanError
from precisionlab.export.nbits import OPERATOR, packed_weight
from precisionlab.export.subject import Export, Subject
from precisionlab.model.blocks import WEIGHT, blocked_axis
from precisionlab.model.edges import give_edges
from precisionlab.model.names import all_names, new_name
from precisionlab.model.opset import opset_of
from precisionlab.model.tail import graft
from precisionlab.plan.assign import precision_of
from precisionlab.precision import Precision
from precisionlab.rewrite.gates import weight_axis

_PER_CHANNEL = 13  # the first opset whose QuantizeLinear has an axis
_MICROSOFT = "com.microsoft"  # whose own operators have it at every opset


def onnxruntime_model(subject: Subject) -> Export:
    """The model's bytes.

    Raises PlanError where no layer is quantized, or the opset has not the type, ModelError where the file would exceed
    2 GiB.
    """
    quantized = check_quantizes(subject)
    _ = subject.scales  # says so where there are none
    assert subject.table is not None
    model = subject.model.onnx.clone()
    quantizer = _Quantizer(model, subject.table)
    for name, precision in quantized.items():
        quantizer.quantize(name, precision)
    quantizer.drop_unused()
    give_edges(model.graph, subject.model.halves)
    if quantizer.domain or any(precision.is_weight_only for precision in quantized.values()):
        model.graph.opset_imports[_MICROSOFT] = 1
    if subject.model.tail is not None:
        graft(model, subject.model.tail)
    try:
        content = ir.to_proto(model).SerializeToString()
    except (EncodeError, ValueError):
        raise ModelError(
            f"{subject.path}: with its weights the Q/DQ model is larger than the 2 GiB that one ONNX file can have"
        ) from None
    return Export(content, notes=_notes(subject, quantizer.domain))


def check_quantizes(subject: Subject) -> dict[str, Precision]:
    """The first node of each quantized layer, and its precision.

    Raises PlanError where there is none, or the model's opset has no QuantizeLinear to it.
    """
    known = {layer.nodes[0]: precision_of(layer, subject.plan) for layer in subject.model.layers}
    found = {name: precision for name, precision in known.items() if precision.is_quantized}
    if not found:
        raise PlanError("the plan has no quantized layer, and a Q/DQ model has nothing else; export it as typed-onnx")
    _check_opset(subject, found.values())
    return found


def _check_opset(subject: Subject, precisions: Iterable[Precision]) -> None:
    """Raises PlanError where the model's opset has no QuantizeLinear to a precision, in ONNX or of ONNX Runtime."""
    opset = opset_of(subject.model.onnx)
    for precision in precisions:
        needed = precision.number_format.opset
        if not precision.number_format.is_uniform and opset < needed:
            raise PlanError(
                f"{precision} in a Q/DQ model needs opset {needed} or newer, this one has {opset}; export the plan as "
                "typed-onnx, which converts it, or convert the model first (onnx.version_converter.convert_version)"
            )


class _Quantizer:
    """Puts Q/DQ before operands of one graph, once for each tensor, and ONNX Runtime's products of blocks."""

    def __init__(self, model: ir.Model, table: CalibrationTable) -> None:
        self._graph = model.graph
        self._table = table
        self._nodes = {str(node.name): node for node in model.graph}
        self._made: dict[tuple[ir.Value, int | None, Precision], ir.Value] = {}
        self._packed: dict[tuple[ir.Value, int | None, bytes], tuple[ir.Value, ir.Value]] = {}
        self._names = set(all_names(model.graph))
        self.domain = "" if opset_of(model) >= _PER_CHANNEL else _MICROSOFT

    def quantize(self, name: str, precision: Precision) -> None:
        """Both operands of this node, or of a precision for weights alone the weight."""
        node = self._nodes[name]
        if precision.is_weight_only:
            self._pack(node, precision)
            return
        for index, value in enumerate(node.inputs[:2]):
            if value is None:
                continue
            axis = weight_axis(node, index) if value.is_initializer() else None
            key = (value, axis, precision)
            if key not in self._made:
                is_weight = value.is_initializer()
                made = self._weight(value, axis, precision) if is_weight else self._activation(value, precision)
                self._made[key] = made
            node.replace_input_with(index, self._made[key])

    def _pack(self, node: ir.Node, precision: Precision) -> None:
        """Put ONNX Runtime's product with a weight in blocks in the place of the node, and of its bias an Add."""
        weight, bias, given = node.inputs[WEIGHT], node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0]
        assert weight is not None
        packed = packed_weight(node, self._table.of(precision))
        key = (weight, blocked_axis(node), packed.scales.tobytes())
        if key not in self._packed:
            stored = self._constant(packed.weight, f"{weight.name}_{precision}")
            self._packed[key] = (stored, self._constant(packed.scales, f"{weight.name}_scale"))
        attributes = [ir.AttrInt64(name, value) for name, value in packed.attributes.items()]
        last = ir.Node(_MICROSOFT, OPERATOR, [node.inputs[0], *self._packed[key]], attributes, name=node.name)
        self._graph.insert_after(node, last)
        if bias is not None:
            last.outputs[0].name = new_name(f"{given.name}_product", self._names)
            added = ir.Node("", "Add", [last.outputs[0], bias], name=new_name(f"{node.name}_bias", self._names))
            self._graph.insert_after(last, added)
            last = added
        taken, name = last.outputs[0], given.name
        taken.type, taken.shape = given.type, given.shape
        ir.convenience.replace_all_uses_with(given, taken, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        taken.name = name

    def drop_unused(self) -> None:
        """Take out the float weights that nothing takes any more."""
        kept = {*self._graph.inputs, *self._graph.outputs}
        for value, *_ in (*self._made, *self._packed):
            if value.is_initializer() and not value.uses() and value not in kept:
                del self._graph.initializers[str(value.name)]

    def _activation(self, value: ir.Value, precision: Precision) -> ir.Value:
        scale = np.asarray(self._table.scale(str(value.name), precision), np.float32)
        parameters, name = self._parameters(str(value.name), scale, precision), f"{value.name}_{precision}"
        taken = self._kept(value) if _is_rewritten(value, precision) else value
        low = self._node("QuantizeLinear", [taken, *parameters], name, None, after=taken.producer(), kind=precision)
        name = f"{value.name}_from_{precision}"
        return self._node("DequantizeLinear", [low, *parameters], name, None, after=low.producer(), like=value)

    def _kept(self, value: ir.Value) -> ir.Value:
        """What a Relu or Clip gives, as it is, by a node that ONNX Runtime does not look through."""
        largest = self._constant(np.asarray(np.finfo(np.float32).max), "float32_largest")
        name = new_name(f"{value.name}_kept", self._names)
        node = ir.Node("", "Min", [value, largest], name=name)
        output = node.outputs[0]
        output.name, output.shape, output.type = name, value.shape, value.type
        self._graph.insert_after(value.producer(), node)  # type: ignore[arg-type]
        return output

    def _weight(self, value: ir.Value, axis: int | None, precision: Precision) -> ir.Value:
        assert value.const_value is not None
        weight, number_format = value.const_value.numpy(), precision.number_format
        scales = weight_scales(weight, axis, number_format)
        spread = spread_along(scales, axis, weight.ndim)
        # As QuantizeLinear does: the quotient in float32, ties to even, saturated.
        steps = rounded_to_grid(np.asarray(weight, np.float32) / spread, number_format)
        stored = self._constant(steps.astype(number_format.numpy), f"{value.name}_{precision}")
        parameters, name = self._parameters(str(value.name), scales, precision), f"{value.name}_from_{precision}"
        return self._node("DequantizeLinear", [stored, *parameters], name, axis, None, like=value)

    def _parameters(self, name: str, scales: np.ndarray, precision: Precision) -> list[ir.Value]:
        zeros = np.zeros(scales.shape, precision.number_format.numpy)
        return [self._constant(scales, f"{name}_scale"), self._constant(zeros, f"{name}_zero_point")]

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        name = new_name(name, self._names)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        self._graph.register_initializer(value)
        return value

    def _node(
        self,
        operator: str,
        inputs: list[ir.Value],
        name: str,
        axis: int | None,
        after: ir.Node | None,
        like: ir.Value | None = None,
        kind: Precision = Precision.INT8,
    ) -> ir.Value:
        """A new node behind `after`, or at the graph's start; returns its output, of the type of `like` or `kind`."""
        name = new_name(name, self._names)
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        node = ir.Node(self.domain, operator, inputs, attributes, name=f"{name}_{operator}")
        output = node.outputs[0]
        output.name = name
        output.shape = inputs[0].shape
        output.type = ir.TensorType(kind.number_format.element) if like is None else like.type
        if after is not None:
            self._graph.insert_after(after, node)
        elif len(self._graph):
            self._graph.insert_before(self._graph[0], node)
        return output


def _is_rewritten(value: ir.Value, precision: Precision) -> bool:
    """Whether ONNX Runtime 1.32 would harm the node that gives it.

    Before a QuantizeLinear to FP8 with zero point 0 its optimiser takes a Relu away, as if that were the type's least
    value, and loads no model with a Clip there.
    """
    producer = value.producer()
    return not precision.number_format.is_uniform and producer is not None and producer.op_type in ("Relu", "Clip")


def _notes(subject: Subject, domain: str) -> tuple[str, ...]:
    low = sorted(p for p in subject.asked | {subject.plan.around} if p.is_low_float)
    notes = [f"layers in {precision} stand in fp32: this model holds the quantized layers alone" for precision in low]
    if any(precision.is_weight_only for precision in subject.asked):
        notes.append(f"weights in int4 stand in ONNX Runtime's own {OPERATOR} ({_MICROSOFT}), which no other tool has")
    elif domain:
        notes.append(
            f"the model's opset has no scales per channel, so Q/DQ are ONNX Runtime's own ({domain}); "
            f"other tools need opset {_PER_CHANNEL}"
        )
    return tuple(notes)
