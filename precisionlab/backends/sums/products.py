"""Matrix products whose running sum is kept in half, on NumPy's arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.sums.kernel import Loop, add_up
from precisionlab.model.contraction import BLOCK
from precisionlab.plan.arithmetic import Sums

Array = NDArray[np.float32]


def matmul(a: Array, b: Array, sums: Sums, loop: Loop = add_up) -> Array:
    """a · b as `numpy.matmul` shapes it, float32 holding halves or, beyond them, Inf.

    `a` (…, m, k) and `b` (…, k, n), or vectors, float32 that hold halves.
    """
    left = a[np.newaxis, :] if a.ndim == 1 else a
    right = b[:, np.newaxis] if b.ndim == 1 else b
    rows, columns = left.shape[-2], right.shape[-1]
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    if right.ndim == 2:
        # Sizes are written out, as NumPy finds none where another is 0.
        flat = left.reshape(1, math.prod(left.shape[:-1]), left.shape[-1])
        product = _stacked(flat, right[np.newaxis], sums, loop)
    else:
        count = math.prod(batch)
        wide = [np.broadcast_to(m, (*batch, *m.shape[-2:])).reshape(count, *m.shape[-2:]) for m in (left, right)]
        product = _stacked(wide[0], wide[1], sums, loop)
    product = product.reshape(*batch, rows, columns)
    product = product[..., 0, :] if a.ndim == 1 else product
    return product[..., 0] if b.ndim == 1 else product


def _stacked(a: Array, b: Array, sums: Sums, loop: Loop) -> Array:
    """(batch, m, k) · (batch, k, n); the longer of m and n goes along the vector registers."""
    if b.shape[2] < BLOCK and a.shape[1] > b.shape[2]:
        return np.ascontiguousarray(_stacked(b.transpose(0, 2, 1), a.transpose(0, 2, 1), sums, loop).transpose(0, 2, 1))
    batch, rows, products = a.shape
    columns, block = b.shape[2], BLOCK if sums is Sums.HALF else 1
    out = np.zeros((batch, rows, columns), np.float32)
    if out.size and products:
        offsets = np.arange(products, dtype=np.int64) * columns
        x = plain(b).reshape(batch, -1)
        loop(padded(a, block), x, offsets, np.zeros(1, np.int64), columns, 1, block, out)
    return out


def plain(array: Array) -> Array:
    """The array as the compiled loop takes it: contiguous and writable, as another kind is compiled anew for."""
    return np.require(array, np.float32, ["C", "W"])


def padded(weights: Array, block: int) -> Array:
    """Zeros behind the last axis, to a whole number of blocks."""
    products = weights.shape[-1]
    whole = -(-products // block) * block
    if whole == products:
        return plain(weights)
    padded = np.zeros((*weights.shape[:-1], whole), np.float32)
    padded[..., :products] = weights
    return padded
