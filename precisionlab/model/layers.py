"""Groups nodes into layers: the fusions that TensorRT documents for Conv, Gemm and MatMul.

Source: NVIDIA TensorRT documentation, "Types of Fusions": convolution and scale, convolution and
activation, convolution and elementwise sum, and the same for fully connected layers and matrix
multiplication. Inside a layer nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS, SHAPE_FLOW, fixed_reason, shape_flow
from precisionlab.model.graph import Layer, Model, TensorInfo
from precisionlab.model.lift import own_of

QUANTIZABLE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SCALES = frozenset({"Add", "Sub", "Mul", "Div"})
_ACTIVATIONS = frozenset(
    [
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Elu",
        "Selu",
        "Celu",
        "Softplus",
        "Softsign",
        "ThresholdedRelu",
        "Gelu",
        "Mish",
        "Swish",
    ]
)


def layers_of(model: ir.Model, tensors: Mapping[str, TensorInfo]) -> tuple[Layer, ...]:
    """The model's layers in topological order; every node of the main graph is in exactly one.

    `tensors` gives type and shape of each value of the main graph. Nodes are named already.
    """
    graph = model.graph
    shapes = shape_flow(graph)
    functions = frozenset((f.domain, f.name) for f in model.functions.values())
    fixed = {node: fixed_reason(node, tensors, shapes, functions) or _quantized(node) for node in graph}
    position = {node: i for i, node in enumerate(graph)}
    taken: set[ir.Node] = set()
    groups: list[list[ir.Node]] = []
    for node in graph:
        if node in taken:
            continue
        group = [node]
        if fixed[node] is None and is_anchor(node):
            group += _fused_after(node, fixed, tensors, taken)
        taken.update(group)
        groups.append(group)
    # What a layer takes comes from layers whose last node stands earlier, so the last node's place
    # in the graph orders the layers topologically even where a residual branch lies in between.
    groups.sort(key=lambda group: position[group[-1]])
    return marked_islands(tuple(layer_of(group, fixed[group[0]], tensors) for group in groups))


def marked_islands(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers with those in half marked as islands, where any other that can be given a precision is float32."""
    if not any(layer.fixed is None and layer.own is None for layer in layers):
        return layers
    return tuple(layer if layer.own is None else replace(layer, is_island=True) for layer in layers)


def one_node_a_layer(model: Model) -> Model:
    """The same model with nothing fused: each node is a layer of its own.

    TensorRT calibrates before it fuses, so that a calibration cache has the tensors inside fused layers too.
    """
    layers = (layer_of([node], None, model.tensors) for node in model.onnx.graph)
    return replace(model, layers=tuple(replace(layer, fixed="not fused") for layer in layers))


def is_anchor(node: ir.Node) -> bool:
    """Whether int8 arithmetic applies to the node, and other nodes fuse behind it."""
    return node.domain in ONNX_DOMAINS and node.op_type in QUANTIZABLE_OPS


def _quantized(node: ir.Node) -> str | None:
    """Why a node with both operands dequantised, which a compiler runs in int8, has no other precision to be given."""
    if not is_anchor(node):
        return None
    producers = [None if value is None else value.producer() for value in node.inputs[:2]]
    if any(producer is None or producer.op_type != "DequantizeLinear" for producer in producers):
        return None
    return "computes in int8, as the model says: its operands are quantised"


def _fused_after(
    anchor: ir.Node, fixed: Mapping[ir.Node, str | None], tensors: Mapping[str, TensorInfo], taken: set[ir.Node]
) -> list[ir.Node]:
    """The nodes that fuse behind an anchor: a factor and a shift, then one residual sum, then one activation.

    A second shift is a kernel of its own, which takes the sum of the first as it is stored: (x + 30000) − 30000 leaves
    nothing of a small x in half.
    """
    fused: list[ir.Node] = []
    scaled: set[bool] = set()
    residual = False
    channel = _channel(anchor, tensors)
    value = anchor.outputs[0]
    while (node := _only_consumer(value)) is not None and fixed.get(node) is None and node not in taken:
        if node.graph is not anchor.graph or node.domain not in ONNX_DOMAINS or own_of(node) is not own_of(anchor):
            break
        if node.op_type in _ACTIVATIONS and node.inputs[0] is value and _others_constant(node, value):
            fused.append(node)
            break
        is_shift = node.op_type in ("Add", "Sub")
        if not residual and _is_batchnorm(node, value):
            fused.append(node)
        elif not residual and is_shift not in scaled and _is_scale(node, value, channel):
            scaled.add(is_shift)
            fused.append(node)
        elif not residual and _is_residual(node, value, tensors):
            residual = True
            fused.append(node)
        else:
            break
        value = node.outputs[0]
    return fused


