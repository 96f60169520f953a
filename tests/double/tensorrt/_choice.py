"""What each layer of an engine runs in: flags, pins, output types and INT8 ranges weighed as a build does.

A layer here is what precisionlab takes for one kernel: the double knows no other fusions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from precisionlab.model import Layer, Model, load_model
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision
from precisionlab.rewrite.sums import adds_up

from ._interfaces import BuilderFlag, DataType, LayerType, _Log
from ._network import ILayer, INetworkDefinition
from ._settings import settings

PRECISIONS = {
    DataType.FLOAT: Precision.FP32,
    DataType.HALF: Precision.FP16,
    DataType.BF16: Precision.BF16,
    DataType.INT8: Precision.INT8,
}
_FIXED = (LayerType.CONSTANT, LayerType.SHAPE, LayerType.CAST, LayerType.QUANTIZE, LayerType.DEQUANTIZE)
_QUANTIZED = {DataType.INT8: BuilderFlag.INT8, DataType.FP8: BuilderFlag.FP8}


class RefusedError(Exception):
    """A build gives nothing, for this reason."""


@dataclass(frozen=True)
class Kernel:
    """A layer of the engine: the ONNX nodes that it runs, and in what."""

    name: str
    layer: str
    nodes: tuple[str, ...]
    precision: Precision
    metadata: str


@lru_cache(maxsize=4)
def model_of(content: bytes) -> Model:
    """The model whose file this is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return load_model(path)


def float_precision(flags: Collection[BuilderFlag]) -> Precision:
    """The fastest of the float precisions that kernels may have."""
    if BuilderFlag.FP16 in flags:
        return Precision.FP16
    return Precision.BF16 if BuilderFlag.BF16 in flags else Precision.FP32


def choose(
    network: INetworkDefinition,
    flags: Collection[BuilderFlag],
    scales: Mapping[str, float],
    log: _Log | None,
    held: Collection[str] = (),
) -> tuple[Kernel, ...]:
    """The engine's layers, in order; those `held` keep the kernels that they had.

    Raises RefusedError where the constraints cannot be kept.
    """
    model = model_of(network._parts.content)
    borders = {info.name for info in model.outputs} | {name for layer in model.layers for name in layer.outputs}
    marked = [t.name for t in network._parts.outputs if t.name not in {info.name for info in model.outputs}]
    wide = {t.name for t in network._parts.outputs if t.name in marked and t.dtype is DataType.FLOAT}
    if inner := [name for name in marked if name not in borders]:
        raise NotImplementedError(f"the double cannot break a fusion to show {inner[0]}")
    _check_pins(network._parts.layers)
    about = (flags, scales, bool(marked), wide, log, held)
    kernels = tuple(_kernel(network, model, layer, *about) for layer in model.layers)
    return _taken_back(model, kernels) if settings().get("takes_back") else kernels


