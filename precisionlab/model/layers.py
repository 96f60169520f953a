"""Groups nodes into layers: the fusions that TensorRT documents for Conv, Gemm and MatMul.

Source: NVIDIA TensorRT documentation, "Types of Fusions": convolution and scale, convolution and
activation, convolution and elementwise sum, and the same for fully connected layers and matrix
multiplication. Inside a layer nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

import onnx_ir as ir

from precisionlab.model.blocks import blocked_axis
from precisionlab.model.flow import (
    ONNX_DOMAINS,
    SHAPE_FLOW,
    Fixed,
    fixed_reason,
    is_control,
    outer_values,
    shape_flow,
    subgraphs,
)
from precisionlab.model.graph import Body, Layer, Model, Obstacle, TensorInfo
from precisionlab.model.lift import own_of
from precisionlab.precision import Precision

QUANTIZABLE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SCALES = frozenset({"Add", "Sub", "Mul", "Div"})
ACTIVATIONS = frozenset(
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


def layers_of(
    graph: ir.Graph,
    tensors: Mapping[str, TensorInfo],
    functions: frozenset[tuple[str, str]],
    bodies: Mapping[ir.Graph, Body],
) -> tuple[Layer, ...]:
    """The graph's layers in topological order; every node of it is in exactly one.

    `tensors` gives type and shape of each value that its nodes refer to, `functions` the (domain, name) of the model's
    local functions, `bodies` has the graphs inside its nodes. Nodes are named already.
    """
    shapes = shape_flow(graph)
    fixed = {
        node: fixed_reason(node, tensors, shapes, functions, _is_lowerable(node, bodies), _held_inside(node, bodies))
        or _quantized(node)
        for node in graph
    }
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
    return tuple(layer_of(group, fixed[group[0]], tensors, bodies) for group in groups)


def _is_lowerable(node: ir.Node, bodies: Mapping[ir.Graph, Body]) -> bool:
    return any(layer.fixed is None for _, graph in subgraphs(node) for layer in bodies[graph].layers)


def _held_inside(node: ir.Node, bodies: Mapping[ir.Graph, Body]) -> Fixed | None:
    """Why the node, with all that is in its bodies, has to stay in float32: one that cannot be emulated is in there."""
    for body in (bodies[graph] for _, graph in subgraphs(node)):
        for layer in body.layers:
            if layer.held:
                reason = f"{layer.fixed} ({layer.name!r} in {body.where})"
                return Fixed(reason, held=True, obstacle=layer.obstacle or Obstacle.OTHER)
    return None


def marked_islands(layers: tuple[Layer, ...], others: Iterable[Layer] = ()) -> tuple[Layer, ...]:
    """The layers with those in half marked as islands, where any that can be given a precision is float32.

    `others` are layers of the same model in other graphs.
    """
    if not any(layer.fixed is None and layer.own is None for layer in (*layers, *others)):
        return layers
    return tuple(layer if layer.own is None else replace(layer, is_island=True) for layer in layers)


def one_node_a_layer(model: Model) -> Model:
    """The same model with nothing fused: each node is a layer of its own.

    TensorRT calibrates before it fuses, so that a calibration cache has the tensors inside fused layers too.
    """
    layers = (layer_of([node], None, model.tensors) for node in model.onnx.graph)
    return replace(model, layers=tuple(replace(layer, fixed="not fused", obstacle=Obstacle.OTHER) for layer in layers))


def is_anchor(node: ir.Node) -> bool:
    """Whether int8 arithmetic applies to the node, and other nodes fuse behind it."""
    return node.domain in ONNX_DOMAINS and node.op_type in QUANTIZABLE_OPS


def _quantized(node: ir.Node) -> Fixed | None:
    """Why a node with both operands dequantised, which a compiler runs in integers or fp8, has no other precision."""
    if not is_anchor(node):
        return None
    producers = [None if value is None else value.producer() for value in node.inputs[:2]]
    if any(producer is None or producer.op_type != "DequantizeLinear" for producer in producers):
        return None
    stored = [producer.inputs[0] for producer in producers if producer is not None]
    is_fp8 = any(value is not None and value.dtype == Precision.FP8.number_format.element for value in stored)
    kind = Precision.FP8 if is_fp8 else Precision.INT8
    return Fixed(f"computes in {kind}, as the model says: its operands are quantised", obstacle=Obstacle.QUANTIZED)


def _fused_after(
    anchor: ir.Node, fixed: Mapping[ir.Node, Fixed | None], tensors: Mapping[str, TensorInfo], taken: set[ir.Node]
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
        if node.op_type in ACTIVATIONS and node.inputs[0] is value and _others_constant(node, value):
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


def layer_of(
    group: list[ir.Node],
    fixed: Fixed | None,
    tensors: Mapping[str, TensorInfo],
    bodies: Mapping[ir.Graph, Body] = MappingProxyType({}),
) -> Layer:
    """The layer that these nodes of a graph make; `fixed` says why it cannot be given a precision."""
    inside = {v for node in group for v in node.outputs}
    inputs: dict[str, None] = {}
    weights: dict[str, ir.Value] = {}
    for node in group:
        for value in (*node.inputs, *sorted(outer_values(node), key=lambda v: str(v.name))):
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
        fixed=None if fixed is None else fixed.reason,
        held=fixed is not None and fixed.held,
        obstacle=None if fixed is None else fixed.obstacle,
        quantizable=fixed is None and is_anchor(group[0]) and not is_double,
        blocked=fixed is None and not is_double and blocked_axis(group[0]) is not None,
        multiply_adds=multiply_adds(group[0], tensors, bodies),
        weight_bytes=sum(
            v.const_value.nbytes for v in (*weights.values(), *_own_constants(group)) if v.const_value is not None
        ),
        is_double=is_double,
        own=None if fixed is not None and fixed.reason == SHAPE_FLOW else next(filter(None, map(own_of, group)), None),
    )


def _bytes_of(constant: ir.Value) -> int:
    return 0 if constant.const_value is None else constant.const_value.nbytes


def _own_constants(group: list[ir.Node]) -> list[ir.Value]:
    """The constants of the graphs inside the nodes."""
    found: list[ir.Value] = []
    waiting = [graph for node in group for _, graph in subgraphs(node)]
    while waiting:
        graph = waiting.pop()
        found += graph.initializers.values()
        waiting += [held for inner in graph for _, held in subgraphs(inner)]
    return found


def multiply_adds(
    node: ir.Node, tensors: Mapping[str, TensorInfo], bodies: Mapping[ir.Graph, Body] = MappingProxyType({})
) -> int | None:
    """Multiply-adds of Conv, ConvTranspose, Gemm and MatMul; 0 for anything else, None if unknown.

    Of a node with bodies those of its larger branch, or of all turns of its loop.
    """
    if is_control(node):
        counts = [_total(bodies[graph]) for _, graph in subgraphs(node) if graph in bodies]
        each = None if None in counts else max((count for count in counts if count is not None), default=0)
        turns = 1 if each == 0 else turns_of(node, tensors)
        return None if each is None or turns is None else each * turns
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


def _total(body: Body) -> int | None:
    counts = [layer.multiply_adds for layer in body.layers]
    return None if None in counts else sum(count for count in counts if count is not None)


def turns_of(node: ir.Node, tensors: Mapping[str, TensorInfo]) -> int | None:
    """How often an If, Loop or Scan runs a body, at the most; None where that is not known before it runs."""
    if node.op_type == "If":
        return 1
    if node.op_type == "Loop":
        trips = node.inputs[0]
        return None if trips is None or trips.const_value is None else max(0, int(trips.const_value.numpy().item()))
    count = node.attributes["num_scan_inputs"].as_int()
    axes = node.attributes["scan_input_axes"].as_ints() if "scan_input_axes" in node.attributes else [0] * count
    scanned = node.inputs[len(node.inputs) - count]
    info = None if scanned is None else tensors.get(str(scanned.name))
    dim = None if info is None or info.shape is None else info.shape[axes[0]]
    return dim if isinstance(dim, int) else None


def quantized_operands(model: Model, layer: Layer) -> tuple[str, ...]:
    """The activations that the layer quantises in int8; none for layers that int8 does not touch."""
    if not layer.quantizable:
        return ()
    values = model.node[layer.nodes[0]].inputs[:2]
    return tuple(str(v.name) for v in values if v is not None and not v.is_initializer())


def constants_of(model: Model, layer: Layer) -> list[ir.Value]:
    """The layer's constants in the main graph, and those that its bodies take."""
    own = model.onnx.graph.initializers
    inner = (value for name in layer.inside for value in model.inner[name].constants)
    return list(dict.fromkeys([*(own[name] for name in layer.weights if name in own), *inner]))
