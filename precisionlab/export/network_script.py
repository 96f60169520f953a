"""Holds layers of a TensorRT network to the precisions of a plan (TensorRT 8.6 to 10.16).

A layer of the network belongs to a pinned layer of the model where it gives one of its tensors, where its metadata
names one of its nodes, or where it stands without metadata before these alone. Both the precision that a layer computes
in and the types that it stores are set: with the first alone, a float32 result may be stored in half precision.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

PINS = ()
"""(layer, its ONNX nodes, the float tensors that these give, the name of a TensorRT DataType) for each pin."""

BARRED: frozenset[str] = frozenset([])
"""The names of the model's nodes with " | " in them: others end there, as doc strings and bodies are told behind it."""

FUNCTIONS: frozenset[str] = frozenset([])
"""The model-local functions that the model still calls."""

LEFT_ALONE = frozenset(["CONSTANT", "SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE", "DYNAMIC_QUANTIZE", "ASSERTION"])
STEERING = frozenset(
    ["CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT"]
)
INT8_KINDS = frozenset(["CONVOLUTION", "DECONVOLUTION", "FULLY_CONNECTED", "MATRIX_MULTIPLY"])
PINNABLE = frozenset(["FLOAT", "HALF", "BF16", "INT8"])
FLOATS = frozenset(["FLOAT", "HALF", "BF16"])
QUANTIZED = frozenset(["INT8", "FP8", "INT4", "FP4"])
BODIES = frozenset(["then_branch", "else_branch", "body"])


class Tensor(NamedTuple):
    """What one layer takes or gives."""

    name: str
    dtype: str
    is_execution: bool
    is_output: bool


class Layer(NamedTuple):
    """One layer of the network, and the ONNX nodes that its metadata names; the last stands in the main graph."""

    number: int
    name: str
    kind: str
    nodes: Sequence[str]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]


def postprocess(network: Any) -> None:
    """What Polygraphy calls with the parsed network."""
    hold(importlib.import_module("tensorrt"), network, PINS)


def configure(builder: Any, network: Any, config: Any) -> None:
    """What Polygraphy calls with its configuration: TensorRT is kept from folding 0·x, x − x and x / x (10.6 on).

    And the network's own Quantize and Dequantize layers get the flag of their type, without which no engine is built
    unless the network is strongly typed, where flags are refused.
    """
    trt = importlib.import_module("tensorrt")
    kinds = trt.NetworkDefinitionCreationFlag
    is_typed = hasattr(kinds, "STRONGLY_TYPED") and network.get_flag(kinds.STRONGLY_TYPED)
    for flag in quantization_flags([describe(network.get_layer(i), i) for i in range(network.num_layers)]):
        if hasattr(trt.BuilderFlag, flag) and not is_typed:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if hasattr(trt.BuilderFlag, "STRICT_NANS"):
        config.set_flag(trt.BuilderFlag.STRICT_NANS)
    else:
        print("precision plan: this TensorRT may hide a NaN: it has no STRICT_NANS, 10.6 and later do", file=sys.stderr)


def hold(trt: Any, network: Any, pins: Sequence[Any]) -> list[str]:
    """Constrain the layers of all pins; tell on standard error what could not be held, and return that too."""
    if not hasattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"):
        raise RuntimeError(
            "this TensorRT takes the precisions from the ONNX model alone (flags and pins went with 11.0); "
            "export the plan with --format typed-onnx"
        )
    matches = match(pins, [describe(network.get_layer(i), i) for i in range(network.num_layers)])
    if pins and not any(matches):
        raise RuntimeError("none of the pinned layers is in this network; the plan belongs to another model")
    told = []
    for place, layers in enumerate(matches):
        name, _, _, dtype = pins[place]
        if not layers:
            told.append(f"no layer of the network belongs to {name!r}: folded into a constant, or left out")
        for layer in layers:
            reason = skip_reason(layer)
            if reason is None and dtype == "INT8" and layer.kind not in INT8_KINDS:
                reason = "has no int8 arithmetic of its own"
            if reason is None:
                constrain(network.get_layer(layer.number), getattr(trt.DataType, dtype), stores=dtype != "INT8")
            else:
                told.append(f"layer {layer.name!r} of {name!r} is left alone: {reason}")
    for line in told:
        print("precision plan:", line, file=sys.stderr)
    return told


def quantization_flags(layers: Sequence[Layer]) -> list[str]:
    """The builder flags for the network's own Quantize and Dequantize layers."""
    quantized = [tensor.dtype for layer in layers if layer.kind == "QUANTIZE" for tensor in layer.outputs[:1]]
    quantized += [tensor.dtype for layer in layers if layer.kind == "DEQUANTIZE" for tensor in layer.inputs[:1]]
    # Before a build, 8.6 calls what a Quantize layer gives a float: it has int8 there, unless it is told FP8.
    return sorted({dtype if dtype in QUANTIZED else "INT8" for dtype in quantized})


def constrain(layer: Any, dtype: Any, stores: bool) -> None:
    """An output of the network keeps the type that the ONNX model declares."""
    layer.precision = dtype
    for i in range(layer.num_outputs if stores else 0):
        tensor = layer.get_output(i)
        if not tensor.is_network_output or tensor.dtype == dtype:
            layer.set_output_type(i, dtype)


