"""Graphs that hold the reference, the variant and each layer on its own side by side, and show them all.

The model is cut into segments of layers, each a graph of its own, so that memory is bounded by what
one segment shows and not by the size of the model; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

import onnx_ir as ir

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Layer, Model, TensorInfo
from precisionlab.model.flow import FLOATS
from precisionlab.model.lift import OWN
from precisionlab.plan.assign import format_of, inside_format, is_lowered, is_reference
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Format
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.copiers import CopierOf
from precisionlab.rewrite.flow import LayerCopier, nodes_outputs


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
    variant as in the reference, and stand only under the reference's key. `inside` are tensors of bodies, by the names
    of `Model.inner`: what stands for them is float32 (2,), their largest and least value.
    """

    graph: ir.Model
    feeds: dict[str, Key]
    fetches: dict[str, Key]
    observed: tuple[str, ...]
    same: frozenset[str]
    inside: tuple[str, ...] = ()


def cut(
    model: Model, flows: int, budget: int, weights: int | None = None, nodes: int | None = None
) -> list[list[Layer]]:
    """Consecutive layers whose shown outputs stay within `budget` bytes for `flows` flows together.

    Their weights stay within `weights` bytes, and they have at most so many `nodes`, where that is given. Tensors of
    unknown size count as the largest known. A single layer may exceed all of these. No cut is made where a value that
    is not a tensor of known type (a sequence) would cross it.
    """
    sizes = output_bytes(model)
    untyped = open_values(model)
    parts: list[list[Layer]] = [[]]
    used = held = count = 0
    for index, layer in enumerate(model.layers):
        need = flows * sum(sizes[o] for o in layer.outputs)
        is_full = used + need > budget or (weights is not None and held + layer.weight_bytes > weights)
        is_full = is_full or (nodes is not None and count + len(layer.nodes) > nodes)
        if parts[-1] and is_full and index not in untyped:
            parts.append([])
            used = held = count = 0
        parts[-1].append(layer)
        used += need
        held += layer.weight_bytes
        count += len(layer.nodes)
    return parts


def output_bytes(model: Model) -> dict[str, int]:
    """What each layer output takes; one of unknown size as much as the largest known."""
    sizes = {name: 4 * info.elements for name, info in model.tensors.items() if info.elements is not None}
    largest = max((sizes[o] for layer in model.layers for o in layer.outputs if o in sizes), default=0)
    return {o: sizes.get(o, largest) for layer in model.layers for o in layer.outputs}


def largest_need(model: Model, parts: Sequence[Sequence[Layer]], shown: int, flows: int) -> tuple[int, int, str]:
    """The most bytes of one sample's values that stand at a time: in all, between two parts, and at which layer.

    What a part shows, in `shown` flows, and what later parts need of reference and variant, or of the one of `flows`.
    """
    sizes = output_bytes(model)
    last = {name: i for i, part in enumerate(parts) for layer in part for name in model.taken[layer.name]}
    most, waiting, where = 0, 0, ""
    carried: dict[str, int] = {}
    for index, part in enumerate(parts):
        own = {layer.name: sum(sizes[o] for o in layer.outputs) for layer in part}
        between = min(flows, 2) * sum(carried.values())
        # Of what is not shown, a layer's outputs at a time are there all the same.
        need = between + max(shown * sum(own.values()), flows * max(own.values()))
        if need > most:
            most, where = need, max(own, key=lambda name: own[name])
        carried.update((o, sizes[o]) for layer in part for o in layer.outputs)
        carried = {name: count for name, count in carried.items() if last.get(name, -1) > index}
        waiting = max(waiting, min(flows, 2) * sum(carried.values()))
    return most, waiting, where


def open_values(model: Model) -> set[int]:
    """The layer indices in front of which a value without a known tensor type is alive."""
    blocked: set[int] = set()
    for i, layer in enumerate(model.layers):
        for name in layer.outputs:
            if model.tensors[name].dtype is None:
                blocked.update(range(i + 1, model.last_use.get(name, i) + 1))
    return blocked


def is_observed(model: Model, tensor: str) -> bool:
    """Whether the tensor has a histogram: float32 tensors alone have one."""
    return model.tensors[tensor].dtype == ir.DataType.FLOAT


def is_judged(model: Model, tensor: str) -> bool:
    """Whether the tensor's error is measured: one of any float type has one, double too."""
    return model.tensors[tensor].dtype in FLOATS


