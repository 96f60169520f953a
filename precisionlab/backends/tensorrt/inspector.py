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
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor, Shape
from precisionlab.backends.tensorrt.metadata import NO_NAMES, NodeNames, engine_nodes
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
_LINEAR = re.compile(r"row[ -]major linear|\(linear\)")


def layers_of(text: str, names: NodeNames = NO_NAMES) -> tuple[EngineLayer, ...]:
    """The layers of `EngineInspector.get_engine_information(LayerInformationFormat.JSON)`, in the engine's order.

    A layer's weights, where the inspector gives their type, stand behind its inputs as `weights of <layer>`: with
    dynamic shapes they may be all that is known. A layer of an engine that has names alone has an empty kind and no
    tensors. `names` are those of the file that it was built of. Raises EngineError where the text is not what an
    inspector says.
    """
    try:
        # Not strict: the separators of metadata are control characters, which JSON wants escaped.
        content = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"what TensorRT's engine inspector says is not JSON ({error}): {text[:80]!r}") from None
    raw = content.get("Layers") if isinstance(content, Mapping) else None
    if not isinstance(raw, list):
        raise EngineError(f"what TensorRT's engine inspector says has no list `Layers`: {text[:80]!r}")
    return tuple(_layer(item, names) for item in raw)


def dtype_of(description: str) -> str | None:
    """`fp16` of "Half", "Row major linear FP16 format" or "Half(64,1:8,8)"; None where it says no type, or several."""
    found = {_DTYPES[word] for word in _WORD.findall(description.lower()) if word in _DTYPES}
    return found.pop() if len(found) == 1 else None


def shape_of(dimensions: Sequence[int]) -> Shape | None:
    """The dimensions; None where one is not known before it runs (-1)."""
    return None if any(dim < 0 for dim in dimensions) else tuple(dimensions)


def _layer(item: Any, names: NodeNames) -> EngineLayer:
    if isinstance(item, str):
        return EngineLayer(item, "", (), (), ())
    if not isinstance(item, Mapping) or not isinstance(item.get("Name"), str):
        raise EngineError(f"what TensorRT's engine inspector says has a layer without a name: {str(item)[:80]!r}")
    name = item["Name"]
    return EngineLayer(
        name=name,
        kind=_text(item.get("LayerType")) or "",
        nodes=engine_nodes(_text(item.get("Metadata")) or "", names),
        inputs=(*_tensors(item.get("Inputs"), name), *_weights(item.get("Weights"), name)),
        outputs=_tensors(item.get("Outputs"), name),
        tactic=_text(item.get("TacticName")),
    )


def _tensors(raw: Any, layer: str) -> tuple[EngineTensor, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list) or not all(isinstance(t, Mapping) and isinstance(t.get("Name"), str) for t in raw):
        raise EngineError(f"what TensorRT's engine inspector says of the tensors of {layer!r} is not a list of tensors")
    return tuple(
        EngineTensor(tensor["Name"], _dtype(tensor), _shape(tensor.get("Dimensions")), _is_linear(tensor))
        for tensor in raw
    )


def _dtype(tensor: Mapping[str, Any]) -> str | None:
    for key in ("Datatype", "DataType", "Format/Datatype", "Format/DataType", "Format"):
        description = _text(tensor.get(key))
        if description is not None:
            return dtype_of(description)
    return None


def _is_linear(tensor: Mapping[str, Any]) -> bool | None:
    """Whether it is stored row by row, with nothing between; None where the text does not say."""
    text = next(
        filter(None, (_text(tensor.get(key)) for key in ("Format/Datatype", "Format/DataType", "Format"))), None
    )
    if text is None or (not dtype_of(text) and "linear" not in text.lower()):
        return None
    if _LINEAR.search(text.lower()) is None:
        return False
    dimensions, strides = tensor.get("Dimensions"), tensor.get("Strides")
    if not isinstance(strides, list) or not isinstance(dimensions, list):
        return True
    packed = [math.prod(dimensions[axis + 1 :]) for axis in range(len(dimensions))]
    return all(dim == 1 or have == want for dim, have, want in zip(dimensions, strides, packed, strict=False))


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
