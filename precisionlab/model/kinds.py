"""What a tensor is joined from: which ranges of it come from which inputs of the Concats behind it.

A detector's output joins boxes of 0 to 640 and scores of 0 to 1; one figure over both says nothing of the scores. A
Concat joins parts of different kinds, unless its inputs are made alike (by the same operators, with as many channels):
those are the levels of a pyramid, the steps of a loop or the anchors of a head, and one kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model.graph import Model, TensorInfo

_LARGEST = 1 << 24
"""Elements of the largest tensor whose ranges are looked for."""

_DEEPEST = 12
"""Operators back that two inputs of a Concat are compared, where no Conv or MatMul ends it before."""

_SAME = frozenset({"Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_SCALES = frozenset({"Mul", "Div", "Add", "Sub"})
_ANCHORS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}  # and the axis of their channels
_PICKS = frozenset({"Transpose", "Slice", "Split", "Gather", "GatherElements", "GatherND", "ReduceMax"})
_SHARES = frozenset({"Sigmoid", "Softmax", "HardSigmoid"})


@dataclass(frozen=True)
class Kind:
    """A range of a tensor that holds values of one kind: `runs` of indices [start, stop) along `axis` of `size`.

    `sources` are the tensors that fill it. `is_share` tells values that a sigmoid or a softmax gives, of 0 to 1.
    """

    axis: int
    size: int
    runs: tuple[tuple[int, int], ...]
    sources: tuple[str, ...]
    is_share: bool


@dataclass(frozen=True)
class Joined:
    """What a tensor is joined from.

    `kinds` are empty where it holds one kind alone, or where the kinds are no ranges along one axis; then `sources`
    are the tensors that it is joined from, those of each kind, and may be looked at in its stead.
    """

    kinds: tuple[Kind, ...] = ()
    sources: tuple[tuple[str, ...], ...] = ()


def joined_from(model: Model, tensor: str) -> Joined:
    """The kinds of values that a tensor of the main graph is joined from, by the shapes that `model` knows."""
    value = _values(model).get(tensor)
    return Joined() if value is None else _Joins(model.tensors).of(value)


def is_share(model: Model, tensor: str) -> bool:
    """Whether a sigmoid or a softmax gives all values of the tensor."""
    value = _values(model).get(tensor)
    return value is not None and _is_share(value)


def _values(model: Model) -> dict[str, ir.Value]:
    return {str(v.name): v for node in model.onnx.graph for v in node.outputs if v.name}


class _Joins:
    """The Concats behind one tensor."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._paths: dict[tuple[int, ...], list[tuple[ir.Value, bool]]] = {}
        """What each kind is made of, and whether it is scaled behind that."""
        self._structures: dict[object, int] = {}

    def of(self, value: ir.Value) -> Joined:
        if not _leads_to_concat(value) or _size(self._shape(value)) > _LARGEST:
            return Joined()
        labels = self._labels(value, (), False)
        sources = tuple(tuple(dict.fromkeys(str(v.name) for v, _ in paths)) for paths in self._paths.values())
        if len(sources) < 2:
            return Joined()
        kinds = () if labels is None else self._kinds(labels, sources)
        return Joined(kinds) if kinds else Joined((), sources)

    def _kinds(self, labels: NDArray[np.int16], sources: tuple[tuple[str, ...], ...]) -> tuple[Kind, ...]:
        """The ranges along the one axis that tells the kinds apart; none where there is no such axis."""
        axis = next((k for k in range(labels.ndim) if _tells(labels, k)), None)
        if axis is None:
            return ()
        line = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)[:, 0]
        shares = [all(_is_share(v) and not scaled for v, scaled in paths) for paths in self._paths.values()]
        return tuple(
            Kind(axis, line.size, runs_of(line == label), sources[label], shares[label])
            for label in dict.fromkeys(line.tolist())
        )

    def _labels(self, value: ir.Value, path: tuple[int, ...], is_scaled: bool) -> NDArray[np.int16] | None:
        """For each element which kind it is of, int16 in the value's shape; None where a shape is not known."""
        shape, node = self._shape(value), value.producer()
        data = _carried(value)
        if node is not None and node.op_type == "Concat":
            inputs = [v for v in node.inputs if v is not None]
            is_one_kind = len({self._structure(v, _DEEPEST) for v in inputs}) == 1
            paths = [path if is_one_kind else (*path, i) for i in range(len(inputs))]
            parts = [self._labels(v, own, is_scaled) for v, own in zip(inputs, paths, strict=True)]
            known = [part for part in parts if part is not None]
            return np.concatenate(known, node.attributes["axis"].as_int()) if len(known) == len(parts) else None
        if data is None or node is None or not _leads_to_concat(data):
            label = list(self._paths).index(path) if path in self._paths else len(self._paths)
            self._paths.setdefault(path, []).append((value, is_scaled))
            return None if shape is None else np.full(shape, label, np.int16)
        found = self._labels(data, path, is_scaled or node.op_type in _SCALES)
        if found is None or shape is None or found.size != _size(shape):
            return None
        return found.transpose(_order(node, found.ndim)) if node.op_type == "Transpose" else found.reshape(shape)

    def _structure(self, value: ir.Value, depth: int) -> int:
        """The same number for values that are made alike: by the same operators, with as many channels."""
        node = value.producer()
        structure: object
        if node is None:
            structure = "constant" if value.is_initializer() else "input"
        elif node.op_type in _ANCHORS:
            shape = self._tensors[str(value.name)].shape
            structure = (node.op_type, None if shape is None else shape[_ANCHORS[node.op_type]])
        elif not depth:
            structure = node.op_type
        else:
            floats = [v for v in node.inputs if v is not None and self._is_float(v)]
            structure = (node.op_type, node.outputs.index(value), *(self._structure(v, depth - 1) for v in floats))
        return self._structures.setdefault(structure, len(self._structures))

    def _is_float(self, value: ir.Value) -> bool:
        dtype = value.dtype if value.is_initializer() else self._tensors[str(value.name)].dtype
        return dtype is not None and dtype.is_floating_point()

    def _shape(self, value: ir.Value) -> tuple[int, ...] | None:
        info = self._tensors.get(str(value.name))
        shape = None if info is None else info.shape
        dims = [dim for dim in shape or () if isinstance(dim, int)]
        return None if shape is None or len(dims) < len(shape) else tuple(dims)


