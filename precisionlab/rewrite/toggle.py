"""Graphs that run a model with single layers in another precision, and of that only what lies behind them.

The layers are taken in stages of consecutive ones. A stage is two graphs: its head runs from the model's inputs
through the stage, with a branch for each toggled layer that goes to the stage's end; its rest runs from there to the
final outputs, once for each branch. So a toggled layer costs a run of the layers behind it and of half a stage.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Layer, Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.copiers import CopierOf
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.observe import open_values, output_bytes

_Values = dict[ir.Value, ir.Value]

# What weighs many small stages against few large ones, in seconds on one CPU core, within a factor of two or three:
# ONNX Runtime builds a session in a quarter of a millisecond for each node, and runs it in 5 µs for each and at
# 60 billion multiply-adds a second. Constants, not measurements: the cut must not depend on the machine.
_BUILD_NODE = 0.25e-3
_RUN_NODE = 5e-6
_RUN_MULTIPLY_ADD = 1 / 60e9

_IN_A_PART = 6
"""Toggled layers in a part."""

_MANY, _BRANCHED = 1024, 2**15
"""In a model of so many nodes a stage has toggled layers times nodes of at most so many: half of that are the nodes in
its branches, and each takes the memory and the building of any other, which in smaller models is little."""


@dataclass(frozen=True)
class Stage:
    """Consecutive layers some of which are toggled, one at a time.

    `head` takes the model's inputs. `alive` maps each tensor needed behind the stage, and each final output that is
    there already, to what the head calls it; `branches` the same for each toggled layer, of those tensors only
    that it may change. `rest` takes tensors that are alive under the names in `feeds` (tensor → input), and gives
    the final outputs that are still missing, under `fetches` (its output → tensor).
    """

    head: ir.Model
    alive: Mapping[str, str]
    branches: Mapping[str, Mapping[str, str]]
    rest: ir.Model | None
    feeds: Mapping[str, str]
    fetches: Mapping[str, str]


def whole(
    model: Model, plan: PrecisionPlan, table: CalibrationTable | None, copier_of: CopierOf = LayerCopier
) -> tuple[ir.Model, dict[str, str]]:
    """The model under a plan, with nothing shown but its final outputs; and those by the graph's names for them."""
    builder = GraphBuilder(model.onnx)
    environment = _inputs(model, builder)
    _run(copier_of(builder, model, table), model.layers, plan, environment)
    named = {name: environment[value] for name, value in _finals(model).items()}
    return builder.model(list(dict.fromkeys(named.values()))), {name: str(v.name) for name, v in named.items()}


def costs_of(model: Model) -> tuple[float, float]:
    """What a session of the whole model takes to build, and to run for a sample, in seconds; see the constants."""
    multiply_adds = sum(layer.multiply_adds or 0 for layer in model.layers)
    return len(model.node) * _BUILD_NODE, len(model.node) * _RUN_NODE + multiply_adds * _RUN_MULTIPLY_ADD


def _stage_count(model: Model, toggled: int, samples: int) -> int:
    """How many stages cost least.

    C of them have C wholes of the model in what runs up to them and in what follows, and L / 2C in the branches of L
    layers, each half a stage on average. Nodes are built once, and those of heads run for each of N samples: the sum of
    (C + L / 2C) builds and N · (C + L) / 2C runs is least at √(L (build + N run) / (2 build + N run)).
    """
    build, run = costs_of(model)
    best = math.sqrt(toggled * (build + samples * run) / (2 * build + samples * run)) if build else 1
    return max(1, min(round(best), math.isqrt(toggled)))


def stage_ends(model: Model, toggled: Collection[str], samples: int, budget: int) -> list[int]:
    """Behind which layers (how many of them) the stages end; each of the `toggled` layers is in one.

    As many stages as pay for themselves over so many samples, with equal numbers of toggled layers; more where their
    branches would hold more than about `budget` bytes for one sample, or very many nodes.
    """
    return _ends(model, toggled, math.ceil(len(toggled) / _stage_count(model, len(toggled), samples)), budget)


