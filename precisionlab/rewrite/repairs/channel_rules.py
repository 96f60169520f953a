"""What an operator makes of scales of its operand's channels: what else must be scaled, and which constants take them.

Each rule is about one node: of its inputs and its output some are scaled, and it says what makes that right again, so
that all that is not scaled stays as it was. Scales are positive; so Relu and a maximum let them pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from precisionlab.rewrite.repairs.passing import is_constant
from precisionlab.rewrite.repairs.profiles import (
    BlockedError,
    Dims,
    Profile,
    asked_dims,
    axes_of,
    dims_of,
    kept_axes,
    of_rank,
    reshaped,
    same,
    trimmed,
)

At = Mapping[ir.Value, Profile]
"""The values that are scaled, each with its profile."""


@dataclass(frozen=True)
class Settled:
    """What a node needs: each of `values` is one way of scaling others; where there is none, it is right already.

    `constants` are the profiles that the constant at an input takes up, one after the other.
    """

    values: Sequence[Mapping[ir.Value, Profile]] = ()
    constants: Mapping[int, Sequence[Profile]] = field(default_factory=dict)


def _shape(node: ir.Node, at: At) -> Settled:
    """A length does not depend on scales."""
    return Settled()


def _mapped(node: ir.Node, at: At, there: Callable[[Profile], Profile], back: Callable[[Profile], Profile]) -> Settled:
    """An operator of one tensor, whose output's profile follows from its input's, and the other way round."""
    source, target = node.inputs[0], node.outputs[0]
    given, wanted = _of(source, at), at.get(target)
    if any(value in at for value in node.inputs[1:] if value is not None) or source is None:
        raise BlockedError
    if given is None:
        return Settled([{source: back(_is(wanted))}])
    made = there(given)
    if wanted is None:
        return Settled([{target: made}])
    if not same(made, wanted):
        raise BlockedError
    return Settled()


def _unchanged(node: ir.Node, at: At) -> Settled:
    return _mapped(node, at, lambda profile: profile, lambda profile: profile)


def _pooled(node: ir.Node, at: At) -> Settled:
    """Along the axes of a window nothing may be scaled."""
    rank = len(dims_of(node.inputs[0]) or dims_of(node.outputs[0]) or ())

    def passed(profile: Profile) -> Profile:
        if any(length != 1 for length in of_rank(profile, rank).shape[2:]):
            raise BlockedError
        return profile

    return _mapped(node, at, passed, passed)


def _transposed(node: ir.Node, at: At) -> Settled:
    known = dims_of(node.inputs[0]) or dims_of(node.outputs[0])
    if "perm" in node.attributes:
        order = list(node.attributes["perm"].as_ints())
    elif known is not None:
        order = list(reversed(range(len(known))))
    else:
        raise BlockedError
    return _mapped(
        node,
        at,
        lambda profile: trimmed(of_rank(profile, len(order)).transpose(order)),
        lambda profile: trimmed(of_rank(profile, len(order)).transpose(np.argsort(order))),
    )


def _reshaped(node: ir.Node, at: At) -> Settled:
    source = node.inputs[0]
    made = None if source is None else source.producer()
    given = dims_of(source)
    if (given is None or None in given[-2:]) and made is not None and made.op_type == "Reshape":
        given = asked_dims(made)
    wanted = asked_dims(node) if node.op_type == "Reshape" else dims_of(node.outputs[0])
    kept = kept_axes(node)
    return _mapped(
        node,
        at,
        lambda profile: reshaped(profile, given, wanted, kept),
        lambda profile: reshaped(profile, wanted, given, kept),
    )


def _reduced(node: ir.Node, at: At) -> Settled:
    """A mean, sum or extreme along axes on which nothing is scaled."""
    dims, axes = dims_of(node.inputs[0]), axes_of(node)
    if dims is None or not axes:
        raise BlockedError
    rank = len(dims)
    places = sorted(axis % rank for axis in axes)
    keeps = "keepdims" not in node.attributes or bool(node.attributes["keepdims"].as_int())

    def there(profile: Profile) -> Profile:
        profile = of_rank(profile, rank)
        if any(profile.shape[axis] != 1 for axis in places):
            raise BlockedError
        return profile if keeps else profile.squeeze(tuple(places))

    def back(profile: Profile) -> Profile:
        if keeps:
            return there(profile)
        for axis in places:
            profile = np.expand_dims(of_rank(profile, rank - len(places)) if axis is places[0] else profile, axis)
        return profile

    return _mapped(node, at, there, back)


def _joined(node: ir.Node, at: At) -> Settled:
    """A sum: all of it has the same scales. A constant takes them, and becomes a vector where it was a number."""
    values = [*node.inputs, node.outputs[0]]
    profile = next(at[value] for value in values if value is not None and value in at)
    needed: dict[ir.Value, Profile] = {}
    constants: dict[int, Sequence[Profile]] = {}
    for index, value in enumerate(values):
        if value is None:
            raise BlockedError
        if is_constant(value):
            constants[index] = [profile]
        elif value not in at:
            _check_wide(value, profile)
            needed[value] = profile
        elif not same(at[value], profile):
            raise BlockedError
    return Settled([needed] if needed else (), constants)


def _check_wide(value: ir.Value, profile: Profile) -> None:
    """Raises BlockedError where the value is not as wide as its scales, but broadcast, or may be."""
    profile = trimmed(profile)
    dims = dims_of(value) or _dims_made(value)
    if dims is None or len(dims) < profile.ndim:
        raise BlockedError
    pairs = zip(dims[len(dims) - profile.ndim :], profile.shape, strict=True)
    if any(length != 1 and dim != length for dim, length in pairs):
        raise BlockedError


def _dims_made(value: ir.Value) -> Dims | None:
    """The last dimensions of what nothing is known of, by a constant that goes into it."""
    made = value.producer()
    if made is None or made.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    known = [dims for operand in made.inputs if is_constant(operand) and (dims := dims_of(operand))]
    return known[0] if known else None


def _product(node: ir.Node, at: At) -> Settled:
    """x · y, or x / y, by elements: what one has more or less, the other takes, or the result."""
    sign = -1 if node.op_type == "Div" else 1
    one, other = node.inputs
    result = node.outputs[0]
    if one is None or other is None or one is other:
        raise BlockedError
    first, second, wanted = at.get(one), at.get(other), at.get(result)
    if first is not None and second is not None:
        raise BlockedError
    if is_constant(one) or is_constant(other):
        if is_constant(other):
            return _by_constant(1, first, wanted, sign)
        return _by_constant(0, None if second is None else sign * second, wanted, 1)
    if wanted is None:
        return Settled([{result: _is(first) if second is None else sign * second}])
    if first is None and second is None:
        return Settled([{one: wanted}, {other: sign * wanted}])
    if not same(wanted, _is(first) if second is None else sign * second):
        raise BlockedError
    return Settled()


def _by_constant(index: int, given: Profile | None, wanted: Profile | None, sign: int) -> Settled:
    """The constant takes what its result has more than the other factor; with `sign` −1 it is divided by."""
    if given is not None and wanted is not None and same(given, wanted):
        return Settled()
    changes = [] if wanted is None else [sign * wanted]
    changes += [] if given is None else [-sign * given]
    return Settled((), {index: changes})


def _normalised(node: ir.Node, at: At) -> Settled:
    """LayerNorm, BatchNorm and the like: their scale and shift take what the result has; the operand has nothing."""
    wanted = at.get(node.outputs[0])
    scale = node.inputs[1]
    if wanted is None or any(value in at for value in node.inputs if value is not None) or not is_constant(scale):
        raise BlockedError
    assert scale is not None
    assert scale.shape is not None
    profile = trimmed(wanted)
    if node.op_type not in ("LayerNormalization", "RMSNormalization"):
        if profile.shape[0] != scale.shape[0] or any(length != 1 for length in profile.shape[1:]):
            raise BlockedError
        rank = len(dims_of(node.inputs[0]) or dims_of(node.outputs[0]) or ())
        if rank != profile.ndim + 1:
            raise BlockedError
        profile = profile.reshape(-1)
    elif profile.ndim > len(scale.shape):
        raise BlockedError
    constants: dict[int, Sequence[Profile]] = {1: [profile]}
    if len(node.inputs) > 2 and node.inputs[2] is not None and node.op_type != "RMSNormalization":
        if not is_constant(node.inputs[2]):
            raise BlockedError
        constants[2] = [profile]
    return Settled((), constants)


def _looked_up(node: ir.Node, at: At) -> Settled:
    """Rows of a constant table."""
    wanted, table = at.get(node.outputs[0]), node.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if wanted is None or axis or not is_constant(table) or table is None or table.shape is None:
        raise BlockedError
    return Settled((), {0: [of_rank(wanted, len(table.shape) - 1)]})


def _of(value: ir.Value | None, at: At) -> Profile | None:
    return None if value is None else at.get(value)


def _is(profile: Profile | None) -> Profile:
    assert profile is not None, "a node is settled where something of it is scaled"
    return profile


Rule = Callable[[ir.Node, At], Settled]

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Shape", "Size"), _shape),
    **dict.fromkeys(("Identity", "Relu", "LeakyRelu", "PRelu", "Abs", "Neg", "Dropout"), _unchanged),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "LpPool"), _pooled),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduced),
    "Transpose": _transposed,
    **dict.fromkeys(("Add", "Sub", "Sum"), _joined),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization"), _normalised
    ),
    "Gather": _looked_up,
}
"""By operator; matrix products and convolutions have rules of their own (`channel_products`)."""