def _carried(value: ir.Value) -> ir.Value | None:
    """The input whose elements these are, in another shape, order or scale; None where the node makes new ones."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or not node.inputs:
        return None
    first = node.inputs[0]
    if node.op_type in _SAME | _RESHAPES | {"Transpose"}:
        return first
    if node.op_type in _SCALES:
        others = [v for v in node.inputs if v is not None and not v.is_initializer()]
        return others[0] if len(others) == 1 else None
    return None


def _leads_to_concat(value: ir.Value) -> bool:
    here: ir.Value | None = value
    while here is not None:
        node = here.producer()
        if node is not None and node.op_type == "Concat":
            return True
        here = _carried(here)
    return False


def _is_share(value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return False
    if node.op_type in _SHARES:
        return True
    if node.op_type == "Concat" or (node.op_type == "Mul" and not any(v.is_initializer() for v in node.inputs if v)):
        return all(v is not None and _is_share(v) for v in node.inputs)
    if node.op_type in _SAME | _RESHAPES | _PICKS:
        first = node.inputs[0]
        return first is not None and _is_share(first)
    return False


def _order(node: ir.Node, rank: int) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(range(rank))[::-1] if attribute is None else list(attribute.as_ints())


def _tells(labels: NDArray[np.int16], axis: int) -> bool:
    """Whether the index along this axis alone says which kind an element is of."""
    rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    return bool(rows.size and (rows == rows[:, :1]).all())


def runs_of(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """The runs [start, stop) of True in a vector."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return tuple((int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True))


def _size(shape: tuple[int, ...] | None) -> int:
    return 0 if shape is None else int(np.prod(shape, dtype=np.int64))
