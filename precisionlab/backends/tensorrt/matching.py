"""Which layers of a network belong to a pinned layer of the model.

Each piece of evidence is exact, and none is a layer's place or a part of its name:

1. A layer that gives one of the pin's tensors belongs to it: the parser calls tensors as the ONNX model does.
2. So does a layer whose metadata names one of the pin's nodes: one node may become several layers, and the name of a
   layer may be that of another node.
3. And so do the layers without metadata that only these take from: the parser puts a broadcast between a constant and
   a sum (in half precision it would round an epsilon to zero before the pinned sum sees it), and the matrix
   multiplications of an LSTM have neither name nor metadata.
4. Where there is no such layer, one without metadata that is called as the node is, or so with the parser's `_<n>`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from precisionlab.backends.tensorrt.jobs import LayerPin
from precisionlab.backends.tensorrt.network import NetworkLayer
from precisionlab.precision import Precision

FLOATS = frozenset(precision.value for precision in Precision.floats())
"""The types of tensors that the ONNX model calls floats."""

_SUFFIXED = re.compile(r"(.+)_[0-9]+", re.DOTALL)


@dataclass(frozen=True)
class PinMatch:
    """A pin, and the layers of the network that belong to it, in the network's order.

    `unmatched` says why there are none; None where there are some.
    """

    pin: LayerPin
    layers: tuple[NetworkLayer, ...]
    unmatched: str | None


def match_pins(pins: Sequence[LayerPin], layers: Sequence[NetworkLayer]) -> tuple[PinMatch, ...]:
    """For each pin, in order, the layers that belong to it; no layer belongs to two pins."""
    network = _Network(layers)
    nodes = {node for pin in pins for node in pin.nodes}
    claims = _Claims()
    # The better evidence goes first, for all pins.
    for pin in pins:
        claims.add(pin, network.giving(pin))
        # The metadata may call a node otherwise than the loaded model, where names that appear twice are made unique.
        called = {layer.node for layer in claims.of(pin) if layer.node is not None}
        claims.add(pin, network.only_for(claims.of(pin), {*pin.nodes, *called}))
    for pin in pins:
        claims.add(pin, (layer for node in pin.nodes for layer in network.naming(node)))
        claims.add(pin, network.only_for(claims.of(pin), pin.nodes))
    for pin in pins:
        if not claims.of(pin):
            claims.add(pin, network.called(pin.nodes, nodes))
    matches = []
    for pin in pins:
        found = tuple(sorted(claims.of(pin), key=lambda layer: layer.index))
        matches.append(PinMatch(pin, found, None if found else network.why_not(pin)))
    return tuple(matches)


class _Claims:
    """Which layers belong to which pin; the first to claim a layer has it."""

    def __init__(self) -> None:
        self._layers: dict[str, set[NetworkLayer]] = defaultdict(set)
        self._taken: set[int] = set()

    def add(self, pin: LayerPin, layers: Iterable[NetworkLayer]) -> None:
        """Those of these layers that belong to no other pin belong to this one."""
        for layer in layers:
            if layer.index not in self._taken:
                self._taken.add(layer.index)
                self._layers[pin.layer].add(layer)

    def of(self, pin: LayerPin) -> frozenset[NetworkLayer]:
        """The layers that belong to this pin."""
        return frozenset(self._layers[pin.layer])


class _Network:
    """The layers of a network, by what they give, take and are called."""

    def __init__(self, layers: Sequence[NetworkLayer]) -> None:
        self._layers = layers
        self._giver: dict[str, NetworkLayer] = {}
        self._takers: dict[str, list[NetworkLayer]] = defaultdict(list)
        self._of_node: dict[str, list[NetworkLayer]] = defaultdict(list)
        self._constants = {layer.name for layer in layers if layer.kind == "CONSTANT"}
        for layer in layers:
            # A constant's tensor is called by the parser, and may be called as another tensor of the model.
            if layer.kind != "CONSTANT":
                self._giver.update((tensor.name, layer) for tensor in layer.outputs)
            for tensor in layer.inputs:
                self._takers[tensor.name].append(layer)
            if layer.node is not None:
                self._of_node[layer.node].append(layer)

    def giving(self, pin: LayerPin) -> set[NetworkLayer]:
        """The layers that give the pin's tensors."""
        found = (self._giver.get(tensor) for tensor in pin.tensors)
        # Inside a subgraph or a function, a tensor may be called as another one in the main graph.
        return {layer for layer in found if layer is not None and (len(layer.nodes) < 2 or layer.node in pin.nodes)}

    def naming(self, node: str) -> Sequence[NetworkLayer]:
        """The layers whose metadata names this node of the main graph."""
        return self._of_node.get(node, ())

    def only_for(self, own: frozenset[NetworkLayer], names: Iterable[str]) -> set[NetworkLayer]:
        """The layers behind these from which nothing else takes, and which no other node claims."""
        names = set(names)
        found: set[NetworkLayer] = set()
        waiting = list(own)
        while waiting:
            for tensor in waiting.pop().inputs:
                layer = self._giver.get(tensor.name)
                if layer is None or layer in own or layer in found or not _is_internal(layer):
                    continue
                if layer.node is None or layer.node in names:
                    found.add(layer)
                    waiting.append(layer)
        while shared := {layer for layer in found if not self._takers_of(layer) <= own | found}:
            found -= shared
        return found

    def _takers_of(self, layer: NetworkLayer) -> set[NetworkLayer]:
        return {taker for tensor in layer.outputs for taker in self._takers.get(tensor.name, ())}

    def called(self, nodes: Iterable[str], pinned: Iterable[str]) -> set[NetworkLayer]:
        """The layers without metadata that are called as these nodes are."""
        known = {*pinned, *self._of_node}
        wanted = set(nodes)
        found = set()
        for layer in self._layers:
            if layer.node is not None or layer.kind == "CONSTANT":
                continue
            suffixed = None if layer.name in known else _SUFFIXED.fullmatch(layer.name)
            if layer.name in wanted or (suffixed is not None and suffixed[1] in wanted):
                found.add(layer)
        return found

    def why_not(self, pin: LayerPin) -> str:
        """Why no layer of the network belongs to this pin, as far as the network tells."""
        # The parser calls a constant as the tensor that it stands for.
        if pin.tensors and all(tensor in self._constants for tensor in pin.tensors):
            return f"the parser made a constant of it ({_listed(pin.tensors)})"
        claimed = [layer for node in pin.nodes for layer in self.naming(node)]
        claimed += [self._giver[tensor] for tensor in pin.tensors if tensor in self._giver]
        if claimed:
            return f"the layer {claimed[0].name!r} has its name or tensor, but is of another node"
        taken = [tensor for tensor in pin.tensors if tensor in self._takers]
        if taken:
            return f"its tensor {taken[0]!r} is an input of the network, no layer gives it"
        tensors = f"none of its tensors ({_listed(pin.tensors)})" if pin.tensors else "no tensor of its"
        return (
            f"{tensors} is in the network, and no layer is called or described as {_listed(pin.nodes)}: "
            "the parser left it out, or folded it into a constant"
        )


def _is_internal(layer: NetworkLayer) -> bool:
    """Whether all that a layer gives are activations that the ONNX model does not know.

    The parser does not name those: they are called after the layer, or after its kind and number.
    """
    return bool(layer.outputs) and all(
        tensor.dtype in FLOATS
        and tensor.is_execution
        and not tensor.is_network_output
        and (tensor.name == f"{layer.name}_output" or tensor.name.startswith("(Unnamed Layer* "))
        for tensor in layer.outputs
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, _some(names)))


def _some(names: Iterable[str]) -> Iterator[str]:
    """The first few of many names."""
    for index, name in enumerate(names):
        if index == 4:
            yield "…"
            return
        yield name
