"""Error sums of tensors that are not float32 on both sides: doubles, and half as an engine gives it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_float(array: NDArray[Any]) -> bool:
    """Whether the array holds floats: NumPy's own, or bfloat16, which NumPy sees as bytes with a name."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def error_sums(
    reference: NDArray[Any],
    output: NDArray[Any],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    limits: NDArray[np.float32],
) -> None:
    """Add the sums and counts over two float tensors of one shape to `sums` and `counts`, all in float64.

    `sums`, `counts` and `limits` are those of `precisionlab.compare.kernel.error_sums`.
    """
    r, o = (np.asarray(array).astype(np.float64).reshape(-1) for array in (reference, output))
    is_finite = np.isfinite(r)
    nan, inf = np.isnan(o), np.isinf(o)
    a, b = r[is_finite], o[is_finite]
    with np.errstate(over="ignore", invalid="ignore"):
        e = b - a
        sums[:4] += [np.sum(a * a), np.sum(e * e), np.sum(a * b), np.sum(b * b)]
    sums[4:] = np.maximum(sums[4:], [np.abs(x).max(initial=0.0) for x in (e, a)])
    same = (r == o) | (np.isnan(r) & nan)
    found = (
        is_finite, np.abs(a) > limits[0], (b == 0) & (a != 0), ~is_finite, nan, inf,
        ~np.isfinite(b), ~is_finite & ~same, nan & is_finite, np.isnan(r),
        np.isinf(b) & (np.abs(a) < limits[1]), np.isinf(r) & ~same,
    )  # fmt: skip
    counts += np.array([np.count_nonzero(mask) for mask in found])


def nonfinite(tensor: NDArray[Any]) -> tuple[int, int]:
    """How many values of a float tensor are NaN, and how many are infinite."""
    return int(np.count_nonzero(np.isnan(tensor))), int(np.count_nonzero(np.isinf(tensor)))
