"""A built engine's layers, out of what TensorRT's engine inspector says in JSON.

The text has changed with the versions: 8.x and 10.x say type and memory layout in one sentence (`Format/Datatype`:
"Channel major FP16 format where channel % 8 == 0", from 10.x also "Half"), 11.x in two fields; 8.6 and 10.x put the
control characters 1E and 1F, unescaped, between the nodes of a metadata; an engine built without
`ProfilingVerbosity.DETAILED` has names alone. With dynamic shapes 8.x and 10.x say "N/A due to dynamic shapes" for
every tensor, unless the inspector has an execution context whose input shapes are set.

What the text does not say stays None. Types are read word by word, never guessed from a kernel's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor, Shape
from precisionlab.errors import EngineError

DOUBLE = "fp64"
ARITHMETIC = (DOUBLE, "fp32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")
"""The types that arithmetic is done in, best first; others carry indices, shapes and masks."""

_DTYPES = {
    "double": DOUBLE,
    "fp64": "fp64",
    "float": "fp32",
    "fp32": "fp32",
    "float32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "fp4": "fp4",
    "e8m0": "e8m0",
    "int4": "int4",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "bool": "bool",
}
_WORD = re.compile(r"[a-z0-9]+")
_MARK = "[ONNX Layer: "
_SEPARATORS = re.compile("[\x1e\x1f]")
_BETWEEN_NODES = re.compile(r"\][\s,+]*\[ONNX Layer: ")
# A node in a subgraph: `inner | graph (then_branch) | outer (If)`, for each subgraph two parts more.
_SUBGRAPH = re.compile(r".+ \((?:then_branch|else_branch|body)\)", re.DOTALL)
_OPERATOR = re.compile(r"(?P<name>.+) \(\w+\)", re.DOTALL)


def layers_of(text: str) -> tuple[EngineLayer, ...]:
    """The layers of `EngineInspector.get_engine_information(LayerInformationFormat.JSON)`, in the engine's order.

    A layer's weights, where the inspector gives their type, stand behind its inputs as `weights of <layer>`: with
    dynamic shapes they may be all that is known. A layer of an engine that has names alone has an empty kind and no
    tensors. Raises EngineError where the text is not what an inspector says.
    """
    try:
        # Not strict: the separators of metadata are control characters, which JSON wants escaped.
        content = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"what TensorRT's engine inspector says is not JSON ({error}): {text[:80]!r}") from None
    raw = content.get("Layers") if isinstance(content, Mapping) else None
    if not isinstance(raw, list):
        raise EngineError(f"what TensorRT's engine inspector says has no list `Layers`: {text[:80]!r}")
    return tuple(_layer(item) for item in raw)


def nodes_of(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes that a layer's metadata names, each once, in its order: `[ONNX Layer: a][ONNX Layer: b]`.

    For a node in a subgraph (of If, Loop, Scan) it is the node of the main graph that holds it: names within
    subgraphs may be those of other nodes outside.
    """
    found: dict[str, None] = {}
    for part in _SEPARATORS.split(metadata):
        start = part.find(_MARK)
        end = part.rfind("]")  # the last one: a name may hold brackets itself
        if start >= 0 and end > start:
            for name in _BETWEEN_NODES.split(part[start + len(_MARK) : end]):
                found[_outermost(name)] = None
    return tuple(found)


def dtype_of(description: str) -> str | None:
    """`fp16` of "Half", "Row major linear FP16 format" or "Half(64,1:8,8)"; None where it says no type, or several."""
    found = {_DTYPES[word] for word in _WORD.findall(description.lower()) if word in _DTYPES}
    return found.pop() if len(found) == 1 else None


def shape_of(dimensions: Sequence[int]) -> Shape | None:
    """The dimensions; None where one is not known before it runs (-1)."""
    return None if any(dim < 0 for dim in dimensions) else tuple(dimensions)


def _outermost(name: str) -> str:
    parts = name.split(" | ")
    if len(parts) < 3 or len(parts) % 2 == 0 or not all(_SUBGRAPH.fullmatch(part) for part in parts[1::2]):
        return name
    holder = _OPERATOR.fullmatch(parts[-1])
    return parts[-1] if holder is None else holder["name"]


def _layer(item: Any) -> EngineLayer:
    if isinstance(item, str):
        return EngineLayer(item, "", (), (), ())
    if not isinstance(item, Mapping) or not isinstance(item.get("Name"), str):
        raise EngineError(f"what TensorRT's engine inspector says has a layer without a name: {str(item)[:80]!r}")
    name = item["Name"]
    return EngineLayer(
        name=name,
        kind=_text(item.get("LayerType")) or "",
        nodes=nodes_of(_text(item.get("Metadata")) or ""),
        inputs=(*_tensors(item.get("Inputs"), name), *_weights(item.get("Weights"), name)),
        outputs=_tensors(item.get("Outputs"), name),
        tactic=_text(item.get("TacticName")),
    )


def _tensors(raw: Any, layer: str) -> tuple[EngineTensor, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list) or not all(isinstance(t, Mapping) and isinstance(t.get("Name"), str) for t in raw):
        raise EngineError(f"what TensorRT's engine inspector says of the tensors of {layer!r} is not a list of tensors")
    return tuple(EngineTensor(tensor["Name"], _dtype(tensor), _shape(tensor.get("Dimensions"))) for tensor in raw)


def _dtype(tensor: Mapping[str, Any]) -> str | None:
    for key in ("Datatype", "DataType", "Format/Datatype", "Format/DataType", "Format"):
        description = _text(tensor.get(key))
        if description is not None:
            return dtype_of(description)
    return None


def _shape(raw: Any) -> Shape | None:
    if not isinstance(raw, list) or not all(isinstance(dim, int) for dim in raw):
        return None
    return shape_of(raw)


def _weights(raw: Any, layer: str) -> tuple[EngineTensor, ...]:
    if not isinstance(raw, Mapping) or raw.get("Count") == 0:
        return ()
    return (EngineTensor(f"weights of {layer}", dtype_of(_text(raw.get("Type")) or ""), None),)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
