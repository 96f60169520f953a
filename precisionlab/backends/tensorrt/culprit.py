"""Which node a refused build is about: as TensorRT's errors name it, else found by building less and less.

Half of what TensorRT-RTX's compiler says of a graph that it cannot compile names no node at all
(`Myelin ([myelin_graph.h:1295: …`). So networks of the first layers alone are built until the layer is known behind
which the same error comes: a handful of builds, where one takes moments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from precisionlab.backends.tensorrt.network import NetworkLayer

_MOST_SECONDS = 30.0
"""What looking may take, by what the refused build took."""
_NAMED = 3
_BODIES = re.compile("LOOP|CONDITION|RECURRENCE|ITERATOR|TRIP_LIMIT")
"""Kinds of layers whose insides cannot be looked at alone."""
_TELLING = re.compile(r"[^a-zA-Z]")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


def named_nodes(errors: Iterable[str], layers: Iterable[NetworkLayer], operators: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes of the main graph that the errors name, by their own names or those of their layers in the network.

    Names are compared whole. One that a word of any sentence may be is taken only where it stands in quotation marks.
    """
    node_of = {layer.name: layer.node for layer in layers if layer.node in operators}
    names = {**node_of, **{name: name for name in operators}}
    found: dict[str, None] = {}
    for error in errors:
        for name, node in names.items():
            if node is not None and name in error and _is_named(name, error):
                found[node] = None
    return tuple(found)


def _is_named(name: str, text: str) -> bool:
    whole = rf"{re.escape(name)}(?:_\d+)?"
    if re.search(rf"""(?P<mark>['"`\[]){whole}(?P=mark)|\[{whole}\]""", text):
        return True
    is_telling = len(name) > 3 and _TELLING.search(name) is not None
    return is_telling and re.search(rf"(?<![\w/.:]){whole}(?![\w/])", text) is not None


def at_nodes(nodes: Sequence[str], operators: Mapping[str, str]) -> str:
    """` at MatMul 'fc', Conv 'c1'`; empty where none is known."""
    named = [f"{operators[node]} {node!r}" for node in nodes[:_NAMED]]
    return f" at {', '.join(named)}{', …' if len(nodes) > _NAMED else ''}" if named else ""


def first_refused(
    network: Any,
    layers: Sequence[NetworkLayer],
    refusal: Callable[[], Sequence[str] | None],
    errors: Sequence[str],
    seconds: float,
) -> str | None:
    """The node of the first layer with which the network is refused as it is in whole; None where that is not found.

    `refusal` builds the network as it stands, and gives the errors, None where it is built; `errors` are those of the
    whole network, which took `seconds`. The network is not the same afterwards.
    """
    bodies = any(_BODIES.search(layer.kind) for layer in layers)
    if bodies or not errors or seconds * max(1, len(layers)).bit_length() > _MOST_SECONDS:
        return None
    outputs = {network.get_output(index).name for index in range(network.num_outputs)}

    def is_refused(count: int) -> bool:
        if not _show(network, layers, count, outputs):
            return False
        said = refusal()
        return said is not None and _kind(said[-1:]) == _kind(errors[-1:])  # another error is of what was cut

    low, high = 0, len(layers)  # with `low` layers it is built, with `high` refused
    if not is_refused(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_refused(middle) else (middle, high)
    known = (layer.node for layer in reversed(layers[:high]) if layer.node)
    return layers[high - 1].node or next(known, None)


def _show(network: Any, layers: Sequence[NetworkLayer], count: int, outputs: set[str]) -> bool:
    """Let the network's outputs be what its first layers give to the others, or to whoever uses it; whether any is."""
    taken = {tensor.name for layer in layers[count:] for tensor in layer.inputs}
    shown = [
        network.get_layer(layer.index).get_output(place)
        for layer in layers[:count]
        for place, tensor in enumerate(layer.outputs)
        if layer.kind != "CONSTANT" and tensor.is_execution and (tensor.name in taken or tensor.name in outputs)
    ]
    if not shown:
        return False
    for index in reversed(range(network.num_outputs)):
        network.unmark_output(network.get_output(index))
    for tensor in shown:
        network.mark_output(tensor)
    return True


def _kind(errors: Sequence[str]) -> str:
    """What an error says without its numbers, which count what stands in the graph; the beginning is its place."""
    return _NUMBER.sub("#", "".join(errors))[:80]
