"""The judge of half-precision and quantised files: what the file itself computes, whoever wrote it.

`benchmarks.pins_judge` rounds nodes of the original by a list of names; here the file that a tool hands over is taken
as it is: its types, Casts, Q/DQ and constants (a clamped mask among them). `widened` spells it out as a float32 graph
that rounds wherever the file holds half, which plain ONNX Runtime then runs: its own CPU kernels compute half in
float32 where they like. It shares no code with precisionlab's rewrites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.pins_judge import candidates

HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_PASSED = frozenset({"Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze"})


class UnreadableError(Exception):
    """A file that the judge cannot spell out: half inputs or outputs, bodies, types that nothing tells."""


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that inference knows one of.

    What the model itself says of inner ones is not believed, as tools leave types there that they have changed.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that gives what the file gives: every tensor that is half there is rounded to that half here.

    Raises UnreadableError.
    """
    types = element_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            raise UnreadableError(f"{value.name} is an input or output in half")
    for field in ("node", "initializer", "value_info"):
        result.graph.ClearField(field)
    result.graph.initializer.extend(_wide(tensor) for tensor in model.graph.initializer)
    for node in model.graph.node:
        result.graph.node.extend(_spelled_out(node, types))
    return result


def _spelled_out(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """The node in float32, and behind it what rounds its outputs."""
    if unknown := [name for name in node.output if name and name not in types]:
        raise UnreadableError(f"nothing tells the type of {unknown[0]}")
    halves = {name: types[name] for name in node.output if types.get(name) in HALVES}
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise UnreadableError(f"{node.name} has a body")
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_wide(attribute.t))
        if node.op_type == "Cast" and attribute.name == "to" and halves:
            attribute.i = TensorProto.FLOAT
    if node.op_type == "Constant":
        yield copy
        return
    copy.output[:] = [f"{name}~exact" if name in halves else name for name in node.output]
    yield copy
    for name, kind in halves.items():
        yield helper.make_node("Cast", [f"{name}~exact"], [f"{name}~half"], to=kind)
        yield helper.make_node("Cast", [f"{name}~half"], [name], to=TensorProto.FLOAT)


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same numbers in float32, where they are in half."""
    if tensor.data_type not in HALVES:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def kept_high(original: onnx.ModelProto, model: onnx.ModelProto, precision: str) -> tuple[str, ...]:
    """Which of the original's nodes that could be given the precision (fp16, int8) have not got it in the file.

    In fp16 such a node gives float32 there; in int8 one of its two operands is not dequantised. A node that the file
    has no more, by its name, is not counted.
    """
    there = {node.name: node for node in model.graph.node}
    producers = {name: node for node in model.graph.node for name in node.output}
    types = element_types(model)

    def is_low(node: onnx.NodeProto) -> bool:
        if precision == "int8":
            return all(_is_dequantized(name, producers) for name in node.input[:2])
        return any(types.get(name) in HALVES for name in node.output)

    names = candidates(original, precision)
    return tuple(name for name in names if name in there and not is_low(there[name]))


def _is_dequantized(name: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in _PASSED:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
