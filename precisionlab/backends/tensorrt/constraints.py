"""Pins as TensorRT's constraints on the layers of a network (8.6 to 10.x), set in its own process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from precisionlab.backends.tensorrt.jobs import PinOutcome
from precisionlab.backends.tensorrt.matching import PinMatch
from precisionlab.backends.tensorrt.network import NetworkLayer
from precisionlab.precision import Precision

_LEFT_ALONE = {
    "CONSTANT": "a constant",
    "SHAPE": "a tensor's shape",
    "CAST": "converts between types",
    "QUANTIZE": "converts between types",
    "DEQUANTIZE": "converts between types",
    "DYNAMIC_QUANTIZE": "converts between types",
    **dict.fromkeys(("CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT"), "only steers a condition"),
    **dict.fromkeys(("TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT"), "only steers a loop"),
    "ASSERTION": "only checks a shape",
}
"""Kinds of layers that TensorRT does not let be constrained, or that have no arithmetic to constrain."""

_PINNABLE = frozenset(precision.value for precision in Precision.formats())
_INT8_KINDS = frozenset({"CONVOLUTION", "DECONVOLUTION", "FULLY_CONNECTED", "MATRIX_MULTIPLY"})


def skip_reason(layer: NetworkLayer) -> str | None:
    """Why a layer must not be given a precision; None where it may.

    TensorRT refuses the network, or fails while it builds, where such a layer is constrained.
    """
    if layer.kind in _LEFT_ALONE:
        return _LEFT_ALONE[layer.kind]
    if not layer.outputs:
        return "gives no tensor"
    for tensor in layer.outputs:
        if not tensor.is_execution:
            return f"its output {tensor.name!r} is computed on the host (a shape)"
        if tensor.dtype not in _PINNABLE:
            return f"its output {tensor.name!r} is {tensor.dtype}"
    return None


def apply_pins(trt: Any, network: Any, matches: Sequence[PinMatch]) -> tuple[PinOutcome, ...]:
    """Constrain the layers of each pin, and tell what became of it.

    Both the precision that a layer computes in and the types that it stores are set: with the first alone, a float32
    result may be stored in half precision. An output of the network keeps the type that the ONNX model declares, and
    is constrained only where it is the same. An int8 pin is for the layers that have int8 arithmetic; what those give
    is left to TensorRT, as it depends on what takes it.
    """
    return tuple(_apply(trt, network, match) for match in matches)


def clear_pins(network: Any) -> None:
    """Take all constraints from a network's layers."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        layer.reset_precision()
        for output in range(layer.num_outputs):
            layer.reset_output_type(output)


def _apply(trt: Any, network: Any, match: PinMatch) -> PinOutcome:
    precision = match.pin.precision
    dtype = getattr(trt.DataType, precision.number_format.tensorrt)
    done, skipped = [], {}
    for described in match.layers:
        reason = skip_reason(described)
        if reason is None and precision.is_quantized and described.kind not in _INT8_KINDS:
            reason = "has no int8 arithmetic of its own"
        if reason is not None:
            skipped[described.name] = reason
            continue
        layer = network.get_layer(described.index)
        layer.precision = dtype
        if not precision.is_quantized:
            for index in range(layer.num_outputs):
                tensor = layer.get_output(index)
                if not tensor.is_network_output or tensor.dtype == dtype:
                    layer.set_output_type(index, dtype)
        done.append(described.name)
    return PinOutcome(match.pin.layer, tuple(done), skipped, match.unmatched)
