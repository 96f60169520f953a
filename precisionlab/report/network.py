"""What the layers of a run's model give, take and are set to: `network.json`, for the graph of the report.

Tensors stand once, in a list; all else names them by their places in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from precisionlab.model import Layer, Model
from precisionlab.system.plain import Count, of_plain
from precisionlab.system.reading import parse_json

NETWORK = "network.json"

_MOST = 80  # letters of an attribute's value
_PLAIN_TYPES = frozenset({"INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS"})


@dataclass(frozen=True)
class TensorFacts:
    """A tensor: its name, its shape at the first sample's shapes (`1×64`), its ONNX element type; "" where unknown.

    Of a weight with a single number the shape is followed by that, as `scalar = 6`.
    """

    name: str
    shape: str
    kind: str


@dataclass(frozen=True)
class NodeFacts:
    """A node's operator, and its attributes as texts; of graphs and tensors only that there are some."""

    operator: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class LayerFacts:
    """The tensors that leave a layer, those that it takes from others or the model's inputs, its nodes, its weights.

    Weights are all initializers that its nodes take, of any type; runs of older versions do not have them.
    """

    gives: tuple[Count, ...]
    takes: tuple[Count, ...]
    nodes: tuple[NodeFacts, ...]
    weights: tuple[Count, ...] = ()


@dataclass(frozen=True)
class Network:
    """All of it; `inputs` and `outputs` are the model's, `layers` stand in topological order."""

    tensors: tuple[TensorFacts, ...]
    inputs: tuple[Count, ...]
    outputs: tuple[Count, ...]
    layers: tuple[LayerFacts, ...]


def network_of(model: Model) -> Network:
    """What the model's layers are."""
    inputs, outputs = [info.name for info in model.inputs], [info.name for info in model.outputs]
    known = {*inputs, *(name for layer in model.layers for name in layer.outputs)}
    used = [name for layer in model.layers for name in (*layer.inputs, *layer.outputs) if name in known]
    weights = [_weights(model, layer) for layer in model.layers]
    every = dict.fromkeys([*inputs, *used, *outputs, *(name for own in weights for name in own)])
    place = {name: number for number, name in enumerate(every)}
    layers = tuple(
        LayerFacts(
            tuple(place[name] for name in layer.outputs if name in place),
            tuple(dict.fromkeys(place[name] for name in layer.inputs if name in known)),
            tuple(_node(model.node[name]) for name in layer.nodes),
            tuple(place[name] for name in own),
        )
        for layer, own in zip(model.layers, weights, strict=True)
    )
    known_weights = {name: value for own in weights for name, value in own.items()}
    tensors = tuple(
        _weight(name, known_weights[name]) if name in known_weights else _tensor(model, name) for name in place
    )
    return Network(tensors, tuple(place[n] for n in inputs), tuple(place[n] for n in outputs), layers)


def network_text(model: Model) -> str:
    """The content of `network.json`."""
    content = asdict(network_of(model))
    layers = ",\n".join(json.dumps(layer, ensure_ascii=False) for layer in content.pop("layers"))
    head = json.dumps(content, ensure_ascii=False)
    return f'{head[:-1]}, "layers": [\n{layers}\n]}}\n'


def read_network(text: str) -> Network:
    """What `network_text` wrote. Raises ValueError where it is something else."""
    found = of_plain(Network, _with_weights(parse_json(text)))
    of_layers = (p for layer in found.layers for p in (*layer.gives, *layer.takes, *layer.weights))
    places = [*found.inputs, *found.outputs, *of_layers]
    if any(place >= len(found.tensors) for place in places):
        raise ValueError("names a tensor that it does not list")
    return found


def _with_weights(content: Any) -> Any:
    """The same with a list of weights for each layer, where an older version has written none."""
    if isinstance(content, dict) and isinstance(content.get("layers"), list):
        for layer in content["layers"]:
            if isinstance(layer, dict):
                layer.setdefault("weights", [])
    return content


def _weights(model: Model, layer: Layer) -> dict[str, ir.TensorProtocol]:
    """The initializers that the layer's nodes take, by name."""
    taken = (value for name in layer.nodes for value in model.node[name].inputs)
    return {
        str(value.name): value.const_value
        for value in taken
        if value is not None and value.is_initializer() and value.const_value is not None
    }


def _weight(name: str, tensor: ir.TensorProtocol) -> TensorFacts:
    sizes = [dim if isinstance(dim, int) else "?" for dim in tensor.shape]
    shape = "×".join(map(str, sizes)) or "scalar"
    if tensor.size == 1 and tensor.dtype != ir.DataType.STRING:
        shape += f" = {tensor.numpy().reshape(-1)[0]:.6g}"
    return TensorFacts(name, shape, tensor.dtype.name.lower())


def _tensor(model: Model, name: str) -> TensorFacts:
    info = model.tensors.get(name)
    if info is None:
        return TensorFacts(name, "", "")
    shape = "" if info.shape is None else "×".join("?" if dim is None else str(dim) for dim in info.shape) or "scalar"
    return TensorFacts(name, shape, "" if info.dtype is None else info.dtype.name.lower())


def _node(node: ir.Node) -> NodeFacts:
    return NodeFacts(node.op_type, {name: _text(one) for name, one in node.attributes.items()})


def _text(attribute: ir.Attr) -> str:
    kind = attribute.type.name
    if kind not in _PLAIN_TYPES:
        return f"a {kind.lower().replace('_', ' ')}"
    text = str(attribute.value)
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"