def _only_consumer(value: ir.Value) -> ir.Node | None:
    if value.is_graph_output():
        return None
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 else None


def _others_constant(node: ir.Node, value: ir.Value) -> bool:
    return all(v is None or v is value or v.is_initializer() for v in node.inputs)


def _is_batchnorm(node: ir.Node, value: ir.Value) -> bool:
    return node.op_type == "BatchNormalization" and node.inputs[0] is value and _others_constant(node, value)


def _channel(anchor: ir.Node, tensors: Mapping[str, TensorInfo]) -> int:
    """How far the channels stand from the last axis of the anchor's output."""
    weight = anchor.inputs[1]
    shape = None if weight is None else tensors[str(weight.name)].shape
    return len(shape) - 2 if anchor.op_type in ("Conv", "ConvTranspose") and shape is not None else 0


def _is_scale(node: ir.Node, value: ir.Value, channel: int) -> bool:
    """Add, Sub, Mul or Div with a constant for each channel (a bias, an unfolded BatchNorm)."""
    if node.op_type not in _SCALES or not _others_constant(node, value):
        return False
    if node.op_type == "Div" and node.inputs[0] is not value:
        return False  # a constant over the value is no scale of it
    constants = [v for v in node.inputs if v is not None and v is not value]
    return len(constants) == 1 and _per_channel(constants[0], channel)


def _per_channel(value: ir.Value, channel: int) -> bool:
    shape = value.shape
    return shape is not None and all(dim == 1 or i == channel for i, dim in enumerate(reversed(list(shape))))


def _is_residual(node: ir.Node, value: ir.Value, tensors: Mapping[str, TensorInfo]) -> bool:
    """Add of another activation of the same, known shape: no broadcast, as an attention mask has."""
    if node.op_type != "Add":
        return False
    others = [v for v in node.inputs if v is not None and v is not value]
    if len(others) != 1 or others[0].is_initializer():
        return False
    this, other = tensors[str(value.name)], tensors.get(str(others[0].name))
    return other is not None and this.shape is not None and this.shape == other.shape and None not in this.shape


def layer_of(group: list[ir.Node], fixed: str | None, tensors: Mapping[str, TensorInfo]) -> Layer:
    """The layer that these nodes of the main graph make; `fixed` says why it cannot be given a precision."""
    inside = {v for node in group for v in node.outputs}
    inputs: dict[str, None] = {}
    weights: dict[str, ir.Value] = {}
    for node in group:
        for value in node.inputs:
            if value is None or value in inside:
                continue
            if value.is_initializer():
                weights[str(value.name)] = value
            else:
                inputs[str(value.name)] = None
    outputs = [v for v in inside if v.name and (v.is_graph_output() or any(use.node not in group for use in v.uses()))]
    is_double = any(tensors[str(v.name)].dtype == ir.DataType.DOUBLE for v in inside if v.name)
    order = {v: i for i, v in enumerate(v for node in group for v in node.outputs)}
    return Layer(
        name=str(group[0].name),
        nodes=tuple(str(node.name) for node in group),
        op_types=tuple(node.op_type for node in group),
        inputs=tuple(inputs),
        outputs=tuple(str(v.name) for v in sorted(outputs, key=order.__getitem__)),
        weights=tuple(weights),
        fixed=fixed,
        quantizable=fixed is None and is_anchor(group[0]) and not is_double,
        multiply_adds=multiply_adds(group[0], tensors),
        weight_bytes=sum(v.const_value.nbytes for v in weights.values() if v.const_value is not None),
        is_double=is_double,
        own=None if fixed == SHAPE_FLOW else next(filter(None, map(own_of, group)), None),
    )


def multiply_adds(node: ir.Node, tensors: Mapping[str, TensorInfo]) -> int | None:
    """Multiply-adds of Conv, ConvTranspose, Gemm and MatMul; 0 for anything else, None if unknown."""
    if not is_anchor(node):
        return 0
    first, second = (tensors[str(v.name)] for v in node.inputs[:2] if v is not None)
    output = tensors[str(node.outputs[0].name)]
    if first.shape is None or second.shape is None:
        return None
    if node.op_type == "Conv":  # weight M × C/group × kernel
        elements, per_element = output.elements, second.shape[1:]
    elif node.op_type == "ConvTranspose":  # weight C × M/group × kernel
        elements, per_element = first.elements, second.shape[1:]
    else:
        transposed = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int()
        elements, per_element = output.elements, first.shape[-2:-1] if transposed else first.shape[-1:]
    dims = [dim for dim in per_element if isinstance(dim, int)]
    if elements is None or len(dims) != len(per_element):
        return None
    return elements * math.prod(dims)
