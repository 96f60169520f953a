"""What a matrix product or a convolution makes of scales of its operand's channels: constant weights take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from precisionlab.rewrite.repairs.channel_rules import At, Settled
from precisionlab.rewrite.repairs.passing import is_constant
from precisionlab.rewrite.repairs.profiles import BlockedError, Profile, of_rank, same, trimmed

_BIAS = 2


def matrix_product(node: ir.Node, at: At) -> Settled:
    """MatMul: a constant takes rows and columns; of two activations one takes what the other has."""
    left, right = node.inputs
    if left is None or right is None or left is right:
        raise BlockedError
    given, wanted = [at.get(left), at.get(right)], at.get(node.outputs[0])
    if is_constant(left) or is_constant(right):
        index = int(is_constant(right))
        if is_constant(node.inputs[1 - index]):
            raise BlockedError
        return Settled((), {index: _weights(node.inputs[index], index, given[1 - index], wanted)})
    return _of_activations(left, right, given, wanted, node.outputs[0])


def gemm(node: ir.Node, at: At) -> Settled:
    """Gemm: as MatMul, with operands that may be transposed, and a bias that takes what the result has."""
    operands, wanted = node.inputs[:2], at.get(node.outputs[0])
    turned = [bool(node.attributes[name].as_int()) if name in node.attributes else False for name in _TURNED]
    if sum(is_constant(value) for value in operands) != 1:
        raise BlockedError
    index = int(is_constant(operands[1]))
    other = operands[1 - index]
    given = None if other is None or other not in at else at[other]
    if given is not None and turned[1 - index]:
        given = _turned(given)
    changes = _weights(operands[index], index, given, wanted, is_turned=turned[index])
    constants: dict[int, Sequence[Profile]] = {index: changes}
    return _with_bias(node, at, wanted, constants)


_TURNED = ("transA", "transB")


def convolution(node: ir.Node, at: At) -> Settled:
    """Conv and ConvTranspose: weights take the channels of both sides, of any group; a bias those of the result."""
    source, weights = node.inputs[:2]
    if source is None or not is_constant(weights) or weights is None or weights.shape is None:
        raise BlockedError
    given, wanted = at.get(source), at.get(node.outputs[0])
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    shape = tuple(int(length) for length in weights.shape if isinstance(length, int))
    turned = node.op_type == "ConvTranspose"
    behind = len(shape) - 2
    changes = []
    if given is not None:
        changes.append(-_per_weight(_vector(given, behind), shape, groups, along=0 if turned else 1))
    if wanted is not None:
        changes.append(_per_weight(_vector(wanted, behind), shape, groups, along=1 if turned else 0))
    constants: dict[int, Sequence[Profile]] = {1: changes}
    if wanted is not None:
        wanted = _vector(wanted, behind)
    return _with_bias(node, at, wanted, constants)


def _vector(profile: Profile, behind: int) -> Profile:
    """The scales of channels that have so many axes behind them. Raises BlockedError where others have scales too."""
    profile = of_rank(profile, behind + 1)
    if any(length != 1 for length in profile.shape[1:]):
        raise BlockedError
    return profile.reshape(-1)


def _per_weight(vector: Profile, shape: tuple[int, ...], groups: int, along: int) -> Profile:
    """The scales of channels, for each weight of a kernel of this shape, whose axis `along` they lie on.

    One axis has all channels, the other those of a group alone: there each group has scales of its own.
    """
    behind = [1] * (len(shape) - 2)
    whole, part = (0, 1) if along == 0 else (1, 0)
    if along == 0:
        if vector.shape[0] != shape[0]:
            raise BlockedError
        return vector.reshape(-1, 1, *behind)
    if vector.shape[0] != shape[whole] * groups or shape[part] % groups:
        raise BlockedError
    by_group = vector.reshape(groups, 1, shape[whole])
    wide = np.broadcast_to(by_group, (groups, shape[part] // groups, shape[whole]))
    return np.asarray(wide.reshape(*shape[:2], *behind), np.int32)


def _with_bias(node: ir.Node, at: At, wanted: Profile | None, constants: dict[int, Sequence[Profile]]) -> Settled:
    bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    if bias is not None and bias in at:
        raise BlockedError
    if bias is not None and wanted is not None:
        if not is_constant(bias):
            raise BlockedError
        constants[_BIAS] = [wanted]
    return Settled((), constants)


def _weights(
    weights: ir.Value | None, index: int, given: Profile | None, wanted: Profile | None, *, is_turned: bool = False
) -> Sequence[Profile]:
    """What the constant operand takes up: the inverse of the other operand's scales, and the result's own.

    `given` lies against an operand that is not turned: (…, M, K) on the left, (…, K, N) on the right.
    """
    assert weights is not None
    assert weights.shape is not None
    if len(weights.shape) < 2:
        raise BlockedError
    changes: list[Profile] = []
    if given is not None:
        changes.append(-_turned(_on_axis(given, along_rows=index == 0)))
    if wanted is not None:
        changes.append(_on_axis(wanted, along_rows=index == 0))
    return [change.swapaxes(-1, -2) if is_turned else change for change in changes]


def _on_axis(profile: Profile, *, along_rows: bool) -> Profile:
    """The profile as a matrix's that changes along rows, or along columns. Raises BlockedError where it is no such."""
    profile = of_rank(profile, 2)
    if profile.shape[-1 if along_rows else -2] != 1:
        raise BlockedError
    return profile


def _turned(profile: Profile) -> Profile:
    """A matrix's profile, transposed."""
    turned: Profile = of_rank(profile, max(2, profile.ndim)).swapaxes(-1, -2)
    return turned


def _of_activations(
    left: ir.Value, right: ir.Value, given: list[Profile | None], wanted: Profile | None, result: ir.Value
) -> Settled:
    """Scales along the axis that is summed over cancel between the two; others are the result's."""
    needed: dict[ir.Value, Profile] = {}
    summed = [_is_along(given[0], -1), _is_along(given[1], -2)]
    if any(summed):
        if wanted is not None or (all(summed) and not same(_turned(_known(given[0])), -_known(given[1]))):
            raise BlockedError
        if all(summed):
            return Settled()
        if given[summed.index(False)] is not None:
            raise BlockedError
        return Settled([{right: -_turned(_known(given[0]))} if summed[0] else {left: -_turned(_known(given[1]))}])
    passed = [profile for profile in given if profile is not None]
    if len(passed) > 1:
        raise BlockedError
    if not passed:
        options = [(value, axis) for value, axis in ((right, -2), (left, -1)) if not _is_along(wanted, axis)]
        if not options:
            raise BlockedError
        return Settled([{value: _known(wanted)} for value, _ in options])
    if wanted is None:
        needed[result] = passed[0]
    elif not same(wanted, passed[0]):
        raise BlockedError
    return Settled([needed] if needed else ())


def _is_along(profile: Profile | None, axis: int) -> bool:
    """Whether the profile changes along this axis, counted from the end."""
    return profile is not None and trimmed(profile).ndim >= -axis and trimmed(profile).shape[axis] != 1


def _known(profile: Profile | None) -> Profile:
    assert profile is not None
    return profile
