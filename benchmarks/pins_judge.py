"""The judge of `benchmarks.pins`: what a choice of high-precision nodes gives, measured the same way for every tool.

It shares no code with precisionlab's rewrites: plain `onnx` helpers put rounding into a float32 graph, node by node
(nothing is fused, so that no tool's idea of layers has the advantage), and plain ONNX Runtime runs it on the CPU.

* A node in fp16 or bf16 rounds its float32 inputs, weights and outputs by `Cast` there and back.
* A Conv, ConvTranspose, Gemm or MatMul in int8 quantises its first two inputs: activations per tensor with the ranges
  given, weights per output channel, both symmetric with scale = largest / 127.
* Everything else stays float32: also inputs that carry sizes, scales or axes, and what is computed for those alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, NDArray[Any]]

FLOAT_CASTS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
QUANTIZED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MICROSOFT = "com.microsoft"

# Inputs that say how, not what (ONNX operator specification): never rounded.
_SHAPE_INPUTS: Mapping[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "Pad": frozenset({1, 3}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2, 3}),
    "Reshape": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
}
# No arithmetic of their own to be given a precision: type conversions, and constants.
_NO_PRECISION = frozenset(
    {"Cast", "CastLike", "Constant", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
)


@dataclass(frozen=True)
class EndError:
    """How far the worst float output is from the original's: SQNR in dB, and new NaN and Inf in all of them.

    With a new NaN or Inf the SQNR is −∞.
    """

    sqnr: float
    nonfinite: int


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own: nameless ones are called after their first output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    used: set[str] = set()
    for node in copy.graph.node:
        base = node.name or f"node_of_{next(iter(node.output), '')}"
        name, count = base, 0
        while name in used:
            count += 1
            name = f"{base}_{count}"
        used.add(name)
        node.name = name
    return copy


def candidates(model: onnx.ModelProto, precision: str) -> tuple[str, ...]:
    """The names of the nodes that the precision could be given to, in the graph's order."""
    facts = _Facts.of(model)
    return tuple(n.name for n in model.graph.node if facts.takes(n) and (precision != "int8" or _quantized(n)))


def rounded(model: onnx.ModelProto, low: Mapping[str, str], amax: Mapping[str, float]) -> onnx.ModelProto:
    """The model in which each node of `low` (name → fp16, bf16 or int8) is rounded to its precision.

    `amax` holds the range of every activation that an int8 node takes.
    """
    facts = _Facts.of(model)
    rounding = _Rounding(facts, amax)
    for node in model.graph.node:
        if node.name in low and facts.takes(node):
            rounding.add(node, low[node.name])
        else:
            rounding.nodes.append(node)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    del result.graph.value_info[:]
    result.graph.node.extend(rounding.nodes)
    result.graph.initializer.extend(rounding.constants)
    if all(opset.domain != MICROSOFT for opset in result.opset_import):
        result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return result


