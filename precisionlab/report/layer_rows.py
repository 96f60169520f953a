"""The rows of `layers.csv`: each low precision and layer, with what was found of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.half_sums import half_sums_sqnr
from precisionlab.compare.metrics import error_metrics
from precisionlab.compare.sensitivity import Sensitivity, worst_sqnr
from precisionlab.compare.spread import Spread
from precisionlab.model import Layer, Model
from precisionlab.model.contraction import blocks_of, products_of
from precisionlab.model.repair import Repair
from precisionlab.model.selections import Moving, moving_layers
from precisionlab.plan.assign import format_of, lowest_of
from precisionlab.plan.plan import Pin
from precisionlab.report.cells import Row
from precisionlab.report.column_kinds import SPREAD_PARTS
from precisionlab.search.certificate import Figures
from precisionlab.search.cost import LayerCost
from precisionlab.search.rank import relative_gain, sums_of_shares
from precisionlab.search.worst import worst_first

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.tactics import LayerSum
    from precisionlab.evaluate.each_layer import EachLayer
    from precisionlab.results.sweep import SampleNames, SweepFindings
    from precisionlab.search.outcome import PrecisionResult


def layer_rows(result: SweepFindings) -> list[Row]:
    """The rows of `layers.csv`."""
    rows = []
    sources, moving = layer_inputs(result.model.layers), moving_layers(result.model)
    for outcome in result.precisions:
        lookups = _Lookups.of(result.model, outcome)
        rows += [
            _placed(_layer_row(result, outcome, lookups, index, layer, " ".join(map(str, sources[index]))), moving)
            for index, layer in enumerate(result.model.layers)
        ]
    return rows


def _placed(row: Row, moving: Moving) -> Row:
    """The row without figures that compare rows place by place which may stand elsewhere."""
    kinds = [
        *(["introduced_"] if row["layer"] in moving.own else []),
        *(["inherited_", "mixed_", "engine_sqnr"] if row["layer"] in moving.so_far else []),
    ]
    empty = {name: "" if name.endswith("worst") else None for name in row if name.startswith(tuple(kinds))}
    return {**row, **empty}


def layer_inputs(layers: Sequence[Layer]) -> list[list[int]]:
    """For each layer, the places of those that it takes from, in rising order."""
    source = {tensor: index for index, layer in enumerate(layers) for tensor in layer.outputs}
    return [
        sorted({source[tensor] for tensor in layer.inputs if tensor in source} - {index})
        for index, layer in enumerate(layers)
    ]


@dataclass(frozen=True)
class _Lookups:
    """What the result of one precision says of its layers, by name."""

    rank: Mapping[str, int]
    pins: Mapping[str, Pin]
    releases: Mapping[str, Figures]
    costs: Mapping[str, LayerCost]
    repairs: Mapping[str, Sequence[str]]
    shares: Mapping[str, float]
    sums: Mapping[str, float]

    @classmethod
    def of(cls, model: Model, outcome: PrecisionResult) -> _Lookups:
        return cls(
            {name: place for place, name in enumerate(worst_first(model, outcome), 1)},
            {pin.layer: pin for pin in outcome.plan.pins},
            {r.layer: r.figures for r in outcome.certificate.releases} if outcome.certificate else {},
            {cost.layer: cost for cost in outcome.low.cost.layers} if outcome.low.cost else {},
            repair_kinds(outcome.plan.repairs),
            outcome.output_shares,
            sums_of_shares(outcome.output_shares),
        )


def repair_kinds(repairs: Iterable[Repair]) -> dict[str, list[str]]:
    """Layer → the kinds of the repairs for it, each once."""
    found: dict[str, list[str]] = {}
    for repair in repairs:
        kinds = found.setdefault(repair.layer, [])
        if repair.kind not in kinds:
            kinds.append(repair.kind)
    return found


def _layer_row(
    result: SweepFindings, outcome: PrecisionResult, lookups: _Lookups, index: int, layer: Layer, inputs: str
) -> Row:
    pin, released, cost = lookups.pins.get(layer.name), lookups.releases.get(layer.name), lookups.costs.get(layer.name)
    cause = outcome.causes.get(layer.name)
    inherited = layer_errors(layer, outcome.low.comparison.inherited)
    mixed = layer_errors(layer, outcome.mixed.comparison.inherited)
    shape = result.model.tensors[layer.outputs[0]].shape if layer.outputs else None
    return {
        "precision": outcome.precision.value,
        "figures": outcome.low.figures,
        "index": index,
        "layer": layer.name,
        "kind": layer.kind,
        "nodes": " + ".join(layer.nodes),
        "inputs": inputs,
        "runs_in": lowest_of(result.model, layer, outcome.low.plan).value,
        "fixed": layer.fixed or "",
        "rank": lookups.rank.get(layer.name),
        "pinned": pin is not None,
        "pinned_to": pin.precision.value if pin else "",
        "reason": pin.reason if pin else "",
        "released_figure": next(iter(released.values.values()), None) if released else None,
        "released_nonfinite": released.nonfinite if released else None,
        "repair": " ".join(lookups.repairs.get(layer.name, ())),
        "cause": cause.text if cause else "",
        "cause_kinds": " ".join(kind.value for kind in cause.kinds) if cause else "",
        "shape": "×".join("?" if dim is None else str(dim) for dim in shape) if shape is not None else "",
        "multiply_adds": layer.multiply_adds,
        "weight_bytes": layer.weight_bytes,
        "products": products_of(result.model.node[layer.nodes[0]], result.model.tensors),
        **_half_sum_columns(result.model, layer, outcome),
        "cost_us": cost.seconds * 1e6 if cost else None,
        "cost_figures": "" if cost is None else "measured" if cost.bound == "measured" else "estimated",
        "format": format_of(layer, outcome.low.plan).title.lower(),
        "ref_max": inherited.max_ref if inherited else None,
        "overflow": inherited.overflow if inherited else None,
        **_sensitivity_columns(outcome.sensitivities.get(layer.name)),
        "output_share": lookups.shares.get(layer.name),
        "output_share_sum": lookups.sums.get(layer.name),
        "alone_samples": outcome.sensitivity_samples.get(layer.name),
        **_by_itself_columns(layer, outcome.each_layer),
        **_error_columns("introduced", layer_errors(layer, outcome.low.comparison.introduced)),
        **_spread_columns("introduced", layer, outcome.low.comparison.spreads.introduced, result.samples),
        **_error_columns("inherited", inherited),
        **_spread_columns("inherited", layer, outcome.low.comparison.spreads.inherited, result.samples),
        "mixed_sqnr_db": mixed.sqnr if mixed else None,
        **_engine_columns(layer, outcome),
    }


def _half_sum_columns(model: Model, layer: Layer, outcome: PrecisionResult) -> Row:
    """In how many blocks a layer in half is added up, what the law for its like says of that, and how far sums go."""
    in_half = lowest_of(model, layer, outcome.low.plan).number_format.sums_in_itself
    blocks = blocks_of(model.node[layer.nodes[0]], model.tensors) if in_half and layer.nodes else None
    running = outcome.running_sums.get(layer.name)
    return {
        "blocks": blocks,
        "half_sums_sqnr_db": half_sums_sqnr(blocks) if blocks else None,
        "sum_bound": running.bound if running else None,
        "largest_running_sum": running.largest if running else None,
    }


def _engine_columns(layer: Layer, outcome: PrecisionResult) -> Row:
    """What the engine of the plan found is to the layer, and what was measured of it there."""
    inside, engine = outcome.inside, outcome.engine.mixed if outcome.engine else None
    errors = layer_errors(layer, engine.variant.comparison.inherited) if engine else None
    pins = inside.pins if inside else ()
    return {
        "engine_sqnr_db": errors.sqnr if errors else None,
        "engine_seen": _seen(layer, engine.variant.comparison.seen) if engine else "",
        "engine_types": " ".join(inside.got.get(layer.name, ())) if inside else "",
        "engine_pin": next((pin.verdict for pin in pins if pin.layer == layer.name), ""),
        "engine_ms": engine.times.get(layer.name) if engine else None,
        **_sum_columns(inside.sums.get(layer.name) if inside else None),
    }


def _seen(layer: Layer, seen: Mapping[str, str]) -> str:
    """How the layer's outputs were looked at in the engine; empty where they are its final outputs alone."""
    return ", ".join(dict.fromkeys(seen[name] for name in layer.outputs if name in seen))


