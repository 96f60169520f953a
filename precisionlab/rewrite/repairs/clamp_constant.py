"""A mask of −3.4e38 in front of a Softmax, with a number that the precision holds in its place.

What is masked has a probability of e^c = 0 whatever c is, from −104 on; so −32768 masks as well, and leaves room for
what it is added to. Only a row in which all is masked tells them apart: there c is all that a far larger one leaves of
the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Proposal, Sight, bin_start, node_of, proposed, refused
from precisionlab.rewrite.repairs.passing import is_constant, scalar_of
from precisionlab.rewrite.repairs.scaling import constant

_MOVES = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Identity", "Slice"})
_ADDS = frozenset({"Add", "Sub", "Where"})
_TAKES = _MOVES | _ADDS | {"Mul", "Softmax"}
_SCALE = "mask"
_ROOM = 2.0**-5
"""Of the mask: scores below this share of it lie far enough from it, times the least factor too."""
_LEAST_FACTOR = 2.0**-4


class ClampConstant:
    """A mask that the precision holds, in the place of one beyond it."""

    name = "clamp_constant"
    title = "a mask that the precision holds"

    def find(self, sight: Sight) -> Iterator[Proposal]:
        """One for each constant beyond the precision that leads to nothing but a Softmax, where something breaks."""
        half = int(math.log2(sight.number_format.largest))
        bound = 2.0**half
        for node in sight.model.onnx.graph:
            path = _path(node, bound)
            if path and _is_told_apart(sight, path, bound):
                names, scales = (str(node.name),), ((_SCALE, half),)
                conditions = ("no row is masked as a whole",)
                yield from proposed(sight, path, self.name, Exactness.BITWISE, names, scales, conditions)

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Clamp the mask. Raises PlanError where the node has none, or what it gives leads elsewhere."""
        node, power = node_of(graph, repair), dict(repair.scales).get(_SCALE)
        if not isinstance(power, int) or not 0 < power <= 127:
            raise refused(repair, f"it needs `{_SCALE}`, a power of two from 1 to 127")
        masks = _masks(node, 2.0**power)
        if not _path(node, 2.0**power):
            raise refused(repair, f"node {node.name!r} has no mask that leads to a Softmax alone")
        for index in masks:
            value = node.inputs[index]
            assert value is not None
            assert value.const_value is not None
            numbers = np.clip(value.const_value.numpy(), -(2.0**power), 2.0**power)
            node.replace_input_with(index, constant(graph, numbers, f"{value.name}~clamped"))


def _masks(node: ir.Node, bound: float) -> list[int]:
    """The inputs that are masks: constants of numbers that are ordinary, or far beyond the bound, not all in a row."""
    return [index for index, value in enumerate(node.inputs) if value is not None and _sign(node, index, bound)]


def _sign(node: ir.Node, index: int, bound: float) -> int:
    """On which side of 0 the mask lies that a node takes there; 0 where it takes none."""
    value = node.inputs[index]
    if value is None or node.op_type not in _TAKES or not is_constant(value):
        return 0
    assert value.const_value is not None
    numbers = value.const_value.numpy()
    if not numbers.size:
        return 0
    sides = [side for side, largest in ((-1, -numbers.min()), (1, numbers.max())) if largest > bound]
    if len(sides) != 1 or (sides[0] * numbers).min() < -bound * _ROOM:
        return 0
    far = sides[0] * numbers > bound
    is_row_masked = numbers.ndim > 0 and numbers.shape[-1] > 1 and bool(far.all(axis=-1).any())
    if node.op_type == "Mul" and not np.isfinite(numbers).all():  # 0 · −Inf is NaN, and no mask
        return 0
    return 0 if is_row_masked and node.op_type != "Where" else sides[0]


def _path(node: ir.Node, bound: float) -> tuple[ir.Node, ...]:
    """The nodes from one that takes a mask to Softmax, where all that its result goes into is one; else none.

    There the mask must be far below 0: what is far above is subtracted on the way.
    """
    signs = {_behind(node, index, _sign(node, index, bound)) for index in _masks(node, bound)}
    if len(signs) != 1 or 0 in signs:
        return ()
    waiting, found = [(node, signs.pop())], dict[ir.Node, int]()
    while waiting:
        current, sign = waiting.pop()
        if current in found and found[current] == sign:
            continue
        if current in found:
            return ()
        found[current] = sign
        for value in current.outputs if current.op_type != "Softmax" else ():
            uses = value.uses()
            signs = {_behind(*use, sign) for use in uses}
            if value.is_graph_output() or not uses or 0 in signs:
                return ()
            waiting += [(use.node, _behind(*use, sign)) for use in uses]
    return tuple(found)


def _behind(node: ir.Node, index: int, sign: int) -> int:
    """On which side the mask lies behind a node that takes it on this one; 0 where it is none any more."""
    if node.op_type == "Mul":
        other = node.inputs[1 - index]
        factor = scalar_of(other) if other is not None and is_constant(other) else 1.0
        return sign if factor is not None and _LEAST_FACTOR <= factor <= 1 else 0
    if node.op_type == "Sub":
        return sign if index == 0 else -sign
    if node.op_type == "Softmax":
        return sign if sign < 0 else 0
    if node.op_type in _MOVES:
        return sign if index == 0 else 0
    return sign if node.op_type == "Add" or (node.op_type == "Where" and index > 0) else 0


def _is_told_apart(sight: Sight, path: Sequence[ir.Node], bound: float) -> bool:
    """Whether what is masked stays far below all scores, as far as histograms tell; and what is not, unmasked."""
    for node in path:
        for value in node.inputs:
            made = value.producer() if value is not None else None
            seen = sight.histograms.get(str(value.name)) if value is not None else None
            if seen is None or made in path or is_constant(value):
                continue
            if node.op_type == "Mul":  # by 0 or 1, or nearly
                least = next((bin_start(seen.exponent, at) for at, count in enumerate(seen.bins) if count), 1.0)
                if seen.below or seen.nonfinite or seen.amax > 1 or least < 0.5:
                    return False
            elif node.op_type in _ADDS and seen.amax > bound * _ROOM:
                return False
    return True
