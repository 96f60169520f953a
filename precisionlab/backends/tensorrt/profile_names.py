"""For which of an engine's optimization profiles each of its layers is compiled: names say so.

An engine has kernels of its own for every profile, fused as the profile's shapes allow, and inspector and log list
those of all. From the second profile on the names of the network's layers and tensors have ` [profile 1]` behind them:
`node_of_Y [profile 1]` in the inspector (Polygraphy's example of `inspect model` has it of TensorRT),
`conv [profile 1]_myl1_3` in TensorRT-RTX's log. A generated kernel is named by what it does, and not so marked; but a
graph of kernels (`_myl1_` is the second of an engine) belongs to one profile, and takes or gives some tensor of the
network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor

_MARK = re.compile(r" \[profile (\d{1,6})\]")
_GRAPH = re.compile(r"_myl(\d{1,6})_\d{1,6}$")


def told_apart(layers: Sequence[EngineLayer], count: int) -> tuple[EngineLayer, ...]:
    """The layers of an engine with so many profiles, each with its own, and its tensors by their names in the network.

    The layers' own names stay, as a profiler has them. Of an engine with one profile all names are the model's.
    """
    if count < 2:
        return tuple(layers)
    graphs: dict[str, int] = {}
    for layer in layers:
        if graph := _GRAPH.search(layer.name):
            graphs[graph[1]] = max(graphs.get(graph[1], 0), _own(layer, count))
    found = []
    for layer in layers:
        graph = _GRAPH.search(layer.name)
        profile = graphs[graph[1]] if graph else _own(layer, count)
        found.append(replace(layer, profile=profile, inputs=_plain(layer.inputs), outputs=_plain(layer.outputs)))
    return tuple(found)


def without_profile(layer: EngineLayer) -> str:
    """The layer's name without the mark of its profile."""
    return layer.name.replace(f" [profile {layer.profile}]", "") if layer.profile else layer.name


def _own(layer: EngineLayer, count: int) -> int:
    """The profile that the layer's name, or its tensors', is marked with; the first where none is."""
    names = (layer.name, *(tensor.name for tensor in (*layer.inputs, *layer.outputs)))
    marks = (int(number) for name in names for number in _MARK.findall(name))
    return max((mark for mark in marks if mark < count), default=0)


def _plain(tensors: Iterable[EngineTensor]) -> tuple[EngineTensor, ...]:
    return tuple(replace(tensor, name=_MARK.sub("", tensor.name)) for tensor in tensors)
