"""Fake quantization in a float32 graph: QuantizeLinear and DequantizeLinear, or the arithmetic that they stand for.

ONNX Runtime has both operators for integers, and fast ones. For E4M3 it has them from opset 19 on, at 10 ns for a
number (1.32, a core of its own); the arithmetic takes 6, gives the same bits, and works at every opset.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.grid import splitting, spread_along
from precisionlab.precision import Format, Precision
from precisionlab.rewrite.builder import MICROSOFT, GraphBuilder


def fake_quantized(
    builder: GraphBuilder, value: ir.Value, scales: NDArray[np.float32], axis: int | None, precision: Precision
) -> ir.Value:
    """The value, float32, rounded to the precision's values in steps of its scales, and saturated; NaN stays NaN.

    `scales` are those of the channels along `axis`, float32 (channels,), or of all, float32 (). To integers, which
    have no NaN, ONNX Runtime makes some number of one.
    """
    number_format = precision.number_format
    if number_format.is_uniform:
        return _by_integers(builder, value, scales, axis, precision)
    rank = 0 if value.shape is None else len(value.shape)
    spread = builder.constant(ir.tensor(spread_along(scales, axis, rank)), f"{value.name}:scale")
    steps = builder.op("Div", [value, spread], f"{value.name}:steps")
    return builder.op("Mul", [_on_grid(builder, steps, number_format), spread], f"{value.name}:from_{precision}")


def _by_integers(
    builder: GraphBuilder, value: ir.Value, scales: NDArray[np.float32], axis: int | None, precision: Precision
) -> ir.Value:
    # The contrib operators take per-channel scales at every opset, ONNX's own only from 13.
    attributes = {} if axis is None else {"axis": axis}
    dtype = precision.number_format.element
    scale = builder.constant(ir.tensor(scales), f"{value.name}:scale")
    zero = builder.constant(ir.tensor(np.zeros(scales.shape, dtype.numpy()), dtype=dtype), f"{value.name}:zero")
    name = f"{value.name}:{precision}"
    low = builder.op("QuantizeLinear", [value, scale, zero], name, domain=MICROSOFT, **attributes)
    name = f"{value.name}:from_{precision}"
    return builder.op("DequantizeLinear", [low, scale, zero], name, domain=MICROSOFT, **attributes)


def _on_grid(builder: GraphBuilder, steps: ir.Value, number_format: Format) -> ir.Value:
    """Numbers in steps, rounded to nearest, ties to even, by float32 additions alone: see `splitting`."""
    name = str(steps.name)

    def constant(number: float, label: str) -> ir.Value:
        return builder.constant(ir.tensor(np.asarray(number, np.float32)), f"{name}:{label}")

    factor, addend = splitting(number_format)
    below = builder.op("Min", [steps, constant(number_format.largest, "largest")], f"{name}:below")
    held = builder.op("Max", [below, constant(number_format.lowest, "lowest")], f"{name}:held")
    large = builder.op("Mul", [held, constant(factor, "split")], f"{name}:large")
    rest = builder.op("Sub", [held, large], f"{name}:rest")
    normal = builder.op("Add", [large, rest], f"{name}:normal")
    shift = constant(addend, "shift")
    shifted = builder.op("Add", [held, shift], f"{name}:shifted")
    subnormal = builder.op("Sub", [shifted, shift], f"{name}:subnormal")
    magnitude = builder.op("Abs", [held], f"{name}:magnitude")
    is_small = builder.op("Less", [magnitude, constant(number_format.normal, "smallest")], f"{name}:is_small")
    return builder.op("Where", [is_small, subnormal, normal], f"{name}:on_grid")
