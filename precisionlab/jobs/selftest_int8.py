"""What the emulation takes for granted of TensorRT's INT8, in small graphs on which an engine tells.

Of a calibrated model: a scale for each channel of a weight, values rounded to the nearest step and halves to the even
one, values beyond the range held at its ends, integer sums that stay exact and leave the layer as floats. Of a model
with Q/DQ nodes of its own: that a pair rounds wherever it stands, and what is between two is computed on what it gives.

Ranges are powers of two times 127, or 127 itself, so that scales are exact and every figure is.
"""

from __future__ import annotations

import numpy as np

from precisionlab.jobs.selftest_family import PLACES, Array, Assumption, Family, Judge, at_places, listed, of_places
from precisionlab.precision import Precision

_K, _ROWS, _COLUMNS = 1024, 64, 64
_WEIGHTS = np.array([127, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5], np.float32)
_SMALL = np.float32(10 / 128)
"""A weight in a channel whose largest is 127/128: ten steps of its own scale, and none of the first channel's."""
_VALUES = np.array([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 126.5, 1000, -1000], np.float32)
_TIES = {
    "to the even": (0, 2, 2, 4, 0, -2, -2),
    "away from 0": (1, 2, 3, 4, -1, -2, -3),
    "up": (1, 2, 3, 4, 0, -1, -2),
    "towards 0": (0, 1, 2, 3, 0, -1, -2),
}
_SUM = 127 * (64 * 127 + 64)
"""512 products of 127·127, 64 of 127·1, and 448 of −127·127."""

