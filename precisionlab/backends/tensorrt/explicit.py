"""Networks that are quantised by layers of their own: what these need of a build that is weakly typed.

By the network itself, not by the model: it has them out of bodies, functions and nodes that lead nowhere too.
"""

from __future__ import annotations

from collections.abc import Sequence

from precisionlab.backends.tensorrt.network import NetworkLayer

_DEFAULT = "INT8"
_FLAGS = (_DEFAULT, "FP8", "INT4", "FP4")
"""Builder flags, each called as the type of quantised tensors that kernels may have with it."""


def quantization_flags(layers: Sequence[NetworkLayer]) -> tuple[str, ...]:
    """The builder flags for the network's own Quantize and Dequantize layers; none where it has no such layers."""
    quantized = [tensor.dtype.upper() for layer in layers if layer.kind == "QUANTIZE" for tensor in layer.outputs[:1]]
    quantized += [tensor.dtype.upper() for layer in layers if layer.kind == "DEQUANTIZE" for tensor in layer.inputs[:1]]
    # Before a build, 8.6 calls what a Quantize layer gives a float: it has int8 there, unless it is told FP8.
    found = {dtype if dtype in _FLAGS else _DEFAULT for dtype in quantized}
    return tuple(flag for flag in _FLAGS if flag in found)
