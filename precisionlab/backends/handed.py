"""Weights that a session is handed at each run: of an input ONNX Runtime makes no copy, of an initialiser it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

LOOKUPS: Mapping[str, Collection[int]] = MappingProxyType({"Gather": (0,)})
"""What rows are taken from, by operator: it is read where it is, on every device."""
PRODUCTS: Mapping[str, Collection[int]] = MappingProxyType({"MatMul": (0, 1), "Gemm": (0, 1)})
"""Operands that a CPU packs, once a session, and a GPU reads as they are."""

_LEAST = 1 << 20
"""Bytes from which a copy costs more than to hand the weight over at each run."""


def to_hand(graph: ir.Model, operands: Mapping[str, Collection[int]]) -> dict[str, ir.TensorProtocol]:
    """The large float32 initialisers that nothing takes but these operands of these operators, by name."""
    found = {}
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _LEAST or value.dtype != ir.DataType.FLOAT or value.is_graph_output():
            continue
        uses = value.uses()
        if uses and all(not use.node.domain and use.idx in operands.get(use.node.op_type, ()) for use in uses):
            found[str(name)] = tensor
    return found


def lookup_tables(graph: ir.Model) -> dict[str, NDArray[Any]]:
    """What rows are taken from, as arrays that stay where they are: float32, each of its own shape."""
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in to_hand(graph, LOOKUPS).items()}
