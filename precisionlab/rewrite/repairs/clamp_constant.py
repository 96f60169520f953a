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
            path = _path(node) if _masks(node, bound) else ()
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
        if not masks or not _path(node):
            raise refused(repair, f"node {node.name!r} has no mask that leads to a Softmax alone")
        for index in masks:
            value = node.inputs[index]
            assert value is not None
            assert value.const_value is not None
            numbers = np.clip(value.const_value.numpy(), -(2.0**power), None)
            node.replace_input_with(index, constant(graph, numbers, f"{value.name}~clamped"))


def _masks(node: ir.Node, bound: float) -> list[int]:
    """The inputs that are masks: constants of numbers that are ordinary, or far below the bound, not all in a row."""
    return [
        index
        for index, value in enumerate(node.inputs)
        if value is not None and is_constant(value) and _is_mask(node, index, value, bound)
    ]


def _is_mask(node: ir.Node, index: int, value: ir.Value, bound: float) -> bool:
    assert value.const_value is not None
    numbers = value.const_value.numpy()
    if not numbers.size or not numbers.min() < -bound or not numbers.max() <= bound * _ROOM:
        return False
    is_row_masked = numbers.ndim > 0 and numbers.shape[-1] > 1 and bool((numbers < -bound).all(axis=-1).any())
    if node.op_type == "Mul":  # 0 · −Inf is NaN, and no mask
        return not is_row_masked and bool(np.isfinite(numbers).all())
    return (not is_row_masked or node.op_type == "Where") and (node.op_type != "Sub" or index == 0)


def _path(node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes from this one to Softmax, where all that its result goes into is one in the end; else none."""
    if node.op_type not in _MOVES | _ADDS | {"Mul"}:
        return ()
    waiting, found = [node], list[ir.Node]()
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.append(current)
        if current.op_type == "Softmax":
            continue
        for value in current.outputs:
            uses = value.uses()
            if value.is_graph_output() or not uses or not all(_carries(*use) for use in uses):
                return ()
            waiting += [use.node for use in uses]
    return tuple(found)


def _carries(node: ir.Node, index: int) -> bool:
    """Whether the mask that the node takes there is one behind it too, or ends there."""
    if node.op_type == "Mul":
        factor = scalar_of(node.inputs[1 - index])
        return factor is not None and _LEAST_FACTOR <= factor <= 1
    if node.op_type in ("Sub", "Softmax", *_MOVES):
        return index == 0
    return node.op_type == "Add" or (node.op_type == "Where" and index > 0)


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
