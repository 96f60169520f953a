"""Which type each node computes in, and which are quantised: decided before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from precisionlab.calibration.table import CalibrationTable, tables_in, weight_scales
from precisionlab.errors import PlanError
from precisionlab.model import Layer, Model
from precisionlab.model.blocks import WEIGHT
from precisionlab.model.flow import is_control, is_shape_input, outer_values, subgraphs
from precisionlab.model.graph import Body, Scope, TensorInfo
from precisionlab.model.recurrent import is_recurrent
from precisionlab.plan.assign import around_of, precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.batchnorm import folded_batchnorm
from precisionlab.rewrite.channel_scales import factors_shape, weight_by_channel
from precisionlab.rewrite.gates import weight_axis
from precisionlab.rewrite.plans import unquantizable
from precisionlab.rewrite.typed.channels import HALF, channel_factors, step_of
from precisionlab.rewrite.typed.constants import converted
from precisionlab.rewrite.typed.signature import FLOAT, places

_SCALES = ("Add", "Sub", "Mul", "Div")
# What ONNX defines in a type and TensorRT does not build in it: tried one by one with TensorRT-RTX 1.7.1.
_LACKING = {
    ir.DataType.FLOAT16: frozenset({"MeanVarianceNormalization"}),
    ir.DataType.BFLOAT16: frozenset(
        {"ConvTranspose", "GRU", "GlobalLpPool", "LpNormalization", "MeanVarianceNormalization", "Mish"}
    ),
}
_LENGTHS = 4
"""The input of a recurrent node that says how long each sample is."""


@dataclass(frozen=True)
class Assignment:
    """Node name → the float type that it computes in; that of its two operands' quantized precision; notes.

    A node that is not here has no type of its own: it takes that of what it is given, or float32. `summed` are the
    matrix products in half that add up in float32, `split` the quantized ones whose weight has one scale, with the
    channels' factors behind the product (see `channels.py`). `notes` say what is not as planned.
    """

    dtypes: Mapping[str, ir.DataType]
    quantized: Mapping[str, Precision]
    notes: tuple[str, ...] = ()
    summed: frozenset[str] = frozenset()
    split: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BodyTypes:
    """What a body is typed as: node name → its float type, and the type of all floats that it takes and gives.

    `tensors` are those that its nodes refer to, in float32.
    """

    dtypes: Mapping[str, ir.DataType]
    border: ir.DataType
    tensors: Mapping[str, TensorInfo]


def short(dtype: ir.DataType) -> str:
    """The precision's name: `fp16` for float16."""
    return str(Precision.of_element(dtype))


def planned(model: Model, plan: PrecisionPlan, table: CalibrationTable | None) -> Assignment:
    """What the plan asks of every node that a precision can be given to.

    A fused layer whose constants do not survive the type stays in float32, with a note: its kernel folds them in
    float32, which a typed graph cannot say. Raises PlanError where the plan cannot be carried out.
    """
    if plan.model_sha256 != model.sha256:
        raise PlanError(
            f"the plan was made for another model (sha256 {plan.model_sha256[:12]}…, this one is {model.sha256[:12]}…)"
        )
    for pin in plan.pins:
        if pin.layer not in model.layer:
            raise PlanError(f"the plan pins layer {pin.layer!r}, which the model does not have")
    dtypes: dict[str, ir.DataType] = {}
    quantized: dict[str, Precision] = {}
    summed: set[str] = set()
    split: set[str] = set()
    notes: list[str] = []
    for layer in model.layers:
        if layer.fixed is not None:
            continue
        precision = precision_of(layer, plan)
        if layer.is_double:
            if precision.is_low:
                notes.append(f"layer {layer.name} is left in double, which TensorRT computes in float32")
            continue
        reason = None
        if precision.is_quantized:
            _check_quantizable(model, layer, table, precision)
            quantized[layer.nodes[0]] = precision
            dtype = around_of(layer, plan).number_format.element
            is_split = (
                precision.needs_ranges and dtype == HALF and weight_by_channel(model.node[layer.nodes[0]]) is not None
            )
            reason = _too_wide(model, layer, table, precision, dtype)
            reason = reason or (_unsplit(model, layer, table, precision) if is_split else None)
            split.update(layer.nodes[:1] if is_split else ())
        else:
            dtype = precision.number_format.element
        reason = reason or _lost_constant(model, layer, dtype)
        if reason is not None:
            notes.append(f"layer {layer.name} is left in fp32: {reason}")
            dtype = FLOAT
        if precision.is_for_pins and dtype != FLOAT:
            summed.add(layer.nodes[0])
        dtypes.update(dict.fromkeys(layer.nodes, dtype))
    return _without_float32(Assignment(dtypes, quantized, tuple(notes), frozenset(summed), frozenset(split)))


