"""What the emulation takes for granted of TensorRT's FP16, in a small graph on which an engine tells.

Whether a finite constant beyond half is clamped and one that would be 0 kept from it; in which type a product adds up;
whether nothing is rounded inside of a layer (a BatchNormalization behind a Conv, a bias behind a product, a mean, a
normalisation); whether NaN survives where a compiler could fold it away. Every layer is pinned to FP16, so that no
faster kernel in FP32 answers in its place; one that does all the same is told by what it gives.
"""

from __future__ import annotations

import numpy as np

from precisionlab.jobs.selftest_family import Array, Assumption, Family, Judge
from precisionlab.precision import Precision

K, ROWS, COLUMNS = 1024, 64, 64
"""Products that are added up, and the sizes of the matrices around them: enough for the kernels of large layers."""

_LARGEST, _LEAST = Precision.FP16.number_format.largest, Precision.FP16.number_format.least

_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
rules (float[1,4] share, float[1,4] wild, float[64,1024] rows, float[1,1024,8,8] image, float[1,16,8,8] plane,
       float[8,16] few, float[1,4,16,16] tall, float[4,64] wide)
    => (float[1,4] large, float[1,4] mask, float[1,4] tiny, float[64,64] product, float[1,64,8,8] convolution,
        float[1,8,8,8] scaled, float[8,8] shifted, float[1,4,1,1] mean, float[4,64] normal,
        float[1,4] times, float[1,4] minus, float[1,4] over) {
    [large] large = Mul (share, million)
    [mask] mask = Mul (share, lowest)
    [epsilon] above = Add (share, epsilon)
    [tiny] tiny = Log (above)
    [product] product = MatMul (rows, weight)
    [convolution] convolution = Conv (image, kernel)
    [conv] tower = Conv (plane, towers)
    [norm] scaled = BatchNormalization (tower, thousandth, zeros, zeros, ones)
    [sum] total = MatMul (few, addends)
    [bias] shifted = Add (total, back)
    [mean] mean = GlobalAveragePool (tall)
    [normal] normal = LayerNormalization (wide, gain, shift)
    [times] times = Mul (wild, nothing)
    [minus] minus = Sub (wild, wild)
    [over] over = Div (wild, wild)
}
"""
_TALL, _WIDE = 2048.0, 1000.0
"""What is averaged, 256 times: its sum is beyond half; and what is normalised, whose square is."""
_SHARES = np.array([[0, 0.25, 0.5, 1]], np.float32)
_WILD = np.array([[np.inf, -np.inf, np.nan, 1]], np.float32)


def _inputs() -> dict[str, Array]:
    """What the rules are tried on; float32. A 1 for each product, so that the weights are what is added up."""
    ones = {"rows": np.ones((ROWS, K), np.float32), "image": np.ones((1, K, 8, 8), np.float32)}
    inside = {
        "plane": np.ones((1, 16, 8, 8), np.float32),
        "few": np.ones((8, 16), np.float32),
        "tall": np.full((1, 4, 16, 16), _TALL, np.float32),
        "wide": np.tile(np.array([-_WIDE, _WIDE], np.float32), (4, 32)),
    }
    return {"share": _SHARES, "wild": _WILD, **ones, **inside}


def _constants() -> dict[str, Array]:
    # Column 0: a sum of half drops 16 products of ½ beside 32768, where half has steps of 32. Column 1: beside 4096,
    # with steps of 4, it drops a single 1 and not 16 together.
    weight = np.full((K, COLUMNS), 0.5, np.float32)
    weight[:, 1::2] = 1
    weight[0, 0::2], weight[0, 1::2] = 2.0**15, 2.0**12
    return {
        "million": np.float32(1e6),
        "lowest": np.float32(np.finfo(np.float32).min),
        "epsilon": np.float32(1e-12),
        "nothing": np.float32(0),
        "weight": weight,
        "kernel": np.ascontiguousarray(weight.T).reshape(COLUMNS, K, 1, 1),
        "towers": np.full((8, 16, 1, 1), 8192, np.float32),  # 16 of them: 131072, which is 128 behind the normalisation
        "thousandth": np.full(8, 2.0**-10, np.float32),
        "zeros": np.zeros(8, np.float32),
        "ones": np.ones(8, np.float32),
        "addends": np.full((16, 8), 4376, np.float32),  # 70016, and 60000 with the bias
        "back": np.full(8, -10016, np.float32),
        "gain": np.ones(64, np.float32),
        "shift": np.zeros(64, np.float32),
    }


def _large(found: Array) -> tuple[bool, str]:
    given = found.ravel()[-1]
    kinds = {
        float(_LARGEST): "1e6 is clamped to 65504",
        float("inf"): "1e6 becomes Inf",
        1e6: "1e6 is kept: the layer was not computed in FP16",
    }
    return bool(given == _LARGEST), kinds.get(float(given), f"1e6 gives {given:.6g}")


def _mask(found: Array) -> tuple[bool, str]:
    hidden, shown = found.ravel()[-1], found.ravel()[0]
    holds = bool(hidden == -_LARGEST and shown == 0)
    return holds, f"-3.4e38 times 1 gives {hidden:.6g}, and times 0 {shown:.6g}"


def _tiny(found: Array) -> tuple[bool, str]:
    given = float(found.ravel()[0])
    clamped, kept = float(np.log(_LEAST)), float(np.log(1e-12))
    if abs(given - clamped) < 0.1:
        return True, "1e-12 is clamped to 6e-08"
    if given == -np.inf:
        return False, "1e-12 becomes 0: its logarithm is -Inf"
    if abs(given - kept) < 0.1:
        return False, "1e-12 is kept: the layer was not computed in FP16"
    return False, f"the logarithm of 1e-12 gives {given:.6g}"


def _sums(found: Array) -> tuple[bool, str]:
    """Any of the three is emulated; a sweep searches with float32 sums."""
    columns = found.reshape(ROWS, COLUMNS) if found.ndim == 2 else found.reshape(COLUMNS, -1).T
    pairs = {(float(row[i]), float(row[i + 1])) for row in columns for i in range(0, COLUMNS, 2)}
    if len(pairs) != 1:
        return False, f"neither half nor float32: its outputs, which are alike, differ ({len(pairs)} kinds)"
    (pair,) = pairs
    kinds = {
        (33280.0, 5120.0): (True, "sums are kept in float32"),
        (32768.0, 5120.0): (
            False,
            "sums are kept in half, and several products are added before each rounding: --sums half",
        ),
        (32768.0, 4096.0): (False, "sums are kept in half, and rounded at every product: --sums half-single"),
    }
    return kinds.get(pair, (False, f"neither half nor float32: {pair[0]:g} and {pair[1]:g}"))


def _inside(wanted: float, between: str) -> Judge:
    """Whether nothing was rounded within a layer, by the size of its values; `between` is what leaves half's range."""

    def judge(found: Array) -> tuple[bool, str]:
        sizes = np.abs(found)
        if (np.abs(sizes - wanted) < wanted / 100).all():
            return True, f"nothing is rounded between: {wanted:g}, as it has to be"
        given = ", ".join(f"{value:g}" for value in np.unique(found)[:3])
        return False, f"{between} in half: it gives {given} in the place of {wanted:g}"

    return judge