_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
rules (float[1,32,4,8] picks, float[1,32,4,8] values, float[1,1024,8,8] image)
    => (float[1,32,4,8] weights, float[1,32,4,8] rounded, float[1,64,8,8] convolution) {
    [weights] weights = Conv (picks, kernel)
    [rounded] rounded = Conv (values, identity)
    [convolution] convolution = Conv (image, tower)
}
"""
_PRODUCT = """
<ir_version: 8, opset_import: ["" : 17]>
rules (float[64,1024] rows) => (float[64,64] product) {
    [product] product = MatMul (rows, weight)
}
"""
_EXPLICIT = """
<ir_version: 8, opset_import: ["" : 17]>
rules (float[1,32,4,8] values, float[1,16] logs, float[1,32,8,8] plane)
    => (float[1,32,4,8] quantized, float[1,16] powers, float[1,32,4,4] pooled) {
    [q1] values_q = QuantizeLinear (values, one, zero)
    [dq1] values_d = DequantizeLinear (values_q, one, zero)
    [dqw] kernel = DequantizeLinear <axis = 0> (stored, scales, zeros)
    [quantized] quantized = Conv (values_d, kernel)
    [q2] logs_q = QuantizeLinear (logs, one, zero)
    [dq2] logs_d = DequantizeLinear (logs_q, one, zero)
    [powers] powers = Exp (logs_d)
    [q3] plane_q = QuantizeLinear (plane, one, zero)
    [dq3] plane_d = DequantizeLinear (plane_q, one, zero)
    [pooled] pooled = AveragePool <kernel_shape = [2,2], strides = [2,2]> (plane_d)
}
"""


def _kernel() -> Array:
    """Weights of 32 channels: the first has halves of its step, the second is smaller by 128 throughout."""
    kernel = np.full((PLACES, PLACES), 127, np.float32)
    kernel[0, : len(_WEIGHTS)] = _WEIGHTS
    kernel[1] = _SMALL
    kernel[1, 0] = 127 / 128
    return kernel.reshape(PLACES, PLACES, 1, 1)


def _column() -> Array:
    """The 1024 weights of a sum that passes 65504 and every half beside it, and comes back."""
    return np.repeat(np.array([127, 1, -127], np.float32), [512, 64, 448])


def _identity(largest: float) -> Array:
    return (largest * np.eye(PLACES, dtype=np.float32)).reshape(PLACES, PLACES, 1, 1)


def _ties(given: Array) -> str:
    """How these were rounded that lie between two steps; empty where in no way that is known."""
    return next((name for name, steps in _TIES.items() if np.allclose(given, steps, atol=1e-3)), "")


def _scale(found: Array) -> tuple[bool, str]:
    given = float(of_places(found)[1, 1])
    kinds = {float(_SMALL): (True, "each channel of a weight has a scale of its own")}
    if given in (0.0, 1.0):
        return False, f"a weight has one scale: in a smaller channel {_SMALL:g} gives {given:g}"
    return kinds.get(given, (False, f"in a smaller channel of a weight {_SMALL:g} gives {given:g}"))


def _weights(found: Array) -> tuple[bool, str]:
    given = of_places(found)[0, 1 : len(_WEIGHTS)]
    how = _ties(given)
    if np.array_equal(given, _WEIGHTS[1:]):
        return False, "weights are not rounded: the layer was not computed in INT8"
    return how == "to the even", f"weights between two steps go {how or listed(given)}"


def _rounded(of: str, largest: float) -> Judge:
    def judge(found: Array) -> tuple[bool, str]:
        given = np.diagonal(of_places(found))[:7] / largest
        how = _ties(given)
        if np.array_equal(given, _VALUES[:7]):
            return False, f"{of} are not rounded: the layer was not computed in INT8"
        return how == "to the even", f"{of} between two steps go {how or listed(given)}"

    return judge


def _held(largest: float) -> Judge:
    def judge(found: Array) -> tuple[bool, str]:
        high, low = np.diagonal(of_places(found))[8:10] / largest
        return bool(high == 127 and low == -128), f"beyond a range of 127 steps 1000 gives {high:g}, and -1000 {low:g}"

    return judge


def _sums(found: Array) -> tuple[bool, str]:
    given = np.unique(found)
    if len(given) == 1 and given[0] == _SUM:
        return True, f"sums are exact, and leave the layer as floats: {_SUM}"
    return False, f"a sum of {_SUM} gives {listed(given)}"


def _powers(found: Array) -> tuple[bool, str]:
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log(found.ravel()[:7].astype(np.float64))
    if np.allclose(steps, _VALUES[:7], atol=1e-2):
        return False, "the pair was taken out: what it rounds goes on as it was"
    how = _ties(np.round(steps, 2))
    return how == "to the even", f"the pair rounds: values between two steps go {how or listed(steps)}"


def _pooled(found: Array) -> tuple[bool, str]:
    given = np.unique(found)
    if len(given) == 1 and given[0] == 0.25:
        return True, "a mean of steps is no step: 0, 0, 0 and 1 give 0.25"
    return False, f"the mean of 0, 0, 0 and 1 gives {listed(given)}"


def _plane() -> Array:
    plane = np.zeros((1, PLACES, 8, 8), np.float32)
    plane[:, :, 1::2, 1::2] = 1
    return plane


_TOWER = np.repeat(_column()[None], _COLUMNS, axis=0).reshape(_COLUMNS, _K, 1, 1)
_OPERANDS = dict.fromkeys(("picks", "values", "image"), 127.0)
_RESULTS = {"weights": 127.0, "rounded": 127.0 * 128, "convolution": float(_SUM)}

INT8 = Family(
    title="INT8",
    precision=Precision.INT8,
    graph=_MODEL,
    constants={"kernel": _kernel(), "identity": _identity(127), "tower": _TOWER},
    inputs={
        "picks": at_places(np.ones(PLACES, np.float32)),
        "values": at_places(_VALUES),
        "image": np.full((1, _K, 8, 8), 127, np.float32),
    },
    ranges={**_OPERANDS, **_RESULTS},
    rules=(
        Assumption("INT8: the scale of a weight", "weights", _scale),
        Assumption("INT8: rounding of weights", "weights", _weights),
        Assumption("INT8: rounding of activations", "rounded", _rounded("activations", 127)),
        Assumption("INT8: beyond the range", "rounded", _held(127)),
        Assumption("INT8: sums of a convolution", "convolution", _sums),
    ),
)
INT8_PRODUCT = Family(
    title="INT8 MatMul",
    precision=Precision.INT8,
    graph=_PRODUCT,
    constants={"weight": np.repeat(_column()[:, None], _COLUMNS, axis=1)},
    inputs={"rows": np.full((_ROWS, _K), 127, np.float32)},
    ranges={"rows": 127.0, "product": float(_SUM)},
    rules=(Assumption("INT8: sums of a MatMul", "product", _sums),),
)
EXPLICIT = Family(
    title="Q/DQ",
    precision=None,
    graph=_EXPLICIT,
    constants={
        "one": np.float32(1),
        "zero": np.int8(0),
        "stored": _identity(127).astype(np.int8),
        "scales": np.full(PLACES, 2.0**-3, np.float32),
        "zeros": np.zeros(PLACES, np.int8),
    },
    inputs={
        "values": at_places(_VALUES),
        "logs": np.resize(_VALUES[:7], (1, 16)).astype(np.float32),
        "plane": _plane(),
    },
    rules=(
        Assumption("Q/DQ: in front of a Conv", "quantized", _rounded("activations", 127 / 8)),
        Assumption("Q/DQ: beyond the range", "quantized", _held(127 / 8)),
        Assumption("Q/DQ: in front of a layer in float", "powers", _powers),
        Assumption("Q/DQ: a mean of what it gives", "pooled", _pooled),
    ),
)
