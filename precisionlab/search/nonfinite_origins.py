"""Where a NaN or Inf starts under a plan."""

from __future__ import annotations

from collections.abc import Set

from precisionlab.compare.comparison import Comparison
from precisionlab.model import Layer, Model


def nonfinite_starts(model: Model, comparison: Comparison, unpinned: Set[str]) -> tuple[str, ...]:
    """The layers to pin next, in topological order, where new NaN or Inf appear under a plan.

    `unpinned` are the layers in low precision. A layer with non-finite outputs and none among its
    inputs is one; where such a layer is in float32 already (a division by what a layer before it has
    rounded to zero), the nearest low layers before it are.
    """
    broken = set(comparison.nonfinite)
    if not broken:
        return ()
    producer = {name: layer for layer in model.layers for name in layer.outputs}
    found: set[str] = set()
    for layer in model.layers:
        if broken.isdisjoint(layer.watched) or not broken.isdisjoint(layer.inputs):
            continue
        found |= {layer.name} if layer.name in unpinned else _low_before(layer, producer, unpinned)
    return tuple(layer.name for layer in model.layers if layer.name in found)


def _low_before(layer: Layer, producer: dict[str, Layer], unpinned: Set[str]) -> set[str]:
    found: set[str] = set()
    seen: set[str] = set()
    todo = [producer[name] for name in layer.inputs if name in producer]
    while todo:
        before = todo.pop()
        if before.name in seen:
            continue
        seen.add(before.name)
        if before.name in unpinned:
            found.add(before.name)
        else:
            todo += [producer[name] for name in before.inputs if name in producer]
    return found