def _undefined(what: str, count: int) -> Judge:
    def judge(found: Array) -> tuple[bool, str]:
        given = ", ".join(f"{value:g}" for value in found.ravel())
        holds = bool(np.isnan(found.ravel()[:count]).all())
        said = "NaN is kept" if holds else "an engine hides NaN"
        return holds, f"{said}: {what} of inf, -inf, nan and 1 gives {given}"

    return judge


RULES = (
    Assumption("constants beyond half", "large", _large),
    Assumption("a mask of -3.4e38", "mask", _mask),
    Assumption("a constant below half", "tiny", _tiny),
    Assumption("sums of a MatMul", "product", _sums),
    Assumption("sums of a convolution", "convolution", _sums),
    Assumption("a BatchNormalization behind a Conv", "scaled", _inside(128, "the Conv's result is stored")),
    Assumption("a bias behind a MatMul", "shifted", _inside(60000, "the product is stored")),
    Assumption("a mean", "mean", _inside(_TALL, "the sum is kept")),
    Assumption("a LayerNormalization", "normal", _inside(1, "squares are kept")),
    Assumption("0·x", "times", _undefined("0·x", 3)),
    Assumption("x - x", "minus", _undefined("x - x", 3)),
    Assumption("x / x", "over", _undefined("x / x", 3)),
)
"""In the order of the emulation's description: docs/how-it-works.md."""

FP16 = Family(
    title="FP16",
    precision=Precision.FP16,
    graph=_MODEL,
    constants=_constants(),
    inputs=_inputs(),
    opened_with={"wild": np.ones((1, 4), np.float32)},
    rules=RULES,
)
