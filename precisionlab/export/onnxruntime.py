"""A plan's int8 layers as a Q/DQ model for ONNX Runtime, with the plan's own scales.

Not by onnxruntime's quantizer: that gives the quantised tensor to all that take it, the pinned layers among them, and
adjusts ranges of its own accord. Here QuantizeLinear and DequantizeLinear stand before the two operands of each int8
layer alone, int8 with zero point 0, weights per channel and stored as int8, no quantised bias.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from google.protobuf.message import EncodeError

from precisionlab.calibration.table import CalibrationTable, weight_scales
from precisionlab.errors import ModelError, PlanError
from precisionlab.export.subject import Export, Subject
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
    """The model's bytes. Raises PlanError where no layer is in int8, ModelError where the file would exceed 2 GiB."""
    quantized = check_quantizes(subject)
    _ = subject.scales  # says so where there are none
    assert subject.table is not None
    model = subject.model.onnx.clone()
    quantizer = _Quantizer(model, subject.table)
    for name in quantized:
        quantizer.quantize(name)
    quantizer.drop_unused()
    give_edges(model.graph, subject.model.halves)
    if quantizer.domain:
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


def check_quantizes(subject: Subject) -> list[str]:
    """The first node of each int8 layer. Raises PlanError where there is none."""
    found = [layer.nodes[0] for layer in subject.model.layers if precision_of(layer, subject.plan).is_quantized]
    if not found:
        raise PlanError("the plan has no int8 layer, and a Q/DQ model has nothing else; export it as typed-onnx")
    return found


class _Quantizer:
    """Puts Q/DQ before operands of one graph, once for each tensor."""

    def __init__(self, model: ir.Model, table: CalibrationTable) -> None:
        self._graph = model.graph
        self._table = table
        self._nodes = {str(node.name): node for node in model.graph}
        self._made: dict[tuple[ir.Value, int | None], ir.Value] = {}
        self._names = set(all_names(model.graph))
        self.domain = "" if opset_of(model) >= _PER_CHANNEL else _MICROSOFT

    def quantize(self, name: str) -> None:
        """Both operands of this node."""
        node = self._nodes[name]
        for index, value in enumerate(node.inputs[:2]):
            if value is None:
                continue
            axis = weight_axis(node, index) if value.is_initializer() else None
            key = (value, axis)
            if key not in self._made:
                made = self._weight(value, axis) if value.is_initializer() else self._activation(value)
                self._made[key] = made
            node.replace_input_with(index, self._made[key])

    def drop_unused(self) -> None:
        """Take out the float weights that nothing takes any more."""
        kept = {*self._graph.inputs, *self._graph.outputs}
        for value, _ in self._made:
            if value.is_initializer() and not value.uses() and value not in kept:
                del self._graph.initializers[str(value.name)]

    def _activation(self, value: ir.Value) -> ir.Value:
        scale = np.asarray(self._table.ranges[str(value.name)].scale, np.float32)
        parameters = self._parameters(str(value.name), scale)
        low = self._node("QuantizeLinear", [value, *parameters], f"{value.name}_int8", None, after=value.producer())
        return self._node(
            "DequantizeLinear", [low, *parameters], f"{value.name}_from_int8", None, after=low.producer(), like=value
        )

    def _weight(self, value: ir.Value, axis: int | None) -> ir.Value:
        assert value.const_value is not None
        weight = value.const_value.numpy()
        scales = weight_scales(weight, axis)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)] if axis is not None else []
        # As QuantizeLinear does: the quotient in float32, ties to even, saturated.
        low = np.clip(np.rint(weight / scales.reshape(shape)), -128, 127).astype(np.int8)
        stored = self._constant(low, f"{value.name}_int8")
        parameters = self._parameters(str(value.name), scales)
        return self._node("DequantizeLinear", [stored, *parameters], f"{value.name}_from_int8", axis, None, like=value)

    def _parameters(self, name: str, scales: np.ndarray) -> list[ir.Value]:
        zeros = np.zeros(scales.shape, np.int8)
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
    ) -> ir.Value:
        """A new node behind `after`, or at the graph's start; returns its output."""
        name = new_name(name, self._names)
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        node = ir.Node(self.domain, operator, inputs, attributes, name=f"{name}_{operator}")
        output = node.outputs[0]
        output.name = name
        output.shape = inputs[0].shape
        output.type = ir.TensorType(ir.DataType.INT8) if like is None else like.type
        if after is not None:
            self._graph.insert_after(after, node)
        elif len(self._graph):
            self._graph.insert_before(self._graph[0], node)
        return output


def _notes(subject: Subject, domain: str) -> tuple[str, ...]:
    low = sorted((subject.asked | {subject.plan.around}) - {Precision.FP32, Precision.INT8})
    notes = [f"layers in {precision} stand in fp32: this model holds the int8 layers alone" for precision in low]
    if domain:
        notes.append(
            f"the model's opset has no scales per channel, so Q/DQ are ONNX Runtime's own ({domain}); "
            f"other tools need opset {_PER_CHANNEL}"
        )
    return tuple(notes)
