"""Puts copied bodies into a copy of their If, Loop or Scan, and brings out of them how large their tensors were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.rewrite.builder import GraphBuilder

_AXES_ARE_INPUT = 18  # from this opset on ReduceMax and its like take their axes as an input
_SUM_AXES_ARE_INPUT = 13


@dataclass(frozen=True)
class BodyCopy:
    """A body that was copied: what its graph gives, and of its watched tensors float32 (3,) as `peaks_of` has them."""

    builder: GraphBuilder
    outputs: Sequence[ir.Value]
    peaks: Mapping[ir.Value, ir.Value]


def node_with_bodies(
    builder: GraphBuilder,
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    prefix: str,
    attributes: Mapping[str, ir.Attr],
    bodies: Mapping[str, BodyCopy],
) -> tuple[Sequence[ir.Value], dict[ir.Value, ir.Value]]:
    """A copy of the node with these bodies by attribute; its outputs, and the peaks of what its bodies watch."""
    watched = list(dict.fromkeys(value for body in bodies.values() for value in body.peaks))
    changed = dict(attributes)
    for name, body in bodies.items():
        shown = [*body.outputs, *(_shown(body, value) for value in watched)]
        changed[name] = ir.AttrGraph(name, body.builder.body(shown, name))
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in changed:  # one entry for each of a Scan's outputs
            changed[name] = ir.AttrInt64s(name, [*changed[name].as_ints(), *(0 for _ in watched)])
    copied = builder.copy(node, inputs, {}, prefix, changed, [f"{value.name}:peaks" for value in watched])
    outputs = copied.outputs[: len(node.outputs)]
    peaks = dict(zip(watched, copied.outputs[len(node.outputs) :], strict=True))
    if node.op_type != "If":  # a row for each turn
        peaks = {value: _over_turns(builder, rows) for value, rows in peaks.items()}
    return outputs, peaks


def peaks_of(
    builder: GraphBuilder, value: ir.Value, shape: Sequence[int | str | None] | None, is_double: bool
) -> ir.Value:
    """float32 (3,) of a tensor: its largest and its least value, with 0 where it may be empty, and its L1 norm.

    The norm alone is NaN wherever the tensor holds one: kernels of ReduceMax may lose it.
    """
    if is_double:
        value = builder.op("Cast", [value], f"{value.name}:as_float", to=int(ir.DataType.FLOAT))
    flat = builder.op("Reshape", [value, _constant(builder, [-1], np.int64)], f"{value.name}:flat")
    if shape is None or not all(isinstance(dim, int) and dim > 0 for dim in shape):
        flat = builder.op("Concat", [flat, _constant(builder, [0], np.float32)], f"{value.name}:or_0", axis=0)
    kinds = ("ReduceMax", "ReduceMin", "ReduceL1")
    ends = [builder.op(kind, [flat], f"{value.name}:{kind}", keepdims=1) for kind in kinds]
    return builder.op("Concat", ends, f"{value.name}:peaks", axis=0)


def finished(builder: GraphBuilder, peaks: ir.Value) -> ir.Value:
    """float32 (2,) of what `peaks_of` gives: the largest and the least value, NaN both where there was one."""
    ends, norm = (
        builder.op("Gather", [peaks, _constant(builder, places, np.int64)], f"{peaks.name}:{what}", axis=0)
        for places, what in (([0, 1], "ends"), ([2], "norm"))
    )
    is_nan = builder.op("IsNaN", [norm], f"{peaks.name}:is_nan")
    return builder.op("Where", [is_nan, norm, ends], f"{peaks.name}:finished")


def _shown(body: BodyCopy, value: ir.Value) -> ir.Value:
    """The peaks of a tensor, none where another branch has it."""
    peaks = body.peaks.get(value)
    if peaks is not None:
        return peaks
    nothing = _constant(body.builder, [0, 0, 0], np.float32)
    return body.builder.op("Identity", [nothing], f"{value.name}:not_here")


def _over_turns(builder: GraphBuilder, rows: ir.Value) -> ir.Value:
    """Of float32 (turns, 3) one (3,)."""
    full = builder.op("Concat", [rows, _constant(builder, [[0, 0, 0]], np.float32)], f"{rows.name}:or_none", axis=0)
    most, least, norm = (
        _reduced(builder, kind, full, since)
        for kind, since in (
            ("ReduceMax", _AXES_ARE_INPUT),
            ("ReduceMin", _AXES_ARE_INPUT),
            ("ReduceSum", _SUM_AXES_ARE_INPUT),
        )
    )
    is_first, is_second = (_constant(builder, mask, np.bool_) for mask in ([True, False, False], [False, True, False]))
    rest = builder.op("Where", [is_second, least, norm], f"{rows.name}:rest")
    return builder.op("Where", [is_first, most, rest], f"{rows.name}:over_turns")


def _reduced(builder: GraphBuilder, kind: str, rows: ir.Value, since: int) -> ir.Value:
    name = f"{rows.name}:{kind}"
    if builder.opset >= since:
        return builder.op(kind, [rows, _constant(builder, [0], np.int64)], name, keepdims=0)
    node = ir.Node("", kind, [], num_outputs=1, name=name)
    node.outputs[0].name = name
    attributes = {"axes": ir.AttrInt64s("axes", [0]), "keepdims": ir.AttrInt64("keepdims", 0)}
    return builder.copy(node, [rows], {}, "", attributes).outputs[0]


def _constant(builder: GraphBuilder, values: Any, dtype: type[np.generic]) -> ir.Value:
    array: NDArray[Any] = np.asarray(values, dtype)
    return builder.constant(ir.tensor(array), "peaks/constant")
