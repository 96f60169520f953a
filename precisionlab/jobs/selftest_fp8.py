"""What the emulation takes for granted of TensorRT's FP8 (E4M3), in a small graph on which a typed engine tells.

A scale for each channel of a convolution's weight, values rounded to the nearest and halves to the even one, values
beyond the range held at its ends (and not NaN), subnormal ones that are kept, and sums that lose nothing.

Ranges are 448 times a power of two, so that scales are exact and every figure is.
"""

from __future__ import annotations

import numpy as np

from precisionlab.jobs.selftest_family import PLACES, Array, Assumption, Family, at_places, listed, of_places
from precisionlab.precision import Precision

_K, _ROWS, _COLUMNS = 1024, 64, 64
_LARGEST, _LEAST = Precision.FP8.number_format.largest, Precision.FP8.number_format.least
_TIED = np.array([17, 19, 21, 23, -17, -19, -21], np.float32)
"""Between 16 and 32 values are 2 apart."""
_TIES = {
    "to the even": (16, 20, 20, 24, -16, -20, -20),
    "away from 0": (18, 20, 22, 24, -18, -20, -22),
    "up": (18, 20, 22, 24, -16, -18, -20),
    "towards 0": (16, 18, 20, 22, -16, -18, -20),
}
_SUBNORMAL = _LEAST * np.array([1, 3, 0.75], np.float32)
_KEPT = _LEAST * np.array([1, 3, 1], np.float32)
_SMALLER = 2.0**-14
"""What a channel's weights are of the others': so much that with one scale for all they would be 0."""
_VALUES = np.concatenate([_TIED, _SUBNORMAL, np.array([1000, -1000], np.float32)])
_SUM = _LARGEST**2 + _K - 1
"""One product of 448 · 448, and others of 1 · 1."""

_MODEL = """
<ir_version: 9, opset_import: ["" : 19]>
rules (float[1,32,4,8] picks, float[1,32,4,8] values, float[64,1024] rows)
    => (float[1,32,4,8] weights, float[1,32,4,8] rounded, float[64,64] product) {
    [weights] weights = Conv (picks, kernel)
    [rounded] rounded = Conv (values, identity)
    [product] product = MatMul (rows, weight)
}
"""


def _kernel() -> Array:
    """Weights of 32 channels: the first has those that are rounded, the second is smaller throughout."""
    kernel = np.full((PLACES, PLACES), _LARGEST, np.float32)
    kernel[0, 1 : 1 + len(_TIED)] = _TIED
    kernel[1] = 17 * _SMALLER
    kernel[1, 0] = _LARGEST * _SMALLER
    return kernel.reshape(PLACES, PLACES, 1, 1)


def _scale(found: Array) -> tuple[bool, str]:
    given = float(of_places(found)[1, 1])
    if given == 16 * _SMALLER:
        return True, "each channel of a convolution's weight has a scale of its own"
    if given == 0:
        return False, "a convolution's weight has one scale: of a channel smaller by 2⁻¹⁴ nothing is left"
    return False, f"in a smaller channel of a weight {17 * _SMALLER:g} gives {given:g}"


def _tied(what: str, given: Array) -> tuple[bool, str]:
    if np.array_equal(given, _TIED):
        return False, f"{what} are not rounded: the layer was not computed in FP8"
    how = next((name for name, values in _TIES.items() if np.array_equal(given, values)), "")
    return how == "to the even", f"{what} between two values go {how or listed(given)}"


def _weights(found: Array) -> tuple[bool, str]:
    return _tied("weights", of_places(found)[0, 1 : 1 + len(_TIED)])


def _shown(found: Array) -> Array:
    """What the values have become, each at its place."""
    return np.asarray(np.diagonal(of_places(found))[: len(_VALUES)] / _LARGEST)


def _rounded(found: Array) -> tuple[bool, str]:
    return _tied("activations", _shown(found)[: len(_TIED)])


def _small(found: Array) -> tuple[bool, str]:
    given = _shown(found)[len(_TIED) : -2]
    if np.array_equal(given, _KEPT):
        return True, "subnormal values are kept, down to 2⁻⁹ steps"
    if not given.any():
        return False, "subnormal values become 0: below 2⁻⁶ steps nothing is left"
    return False, f"{listed(_SUBNORMAL)} steps give {listed(given)}"


def _held(found: Array) -> tuple[bool, str]:
    high, low = _shown(found)[-2:]
    return bool(high == _LARGEST and low == -_LARGEST), f"beyond 448 steps 1000 gives {high:g}, and -1000 {low:g}"


def _sums(found: Array) -> tuple[bool, str]:
    given = np.unique(found)
    if len(given) == 1 and given[0] == _SUM:
        return True, f"sums are exact: {_SUM:.6g}"
    if len(given) == 1 and _LARGEST**2 <= given[0] < _SUM:
        return False, f"what is small beside one large product is lost: a sum of {_SUM:.6g} gives {given[0]:.6g}"
    return False, f"a sum of {_SUM:.6g} gives {listed(given)}"


def _first_large(largest: float) -> Array:
    return np.concatenate([np.array([largest], np.float32), np.ones(_K - 1, np.float32)])


FP8 = Family(
    title="FP8",
    precision=Precision.FP8,
    graph=_MODEL,
    constants={
        "kernel": _kernel(),
        "identity": (_LARGEST * np.eye(PLACES, dtype=np.float32)).reshape(PLACES, PLACES, 1, 1),
        "weight": np.repeat(_first_large(_LARGEST)[:, None], _COLUMNS, axis=1),
    },
    inputs={
        "picks": at_places(np.ones(PLACES, np.float32)),
        "values": at_places(_VALUES),
        "rows": np.repeat(_first_large(_LARGEST)[None], _ROWS, axis=0),
    },
    ranges=dict.fromkeys(("picks", "values", "rows", "weights", "rounded", "product"), _LARGEST),
    rules=(
        Assumption("FP8: the scale of a weight", "weights", _scale),
        Assumption("FP8: rounding of weights", "weights", _weights),
        Assumption("FP8: rounding of activations", "rounded", _rounded),
        Assumption("FP8: beyond the range", "rounded", _held),
        Assumption("FP8: subnormal values", "rounded", _small),
        Assumption("FP8: sums of a MatMul", "product", _sums),
    ),
)