def _without_float32(assignment: Assignment) -> Assignment:
    """The assignment without what is said of products in half that are in float32 after all."""
    dtypes = assignment.dtypes
    summed, split = (
        frozenset(n for n in names if dtypes[n] != FLOAT) for names in (assignment.summed, assignment.split)
    )
    return replace(assignment, summed=summed, split=split)


def allowed(
    assignment: Assignment, graph: ir.Graph, opset: int, model: Model, tensors: Mapping[str, TensorInfo]
) -> Assignment:
    """The assignment without the types that ONNX or TensorRT do not have of their nodes at this opset, which are noted.

    The whole layer goes to float32 then: nothing is cast inside it. `tensors` are those of this graph in float32.
    """
    layer_of = {name: layer for layer in model.layers for name in layer.nodes}
    refused: dict[str, str] = {}
    for node in graph:
        dtype = assignment.dtypes.get(str(node.name), FLOAT)
        if dtype == FLOAT:
            continue
        reason = None
        names = [v.name for v in node.inputs if v is not None and v.name]
        unknown = [name for name in names if name in tensors and tensors[name].dtype is None]
        if unknown:
            reason = f"the type of {unknown[0]} is not known"
        elif is_control(node):
            reason = _untyped(node, is_converted=opset != model.opset)
        else:
            reason = _refusal(node, dtype, opset, tensors)
        if reason is not None:
            refused.setdefault(layer_of[str(node.name)].name, reason)
    notes = tuple(f"layer {layer} is left in fp32: {reason}" for layer, reason in refused.items())
    dtypes = dict(assignment.dtypes)
    for layer in refused:
        dtypes.update(dict.fromkeys(model.layer[layer].nodes, FLOAT))
    return _without_float32(replace(assignment, dtypes=dtypes, notes=(*assignment.notes, *notes)))