def skip_reason(layer: Layer) -> str | None:
    """Why a layer must not be given a precision; None where it may."""
    if layer.kind in LEFT_ALONE or layer.kind in STEERING:
        return f"it is of kind {layer.kind}"
    if not layer.outputs:
        return "it gives no tensor"
    for tensor in layer.outputs:
        if not tensor.is_execution:
            return f"its output {tensor.name!r} is computed on the host (a shape)"
        if tensor.dtype not in PINNABLE:
            return f"its output {tensor.name!r} is {tensor.dtype}"
    return None


def describe(layer: Any, number: int) -> Layer:
    """What is known of a layer before the build."""
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    return Layer(
        number,
        layer.name,
        layer.type.name,
        nodes_of(layer.metadata),
        tuple(describe_tensor(tensor) for tensor in inputs if tensor is not None),
        tuple(describe_tensor(tensor) for tensor in outputs if tensor is not None),
    )


def describe_tensor(tensor: Any) -> Tensor:
    """What is known of a tensor."""
    return Tensor(tensor.name, tensor.dtype.name, tensor.is_execution_tensor, tensor.is_network_output)


def nodes_of(metadata: str) -> Sequence[str]:
    """The ONNX nodes that a layer is part of, innermost first; the last stands in the main graph.

    8.6 says `[ONNX Layer: NAME | doc string | …]`, 10.1 `[ONNX Layer: NAME | Local Function: f]`, later parsers
    `[ONNX Layer: inner | tb (then_branch) | iff (If)]` and `[ONNX Layer: inner | call (f)]`.
    """
    text = metadata.strip()
    if not text.startswith("[ONNX Layer: ") or not text.endswith("]"):
        return ()
    parts = text[len("[ONNX Layer: ") : -1].split(" | ")
    starts = (end for end in range(len(parts), 1, -1) if " | ".join(parts[:end]) in BARRED)
    end = next(starts, 1)
    name, around = " | ".join(parts[:end]), parts[end:]
    found = [re.fullmatch(r"(.*) \(([^()]*)\)", part, re.DOTALL) for part in around]
    kinds = [(each[1], each[2]) for each in found if each is not None]
    # What a doc string says of brackets is no body and no function's call.
    if kinds and len(kinds) == len(around) and any(kind in BODIES or kind in FUNCTIONS for _, kind in kinds):
        return (name, *(each for each, kind in kinds if kind not in BODIES))
    if around and around[-1].startswith("Local Function: "):
        return (name, around[-1])
    return (name,)


def match(pins: Sequence[Any], layers: Sequence[Layer]) -> list[list[Layer]]:
    """For each pin, in order, the layers that belong to it; no layer belongs to two pins.

    Names are compared whole, never by substring or position. The better evidence goes first, for all pins.
    """
    giver: dict[str, Layer] = {}
    takers: dict[str, set[int]] = defaultdict(set)
    of_node: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.kind != "CONSTANT":  # whose tensors may be called as others of the model
            giver.update((tensor.name, layer) for tensor in layer.outputs)
        for tensor in layer.inputs:
            takers[tensor.name].add(layer.number)
        if layer.nodes:
            of_node[layer.nodes[-1]].append(layer)
    pinned = {node for _, nodes, _, _ in pins for node in nodes}
    taken: set[int] = set()
    found: list[dict[int, Layer]] = [{} for _ in pins]

    def claim(place: int, wanted: Iterable[Layer]) -> None:
        for layer in wanted:
            if layer.number not in taken:
                taken.add(layer.number)
                found[place][layer.number] = layer

    def only_for(own: dict[int, Layer], names: set[str]) -> Iterable[Layer]:
        """The helpers without a node of their own that these layers alone take from."""
        behind: dict[int, Layer] = {}
        waiting = list(own.values())
        while waiting:
            for tensor in waiting.pop().inputs:
                layer = giver.get(tensor.name)
                if layer is None or layer.number in own or layer.number in behind or not is_internal(layer):
                    continue
                if not layer.nodes or layer.nodes[-1] in names:
                    behind[layer.number] = layer
                    waiting.append(layer)
        while True:
            known = own.keys() | behind.keys()
            shared = [i for i, layer in behind.items() if any(takers[t.name] - known for t in layer.outputs)]
            if not shared:
                return behind.values()
            for i in shared:
                del behind[i]

    for place, (_, nodes, tensors, _) in enumerate(pins):
        givers = [giver[tensor] for tensor in tensors if tensor in giver]
        claim(place, [layer for layer in givers if len(layer.nodes) < 2 or layer.nodes[-1] in nodes])
        called = {layer.nodes[-1] for layer in found[place].values() if layer.nodes}
        claim(place, only_for(found[place], {*nodes, *called}))
    for place, (_, nodes, _, _) in enumerate(pins):
        claim(place, [layer for node in nodes for layer in of_node.get(node, ())])
        claim(place, only_for(found[place], set(nodes)))
    known = {*pinned, *of_node}
    for place, (_, nodes, _, _) in enumerate(pins):
        if not found[place]:
            for layer in layers:
                if not layer.nodes and layer.kind != "CONSTANT":
                    suffixed = None if layer.name in known else re.fullmatch(r"(.+)_[0-9]+", layer.name, re.DOTALL)
                    if layer.name in nodes or (suffixed and suffixed[1] in nodes):
                        claim(place, [layer])
    return [[layers[i] for i in sorted(each)] for each in found]


def is_internal(layer: Layer) -> bool:
    """Whether all that a layer gives are activations that the ONNX model does not know."""
    return bool(layer.outputs) and all(
        tensor.dtype in FLOATS
        and tensor.is_execution
        and not tensor.is_output
        and (tensor.name == layer.name + "_output" or tensor.name.startswith("(Unnamed Layer* "))
        for tensor in layer.outputs
    )
