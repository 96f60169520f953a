"""A built engine's layers, out of the builder's own log: what is to be had where an engine cannot be loaded.

Built with `ProfilingVerbosity.DETAILED`, TensorRT-RTX logs one VERBOSE message with a line a kernel:

    Layers:
    Name: …, LayerType: gemm, Inputs: [ { Name: …, Dimensions: [4,8], Strides: [8,1], StrideOrder: [1,0],
    Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ … ], TacticName: …,
    StreamId: 0, Metadata: [ONNX Layer: a][ONNX Layer: b]

(here broken into several), an empty line, and then the engine's inputs and outputs. Layers that are none of the
compiler's own (shapes that are copied to the GPU, plugins) have no constants, other fields behind their outputs
(`ParameterType: ShapeH2D, shapeValues0: [-4], TacticValue: 0x…`), and a tensor's location before its dimensions.
Nothing in it is quoted, and names may hold any of its commas, colons, brackets and words. So a line is read from left
to right, and a name ends only where all that has to follow it does follow.
"""

from __future__ import annotations

import re

from precisionlab.backends.tensorrt.inspector import dtype_of, shape_of
from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor
from precisionlab.backends.tensorrt.metadata import NO_NAMES, NodeNames, engine_nodes
from precisionlab.errors import EngineError

START = "Layers:"
"""What the message begins with."""

# Nothing below may try one text in more ways than its length: names are the model's, and may be made to hold it up.
_DIMENSIONS = r"\[ ?(?:-?\d{1,18}(?:, ?-?\d{1,18}){0,63})? ?\]"
_LINE = re.compile(r"\n(?=Name: )")
_END = re.compile(r"\n[^\S\n]*\n(?=I/O Tensors:|Engine Metadata:)")
_HEAD = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,:\[\]{}]*), Inputs: \[(?= *\]| \{ Name: )", re.DOTALL)
_TENSOR = re.compile(
    rf",? *\{{ Name: (?P<name>.*?)(?:, Location: \w+)?, Dimensions: (?P<dimensions>{_DIMENSIONS})"
    rf"(?:, \w+: {_DIMENSIONS}){{0,8}}"
    r"(?:, Location: \w+)?, Datatype: (?P<dtype>\w+)(?:, Format: [^{}]{0,400})? \}",
    re.DOTALL,
)
_CONSTANTS = re.compile(r" *\], Constants: \[")
_OUTPUTS = re.compile(r" *\], Outputs: \[")
_TAIL = re.compile(r" *\](?P<fields>(?:, .*?)?), Metadata: (?P<metadata>.*)", re.DOTALL)
_TACTIC = re.compile(r", TacticName: (?P<tactic>.*?)(?=, \w+: |$)", re.DOTALL)


def layers_of(message: str, names: NodeNames = NO_NAMES) -> tuple[EngineLayer, ...]:
    """The layers of the builder's message that starts with `Layers:`, in the engine's order.

    Inputs and outputs are what kernels take and give; their constants stand by themselves (a half GEMM has its factors
    in float). `names` are those of the file that it was built of. Raises EngineError where the message is not in the
    form above.
    """
    if not message.startswith(START):
        raise EngineError(f"TensorRT's log of an engine's layers starts with {START!r}, this with {message[:40]!r}")
    body = _END.split(message[len(START) :], maxsplit=1)[0].strip("\n")
    return tuple(_layer(line, names) for line in _LINE.split(body)) if body.strip() else ()


def _layer(line: str, names: NodeNames) -> EngineLayer:
    head = _HEAD.match(line)
    if head is None:
        raise _unreadable(line, 0)
    inputs, end = _tensors(line, head.end())
    constants, held = _CONSTANTS.match(line, end), None
    if constants is not None:
        held, end = _tensors(line, constants.end())
    between = _OUTPUTS.match(line, end)
    if between is None:
        raise _unreadable(line, end)
    outputs, end = _tensors(line, between.end())
    tail = _TAIL.fullmatch(line, end) if ", Metadata: " in line[end:] else None
    if tail is None:
        raise _unreadable(line, end)
    tactic = _TACTIC.search(tail["fields"])
    name = None if tactic is None else tactic["tactic"].strip() or None
    nodes = engine_nodes(tail["metadata"], names)
    return EngineLayer(head["name"], head["kind"], nodes, inputs, outputs, name, constants=held)


def _tensors(line: str, start: int) -> tuple[tuple[EngineTensor, ...], int]:
    """The tensors that stand from `start` on, and where they end."""
    found = []
    while (tensor := _TENSOR.match(line, start)) is not None:
        dimensions = [int(dim) for dim in tensor["dimensions"].strip("[] ").split(",") if dim.strip()]
        found.append(EngineTensor(tensor["name"], dtype_of(tensor["dtype"]), shape_of(dimensions)))
        start = tensor.end()
    return tuple(found), start


def _unreadable(line: str, position: int) -> EngineError:
    return EngineError(
        f"TensorRT's log of an engine's layers cannot be read from {line[position : position + 60]!r} on, "
        f"in the line that starts with {line[:60]!r}"
    )
