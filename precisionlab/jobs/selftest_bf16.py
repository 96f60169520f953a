"""What the emulation takes for granted of TensorRT's BF16, in a small graph on which an engine tells.

Whether the operands of products are rounded, in which type these add up, and whether what a layer gives is rounded
before the next one takes it. bfloat16 has 8 bits: 1 + 1/512 is no such number, and beside 32768 steps are of 256.
"""

from __future__ import annotations

import numpy as np

from precisionlab.jobs.selftest_family import Array, Assumption, Family
from precisionlab.precision import Precision

_K, _ROWS, _COLUMNS = 1024, 64, 64
_SLIGHTLY = 2.0**-9
"""What 1 loses of 1 + 1/512, and 32 operands together: 1/16."""

_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
rules (float[64,64] pairs, float[1,64,8,8] tiles, float[64,1024] rows, float[1,1024,8,8] image, float[1,16,8,8] plane)
    => (float[64,64] difference, float[1,64,8,8] contrast, float[64,64] product, float[1,64,8,8] convolution,
        float[1,8,4,4] left) {
    [difference] difference = MatMul (pairs, signs)
    [contrast] contrast = Conv (tiles, filters)
    [product] product = MatMul (rows, weight)
    [convolution] convolution = Conv (image, kernel)
    [stored] stored = Conv (plane, slight)
    [largest] largest = MaxPool <kernel_shape = [2,2], strides = [2,2]> (stored)
    [left] left = Sub (largest, ones)
}
"""


def _pairs() -> tuple[Array, Array]:
    """Rows and columns whose products cancel where operands are rounded.

    Else 1/16 is left: of even rows for what is lost of a row, of odd columns for what is lost of a weight.
    """
    rows, columns = np.ones((_ROWS, _COLUMNS), np.float32), np.ones((_ROWS, _COLUMNS), np.float32)
    rows[0::2, :32] += _SLIGHTLY
    columns[32:] = -1
    columns[:32, 1::2] += _SLIGHTLY
    return rows, columns


def _operands(found: Array) -> tuple[bool, str]:
    """Of even rows and columns an activation is told, of odd ones a weight."""
    table = found if found.ndim == 2 else found.reshape(_COLUMNS, -1).T
    row, column = float(table[0, 0]), float(table[1, 1])
    lost, kept = 0.0, 32 * _SLIGHTLY
    if (row, column) == (lost, lost):
        return True, "activations and weights are rounded"
    if abs(row - kept) < kept / 8 and abs(column - kept) < kept / 8:
        return False, "neither activations nor weights are rounded: the layer was not computed in BF16"
    return False, f"of activations {row:g} is left, and of weights {column:g}, where 0 is rounded and {kept:g} is not"


def _sums(found: Array) -> tuple[bool, str]:
    given = {float(value) for value in np.unique(found)}
    kinds = {
        33792.0: (True, "sums are kept in float32"),
        33791.0: (True, "sums are kept in float32, and leave the layer unrounded, as an output of the model"),
        32768.0: (False, "sums are kept in BF16"),
    }
    if len(given) == 1 and (known := kinds.get(next(iter(given)))):
        return known
    return False, f"neither BF16 nor float32: {', '.join(f'{value:g}' for value in sorted(given)[:3])}"


def _stored(found: Array) -> tuple[bool, str]:
    given = {float(value) for value in np.unique(found)}
    if given == {0.0}:
        return True, "what a layer gives is rounded before the next takes it"
    if given == {_SLIGHTLY}:
        return False, "what a layer gives goes on in float32"
    return False, f"1 + 1/512 less 1 gives {', '.join(f'{value:g}' for value in sorted(given)[:3])}"


def _constants() -> dict[str, Array]:
    weight = np.ones((_K, _COLUMNS), np.float32)
    weight[0] = 2.0**15
    slight = np.zeros((8, 16, 1, 1), np.float32)
    slight[:, 0], slight[:, 1] = 1, _SLIGHTLY
    columns = _pairs()[1]
    return {
        "signs": columns,
        "filters": np.ascontiguousarray(columns.T).reshape(_COLUMNS, 64, 1, 1),
        "weight": weight,
        "kernel": np.ascontiguousarray(weight.T).reshape(_COLUMNS, _K, 1, 1),
        "slight": slight,
        "ones": np.float32(1),
    }


BF16 = Family(
    title="BF16",
    precision=Precision.BF16,
    graph=_MODEL,
    constants=_constants(),
    inputs={
        "pairs": _pairs()[0],
        "tiles": np.ascontiguousarray(_pairs()[0].T).reshape(1, 64, 8, 8),
        "rows": np.ones((_ROWS, _K), np.float32),
        "image": np.ones((1, _K, 8, 8), np.float32),
        "plane": np.ones((1, 16, 8, 8), np.float32),
    },
    rules=(
        Assumption("BF16: operands of a MatMul", "difference", _operands),
        Assumption("BF16: operands of a convolution", "contrast", _operands),
        Assumption("BF16: sums of a MatMul", "product", _sums),
        Assumption("BF16: sums of a convolution", "convolution", _sums),
        Assumption("BF16: what a layer gives", "left", _stored),
    ),
)