def part_ends(model: Model, toggled: Collection[str], budget: int) -> list[int]:
    """Behind which layers the parts of the whole model end, each with a few `toggled` layers; see `stage_ends`.

    With fewer in each, branches would take less building, and a run more calls.
    """
    ends = _ends(model, toggled, _IN_A_PART, budget)
    return ends if ends and ends[-1] == len(model.layers) else [*ends, len(model.layers)]


def _ends(model: Model, toggled: Collection[str], limit: int, budget: int) -> list[int]:
    sizes = {name: 4 * (info.elements or 0) for name, info in model.tensors.items()}
    untyped = open_values(model)
    ends: list[int] = []
    is_large = len(model.node) > _MANY
    count = largest = nodes = 0
    for index, layer in enumerate(model.layers, 1):
        count += layer.name in toggled
        largest = max(largest, sum(sizes.get(o, 0) for o in layer.outputs))
        nodes += len(layer.nodes)
        is_full = count >= limit or (count + 1) * largest > budget or (is_large and count * nodes >= _BRANCHED)
        if index not in untyped and count and is_full:
            ends.append(index)
            count = largest = nodes = 0
    if count:
        ends.append(len(model.layers))
    return ends


def stage_need(model: Model, toggled: Collection[str], ends: Sequence[int]) -> tuple[int, str]:
    """The most bytes of one sample's values that a stage holds, and the layer that it ends with.

    What is alive behind it, for its base and for each branch, and what its largest layer takes and gives.
    """
    sizes = output_bytes(model)
    inside = 2 * max((sum(sizes[o] for o in layer.outputs) for layer in model.layers), default=0)
    most, where = inside, model.layers[-1].name if model.layers else ""
    start = 0
    for stop in ends:
        before = (o for layer in model.layers[:stop] for o in layer.outputs)
        alive = sum(sizes[o] for o in before if model.last_use.get(o, -1) >= stop)
        branches = sum(layer.name in toggled for layer in model.layers[start:stop])
        need = inside + (branches + 2) * alive
        if need > most:
            most, where = need, model.layers[stop - 1].name
        start = stop
    return most, where


def stage_of(
    model: Model,
    plan: PrecisionPlan,
    other: PrecisionPlan,
    toggled: Collection[str],
    table: CalibrationTable | None,
    start: int,
    stop: int,
    copier_of: CopierOf = LayerCopier,
) -> Stage:
    """The layers from `start` up to `stop`, all under `plan`, and each toggled one in turn as `other` has it."""
    builder = GraphBuilder(model.onnx)
    copier = copier_of(builder, model, table)
    base = _inputs(model, builder)
    _run(copier, model.layers[:start], plan, base)
    changed = _toggled(copier, model, model.layers[start:stop], plan, other, toggled, base)
    alive = {str(v.name): copied for v, copied in base.items() if v.name and model.is_needed(str(v.name), stop)}
    branches = {
        name: {str(v.name): copied for v, copied in own.items() if str(v.name) in alive}
        for name, own in changed.items()
    }
    shown = dict.fromkeys([*alive.values(), *(v for own in branches.values() for v in own.values())])
    rest, feeds, fetches = _rest(
        model, plan, table, model.layers[stop:], {n: model.values[n] for n in sorted(alive)}, copier_of
    )
    return Stage(
        builder.model(list(shown)),
        {name: str(v.name) for name, v in alive.items()},
        {layer: {name: str(v.name) for name, v in own.items()} for layer, own in branches.items()},
        rest,
        feeds,
        fetches,
    )


@dataclass(frozen=True)
class Stretch:
    """Consecutive layers alone, some of them toggled, one at a time.

    `feeds` maps the tensors that it takes to its inputs, `alive` those needed behind it to its outputs, and `branches`
    the same for each toggled layer, of those tensors only that it may change.
    """

    graph: ir.Model
    feeds: Mapping[str, str]
    alive: Mapping[str, str]
    branches: Mapping[str, Mapping[str, str]]