def _refusal(node: ir.Node, dtype: ir.DataType, opset: int, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Why ONNX or TensorRT does not have the node in the type."""
    if not places(node, dtype, opset, tensors).outputs:
        return f"ONNX does not define {node.op_type} in {short(dtype)} at opset {opset}"
    if is_recurrent(node) and len(node.inputs) > _LENGTHS and node.inputs[_LENGTHS] is not None:
        # Its parser chooses between a half state and a float32 zero, by each sample's length.
        return f"TensorRT has no {node.op_type} with sequence_lens in {short(dtype)}"
    if node.op_type in _LACKING.get(dtype, ()):
        return f"TensorRT has no {node.op_type} in {short(dtype)}"
    return None


def _untyped(node: ir.Node, is_converted: bool) -> str | None:
    """Why the bodies of a node cannot be typed."""
    if is_converted:
        return f"the opset was converted, and nodes inside of {node.op_type} are as they were"
    for outer in outer_values(node):
        if any(use.node.graph is not node.graph and is_shape_input(use.node, use.idx) for use in outer.uses()):
            return f"a node inside of it takes {outer.name} for a shape or a scale"
    return None


def body_types(
    model: Model, graph: ir.Graph, assignment: Assignment, opset: int
) -> tuple[dict[ir.Graph, BodyTypes], tuple[str, ...]]:
    """The types of the bodies in a copy of the model's graph, and which layers in them are left in float32, and why."""
    found: dict[ir.Graph, BodyTypes] = {}
    notes: list[str] = []

    def assign(node: ir.Node, original: ir.Node, border: ir.DataType) -> None:
        for (_, inner), (_, known) in zip(subgraphs(node), subgraphs(original), strict=True):
            body, copies = model.bodies[known], {str(n.name): n for n in inner}
            dtypes: dict[str, ir.DataType] = {}
            for layer in body.layers:
                if layer.fixed is not None:
                    continue
                reason = _refused(body, layer, border, opset)
                if reason is not None:
                    notes.append(f"layer {layer.name} in {body.where} is left in fp32: {reason}")
                dtypes.update(dict.fromkeys(layer.nodes, FLOAT if reason else border))
                for name in layer.nodes:
                    if is_control(body.node[name]):
                        assign(copies[name], body.node[name], dtypes[name])
            found[inner] = BodyTypes(dtypes, border, body.tensors)

    for node in graph:
        dtype = assignment.dtypes.get(str(node.name), FLOAT)
        if is_control(node) and dtype != FLOAT:
            assign(node, model.node[str(node.name)], dtype)
    return found, tuple(notes)


def _refused(body: Body, layer: Layer, dtype: ir.DataType, opset: int) -> str | None:
    """Why a layer of a body cannot have the type."""
    for name in layer.nodes:
        node = body.node[name]
        if is_control(node):
            reason = _untyped(node, is_converted=False)
        elif node.op_type == "HardSwish" and dtype == ir.DataType.BFLOAT16:
            reason = f"TensorRT has no {node.op_type} in {short(dtype)}"
        else:
            reason = _refusal(node, dtype, opset, body.tensors)
        if reason is not None:
            return reason
    return _lost_constant(body, layer, dtype)


def refusals(assignment: Assignment, graph: ir.Graph, opset: int, model: Model) -> int:
    """How many nodes ONNX does not allow their type at this opset."""
    wanted = ((node, assignment.dtypes.get(str(node.name), FLOAT)) for node in graph)
    return sum(dtype != FLOAT and not places(node, dtype, opset, model.tensors).outputs for node, dtype in wanted)


def _check_quantizable(model: Model, layer: Layer, table: CalibrationTable | None, precision: Precision) -> None:
    if precision not in {found.precision for found in tables_in(table)} or table is None:
        where = f"the plan runs layer {layer.name} in {precision}"
        raise PlanError(f"{where}, which needs a calibration table; there is none")
    reason = unquantizable(model.node[layer.nodes[0]], table.of(precision))
    if reason is not None:
        raise PlanError(f"layer {layer.name} cannot run in {precision}: {reason}; pin it to fp32")


def _too_wide(
    model: Model, layer: Layer, table: CalibrationTable | None, precision: Precision, dtype: ir.DataType
) -> str | None:
    """Why the type cannot hold what the layer's quantized operands stand for."""
    if dtype == FLOAT or table is None:
        return None
    if precision.is_weight_only:
        return _blocks_too_wide(model.node[layer.nodes[0]], dtype)
    node, number_format = model.node[layer.nodes[0]], precision.number_format
    for index, value in enumerate(node.inputs[:2]):
        if value is None:
            continue
        if value.const_value is not None:
            weight, axis = value.const_value.numpy(), weight_axis(node, index)
            scale = float(weight_scales(weight, axis, number_format).max(initial=0))
        else:
            scale = table.scale(str(value.name), precision)
        end = scale * number_format.largest
        if not np.isfinite(converted(np.asarray(end, np.float32), dtype).astype(np.float32)):
            return f"{value.name} reaches {end:.3g}, which {short(dtype)} does not hold"
    return None


def _blocks_too_wide(node: ir.Node, dtype: ir.DataType) -> str | None:
    """Why the type cannot hold what a weight in blocks stands for.

    The lowest level, −8, is what −7.5 and less are rounded to: that is 16 / 15 of what it stands for.
    """
    weight = node.inputs[WEIGHT]
    assert weight is not None
    assert weight.const_value is not None
    end = np.abs(weight.const_value.numpy()).max(initial=0) * np.float32(16 / 15)
    if np.isfinite(converted(np.asarray(end, np.float32), dtype).astype(np.float32)):
        return None
    return f"{weight.name} reaches {end:.3g}, which {short(dtype)} does not hold"


def _unsplit(model: Model, layer: Layer, table: CalibrationTable | None, precision: Precision) -> str | None:
    """Why the scales of the layer's channels cannot stand behind its product in half."""
    node = model.node[layer.nodes[0]]
    found = weight_by_channel(node)
    assert found is not None
    assert table is not None
    index, axis = found
    weight, other = node.inputs[index], node.inputs[1 - index]
    assert weight is not None
    assert other is not None
    assert weight.const_value is not None
    if other.is_initializer():
        return "both operands are constants"
    if factors_shape(node, index, model.tensors) is None:
        return f"the rank of {other.name} is not known"
    step = step_of(table, str(other.name), precision)
    if channel_factors(weight.const_value.numpy(), axis, step, precision) is not None:
        return None
    return f"fp16 does not hold the scales of {weight.name} beside that of {other.name}"


def _lost_constant(model: Scope, layer: Layer, dtype: ir.DataType) -> str | None:
    """Which constant of the nodes behind the layer's first one the type turns into Inf, or a divisor into 0."""
    if dtype == FLOAT:
        return None
    for name in layer.nodes:
        node = model.node[name]
        folded = folded_batchnorm(node)
        if folded is not None:
            constants = [(str(node.inputs[index].name), array) for index, array in folded.items()]  # type: ignore[union-attr]
        elif name != layer.nodes[0] and node.op_type in _SCALES:
            constants = [
                (str(v.name), v.const_value.numpy()) for v in node.inputs if v is not None and v.const_value is not None
            ]
        else:
            continue
        for label, array in constants:
            low = converted(array, dtype).astype(np.float32)
            if (np.isinf(low) & np.isfinite(array)).any():
                return f"constant {label} of {name} is beyond {short(dtype)}"
            if node.op_type == "Div" and ((low == 0) & (array != 0)).any():
                return f"divisor {label} of {name} underflows in {short(dtype)}"
    return None