def _taken_back(model: Model, kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """The kernels with each float32 product in half that stands alone between such in half."""
    runs_in = {kernel.layer: kernel.precision for kernel in kernels}
    gives = {name: layer.name for layer in model.layers for name in layer.outputs}
    takers = {
        layer.name: [other for other in model.layers if set(layer.outputs) & set(other.inputs)]
        for layer in model.layers
    }

    def is_alone(layer: Layer) -> bool:
        around = [gives[name] for name in layer.inputs if name in gives] + [t.name for t in takers[layer.name]]
        product = len(layer.nodes) == 1 and adds_up(model.node[layer.nodes[0]])
        return product and bool(takers[layer.name]) and {runs_in[name] for name in around} == {Precision.FP16}

    alone = {layer.name for layer in model.layers if is_alone(layer) and runs_in[layer.name] is Precision.FP32}
    return tuple(replace(k, precision=Precision.FP16) if k.layer in alone else k for k in kernels)


_OF_WEAK = frozenset(
    {
        *(BuilderFlag.FP16, BuilderFlag.BF16, BuilderFlag.INT8, BuilderFlag.FP8),
        *(BuilderFlag.OBEY_PRECISION_CONSTRAINTS, BuilderFlag.PREFER_PRECISION_CONSTRAINTS),
    }
)


def check_typed(network: INetworkDefinition, flags: Collection[BuilderFlag]) -> None:
    """Raises RefusedError where a strongly typed network is told of precisions otherwise than by its types."""
    if not network._is_typed:
        return
    if told := sorted(flag.name for flag in _OF_WEAK.intersection(flags)):
        raise RefusedError(
            f"Error Code 3: API Usage Error (flag k{told[0]} cannot be set for a network created with the "
            "kSTRONGLY_TYPED flag)"
        )
    for layer in network._parts.layers:
        if layer.precision_is_set or layer._output_types:
            raise RefusedError(
                f"Error Code 3: API Usage Error ({layer.name}: setting layer precisions and output types is not "
                "allowed in a strongly typed network)"
            )


def check_explicit(network: INetworkDefinition, flags: Collection[BuilderFlag]) -> bool:
    """Whether the network has Q/DQ layers of its own. Raises RefusedError where it has no flag for these."""
    layers = network._parts.layers
    types = [layer._outputs[0].dtype for layer in layers if layer.type is LayerType.QUANTIZE]
    types += [layer._inputs[0].dtype for layer in layers if layer.type is LayerType.DEQUANTIZE]
    for dtype in () if network._is_typed else types:
        if _QUANTIZED[dtype] not in flags:
            name = _QUANTIZED[dtype].name.capitalize()
            raise RefusedError(
                f"Error Code 4: Internal Error ({name} precision has been set for a layer or layer output, but "
                f"{name.lower()} is not configured in the builder)"
            )
    return bool(types)


def _check_pins(layers: Collection[ILayer]) -> None:
    for layer in layers:
        strange = layer.type in _FIXED or any(t.dtype not in PRECISIONS or t.is_shape_tensor for t in layer._outputs)
        if strange and (layer.precision_is_set or layer._output_types):
            raise RefusedError(f"Error Code 3: API Usage Error (Layer {layer.name}: its precision must not be set)")


def _kernel(
    network: INetworkDefinition,
    model: Model,
    layer: Layer,
    flags: Collection[BuilderFlag],
    scales: Mapping[str, float],
    marked: bool,
    wide: Collection[str],
    log: _Log,
    held: Collection[str],
) -> Kernel:
    manners = settings()
    parts = [part for part in network._parts.layers if part._node in layer.nodes]
    name = " + ".join(part.name for part in parts) or layer.name
    free = (layer.own or Precision.FP32) if network._is_typed else _free(layer, model, flags, scales, log)
    precision = free
    pin = _pin(parts)
    if pin is not None:
        if set(layer.nodes) & set(manners.get("refuse", ())):
            text = f"No implementation of layer {parts[0].name} obeys the requested constraints in strict mode."
            if BuilderFlag.OBEY_PRECISION_CONSTRAINTS in flags:
                raise RefusedError(text)
            log.log("WARNING", text)
        elif not set(layer.nodes) & set(manners.get("swallow", ())):
            precision = pin if _is_kept(parts[-1], pin) else free
    widens = manners.get("widens", False) and not wide.isdisjoint(layer.outputs)
    drifts = layer.name not in held and set(layer.nodes) & set(manners.get("drifts", ()))
    if widens or (marked and (drifts or set(layer.nodes) & set(manners.get("marking_changes", ())))):
        precision = Precision.FP32
    told = [part.metadata for part in parts if part.metadata] or [f"[ONNX Layer: {node}]" for node in layer.nodes]
    return Kernel(name, layer.name, layer.nodes, precision, "\x1e".join(dict.fromkeys(told)))


def _free(
    layer: Layer, model: Model, flags: Collection[BuilderFlag], scales: Mapping[str, float], log: _Log
) -> Precision:
    """What a layer runs in where it may have any precision: the fastest."""
    if layer.fixed is not None:
        return Precision.FP32
    if BuilderFlag.INT8 in flags and layer.quantizable:
        missing = [name for name in (*quantized_operands(model, layer), *layer.outputs[:1]) if name not in scales]
        if not missing:
            return Precision.INT8
        log.log(
            "WARNING",
            f"Missing scale and zero-point for tensor {missing[0]}, expect fall back to non-int8 implementation for "
            "any layer consuming or producing given tensor",
        )
    if BuilderFlag.INT8 in flags and settings().get("spreads") and _has_scales(layer, scales):
        return Precision.INT8
    return float_precision(flags)


def _has_scales(layer: Layer, scales: Mapping[str, float]) -> bool:
    """Whether both sides of a layer of one node have a scale, so that a real TensorRT may run it in INT8."""
    return not layer.quantizable and bool(layer.inputs) and all(n in scales for n in (*layer.inputs, *layer.outputs))


def _pin(parts: Collection[ILayer]) -> Precision | None:
    """The best precision that a kernel's parts are held to: all of it has to keep to that."""
    order = [Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8]
    asked = {PRECISIONS[part.precision] for part in parts if part.precision_is_set}
    return next((precision for precision in order if precision in asked), None)


def _is_kept(last: ILayer, pin: Precision) -> bool:
    """Whether what a pinned kernel gives is stored as it was computed; a real one may, the double never does.

    A network output has its tensor's own type.
    """
    if pin is Precision.INT8:
        return True
    return all(
        tensor.is_network_output
        or (PRECISIONS.get(last.get_output_type(index)) is pin and last.output_type_is_set(index))
        for index, tensor in enumerate(last._outputs)
    )
