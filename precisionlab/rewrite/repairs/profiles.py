"""By which channel's scale each part of a tensor is multiplied, and what shape operators make of that.

A profile is an int array that lies against a tensor's last axes, as NumPy broadcasts: c + 1 where channel c's scale
applies, −(c + 1) where its inverse does, 0 where neither. So what a region of a graph does with scales is found once,
whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model.graph import DIMS

Profile = NDArray[np.int32]

Dims = tuple[int | None, ...]
"""A tensor's dimensions; None for one that is not known."""


class BlockedError(Exception):
    """The scales cannot be carried on here, nor taken up."""


def channels(count: int, behind: int) -> Profile:
    """The profile of a tensor with so many channels, and so many axes behind that of the channels."""
    return np.arange(1, count + 1, dtype=np.int32).reshape(-1, *[1] * behind)


def trimmed(profile: Profile) -> Profile:
    """Without the leading axes of length 1 that broadcasting gives anyway."""
    first = next((axis for axis, length in enumerate(profile.shape) if length != 1), profile.ndim - 1)
    return profile.reshape(profile.shape[first:])


def same(one: Profile, other: Profile) -> bool:
    """Whether two profiles scale alike."""
    return np.array_equal(trimmed(one), trimmed(other))


def of_rank(profile: Profile, rank: int) -> Profile:
    """The profile with an axis for each of the tensor's. Raises BlockedError where it has more than that."""
    profile = trimmed(profile)
    if profile.ndim > rank:
        raise BlockedError
    return profile.reshape(*[1] * (rank - profile.ndim), *profile.shape)


def exponents(profile: Profile, scales: NDArray[np.int32]) -> NDArray[np.int32]:
    """The powers of two that it stands for: int32, of its shape, where channel c has the scale 2^`scales[c]`."""
    place = np.maximum(np.abs(profile) - 1, 0)
    return np.asarray(np.sign(profile) * scales[place], np.int32)


def dims_of(value: ir.Value | None) -> Dims | None:
    """The dimensions of a value; None where its rank is not known."""
    if value is None:
        return None
    if DIMS in value.meta:
        known: Dims = value.meta[DIMS]
        return known
    return None if value.shape is None else tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def asked_dims(node: ir.Node) -> Dims | None:
    """The dimensions that a Reshape asks for, of its constants alone; None where nothing is known of them."""
    known = dims_of(node.outputs[0])
    if known is not None and all(dim is not None for dim in known[-2:]):
        return known
    wanted = node.inputs[1]
    if wanted is None:
        return known
    made = wanted.producer()
    joined = wanted.const_value is None and made is not None and made.op_type == "Concat"
    parts = made.inputs if joined and made is not None else [wanted]
    dims: list[int | None] = []
    for part in parts:
        if part is None:
            return known
        if part.const_value is None:
            length = dims_of(part)
            if length is None or len(length) != 1 or length[0] is None:
                return known
            dims += [None] * length[0]
        else:
            dims += [int(dim) if dim > 0 else None for dim in np.atleast_1d(part.const_value.numpy())]
    return tuple(dims)


def axes_of(node: ir.Node) -> tuple[int, ...]:
    """The axes that a node names, as an attribute or a constant; none where it names none."""
    if "axes" in node.attributes:
        return tuple(node.attributes["axes"].as_ints())
    named = node.inputs[1] if len(node.inputs) > 1 else None
    if named is None or named.const_value is None:
        return ()
    return tuple(int(axis) for axis in np.atleast_1d(named.const_value.numpy()))


def kept_axes(node: ir.Node) -> int:
    """How many leading axes a Reshape, Squeeze or Unsqueeze is sure to leave as they are, whatever their lengths."""
    if node.op_type == "Reshape":
        wanted = node.inputs[1]
        if wanted is None or wanted.const_value is None or "allowzero" in node.attributes:
            return 0
        lengths = np.atleast_1d(wanted.const_value.numpy())
        return int(np.argmax(lengths != 0)) if (lengths != 0).any() else lengths.size
    longer = dims_of(node.outputs[0] if node.op_type == "Unsqueeze" else node.inputs[0])
    axes = axes_of(node)
    return min(axis % len(longer) for axis in axes) if longer and axes else 0


def reshaped(profile: Profile, given: Dims | None, wanted: Dims | None, kept: int) -> Profile:
    """The profile of a tensor of dimensions `wanted` that was reshaped from one of dimensions `given`.

    The first `kept` axes stay as they are, known or not. Raises BlockedError where all this does not say it.
    """
    profile = trimmed(profile)
    if given is None or wanted is None:
        raise BlockedError
    for count in range(profile.ndim, len(given) + 1):
        sizes = _known(given[len(given) - count :])
        if sizes is None:
            break
        length = math.prod(sizes)
        for taken in range(1, len(wanted) + 1):
            others = _known(wanted[len(wanted) - taken :])
            if others is None or math.prod(others) > length:
                break
            if math.prod(others) == length:
                return _collapsed(np.broadcast_to(of_rank(profile, count), sizes).reshape(others))
    return _from_the_front(of_rank(profile, len(given)), wanted, kept)


def _from_the_front(profile: Profile, wanted: Dims, kept: int) -> Profile:
    """Where the axes up to the last that has scales stay, and only what is behind them is reshaped."""
    last = max((axis for axis, length in enumerate(profile.shape) if length != 1), default=len(wanted))
    if len(wanted) <= last or last > kept or profile.shape[last] != wanted[last]:
        raise BlockedError
    return trimmed(profile.reshape(*profile.shape[: last + 1], *[1] * (len(wanted) - last - 1)))


def _known(dims: Sequence[int | None]) -> tuple[int, ...] | None:
    found = tuple(dim for dim in dims if dim is not None)
    return found if len(found) == len(dims) else None


def _collapsed(profile: Profile) -> Profile:
    """With length 1 along each axis on which nothing changes."""
    for axis in range(profile.ndim):
        first = profile.take([0], axis)
        if np.array_equal(np.broadcast_to(first, profile.shape), profile):
            profile = first
    return trimmed(np.ascontiguousarray(profile))
