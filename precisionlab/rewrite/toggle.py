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
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.observe import layer_inputs, main_values, open_values, output_bytes

_Values = dict[ir.Value, ir.Value]

# What weighs many small stages against few large ones, in seconds on one CPU core, within a factor of two or three:
# ONNX Runtime builds a session in a quarter of a millisecond for each node, and runs it in 5 µs for each and at
# 60 billion multiply-adds a second. Constants, not measurements: the cut must not depend on the machine.
_BUILD_NODE = 0.25e-3
_RUN_NODE = 5e-6
_RUN_MULTIPLY_ADD = 1 / 60e9


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


def whole(model: Model, plan: PrecisionPlan, table: CalibrationTable | None) -> tuple[ir.Model, dict[str, str]]:
    """The model under a plan, with nothing shown but its final outputs; and those by the graph's names for them."""
    builder = GraphBuilder(model.onnx)
    environment = _inputs(model, builder)
    _run(LayerCopier(builder, model, table), model.layers, plan, environment)
    named = {name: environment[value] for name, value in _finals(model).items()}
    return builder.model(list(dict.fromkeys(named.values()))), {name: str(v.name) for name, v in named.items()}


def _stage_count(model: Model, toggled: int, samples: int) -> int:
    """How many stages cost least: C of them take 1.5·C builds, and L·N / 2C runs for the halves of stages."""
    multiply_adds = sum(layer.multiply_adds or 0 for layer in model.layers)
    run = len(model.node) * _RUN_NODE + multiply_adds * _RUN_MULTIPLY_ADD
    build = len(model.node) * _BUILD_NODE
    best = math.sqrt(toggled * samples * run / (3 * build)) if build else 1
    return max(1, min(round(best), math.isqrt(toggled)))


def stage_ends(model: Model, toggled: Collection[str], samples: int, budget: int) -> list[int]:
    """Behind which layers (how many of them) the stages end; each of the `toggled` layers is in one.

    As many stages as pay for themselves over so many samples, with equal numbers of toggled layers; more where their
    branches would hold more than about `budget` bytes for one sample.
    """
    limit = math.ceil(len(toggled) / _stage_count(model, len(toggled), samples))
    sizes = {name: 4 * (info.elements or 0) for name, info in model.tensors.items()}
    untyped = open_values(model)
    ends: list[int] = []
    count = largest = 0
    for index, layer in enumerate(model.layers, 1):
        count += layer.name in toggled
        largest = max(largest, sum(sizes.get(o, 0) for o in layer.outputs))
        if index not in untyped and count and (count >= limit or (count + 1) * largest > budget):
            ends.append(index)
            count = largest = 0
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
        behind = {name for layer in model.layers[stop:] for name in layer_inputs(model, layer)}
        alive = sum(sizes[o] for layer in model.layers[:stop] for o in layer.outputs if o in behind)
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
) -> Stage:
    """The layers from `start` up to `stop`, all under `plan`, and each toggled one in turn as `other` has it."""
    builder = GraphBuilder(model.onnx)
    copier = LayerCopier(builder, model, table)
    base = _inputs(model, builder)
    _run(copier, model.layers[:start], plan, base)
    changed = _toggled(copier, model, model.layers[start:stop], plan, other, toggled, base)
    values = {str(v.name): v for v in main_values(model)}
    behind = model.layers[stop:]
    finals = _finals(model)
    needed = {name for layer in behind for name in layer_inputs(model, layer)} | finals.keys()
    alive = {name: base[values[name]] for name in needed if name in values and values[name] in base}
    branches = {
        name: {str(v.name): copied for v, copied in own.items() if str(v.name) in alive}
        for name, own in changed.items()
    }
    shown = dict.fromkeys([*alive.values(), *(v for own in branches.values() for v in own.values())])
    rest, feeds, fetches = _rest(model, plan, table, behind, {n: values[n] for n in sorted(alive)})
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
) -> Stretch:
    """The layers from `start` up to `stop`, all under `plan`, and each toggled one in turn as `other` has it."""
    layers = model.layers[start:stop]
    builder = GraphBuilder(model.onnx)
    values = {str(v.name): v for v in main_values(model)}
    made = {o for layer in layers for o in layer.outputs}
    base: _Values = {}
    feeds: dict[str, str] = {}
    inside = {str(v.name) for layer in layers for name in layer.nodes for v in model.node[name].outputs}
    for name in sorted({name for layer in layers for name in layer_inputs(model, layer)} - inside):
        base[values[name]] = builder.input(values[name], name, model.tensors[name].dtype)
        feeds[name] = str(base[values[name]].name)
    changed = _toggled(LayerCopier(builder, model, table), model, layers, plan, other, toggled, base)
    needed = {name for layer in model.layers[stop:] for name in layer_inputs(model, layer)} | _finals(model).keys()
    alive = {name: base[values[name]] for name in sorted(made & needed)}
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
    for layer in layers:
        for name, own in changed.items():
            if not layer_inputs(model, layer).isdisjoint(str(v.name) for v in own):
                own.update(copier.planned(layer, ChainMap(own, base), plan, f"{name}/"))
        if layer.name in toggled:
            changed[layer.name] = copier.planned(layer, base, other, "toggled/")
        _run(copier, [layer], plan, base)
    return changed


def _rest(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    layers: Sequence[Layer],
    alive: Mapping[str, ir.Value],
) -> tuple[ir.Model | None, dict[str, str], dict[str, str]]:
    """The graph of the layers behind a stage, the names of its inputs, and of its outputs."""
    builder = GraphBuilder(model.onnx)
    taken = {name for layer in layers for name in layer_inputs(model, layer)}
    environment: _Values = {}
    feeds: dict[str, str] = {}
    for name, value in alive.items():
        if name in taken:
            environment[value] = builder.input(value, name, model.tensors[name].dtype)
            feeds[name] = str(environment[value].name)
    _run(LayerCopier(builder, model, table), layers, plan, environment)
    made = {o for layer in layers for o in layer.outputs}
    shown = {name: environment[value] for name, value in _finals(model).items() if name in made}
    if not shown:
        return None, {}, {}
    return builder.model(list(shown.values())), feeds, {str(v.name): name for name, v in shown.items()}


def _inputs(model: Model, builder: GraphBuilder) -> _Values:
    return {
        v: builder.input(v, str(v.name), v.dtype) for v in model.onnx.graph.inputs if str(v.name) in _input_names(model)
    }


def _input_names(model: Model) -> frozenset[str]:
    return frozenset(info.name for info in model.inputs)


def _run(copier: LayerCopier, layers: Sequence[Layer], plan: PrecisionPlan, environment: _Values) -> None:
    for layer in layers:
        environment.update(copier.planned(layer, environment, plan, ""))


def _finals(model: Model) -> dict[str, ir.Value]:
    """The model's outputs that are not constants."""
    values = {str(v.name): v for v in main_values(model)}
    return {info.name: values[info.name] for info in model.outputs if info.name in values}