def end_error(original: onnx.ModelProto, variant: onnx.ModelProto, samples: Iterable[Arrays]) -> EndError:
    """Run both models on the samples, and compare their float outputs."""
    names = [v.name for v in original.graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    reference, other = session(original), session(variant)
    pairs = ((reference.run(names, dict(s)), other.run(names, dict(s))) for s in samples)
    return compare(pairs)


def compare(pairs: Iterable[tuple[Sequence[NDArray[Any]], Sequence[NDArray[Any]]]]) -> EndError:
    """The end error over the outputs of several runs: pairs of (reference's outputs, variant's outputs)."""
    signal: dict[int, float] = {}
    noise: dict[int, float] = {}
    nonfinite = 0
    for reference, variant in pairs:
        for index, (right, seen) in enumerate(zip(reference, variant, strict=True)):
            finite = np.isfinite(right)
            nonfinite += int(np.count_nonzero(finite & ~np.isfinite(seen)))
            kept = finite & np.isfinite(seen)
            wide, error = right[kept].astype(np.float64), seen[kept].astype(np.float64)
            signal[index] = signal.get(index, 0.0) + float(np.sum(wide**2))
            noise[index] = noise.get(index, 0.0) + float(np.sum((wide - error) ** 2))
    worst = min(_decibels(signal[i], noise[i]) for i in signal)
    return EndError(-math.inf if nonfinite else worst, nonfinite)


def session(model: onnx.ModelProto, threads: int = 0) -> ort.InferenceSession:
    """A session of ONNX Runtime on the CPU that leaves Q/DQ pairs as they are, and Relu and Clip before them.

    Before FP8 its optimiser takes Relus away, and refuses Clips (`findings/onnxruntime_clip_before_float8.sh`).
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    providers, left = ["CPUExecutionProvider"], ["ReluQuantRewrite", "ClipQuantRewrite"]
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers, disabled_optimizers=left)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _quantized(node: onnx.NodeProto) -> bool:
    return node.op_type in QUANTIZED_OPS and node.domain in ("", "ai.onnx")


@dataclass(frozen=True)
class _Facts:
    """What has to be known of a graph before anything in it is rounded."""

    floats: frozenset[str]
    constants: Mapping[str, NDArray[Any]]
    shapes: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Facts:
        graph = model.graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    constants[node.output[0]] = numpy_helper.to_array(attribute.t)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        typed = [*inferred.input, *inferred.output, *inferred.value_info]
        floats = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        floats |= {name for name, value in constants.items() if value.dtype == np.float32}
        return cls(frozenset(floats), constants, _shape_flow(graph))

    def takes(self, node: onnx.NodeProto) -> bool:
        """Whether the node can be given a precision: it computes float32 values that are more than shapes."""
        if node.op_type in _NO_PRECISION or any(a.HasField("g") or a.graphs for a in node.attribute):
            return False
        return any(name in self.floats and name not in self.shapes for name in node.output)

    def is_data(self, node: onnx.NodeProto, index: int) -> bool:
        """Whether this input of the node is a float32 tensor that is computed with."""
        return node.input[index] in self.floats and index not in _SHAPE_INPUTS.get(node.op_type, ())


def _shape_flow(graph: onnx.GraphProto) -> frozenset[str]:
    """The tensors that only sizes, scales and axes come of."""
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, index))
    outputs = {value.name for value in graph.output}
    found: set[str] = set()
    for node in reversed(graph.node):
        for name in node.output:
            if name in uses and name not in outputs and all(_is_shape_use(*use, found) for use in uses[name]):
                found.add(name)
    return frozenset(found)


def _is_shape_use(node: onnx.NodeProto, index: int, shapes: set[str]) -> bool:
    return index in _SHAPE_INPUTS.get(node.op_type, ()) or all(name in shapes for name in node.output)


@dataclass
class _Rounding:
    """A graph's nodes with rounding put between them; each tensor is rounded once for each precision."""

    facts: _Facts
    amax: Mapping[str, float]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    _made: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, node: onnx.NodeProto, precision: str) -> None:
        """Add a node in a low precision."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(node.input):
            if precision == "int8" and _quantized(node) and index < 2:
                copy.input[index] = self._quantize(name, self._channel_axis(node, index))
            elif precision in FLOAT_CASTS and self.facts.is_data(node, index):
                copy.input[index] = self._cast(name, precision)
        self.nodes.append(copy)
        if precision in FLOAT_CASTS:
            self._round_outputs(node, copy, precision)

    def _round_outputs(self, node: onnx.NodeProto, copy: onnx.NodeProto, precision: str) -> None:
        for index, name in enumerate(node.output):
            if name in self.facts.floats:
                copy.output[index] = f"{name}//unrounded"
                self._cast_pair(copy.output[index], name, precision)
                self._made[name, precision] = name

    def _cast(self, name: str, precision: str) -> str:
        if (name, precision) not in self._made:
            self._made[name, precision] = f"{name}//{precision}"
            self._cast_pair(name, f"{name}//{precision}", precision)
        return self._made[name, precision]

    def _cast_pair(self, source: str, target: str, precision: str) -> None:
        half = f"{target}//half"
        self.nodes.append(helper.make_node("Cast", [source], [half], to=FLOAT_CASTS[precision]))
        self.nodes.append(helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT))

    def _quantize(self, name: str, axis: int | None) -> str:
        key = (name, f"int8 {axis}")
        if key not in self._made:
            scale, zero, low, target = (f"{name}//{part}{axis}" for part in ("scale", "zero", "low", "int8"))
            scales = self._scales(name, axis)
            self.constants.append(numpy_helper.from_array(scales, scale))
            self.constants.append(numpy_helper.from_array(np.zeros(scales.shape, np.int8), zero))
            along = {} if axis is None else {"axis": axis}
            # The contrib operators take a scale for each channel at every opset, ONNX's own only from 13 on.
            kind = {"domain": MICROSOFT, **along}
            self.nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [low], **kind))
            self.nodes.append(helper.make_node("DequantizeLinear", [low, scale, zero], [target], **kind))
            self._made[key] = target
        return self._made[key]

    def _scales(self, name: str, axis: int | None) -> NDArray[np.float32]:
        if name not in self.facts.constants:
            return np.asarray((self.amax[name] or 1.0) / 127, np.float32)
        magnitude = np.abs(self.facts.constants[name])
        others = None if axis is None else tuple(i for i in range(magnitude.ndim) if i != axis)
        largest = magnitude.max(axis=others)
        return np.asarray(np.where(largest == 0, 1.0, largest) / 127, np.float32)

    def _channel_axis(self, node: onnx.NodeProto, index: int) -> int | None:
        """The axis of a weight that runs over output channels; None: one scale for the whole tensor."""
        weight = self.facts.constants.get(node.input[index])
        if index != 1 or weight is None or weight.ndim < 2:
            return None
        if node.op_type == "Gemm":
            return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
        return {"Conv": 0, "ConvTranspose": 1, "MatMul": weight.ndim - 1}[node.op_type]
