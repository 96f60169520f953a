"""Graphs that hold the reference, the variant and each layer on its own side by side, and show them all.

The model is cut into segments of layers, each a graph of its own, so that memory is bounded by what
one segment shows and not by the size of the model; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Layer, Model
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.rewrite.builder import GraphBuilder, outer_values
from precisionlab.rewrite.flow import LayerCopier, nodes_outputs, precision_of


class Flow(str, Enum):
    """Which computation a value belongs to."""

    REFERENCE = "reference"
    VARIANT = "variant"  # all layers under the plan: what it has inherited and introduced so far
    ALONE = "alone"  # one layer under the plan, on the reference's inputs: what it introduces


Key = tuple[Flow, str]
"""A flow and the tensor's name in the model."""


@dataclass(frozen=True)
class Segment:
    """One graph of the cut, and how its inputs and outputs are called in the model.

    `feeds` maps its inputs, `fetches` its outputs to keys. Tensors of `same` are the same in the
    variant as in the reference, and stand only under the reference's key.
    """

    graph: ir.Model
    feeds: dict[str, Key]
    fetches: dict[str, Key]
    observed: tuple[str, ...]
    same: frozenset[str]


def cut(model: Model, flows: int, budget: int) -> list[list[Layer]]:
    """Consecutive layers whose shown outputs stay within `budget` bytes for `flows` flows together.

    Tensors of unknown size count as the largest known. A single layer may exceed the budget. No cut is
    made where a value that is not a tensor of known type (a sequence) would cross it.
    """
    sizes = {name: 4 * info.elements for name, info in model.tensors.items() if info.elements is not None}
    largest = max((sizes[o] for layer in model.layers for o in layer.outputs if o in sizes), default=0)
    untyped = open_values(model)
    parts: list[list[Layer]] = [[]]
    used = 0
    for index, layer in enumerate(model.layers):
        need = flows * sum(sizes.get(o, largest) for o in layer.outputs)
        if parts[-1] and used + need > budget and index not in untyped:
            parts.append([])
            used = 0
        parts[-1].append(layer)
        used += need
    return parts


def open_values(model: Model) -> set[int]:
    """The layer indices in front of which a value without a known tensor type is alive."""
    last_use = {name: i for i, layer in enumerate(model.layers) for name in layer_inputs(model, layer)}
    blocked: set[int] = set()
    for i, layer in enumerate(model.layers):
        for name in layer.outputs:
            if model.tensors[name].dtype is None:
                blocked.update(range(i + 1, last_use.get(name, i) + 1))
    return blocked


def layer_inputs(model: Model, layer: Layer) -> set[str]:
    """What the layer takes from outside, with the values that its subgraphs refer to."""
    captured = {v for name in layer.nodes for v in outer_values(model.node[name]) if not v.is_initializer()}
    return set(layer.inputs) | {str(v.name) for v in captured}


def is_observed(model: Model, tensor: str) -> bool:
    """Whether the tensor's error is measured: float32 tensors alone have one."""
    return model.tensors[tensor].dtype == ir.DataType.FLOAT


def observed_rows(model: Model, plan: PrecisionPlan, flows: Iterable[Flow]) -> dict[Key, int]:
    """Where the statistics of each observed tensor stand: in topological order, flow by flow.

    The reference has none; of layers that stay in float32 there is nothing to see alone.
    """
    kinds = frozenset(flows)
    shown = [(layer, o) for layer in model.layers for o in layer.outputs if is_observed(model, o)]
    keys = [(Flow.VARIANT, name) for _, name in shown if Flow.VARIANT in kinds]
    if Flow.ALONE in kinds:
        low = {layer.name for layer in model.layers if precision_of(layer, plan) is not Precision.FP32}
        keys += [(Flow.ALONE, name) for layer, name in shown if layer.name in low]
    return {key: i for i, key in enumerate(keys)}


def segments(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    parts: Sequence[Sequence[Layer]],
    flows: Iterable[Flow],
    shown: Iterable[Flow],
) -> list[Segment]:
    """The graphs that compute these flows over the cut `parts` of the model.

    Of the flows in `shown` every layer's output is fetched, of the others only what is needed later on.
    """
    kinds = frozenset(flows)
    open_flows = frozenset(shown)
    differs: set[str] = set()  # tensors of the variant that are not the reference's own
    wanted_later = _wanted(model, parts)
    return [
        _segment(model, plan, table, part, kinds, open_flows, differs, wanted)
        for part, wanted in zip(parts, wanted_later, strict=True)
    ]