def stretch_of(
    model: Model,
    plan: PrecisionPlan,
    other: PrecisionPlan,
    toggled: Collection[str],
    table: CalibrationTable | None,
    start: int,
    stop: int,
    copier_of: CopierOf = LayerCopier,
) -> Stretch:
    """The layers from `start` up to `stop`, all under `plan`, and each toggled one in turn as `other` has it."""
    layers = model.layers[start:stop]
    builder = GraphBuilder(model.onnx)
    values = model.values
    made = {o for layer in layers for o in layer.outputs}
    base: _Values = {}
    feeds: dict[str, str] = {}
    inside = {str(v.name) for layer in layers for name in layer.nodes for v in model.node[name].outputs}
    for name in sorted({name for layer in layers for name in model.taken[layer.name]} - inside):
        base[values[name]] = builder.input(values[name], name, model.tensors[name].dtype)
        feeds[name] = str(base[values[name]].name)
    changed = _toggled(copier_of(builder, model, table), model, layers, plan, other, toggled, base)
    alive = {name: base[values[name]] for name in sorted(made) if model.is_needed(name, stop)}
    branches = {
        name: {str(v.name): copied for v, copied in own.items() if str(v.name) in alive}
        for name, own in changed.items()
    }
    shown = dict.fromkeys([*alive.values(), *(v for own in branches.values() for v in own.values())])
    return Stretch(
        builder.model(list(shown)),
        feeds,
        {name: str(v.name) for name, v in alive.items()},
        {layer: {name: str(v.name) for name, v in own.items()} for layer, own in branches.items()},
    )


def _toggled(
    copier: LayerCopier,
    model: Model,
    layers: Sequence[Layer],
    plan: PrecisionPlan,
    other: PrecisionPlan,
    toggled: Collection[str],
    base: _Values,
) -> dict[str, _Values]:
    """Copy the layers into `base`, and beside it what each toggled one changes of them."""
    changed: dict[str, _Values] = {}
    behind: dict[str, set[str]] = {}  # tensor → the toggled layers that change it
    for layer in layers:
        touched = {name for tensor in model.taken[layer.name] for name in behind.get(tensor, ())}
        for name in (name for name in changed if name in touched):
            own = changed[name]
            own.update(copier.planned(layer, ChainMap(own, base), plan, f"{name}/"))
        if layer.name in toggled:
            changed[layer.name] = copier.planned(layer, base, other, "toggled/")
            touched.add(layer.name)
        for tensor in layer.outputs if touched else ():
            behind[tensor] = touched
        _run(copier, [layer], plan, base)
    return changed


def _rest(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    layers: Sequence[Layer],
    alive: Mapping[str, ir.Value],
    copier_of: CopierOf,
) -> tuple[ir.Model | None, dict[str, str], dict[str, str]]:
    """The graph of the layers behind a stage, the names of its inputs, and of its outputs."""
    builder = GraphBuilder(model.onnx)
    taken = {name for layer in layers for name in model.taken[layer.name]}
    environment: _Values = {}
    feeds: dict[str, str] = {}
    for name, value in alive.items():
        if name in taken:
            environment[value] = builder.input(value, name, model.tensors[name].dtype)
            feeds[name] = str(environment[value].name)
    _run(copier_of(builder, model, table), layers, plan, environment)
    made = {o for layer in layers for o in layer.outputs}
    shown = {name: environment[value] for name, value in _finals(model).items() if name in made}
    if not shown:
        return None, {}, {}
    return builder.model(list(shown.values())), feeds, {str(v.name): name for name, v in shown.items()}


def _inputs(model: Model, builder: GraphBuilder) -> _Values:
    names = {info.name for info in model.inputs}
    return {v: builder.input(v, str(v.name), v.dtype) for v in model.onnx.graph.inputs if str(v.name) in names}


def _run(copier: LayerCopier, layers: Sequence[Layer], plan: PrecisionPlan, environment: _Values) -> None:
    for layer in layers:
        environment.update(copier.planned(layer, environment, plan, ""))


def _finals(model: Model) -> dict[str, ir.Value]:
    """The model's outputs that are not constants."""
    values = model.values
    return {info.name: values[info.name] for info in model.outputs if info.name in values}
