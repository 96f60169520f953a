"""Which outputs are made of entries that an ArgMax or ArgMin chooses, as from the codebook of a quantised autoencoder.

Two entries that are equally good but for a precision's rounding change places, and with them all that is looked up. The
places that were chosen for are followed to the outputs as far as each is treated by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import Model

_SAME_PLACES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Choice:
    """An ArgMax or ArgMin: the float tensor whose best values along `axis` it takes, the largest or the least."""

    by: str
    scores: str
    axis: int
    is_largest: bool


@dataclass(frozen=True)
class Chosen:
    """A tensor made of what choices found, in their order; its `axes`, in C order, are the places chosen for."""

    tensor: str
    axes: tuple[int, ...]
    choices: tuple[Choice, ...]


def chosen_outputs(model: Model) -> tuple[Chosen, ...]:
    """The final float outputs that hold looked-up entries, place by place."""
    floats = {name for name, info in model.tensors.items() if info.dtype == ir.DataType.FLOAT}
    found: dict[str, Chosen] = {}
    looked_up: set[str] = set()
    for node in model.onnx.graph:
        for value in node.outputs:
            chosen = _follow(model, node, str(value.name), found)
            if chosen is not None:
                found[chosen.tensor] = chosen
                if node.op_type == "Gather" or any(v is not None and v.name in looked_up for v in node.inputs):
                    looked_up.add(chosen.tensor)
    return tuple(found[info.name] for info in model.outputs if info.name in looked_up and info.name in floats)


def _follow(model: Model, node: ir.Node, output: str, found: dict[str, Chosen]) -> Chosen | None:
    shape, kind = _shape(model, output), node.op_type if node.domain in ONNX_DOMAINS else ""
    inputs = [None if v is None else str(v.name) for v in node.inputs]
    if shape is None:
        return None
    if kind in ("ArgMax", "ArgMin"):
        return _choice(model, node, inputs[0], output, shape)
    known = [found[name] for name in inputs if name in found]
    if not known:
        return None
    choices = tuple(dict.fromkeys(choice for one in known for choice in one.choices))
    axes = {_axes(model, node, kind, inputs, one, shape) for one in known}
    if len(axes) != 1 or (common := axes.pop()) is None:
        return None
    return Chosen(output, common, choices)


def _choice(model: Model, node: ir.Node, scores: str | None, output: str, shape: Sequence[int]) -> Chosen | None:
    attributes = node.attributes
    rank = len(_shape(model, scores) or ())
    is_last = "select_last_index" in attributes and attributes["select_last_index"].as_int() == 1
    within = {name for layer in model.layers for name in layer.outputs}
    if not rank or scores is None or scores not in within or is_last:
        return None
    axis = (attributes["axis"].as_int() if "axis" in attributes else 0) % rank
    by = f"{node.op_type} {node.name}"
    places = tuple(k for k, size in enumerate(shape) if size != 1)
    return Chosen(output, places, (Choice(by, scores, axis, node.op_type == "ArgMax"),)) if places else None


def _axes(
    model: Model, node: ir.Node, kind: str, inputs: list[str | None], one: Chosen, shape: Sequence[int]
) -> tuple[int, ...] | None:
    """Where the places of an input stand in the output; None where they are mixed."""
    own = _shape(model, one.tensor) or ()
    if kind == "Gather" and inputs[1] == one.tensor and inputs[0] != one.tensor:
        at = (node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % len(
            _shape(model, inputs[0]) or (0,)
        )
        return tuple(at + axis for axis in one.axes)
    if kind == "Transpose":
        perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(len(own)))[::-1]
        axes = tuple(perm.index(axis) for axis in one.axes)
        return axes if list(axes) == sorted(axes) else None
    if kind in _SAME_PLACES:
        return _reshaped(own, one.axes, shape)
    moved = tuple(axis + len(shape) - len(own) for axis in one.axes)
    if kind == "MatMul" and (inputs[0] != one.tensor or one.axes[-1] == len(own) - 1):
        return None
    is_kept = all(axis >= 0 and shape[axis] == own[before] for axis, before in zip(moved, one.axes, strict=True))
    return moved if is_kept else None


def _reshaped(before: Sequence[int], axes: tuple[int, ...], after: Sequence[int]) -> tuple[int, ...] | None:
    """Where axes that stand together, but for those of length 1, stand after a reshape."""
    inner = range(axes[0], axes[-1] + 1)
    if any(before[k] != 1 and k not in axes for k in inner):
        return None
    lead, count = math.prod(before[: axes[0]]), math.prod(before[k] for k in axes)
    for start in range(len(after)):
        for stop in range(start + 1, len(after) + 1):
            if math.prod(after[:start]) == lead and math.prod(after[start:stop]) == count:
                return tuple(k for k in range(start, stop) if after[k] != 1) or None
    return None


def _shape(model: Model, name: str | None) -> tuple[int, ...] | None:
    info = None if name is None else model.tensors.get(name)
    if info is None or info.shape is None:
        return None
    dims = tuple(dim for dim in info.shape if isinstance(dim, int))
    return dims if len(dims) == len(info.shape) else None
