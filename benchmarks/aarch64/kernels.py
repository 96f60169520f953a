"""The compiled loops on the same values: run on each machine, prints a hash for each, which are to be the same.

Values are of all magnitudes, some equal, some beyond half, some NaN or infinite; sizes are no multiples of anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.sums import kernel as sums
from precisionlab.calibration import kernel as calibration
from precisionlab.calibration.table import weight_scales
from precisionlab.compare import kernel as compare
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import rounded_array
from precisionlab.rewrite.typed.constants import quantised

SIZES = (1, 7, 100, 4096, 100_003)
LIMITS = np.array([65504 / 2, 65504], np.float32)


def found() -> Iterator[tuple[str, str]]:
    """What was computed, and the hash of its bytes."""
    yield "the values themselves", _hash(*(_pair(size)[1] for size in SIZES))
    yield "error sums", _hash(*(_errors(*_pair(size)) for size in SIZES))
    yield "error sums of wide ranges", _hash(*(_errors(*_wide(size)) for size in SIZES))
    yield "error sums with NaN and Inf", _hash(*(_errors(*_odd(size)) for size in SIZES))
    counts = _counts()
    yield "histogram", _hash(counts)
    yield "entropy's divergences", _hash(calibration.divergences(counts.astype(np.float64)))
    kept = np.arange(128, counts.size, 7).astype(np.float64)
    errors = calibration.squared_errors(counts.astype(np.float64), 1 / 256, kept, 127.0, 128.0, 2.0**-7)
    yield "mse's squared errors", _hash(errors)
    for name, block in (("tensor cores", 16), ("single products", 1), ("blocks of 4", 4)):
        yield f"sums in half, {name}", _hash(_added_up(sums.add_up, block))
    yield "running sums in float32", _hash(_added_up(sums.largest_on_the_way, 16), _added_up(sums.in_the_end, 16))
    first, second = _wide(100_003)
    for precision in (Precision.FP16, Precision.BF16):
        yield f"constants in {precision}", _hash(rounded_array(first, precision), rounded_array(second, precision))
    weight = _pair(96 * 131)[0].reshape(96, 131)
    scales = weight_scales(weight, 0, Precision.INT8.number_format)
    yield "weights in int8", _hash(scales, quantised(weight, scales, 0, Precision.INT8))


def _pair(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A reference, and an output some thousandths off."""
    random = np.random.default_rng(size)
    true = (random.standard_normal(size) * 10).astype(np.float32)
    return true, (true * (1 + random.standard_normal(size) * 1e-3)).astype(np.float32)


def _wide(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Magnitudes from 1e-12 to 1e12: there neither a difference nor its square is exact in float64."""
    random = np.random.default_rng(size)
    scale = 10 ** random.uniform(-12, 12, size)
    true = (random.standard_normal(size) * scale).astype(np.float32)
    return true, (true + random.standard_normal(size) * 10 ** random.uniform(-12, 12, size)).astype(np.float32)


def _odd(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    true, low = _wide(size)
    random = np.random.default_rng(size)
    for array in (true, low):
        for value in (np.nan, np.inf, -np.inf, 0.0, -0.0):
            array[random.integers(0, size, max(1, size // 5000))] = value
    return true, low


def _errors(true: NDArray[np.float32], low: NDArray[np.float32]) -> bytes:
    totals, counts = np.zeros(6), np.zeros(12, np.int64)
    compare.error_sums(true, low, totals, counts, LIMITS)
    return totals.tobytes() + counts.tobytes()


def _counts() -> NDArray[np.int64]:
    values = (np.random.default_rng(0).standard_normal(200_003) * 3).astype(np.float32)
    bins = np.zeros(4096, np.int64)
    calibration.fill(values, np.float32(256), np.float32(16).view(np.int32), bins)
    return bins


def _added_up(loop: sums.Loop, block: int) -> NDArray[np.float32]:
    """Two groups of five rows, 203 products for each of 700 places in seven stretches."""
    random = np.random.default_rng(block)
    w = np.zeros((2, 5, -(-203 // block) * block), np.float32)
    w[:, :, :203] = random.standard_normal((2, 5, 203)).astype(np.float16)
    x = (random.standard_normal((2, 1500)) * 30).astype(np.float16).astype(np.float32)
    out = np.empty((2, 5, 700), np.float32)
    offsets, starts = np.arange(203, dtype=np.int64) * 3, np.arange(7, dtype=np.int64) * 100
    loop(w, x, offsets, starts, 100, 1, block, out)
    return out


def _hash(*parts: Any) -> str:
    content = b"".join(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes() for part in parts)
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    for title, digest in found():
        print(f"{digest} {title}", flush=True)