def _wanted(model: Model, parts: Sequence[Sequence[Layer]]) -> list[set[str]]:
    """For each part the tensors that later parts or the user need."""
    outputs = {info.name for info in model.outputs}
    wanted: list[set[str]] = []
    later = set(outputs)
    for part in reversed(parts):
        wanted.append(set(later))
        later |= {name for layer in part for name in layer_inputs(model, layer)}
    return wanted[::-1]


def _segment(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    part: Sequence[Layer],
    flows: frozenset[Flow],
    open_flows: frozenset[Flow],
    differs: set[str],
    wanted: set[str],
) -> Segment:
    builder = GraphBuilder(model.onnx)
    copier = LayerCopier(builder, model, table)
    feeds: dict[str, Key] = {}
    reference: dict[ir.Value, ir.Value] = {}
    variant: dict[ir.Value, ir.Value] = {}
    alone: dict[ir.Value, ir.Value] = {}
    made = {str(v.name) for layer in part for v in nodes_outputs([model.node[n] for n in layer.nodes])}
    values = {str(v.name): v for v in main_values(model)}
    needed = {name for layer in part for name in layer_inputs(model, layer)} - made
    for name in sorted(needed):
        value, dtype = values[name], model.tensors[name].dtype
        reference[value] = builder.input(value, name, dtype)
        feeds[str(reference[value].name)] = (Flow.REFERENCE, name)
        variant[value] = reference[value]
        if Flow.VARIANT in flows and name in differs:
            variant[value] = builder.input(value, f"variant/{name}", dtype)
            feeds[str(variant[value].name)] = (Flow.VARIANT, name)
    for layer in part:
        precision = precision_of(layer, plan)
        reference.update(copier.copy(layer, reference, Precision.FP32, Precision.FP32, ""))
        if Flow.VARIANT in flows:
            if precision is Precision.FP32 and not differs & layer_inputs(model, layer):
                variant.update((values[o], reference[values[o]]) for o in layer.outputs)
            else:
                variant.update(copier.copy(layer, variant, precision, plan.around, "variant/"))
                differs.update(layer.outputs)
        if Flow.ALONE in flows and precision is not Precision.FP32:
            alone.update(copier.copy(layer, reference, precision, plan.around, "alone/"))
    names = [o for layer in part for o in layer.outputs]
    observed = tuple(o for o in names if is_observed(model, o))
    fetches: dict[str, Key] = {}
    shown: list[ir.Value] = []
    for flow, environment in ((Flow.REFERENCE, reference), (Flow.VARIANT, variant), (Flow.ALONE, alone)):
        for name in names:
            copied = environment.get(values[name])
            wanted_here = (name in observed and flow in open_flows) or (name in wanted and flow is not Flow.ALONE)
            if copied is None or not wanted_here or str(copied.name) in fetches:
                continue
            fetches[str(copied.name)] = (flow, name)
            shown.append(copied)
    same = frozenset(name for name in (*names, *needed) if name not in differs)
    return Segment(builder.model(shown), feeds, fetches, observed, same)


def main_values(model: Model) -> Iterable[ir.Value]:
    """The values of the main graph: its inputs, and what its nodes give."""
    yield from model.onnx.graph.inputs
    for node in model.onnx.graph:
        yield from (v for v in node.outputs if v.name)


def shape_probe(model: Model) -> tuple[ir.Model, dict[str, str]]:
    """A graph that gives the shape of every layer output, int64 (rank,), and none of its values.

    Returns the graph, and a map from its outputs to the tensors' names.
    """
    builder = GraphBuilder(model.onnx)
    copier = LayerCopier(builder, model, None)
    environment: dict[ir.Value, ir.Value] = {v: builder.input(v, str(v.name), v.dtype) for v in model.onnx.graph.inputs}
    shapes: dict[str, str] = {}
    shown: list[ir.Value] = []
    for layer in model.layers:
        outputs = copier.copy(layer, environment, Precision.FP32, Precision.FP32, "")
        environment.update(outputs)
        for value, copied in outputs.items():
            if model.tensors[str(value.name)].dtype is not None:
                shape = builder.op("Shape", [copied], f"shape/{value.name}")
                shape.type = ir.TensorType(ir.DataType.INT64)
                shapes[str(shape.name)] = str(value.name)
                shown.append(shape)
    return builder.model(shown), shapes