def observed_rows(model: Model, plan: PrecisionPlan, flows: Iterable[Flow]) -> dict[Key, int]:
    """Where the statistics of each observed tensor stand: in topological order, flow by flow.

    The reference has none; of layers that stay in float32 there is nothing to see alone. Tensors inside bodies stand
    in front of what their layer gives.
    """
    kinds = frozenset(flows)
    shown = [
        (layer, name)
        for layer in model.layers
        for name in (*layer.inside, *(o for o in layer.outputs if is_judged(model, o)))
    ]
    keys = [(Flow.VARIANT, name) for _, name in shown if Flow.VARIANT in kinds]
    if Flow.ALONE in kinds:
        low = {layer.name for layer in model.layers if is_lowered(model, layer, plan)}
        keys += [(Flow.ALONE, name) for layer, name in shown if layer.name in low]
    return {key: i for i, key in enumerate(keys)}


def row_formats(model: Model, plan: PrecisionPlan, names: Iterable[str]) -> list[Format]:
    """What the plan has each of these layer outputs held in; a final output that the file has in half, in that."""
    formats = {name: format_of(layer, plan) for layer in model.layers for name in layer.outputs}
    formats.update(
        (name, inside_format(model.inner[name], layer, plan)) for layer in model.layers for name in layer.inside
    )
    if not is_reference(plan):
        formats.update((info.name, OWN[info.dtype].number_format) for info in model.outputs if info.dtype in OWN)
    return [formats[name] for name in names]


def segments(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    parts: Sequence[Sequence[Layer]],
    flows: Iterable[Flow],
    shown: Iterable[Flow],
    copier: CopierOf = LayerCopier,
) -> Iterator[Segment]:
    """The graphs that compute these flows over the cut `parts` of the model, each made when it is its turn.

    Of the flows in `shown` every layer's output is fetched, of the others only what is needed later on. `copier` is
    what makes the layers. Without the reference among the flows only that is computed of it which the variant has too.
    """
    kinds = frozenset(flows)
    open_flows = frozenset(shown)
    differs: set[str] = set()  # tensors of the variant that are not the reference's own
    for part, stop in zip(parts, accumulate(len(part) for part in parts), strict=True):
        yield _segment(model, plan, table, part, kinds, open_flows, differs, stop, copier)


def _segment(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    part: Sequence[Layer],
    flows: frozenset[Flow],
    open_flows: frozenset[Flow],
    differs: set[str],
    stop: int,
    kind: CopierOf,
) -> Segment:
    builder = GraphBuilder(model.onnx)
    inside = tuple(name for layer in part for name in layer.inside) if Flow.VARIANT in open_flows else ()
    copier = kind(builder, model, table, frozenset(model.inner[name].value for name in inside))
    feeds: dict[str, Key] = {}
    reference: dict[ir.Value, ir.Value] = {}
    variant: dict[ir.Value, ir.Value] = {}
    alone: dict[ir.Value, ir.Value] = {}
    made = {str(v.name) for layer in part for v in nodes_outputs([model.node[n] for n in layer.nodes])}
    values = {**model.values, **{name: model.inner[name].value for name in inside}} if inside else model.values
    needed = {name for layer in part for name in model.taken[layer.name]} - made
    for name in sorted(needed):
        value, dtype = values[name], model.tensors[name].dtype
        if Flow.REFERENCE in flows or name not in differs:
            reference[value] = builder.input(value, name, dtype)
            feeds[str(reference[value].name)] = (Flow.REFERENCE, name)
            variant[value] = reference[value]
        if Flow.VARIANT in flows and name in differs:
            variant[value] = builder.input(value, f"variant/{name}", dtype)
            feeds[str(variant[value].name)] = (Flow.VARIANT, name)
    for layer in part:
        is_same = copier.is_exact(layer, plan) and not differs & model.taken[layer.name]
        if Flow.REFERENCE in flows or is_same:
            reference.update(copier.reference(layer, reference, ""))
            reference.update(copier.take_peaks())
        if Flow.VARIANT in flows:
            if is_same:
                variant.update((values[o], reference[values[o]]) for o in layer.outputs)
            else:
                variant.update(copier.planned(layer, variant, plan, "variant/"))
                variant.update(copier.take_peaks())
                differs.update(layer.outputs)
        if Flow.ALONE in flows and is_lowered(model, layer, plan):
            alone.update(copier.planned(layer, reference, plan, "alone/"))
            alone.update(copier.take_peaks())
    names = [o for layer in part for o in layer.outputs]
    observed = tuple(o for o in names if is_judged(model, o))
    seen = frozenset((*observed, *inside))
    fetches: dict[str, Key] = {}
    shown: list[ir.Value] = []
    for flow, environment in ((Flow.REFERENCE, reference), (Flow.VARIANT, variant), (Flow.ALONE, alone)):
        for name in (*names, *inside):
            copied = environment.get(values[name])
            wanted_here = (name in seen and flow in open_flows) or (
                flow is not Flow.ALONE and model.is_needed(name, stop)
            )
            if copied is None or not wanted_here or str(copied.name) in fetches:
                continue
            fetches[str(copied.name)] = (flow, name)
            shown.append(copied)
    same = frozenset(name for name in (*names, *needed) if name not in differs)
    return Segment(builder.model(shown), feeds, fetches, observed, same, inside)


