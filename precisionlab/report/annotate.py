"""A copy of the model whose nodes carry what was found of them, for Netron and other viewers: `annotated.onnx`.

Each node has the facts of its layer as metadata: `precisionlab.layer`, and for each precision swept

| key | meaning |
|---|---|
| precisionlab.fp16.precision | what the layer runs in under the plan found |
| precisionlab.fp16.introduced_sqnr_db | what it loses by itself, in dB (also `nan`, `inf`, `-inf`), if measured |
| precisionlab.fp16.inherited_sqnr_db | what its outputs have lost so far, without pins |
| precisionlab.fp16.pinned, …reason | `True` for a pinned layer, and why |
| precisionlab.fp16.cause | what breaks in it |
| precisionlab.fp16.repair | the kind of repair that the plan has for it; the graph here is that before |

Nothing else differs from the file that was swept: names, constants and the order of nodes are its own. Only a model
whose functions were inlined is written as it was read, since the file has one call where the layers are. Weights that
lie in a file beside it are stored inside the copy, which neither onnx nor ONNX Runtime would load otherwise: both
refuse data from outside a model's own folder. Models beyond 256 MB are therefore left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from precisionlab.backends.memory import largest_copy
from precisionlab.model.prepared import prepared_proto, read_again
from precisionlab.report.cells import Row, as_flag, as_number, as_text

if TYPE_CHECKING:
    from precisionlab.model import Model

ANNOTATED = "annotated.onnx"
MOST_BYTES = 256 * 1024 * 1024
_PREFIX = "precisionlab."


def why_not_annotated(model: Model, memory: int | None = None) -> str:
    """Why no copy of the model is written, with so many bytes of memory; nothing where one is."""
    most = MOST_BYTES if memory is None else min(MOST_BYTES, largest_copy(memory))
    try:
        size = model.path.stat().st_size
    except OSError as error:
        return f"no {ANNOTATED}: {model.path}: {error.strerror}"
    size += sum(
        value.const_value.nbytes
        for value in model.onnx.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    )
    if size <= most:
        return ""
    return f"no {ANNOTATED}: the model has {size / 1e6:.0f} MB, and copies are made up to {most / 1e6:.0f} MB"


def annotated_model(model: Model, layers: Iterable[Row]) -> bytes:
    """The file of the copy; `layers` are the rows of `layers.csv`. Raises ModelError where the file cannot be read."""
    proto = (
        prepared_proto(model.exported)
        if model.exported is not None and model.is_inlined
        else read_again(model, weights=True)
    )
    annotate(proto, model, layers)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def annotate(proto: onnx.ModelProto, model: Model, layers: Iterable[Row]) -> None:
    """Give the nodes of a freshly read model the facts of their layers, in place of those of an earlier run."""
    facts: dict[str, dict[str, str]] = {}
    for row in layers:
        facts.setdefault(as_text(row, "layer"), {}).update(_facts(row))
    # By what they give, not by name: unnamed nodes got names when the model was loaded, and constants left the graph.
    of_tensor = {
        str(value.name): {f"{_PREFIX}layer": layer.name, **facts.get(layer.name, {})}
        for layer in model.layers
        for name in layer.nodes
        for value in model.node[name].outputs
        if value.name
    }
    for node in proto.graph.node:
        others = [entry for entry in node.metadata_props if not entry.key.startswith(_PREFIX)]
        del node.metadata_props[:]
        node.metadata_props.extend(others)
        known: Mapping[str, str] = next((of_tensor[name] for name in node.output if name in of_tensor), {})
        for key, value in known.items():
            node.metadata_props.add(key=key, value=value)


def _facts(row: Row) -> dict[str, str]:
    pinned = as_flag(row, "pinned")
    introduced = as_number(row, "introduced_sqnr_db", "introduced_nan")
    inherited = as_number(row, "inherited_sqnr_db", "inherited_nan")
    found = {
        "precision": as_text(row, "pinned_to") if pinned else as_text(row, "runs_in"),
        "introduced_sqnr_db": "" if introduced is None else f"{introduced:.2f}",
        "inherited_sqnr_db": "" if inherited is None else f"{inherited:.2f}",
        "pinned": "True" if pinned else "",
        "reason": as_text(row, "reason"),
        "cause": as_text(row, "cause"),
        "repair": as_text(row, "repair"),
    }
    return {f"{_PREFIX}{as_text(row, 'precision')}.{key}": value for key, value in found.items() if value}
