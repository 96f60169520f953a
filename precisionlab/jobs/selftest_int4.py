"""What the emulation takes for granted of TensorRT's INT4 weights, in a small graph on which a typed engine tells.

Each block of a weight has a scale of its own, every level comes back as so many steps of it, what the weight is
multiplied with is not quantised, and sums are kept in float32, among half.

Scales are powers of two, so that every figure is exact.
"""

from __future__ import annotations

import numpy as np

from precisionlab.jobs.selftest_family import Array, Assumption, Family, listed
from precisionlab.precision import Precision

_K, _ROWS, _SIDE = 1024, 64, 64
_BLOCK, _SHORT = 128, 32
"""Numbers of a block, in a sum of `_K` products; in one of `_SIDE` a block is no longer than the half of it."""
_LEVELS = np.arange(-7, 8, dtype=np.float32)
_SMALLER = 2.0**-6
_SLIGHTLY = 2.0**-10
_LARGE, _SMALL = 7 * 2.0**12, 7 * 2.0**-7
_SUM = 28720.0
"""28672 and 896 times 7/128, as half holds it; a sum in half stays at 28672, beside which 16 such are less than 8."""

_MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
rules (float[64,64] picks, float[64,64] values, float[64,1024] rows)
    => (float[64,64] weights, float[64,64] kept, float[64,64] product) {
    [weights] weights = MatMul (picks, levels)
    [kept] kept = MatMul (values, fours)
    [product] product = MatMul (rows, weight)
}
"""


def _levels() -> Array:
    """All levels, in another order in each column: steps of 1 in the first block, and of 1/64 in the second."""
    place = np.arange(_SHORT)[:, None] + np.arange(_SIDE)[None]
    block = _LEVELS[place % len(_LEVELS)]
    return np.concatenate([block, block * np.float32(_SMALLER)])


def _fours() -> Array:
    """4 on the diagonal, and in each block a 7, so that its step is 1: where the values are 0."""
    fours = np.diag(np.full(_SIDE, 4, np.float32))
    fours[::_SHORT] = 7
    return fours


def _values() -> Array:
    """Numbers of 11 binary digits on the diagonal, where no 7 stands."""
    values = np.diag(np.full(_SIDE, 1 + _SLIGHTLY, np.float32))
    values[::_SHORT] = 0
    return values


def _column() -> Array:
    weight = np.zeros(_K, np.float32)
    weight[0] = _LARGE
    weight[_BLOCK:] = _SMALL
    return weight


def _stored(found: Array) -> tuple[bool, str]:
    wanted, given = _levels()[:_SHORT], found[:_SHORT]
    if np.array_equal(given, wanted):
        return True, "every level from -7 to 7 comes back as so many steps"
    first = tuple(np.argwhere(given != wanted)[0])
    return False, f"level {wanted[first]:g} comes back as {given[first]:g}"


def _scale(found: Array) -> tuple[bool, str]:
    wanted, given = _levels()[_SHORT:], found[_SHORT:]
    if np.array_equal(given, wanted):
        return True, "each block has a scale of its own"
    if np.array_equal(given, wanted / _SMALLER):
        return False, "a block has the scale of the one before it"
    first = tuple(np.argwhere(given != wanted)[0])
    return False, f"in a smaller block {wanted[first]:g} comes back as {given[first]:g}"


def _kept(found: Array) -> tuple[bool, str]:
    given = np.unique(np.diagonal(found)[np.arange(_SIDE) % _SHORT > 0])
    if len(given) == 1 and given[0] == 4 * (1 + _SLIGHTLY):
        return True, "what the weight is multiplied with is not quantised"
    return False, f"4 times {1 + _SLIGHTLY:.6g} gives {listed(given)}: what a weight is multiplied with is rounded"


def _sums(found: Array) -> tuple[bool, str]:
    given = np.unique(found)
    if len(given) == 1 and given[0] == _SUM:
        return True, "sums are kept in float32"
    if len(given) == 1 and given[0] == _LARGE:
        return False, "sums are kept in half: 896 products are lost beside one"
    return False, f"a sum of {_SUM:g} gives {listed(given)}"


INT4 = Family(
    title="INT4",
    precision=Precision.INT4,
    graph=_MODEL,
    constants={
        "levels": _levels(),
        "fours": _fours(),
        "weight": np.repeat(_column()[:, None], _SIDE, axis=1),
    },
    inputs={
        "picks": np.eye(_SIDE, dtype=np.float32),
        "values": _values(),
        "rows": np.ones((_ROWS, _K), np.float32),
    },
    around=Precision.FP16,
    block=_BLOCK,
    rules=(
        Assumption("INT4: the levels of a weight", "weights", _stored),
        Assumption("INT4: the scale of a block", "weights", _scale),
        Assumption("INT4: activations", "kept", _kept),
        Assumption("INT4: sums of a MatMul", "product", _sums),
    ),
)