@dataclass(frozen=True)
class Probe:
    """A graph that runs consecutive layers in float32, and gives of their outputs only the shapes, int64 (rank,).

    `feeds` maps its inputs, `fetches` the outputs that later layers need, and `shapes` those with a shape, to tensors.
    """

    graph: ir.Model
    feeds: dict[str, str]
    fetches: dict[str, str]
    shapes: dict[str, str]


_UNSHAPED = frozenset(
    {
        *(ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ),
        *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1),
    }
)
"""What a model quantises to by itself and ONNX Runtime has no kernel for that tells its shape: it is the input's."""


def _is_probed(info: TensorInfo) -> bool:
    # ONNX Runtime 1.32 loses a scalar that only a subgraph takes besides, when it folds its shape.
    return info.dtype is not None and info.dtype not in _UNSHAPED and info.shape != ()


def shapes_beside(model: Model, original: Model) -> dict[str, tuple[int, ...]] | None:
    """What probes of a repaired model would find, where the original is at the shapes of the same data.

    None where it has tensors that no layer of the original gives: only what layers give was looked at.
    """
    seen = frozenset(name for layer in original.layers for name in layer.outputs)
    found: dict[str, tuple[int, ...]] = {}
    for name in (name for layer in model.layers for name in layer.outputs):
        if not name or not _is_probed(model.tensors[name]):
            continue
        shape = original.tensors[of].shape if (of := model.copies.get(name, name)) in seen else None
        if shape is None or not all(isinstance(length, int) for length in shape):
            return None
        found[name] = tuple(int(str(length)) for length in shape)
    return found


def shape_probes(model: Model, parts: Sequence[Sequence[Layer]]) -> Iterator[Probe]:
    """A probe for each of the cut `parts` of the model, made when it is its turn."""
    inputs = {info.name for info in model.inputs}
    for part, stop in zip(parts, accumulate(len(part) for part in parts), strict=True):
        made = (name for layer in part for name in layer.outputs)
        wanted = {name for name in made if model.last_use.get(name, -1) >= stop}
        yield _probe(model, part, wanted, inputs if len(parts) == 1 else set())


def _probe(model: Model, part: Sequence[Layer], wanted: set[str], inputs: set[str]) -> Probe:
    builder = GraphBuilder(model.onnx)
    copier = LayerCopier(builder, model, None)
    made = {str(v.name) for layer in part for v in nodes_outputs([model.node[n] for n in layer.nodes])}
    needed = inputs | {name for layer in part for name in model.taken[layer.name]} - made
    environment: dict[ir.Value, ir.Value] = {}
    feeds: dict[str, str] = {}
    for name in sorted(needed):
        value = model.values[name]
        environment[value] = builder.input(
            value, name, value.dtype if value.is_graph_input() else model.tensors[name].dtype
        )
        feeds[str(environment[value].name)] = name
    shapes: dict[str, str] = {}
    fetches: dict[str, str] = {}
    shown: list[ir.Value] = []
    for layer in part:
        outputs = copier.reference(layer, environment, "")
        environment.update(outputs)
        for value, copied in outputs.items():
            if _is_probed(model.tensors[str(value.name)]):
                shape = builder.op("Shape", [copied], f"shape/{value.name}")
                shape.type = ir.TensorType(ir.DataType.INT64)
                shapes[str(shape.name)] = str(value.name)
                shown.append(shape)
            if str(value.name) in wanted:
                fetches[str(copied.name)] = str(value.name)
                shown.append(copied)
    return Probe(builder.model(shown), feeds, fetches, shapes)
