"""Graphs that hold a plan and, beside each layer of it, the layer in float32: an input says which of both is computed.

A search evaluates many plans that differ in their pins alone. With graphs of its own each costs the making of sessions;
here a layer is an If whose condition is an input, so that all of them are the same sessions. ONNX Runtime runs the
nodes of the branch that is chosen, with constants that were packed beforehand: to the same bits, at a few microseconds
a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import onnx_ir as ir

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Layer, Model
from precisionlab.model.flow import is_control
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.copiers import CopierOf
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.observe import Flow, Segment, is_judged
from precisionlab.rewrite.plans import completed

Switching = Callable[
    [LayerCopier, Layer, Mapping[ir.Value, ir.Value], ir.Value, PrecisionPlan], dict[ir.Value, ir.Value]
]
"""Copies a layer as the plan has it, or in float32 where the value, a bool (), is true."""

_BOOL = ir.Value(name="pinned", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))


@dataclass(frozen=True)
class SwitchedPart:
    """One graph of the cut: the variant alone, of whatever plan.

    `feeds` maps its inputs, `fetches` its outputs to tensors, `switches` its other inputs, bool (), to layers: true
    where the layer is pinned to float32.
    """

    graph: ir.Model
    feeds: dict[str, str]
    fetches: dict[str, str]
    observed: tuple[str, ...]
    switches: dict[str, str]

    def segment(self, differing: Collection[str]) -> Segment:
        """The graph as a segment of a plan whose variant differs from the reference in these tensors."""

        def keyed(names: dict[str, str]) -> dict[str, tuple[Flow, str]]:
            return {own: (Flow.VARIANT if of in differing else Flow.REFERENCE, of) for own, of in names.items()}

        same = frozenset(name for name in (*self.feeds.values(), *self.fetches.values()) if name not in differing)
        return Segment(self.graph, keyed(self.feeds), keyed(self.fetches), self.observed, same)


_LAID_OUT = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


def is_laid_out(model: Model) -> bool:
    """Whether ONNX Runtime lays the channels of layers out in blocks on a CPU, from one to the next.

    Not through branches, where it would take longer, and add a pooling up in another order.
    """
    return any(_LAID_OUT.intersection(layer.op_types) for layer in model.layers)


def base_of(plan: PrecisionPlan) -> PrecisionPlan:
    """The plan without its pins to float32: what those of one search have in common."""
    return plan.with_pins(pin for pin in plan.pins if pin.precision is not Precision.FP32)


def can_switch(model: Model, layer: Layer, base: PrecisionPlan) -> bool:
    """Whether a pin to float32 makes the layer another one."""
    return precision_of(layer, base) is not precision_of(layer, _pinned(layer, base))


def has_bodies(model: Model, layer: Layer) -> bool:
    """Whether it cannot stand in a branch: of what is inside its bodies the largest values are shown."""
    return any(is_control(model.node[name]) for name in layer.nodes)


def _pinned(layer: Layer, base: PrecisionPlan) -> PrecisionPlan:
    return base.with_pins((*base.pins, Pin(layer.name, layer.nodes, Precision.FP32, "")))


def switched_parts(
    model: Model,
    base: PrecisionPlan,
    table: CalibrationTable | None,
    parts: Sequence[Sequence[Layer]],
    copier_of: CopierOf = LayerCopier,
    switching: Switching | None = None,
) -> Iterator[SwitchedPart]:
    """The graphs over the cut `parts` of the model: each layer that can be switched as in `base`, or in float32.

    Layers that the base cannot quantise at all are in float32, whatever is pinned.
    """
    base = completed(model, base, table)
    for part, stop in zip(parts, accumulate(len(part) for part in parts), strict=True):
        yield _part(model, base, table, part, stop, copier_of, switching or in_branches)


def in_branches(
    copier: LayerCopier, layer: Layer, source: Mapping[ir.Value, ir.Value], switch: ir.Value, base: PrecisionPlan
) -> dict[ir.Value, ir.Value]:
    """An If for each layer: what is not chosen is not run."""
    return copier.switched(layer, source, switch, (_pinned(layer, base), base))


def in_values(
    copier: LayerCopier, layer: Layer, source: Mapping[ir.Value, ir.Value], switch: ir.Value, base: PrecisionPlan
) -> dict[ir.Value, ir.Value]:
    """A Where for each value that is rounded.

    For a GPU: ONNX Runtime's CUDA provider has a stream and a cuBLAS handle of its own for every branch (1.30).
    """
    return copier.blended(layer, source, switch, base)


def differing(model: Model, plan: PrecisionPlan, copier: LayerCopier) -> frozenset[str]:
    """The tensors of a variant that are not the reference's own: those of layers that are not, and all behind them."""
    found: set[str] = set()
    for layer in model.layers:
        if not copier.is_exact(layer, plan) or found & model.taken[layer.name]:
            found.update(layer.outputs)
    return frozenset(found)


def _part(
    model: Model,
    base: PrecisionPlan,
    table: CalibrationTable | None,
    part: Sequence[Layer],
    stop: int,
    copier_of: CopierOf,
    switching: Switching,
) -> SwitchedPart:
    builder = GraphBuilder(model.onnx)
    copier = copier_of(builder, model, table)
    environment: dict[ir.Value, ir.Value] = {}
    feeds: dict[str, str] = {}
    made = {str(v.name) for layer in part for name in layer.nodes for v in model.node[name].outputs}
    for name in sorted({name for layer in part for name in model.taken[layer.name]} - made):
        value = model.values[name]
        environment[value] = builder.input(value, name, model.tensors[name].dtype)
        feeds[str(environment[value].name)] = name
    switches: dict[str, str] = {}
    for layer in part:
        if can_switch(model, layer, base) and not has_bodies(model, layer):
            switch = builder.input(_BOOL, f"pinned/{layer.name}", ir.DataType.BOOL)
            switches[str(switch.name)] = layer.name
            environment.update(switching(copier, layer, environment, switch, base))
        else:
            environment.update(copier.planned(layer, environment, base, ""))
    names = [o for layer in part for o in layer.outputs]
    observed = tuple(o for o in names if is_judged(model, o))
    shown = {name: environment[model.values[name]] for name in names if name in observed or model.is_needed(name, stop)}
    fetches = {str(value.name): name for name, value in shown.items()}
    return SwitchedPart(builder.model(list(shown.values())), feeds, fetches, observed, switches)