def _sum_columns(layer_sum: LayerSum | None) -> Row:
    """How the engine's kernels add up the layer's products, as far as their names tell."""
    return {
        "engine_sum": " ".join(layer_sum.accumulators) if layer_sum else "",
        "engine_order": ", ".join(layer_sum.orders) if layer_sum else "",
        "engine_tactic": " ".join(layer_sum.tactics) if layer_sum else "",
    }


def _sensitivity_columns(outputs: Mapping[str, Sensitivity] | None) -> Row:
    """What the layer alone does to the final outputs; all empty where that was not measured."""
    if outputs is None:
        return {"alone_sqnr_db": None, "alone_nonfinite": None, "gain": None}
    return {
        "alone_sqnr_db": worst_sqnr(outputs),
        "alone_nonfinite": sum(sensitivity.errors.new_nonfinite for sensitivity in outputs.values()),
        "gain": relative_gain(outputs),
    }


def _by_itself_columns(layer: Layer, each: EachLayer | None) -> Row:
    """The outputs with the layer alone in the precision, and alone in float32; empty where that was not measured."""
    parts = {"one_on": each.one_on if each else {}, "one_off": each.one_off if each else {}}
    found: dict[str, Any] = {}
    for prefix, figures in parts.items():
        own = figures.get(layer.name)
        found |= {
            f"{prefix}_sqnr_db": own.sqnr if own else None,
            f"{prefix}_metric": own.metric if own else None,
            f"{prefix}_nonfinite": own.nonfinite if own else None,
        }
    measured = any(layer.name in figures for figures in parts.values())
    return {**found, "each_samples": each.samples if each and measured else None}


def layer_errors(layer: Layer, errors: Mapping[str, ErrorSums]) -> ErrorSums | None:
    """The statistics of all outputs of a layer together; None where none was measured.

    Of what is inside its bodies the largest values and the NaN and Inf.
    """
    parts = [errors[name] for name in layer.outputs if name in errors]
    parts += [errors[name].extremes for name in layer.inside if name in errors]
    return reduce(add, parts) if parts else None


def _error_columns(prefix: str, errors: ErrorSums | None) -> Row:
    return {
        **{f"{prefix}_{metric.column}": metric.of(errors) if errors else None for metric in error_metrics()},
        f"{prefix}_nan": errors.nan if errors else None,
        f"{prefix}_inf": errors.inf if errors else None,
        f"{prefix}_underflow": errors.underflow if errors else None,
    }


def _spread_columns(prefix: str, layer: Layer, spreads: Mapping[str, Spread], names: SampleNames) -> Row:
    """How the layer's error lies over the samples: that of the output with the least median."""
    every = [spreads[name] for name in layer.outputs if name in spreads]
    spread = min(every, key=lambda s: s.median if s.median == s.median else -math.inf) if every else None
    figures = {f"{prefix}_{part}_db": getattr(spread, part) if spread else None for part in SPREAD_PARTS}
    return {**figures, f"{prefix}_worst": names.chosen[spread.worst] if spread else ""}
