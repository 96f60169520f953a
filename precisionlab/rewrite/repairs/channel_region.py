"""The part of a graph in which channels are scaled: from one value as far as it takes until constants take it up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model.subgraphs import outer_values
from precisionlab.rewrite.repairs.channel_products import convolution, gemm, matrix_product
from precisionlab.rewrite.repairs.channel_rules import RULES, Settled
from precisionlab.rewrite.repairs.profiles import BlockedError, Profile, exponents, same
from precisionlab.rewrite.repairs.region import Use
from precisionlab.rewrite.repairs.scaling import constant_beside, other_names

_LARGEST = 400
"""Values; a region of more than that is the whole model, and no search has an end."""

_PRODUCTS = {"MatMul": matrix_product, "Gemm": gemm, "Conv": convolution, "ConvTranspose": convolution}


@dataclass(frozen=True)
class ChannelRegion:
    """`values` are scaled by their profiles, and the constants at inputs take those of `constants` up.

    All that is not in it stays as it was, to the bit, whatever powers of two the channels have.
    """

    channels: int
    values: Mapping[ir.Value, Profile]
    constants: Mapping[Use, Sequence[Profile]]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes whose constants change, as they were found."""
        return tuple(dict.fromkeys(node for node, _ in self.constants))

    def changed(self, use: Use, scales: NDArray[np.int32]) -> NDArray[np.float32]:
        """What becomes of a constant: float32, wider than it was where a number becomes a vector."""
        node, index = use
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        powers = sum((exponents(profile, scales) for profile in self.constants[use]), np.int32(0))
        return np.asarray(np.ldexp(value.const_value.numpy(), powers), np.float32)


def captured(graph: ir.Graph) -> frozenset[ir.Value]:
    """The values that graphs inside of nodes take."""
    return frozenset(value for node in graph for value in outer_values(node))


def channel_region(start: ir.Value, profile: Profile, held: frozenset[ir.Value]) -> ChannelRegion:
    """What is scaled with a value. `held` are those that must stay as they are.

    Raises BlockedError where the scales come to no end in constants.
    """
    values = _solved({start: profile}, list(_around(start)), held)
    constants: dict[Use, Sequence[Profile]] = {}
    for node in dict.fromkeys(node for value in values for node in _around(value)):
        for index, changes in _settle(node, values).constants.items():
            if changes:
                constants[node, index] = changes
    return ChannelRegion(profile.size, values, constants)


def _around(value: ir.Value) -> Iterable[ir.Node]:
    made = value.producer()
    return (*(() if made is None else (made,)), *(use.node for use in value.uses()))


def _solved(
    values: dict[ir.Value, Profile], waiting: list[ir.Node], held: frozenset[ir.Value]
) -> dict[ir.Value, Profile]:
    for value in values:
        _check_free(value, held)
    while waiting:
        node = waiting.pop()
        options = _settle(node, values).values
        if len(options) > 1:
            for option in options:
                try:
                    return _solved(_with(values, option, held), [*waiting, node, *_behind(option)], held)
                except BlockedError:
                    continue
            raise BlockedError
        for option in options:
            values = _with(values, option, held)
            waiting += [node, *_behind(option)]
    return values


def _behind(option: Mapping[ir.Value, Profile]) -> list[ir.Node]:
    return [node for value in option for node in _around(value)]


def _with(
    values: dict[ir.Value, Profile], more: Mapping[ir.Value, Profile], held: frozenset[ir.Value]
) -> dict[ir.Value, Profile]:
    for value, profile in more.items():
        _check_free(value, held)
        if value in values and not same(values[value], profile):
            raise BlockedError
    if len(values) + len(more) > _LARGEST:
        raise BlockedError
    return {**values, **more}


def _check_free(value: ir.Value, held: frozenset[ir.Value]) -> None:
    """Raises BlockedError for what is given, taken or captured from outside."""
    if value.producer() is None or value.is_graph_output() or value in held:
        raise BlockedError


def _settle(node: ir.Node, values: Mapping[ir.Value, Profile]) -> Settled:
    rules = {**RULES, **_PRODUCTS}
    rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None or any(value in values for value in node.outputs[1:]):
        raise BlockedError
    return rule(node, values)


def apply(graph: ir.Graph, region: ChannelRegion, scales: NDArray[np.int32]) -> None:
    """Scale the region's channels by 2^`scales`. A constant `x` that takes scales is called `x~channels`."""
    made = {use: region.changed(use, scales) for use in region.constants}
    others = other_names(graph)
    for (node, index), numbers in made.items():
        value = node.inputs[index]
        assert value is not None
        node.replace_input_with(index, constant_beside(graph, numbers, f"{value.name}~channels", others))
