"""Constant expressions: nodes that depend on constants alone, and their values by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime.capi.onnxruntime_pybind11_state as pybind
from numpy.typing import NDArray

from precisionlab.model.mapped import let_go
from precisionlab.model.widened import has_half, widened
from precisionlab.system.quoting import CPP_ERRORS

NUMPY = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
"""The element types that NumPy has too."""

_FED = 1 << 16
"""Bytes from which a constant is fed, and not written into the graph."""


class BeyondHalfError(Exception):
    """Something that the model has in half comes to be infinite, or no number."""


@dataclass(frozen=True)
class Expression:
    """A graph of its own, which other changes of the model leave alone. `fed` are its large constants, by name."""

    graph: ir.Model
    fed: Mapping[str, ir.TensorProtocol]

    @property
    def has_half(self) -> bool:
        """Whether anything in it is in half."""
        return has_half(self.graph)

    def values(self) -> list[NDArray[Any]]:
        """Its outputs, computed: what is in half in float32, and rounded.

        Raises BeyondHalfError where anything in half is not finite, even if only on the way, and what ONNX Runtime
        raises.
        """
        import onnxruntime as ort  # most models have nothing to compute

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        made = widened(self.graph)
        content = ir.to_proto(made.graph).SerializeToString()
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        quiet = ort.RunOptions()
        quiet.log_severity_level = 4
        floats = {v.name for v in made.graph.graph.inputs if v.dtype == ir.DataType.FLOAT}
        feeds = {name: _fed(tensor, name in floats) for name, tensor in self.fed.items()}
        values: list[NDArray[Any]] = session.run(None, feeds, quiet)
        for tensor in self.fed.values():
            let_go(tensor)
        if any(np.isnan(is_finite).any() for is_finite in values[len(made.types) :]):
            raise BeyondHalfError
        return [
            value if kind is None else value.astype(kind.numpy())
            for value, kind in zip(values, made.types, strict=False)  # behind them stand the others
        ]


def _fed(tensor: ir.TensorProtocol, as_float: bool) -> NDArray[Any]:
    array = np.ascontiguousarray(tensor.numpy())
    return array.astype(np.float32) if as_float else array


def expression(model: ir.Model, outputs: Iterable[ir.Value]) -> Expression:
    """What these values are computed by, down to constants; the model is left as it is."""
    wanted = list(outputs)
    copies: dict[ir.Value, ir.Value] = {}
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []
    fed: dict[str, ir.TensorProtocol] = {}
    for node in _needed(wanted):
        for value in node.inputs:
            if value is not None and value not in copies:
                tensor = value.const_value
                assert tensor is not None
                copies[value] = _stand_in(value, tensor)
                if tensor.nbytes >= _FED and tensor.dtype in NUMPY:
                    fed[str(value.name)] = tensor
                else:
                    copies[value].const_value = _inside(tensor, str(value.name))
                constants.append(copies[value])
        taken = [None if v is None else copies[v] for v in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            taken,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = old.name
            copies[old] = new
        nodes.append(copy)
    graph = ir.Graph(
        [v for v in constants if v.const_value is None],
        [copies[v] for v in wanted],
        nodes=nodes,
        initializers=[v for v in constants if v.const_value is not None],
        opset_imports=dict(model.opset_imports),
        name="constants",
    )
    return Expression(ir.Model(graph, ir_version=model.ir_version), fed)


def sources(outputs: Iterable[ir.Value]) -> set[ir.Value]:
    """The constants that these values are computed from."""
    return {v for node in _needed(outputs) for v in node.inputs if v is not None and v.producer() is None}


def _needed(outputs: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that these values come from, each behind those that it takes from."""
    found: dict[ir.Node, None] = {}
    waiting = [(value.producer(), False) for value in outputs]
    while waiting:
        node, is_ready = waiting.pop()
        if node is None or node in found:
            continue
        if is_ready:
            found[node] = None
            continue
        waiting.append((node, True))
        waiting += [(value.producer(), False) for value in node.inputs if value is not None]
    return list(found)


def _stand_in(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tuple(tensor.shape.numpy())))


def _inside(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The tensor with its content: a file of external data cannot be found from inside the graph."""
    if isinstance(tensor, ir.ExternalTensor):
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    return tensor


# Its own exceptions have no common base.
RAISED: tuple[type[Exception], ...] = (
    *(kind for kind in vars(pybind).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    *CPP_ERRORS,
)
"""What ONNX Runtime raises where it refuses a graph or a run; not what a fault of ours would be."""
