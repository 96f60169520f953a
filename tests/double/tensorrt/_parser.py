"""The ONNX parser: from nodes to layers, with TensorRT's names.

What it makes of the bundled model is held against the real parser (TensorRT-RTX's) by test_trt_sweep.py, name by name:
one node in several layers, constants as layers, and helpers that belong to no node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from ._interfaces import DataType, ILogger, LayerType, _Log
from ._network import ILayer, INetworkDefinition, ITensor, Shape
from ._plugins import OWN, REGISTRY
from ._settings import settings

_KINDS = {
    **dict.fromkeys(("Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu"), LayerType.ACTIVATION),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Greater"), LayerType.ELEMENTWISE),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool"), LayerType.REDUCE),
    **dict.fromkeys(("Sqrt", "Exp", "Log", "Abs", "Neg", "Erf"), LayerType.UNARY),
    **dict.fromkeys(("MaxPool", "AveragePool"), LayerType.POOLING),
    "Transpose": LayerType.SHUFFLE,
    "Conv": LayerType.CONVOLUTION,
    "BatchNormalization": LayerType.SCALE,
    "Softmax": LayerType.SOFTMAX,
    "MatMul": LayerType.MATRIX_MULTIPLY,
    "Concat": LayerType.CONCATENATION,
    "Identity": LayerType.IDENTITY,
    "Cast": LayerType.CAST,
}
_OWN_WEIGHTS = frozenset({"Conv", "BatchNormalization", "Clip", "ReduceMean", "ReduceSum", "ReduceMax"})
"""Operators whose layer holds its weights or settings itself: these are no tensors of the network."""
_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.INT8: DataType.INT8,
    onnx.TensorProto.FLOAT8E4M3FN: DataType.FP8,
}


class ParserError:
    def __init__(self, description: str, node: int, name: str, operator: str) -> None:
        self._description, self._node, self._name, self._operator = description, node, name, operator

    def desc(self) -> str:
        return self._description

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator

    def local_function_stack(self) -> list[str]:
        return []

    def local_function_stack_size(self) -> int:
        return 0


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._log = network, _Log(logger)
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        loaded = onnx.load_model(model)
        reading = _Reading(loaded)
        for index, node in enumerate(loaded.graph.node):
            if not reading.take(node):
                what = f"Plugin not found, are the plugin name, version, and namespace correct? ({node.op_type})"
                self._errors.append(ParserError(what, index, _name_of(node), node.op_type))
                self._log.log("ERROR", f"In node {index} with name: {_name_of(node)} and operator: {node.op_type}")
                return False
        parts = self._network._parts
        parts.layers, parts.inputs = reading.layers, reading.inputs
        parts.content = loaded.SerializeToString()
        for value in loaded.graph.output:
            self._network.mark_output(reading.tensors[value.name])
        return True


def _name_of(node: onnx.NodeProto) -> str:
    return node.name or f"node_of_{node.output[0]}"


def _told(node: onnx.NodeProto, around: Sequence[_Around]) -> str:
    """A layer's metadata (onnx-tensorrt, `processMetadata`, of 8.6-GA, 10.1-GA and TensorRT-RTX 1.7).

    8.6 tells the doc string's lines but those of installed packages, 10.1 the function that is called, and both
    nothing of a body; later ones tell what is around a node, with that node's name.
    """
    parts = [_name_of(node)]
    manner = settings().get("metadata", "10.16")
    if manner == "8.6":
        lines = node.doc_string.split("\n") if node.doc_string else []
        kept = (line for line in lines if "site-packages" not in line and "dist-packages" not in line)
        parts += [line.replace('"', "'") for line in kept]
    elif manner == "10.1":
        parts += [f"Local Function: {scope.kind}" for scope in around if scope.is_function][-1:]
    else:
        for scope in reversed(around):
            parts += [f"{name} ({kind})" for name, kind in scope.body] + [f"{scope.name} ({scope.kind})"]
    metadata = f"[ONNX Layer: {' | '.join(parts)}]"
    return metadata if len(metadata) <= 4000 else f"{metadata[:2000]} ... {metadata[-2000:]}"


@dataclass(frozen=True)
class _Around:
    """A node that holds others: its name and operator, and for an If the branch with its kind."""

    name: str
    kind: str
    body: tuple[tuple[str, str], ...] = ()

    @property
    def is_function(self) -> bool:
        return not self.body


class _Reading:
    """One model, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        values = (*graph.input, *graph.value_info, *graph.output)
        self._known = {value.name: value.type.tensor_type for value in values}
        self._weights = {weight.name: weight for weight in graph.initializer}
        self._functions = {function.name: function for function in model.functions}
        self._around: list[_Around] = []
        self._names: set[str] = set()
        self._spent = 0
        self.layers: list[ILayer] = []
        self.inputs = [self._tensor(v.name) for v in graph.input if v.name not in self._weights]
        for tensor in self.inputs:
            tensor.is_network_input = True
        self.tensors = {tensor.name: tensor for tensor in self.inputs}

    def take(self, node: onnx.NodeProto) -> bool:
        """Make the layers of a node; false where its operator is not known."""
        match node.op_type:
            case "HardSwish":
                (taken,) = self._taken(node)
                factor = self._add(_name_of(node), LayerType.ACTIVATION, node, [taken])
                self._add(_name_of(node), LayerType.ELEMENTWISE, node, [taken, factor], node.output[0])
            case "Gemm":
                product = self._add(_name_of(node), LayerType.MATRIX_MULTIPLY, node, self._operands(node, 0, 2))
                bias = self._operands(node, 2, 3, rank=len(product.shape) or 2)
                self._add(_name_of(node), LayerType.ELEMENTWISE, node, [product, *bias], node.output[0])
            case "Flatten":
                self._flatten(node)
            case "QuantizeLinear" | "DequantizeLinear":
                self._quantize(node)
            case "If":
                return self._branches(node)
            case _ if node.op_type in self._functions:
                return self._call(node)
            case _ if node.op_type in OWN or node.domain not in ("", "ai.onnx"):
                return self._plugin(node)
            case _ if node.op_type in _KINDS and node.domain in ("", "ai.onnx"):
                rank = max((len(self._shape(name)) for name in node.input), default=0)
                fewest = 1 if node.op_type in _OWN_WEIGHTS else len(node.input)
                self._add(
                    _name_of(node), _KINDS[node.op_type], node, self._operands(node, 0, fewest, rank), node.output[0]
                )
            case _:
                return False
        return True

    def _plugin(self, node: onnx.NodeProto) -> bool:
        """A layer of a plugin; false where the registry has none of that name."""
        if not REGISTRY._has(node.op_type):
            return False
        inputs = self._operands(node, 0, len(node.input))
        outputs = [self._tensor(name) for name in node.output]
        unique = self._unique(_name_of(node))
        told = _told(node, self._around)
        self.layers.append(ILayer(unique, LayerType.PLUGIN_V3, told, inputs, outputs, self._outermost(node)))
        self.tensors |= {tensor.name: tensor for tensor in outputs}
        return True

    def _quantize(self, node: onnx.NodeProto) -> None:
        """What is quantised is of the zero point's type, which is constant here."""
        is_quantize = node.op_type == "QuantizeLinear"
        data, scale = self._operands(node, 0, 2)
        if node.input[0] in self._weights and not is_quantize:
            data._dtype = _TYPES[self._weights[node.input[0]].data_type]
        kind = LayerType.QUANTIZE if is_quantize else LayerType.DEQUANTIZE
        given = self._add(_name_of(node), kind, node, [data, scale], node.output[0])
        given._dtype = _TYPES[self._weights[node.input[2]].data_type] if is_quantize else DataType.FLOAT

    def _branches(self, node: onnx.NodeProto) -> bool:
        taken = [self.tensors[node.input[0]]]
        name = f"(Unnamed Layer* {len(self.layers)}) [IfCondition]"
        self.layers.append(ILayer(name, LayerType.CONDITION, "", taken, [], None))
        ends = []
        for attribute in node.attribute:
            self._weights |= {weight.name: weight for weight in attribute.g.initializer}
            self._around.append(_Around(_name_of(node), node.op_type, ((attribute.g.name, attribute.name),)))
            if not all(self.take(inner) for inner in attribute.g.node):
                return False
            self._around.pop()
            ends.append(self.tensors[attribute.g.output[0].name])
        self._add(f"{_name_of(node)}_OutputLayer", LayerType.CONDITIONAL_OUTPUT, node, ends, node.output[0])
        return True

    def _call(self, node: onnx.NodeProto) -> bool:
        function = self._functions[node.op_type]
        names = dict(zip(function.input, node.input, strict=True)) | dict(
            zip(function.output, node.output, strict=True)
        )
        self._around.append(_Around(_name_of(node), node.op_type))
        for inner in function.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(inner)
            copy.input[:] = [names.get(name, name) for name in inner.input]
            copy.output[:] = [names.get(name, name) for name in inner.output]
            if not self.take(copy):
                return False
        self._around.pop()
        return True

    def _flatten(self, node: onnx.NodeProto) -> None:
        (taken,) = self._taken(node)
        inputs = [taken]
        # The parser makes up more names than it keeps.
        if min(taken.shape, default=0) < 0:  # its new shape is computed on the host
            first = self._host("ONNXTRT_ShapeTensorFromDims", LayerType.CONSTANT, [])
            shape = self._host("ONNXTRT_ShapeTensor", LayerType.SHAPE, [taken])
            cast = self._host("ONNXTRT_castHelper", LayerType.CAST, [shape])
            self._spent += 1
            gathered = self._host("ONNXTRT_ShapeGather", LayerType.GATHER, [cast, first])
            rest = self._host("ONNXTRT_ShapeTensorFromDims", LayerType.CONSTANT, [])
            self._spent += 2
            inputs.append(self._host("ONNXTRT_ShapeConcat", LayerType.CONCATENATION, [gathered, rest]))
        else:
            self._spent += 2
        self._add(_name_of(node), LayerType.SHUFFLE, node, inputs, node.output[0])

    def _taken(self, node: onnx.NodeProto) -> list[ITensor]:
        return [self.tensors[name] for name in node.input[:1]]

    def _operands(self, node: onnx.NodeProto, start: int, end: int, rank: int = 0) -> list[ITensor]:
        """These inputs; a weight becomes a constant, and is broadcast to this rank where it has a smaller one."""
        found = []
        for name in node.input[start:end]:
            if name not in self._weights:
                found.append(self.tensors[name])
                continue
            given = ITensor(f"{name}_output", DataType.FLOAT, tuple(self._weights[name].dims))
            self._layer(name, LayerType.CONSTANT, "", [], given)
            if 0 < len(given.shape) < rank:
                helper = self._unique("ONNXTRT_Broadcast")
                spread = ITensor(f"{helper}_output", DataType.FLOAT, (*[1] * (rank - len(given.shape)), *given.shape))
                self._layer(helper, LayerType.SHUFFLE, "", [given], spread)
                given = spread
            found.append(given)
        return found

    def _add(
        self, name: str, kind: LayerType, node: onnx.NodeProto, inputs: Sequence[ITensor], output: str | None = None
    ) -> ITensor:
        """A layer of a node; without a name, what it gives is called after the layer."""
        unique = self._unique(name)
        given = self._tensor(output) if output else ITensor(f"{unique}_output", DataType.FLOAT, ())
        self._layer(unique, kind, _told(node, self._around), inputs, given, self._outermost(node))
        return given

    def _outermost(self, node: onnx.NodeProto) -> str:
        """The node of the main graph that a node is part of."""
        return self._around[0].name if self._around else _name_of(node)

    def _host(self, name: str, kind: LayerType, inputs: Sequence[ITensor]) -> ITensor:
        unique = self._unique(name)
        given = ITensor(f"{unique}_output", DataType.INT64, (), on_host=True)
        self._layer(unique, kind, "", inputs, given)
        return given

    def _layer(
        self,
        name: str,
        kind: LayerType,
        metadata: str,
        inputs: Sequence[ITensor],
        given: ITensor,
        node: str | None = None,
    ) -> None:
        self.layers.append(ILayer(name, kind, metadata, inputs, [given], node))
        if metadata:
            self.tensors[given.name] = given

    def _unique(self, name: str) -> str:
        if name in self._names:
            self._spent += 1
            name = f"{name}_{self._spent}"
        self._names.add(name)
        return name

    def _tensor(self, name: str) -> ITensor:
        known = self._known.get(name)
        dtype = _TYPES[known.elem_type] if known is not None and known.elem_type in _TYPES else DataType.FLOAT
        return ITensor(name, dtype, self._shape(name))

    def _shape(self, name: str) -> Shape:
        if name in self._weights:
            return tuple(self._weights[name].dims)
        known = self._known.get(name)
        dims = () if known is None else known.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
