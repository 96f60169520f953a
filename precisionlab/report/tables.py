"""The tables of a run, with stable columns.

`variants.csv`, a row for each variant and tensor that is judged, its parts behind it:

| column | meaning |
|---|---|
| variant | fp32, fp16, int8, …, or "<precision> mixed" with pins |
| precision | the plan's default precision |
| figures | emulated or measured: where the error figures come from |
| samples | how many samples they rest on: those that the pins were chosen on |
| held_out_samples | how many samples chose nothing; empty, as all held_out_ columns, where none was held out |
| pins, layers | pinned layers, of the layers that the precision touches |
| tolerance, met | what was asked, and whether this variant holds it, on the samples held out as well |
| verdict | what is said of the variant (`precisionlab.verdict`); not known where the inputs were random unasked |
| nonfinite_tensors | tensors on the way with a NaN or Inf that the reference does not have |
| held_out_nonfinite_tensors | the same on the samples held out |
| metric_name, metric, reference_metric | task metric of the variant and of the float32 reference |
| metric_error | standard error of the variant's over the samples; empty where they are too few |
| held_out_metric | the variant's on the samples held out |
| target | the device that costs are for |
| cost_us, cost_of_fp32 | what the plan costs on it, in microseconds and as a share of the fp32 variant's cost |
| cost_figures | estimated, measured or partly measured; an estimate compares plans and predicts no latency |
| latency_ms, latency_low_ms, latency_high_ms | an engine's time for one sample, measured: median, and its spread |
| engine_mb | of an engine: its size |
| weight_mb | what the plan's float weights take, each in the precision of the layers that hold it, in 10^6 bytes |
| output | the name of the final output, of a tensor within that is judged too, or of a part of one of these |
| part_of | for a part the tensor that it is of, else empty |
| role | why a tensor within is judged, or why a part is not; else empty |
| counts | whether bounds without a name are about it |
| worst_part | the part whose error the output's is; empty where it has no parts |
| sqnr_db, cosine, rel_l2, max_error | its error; empty for outputs that are not float32 |
| sqnr_low_db, sqnr_high_db | 95 % interval of its SQNR over samples; empty where they are too few, or it is NaN |
| nan, inf | its non-finite values |
| top1 | share of equal top-1, empty where it has no class axis |
| held_out_sqnr_db, held_out_cosine, held_out_rel_l2, held_out_max_error | its error on the samples held out |
| held_out_top1 | its equal top-1 there |

`layers.csv`, a row for each low precision and layer in topological order:

| column | meaning |
|---|---|
| precision, figures | the low precision, and where the error figures come from |
| index, layer, kind, nodes | place, name, operators and ONNX nodes of the layer |
| inputs | the `index` of each layer that this one takes from, as `3 7`; empty where it takes from none |
| runs_in | the precision that the layer has in the variant without pins |
| fixed | why it cannot be given a precision, else empty |
| rank | 1 is the worst; empty for layers that the precision does not touch |
| pinned, pinned_to, reason | whether the plan found pins it, to which precision (else empty), and why |
| released_figure | the tolerance's first figure with this pin alone released to `runs_in`: the pin's proof |
| released_nonfinite | tensors with a new NaN or Inf then; these two are empty where it was not released |
| cause | what breaks in it (overflow, a constant that vanishes, …) |
| shape, multiply_adds, weight_bytes | of its first output, at the first sample's shapes; float32 bytes |
| cost_us | what it costs on the target without pins, conversions before and after not counted; empty if unknown |
| cost_figures | estimated or measured; empty as cost_us |
| format | the number format that its outputs are held in without pins: of int8 layers that around them |
| ref_max, overflow | largest |x| of its outputs in the reference; values beyond the largest of `format` |
| alone_sqnr_db | what this layer's precision alone does to the worst final output, all others in float32 |
| alone_nonfinite | the new NaN and Inf in the final outputs by it |
| gain | final outputs' squared error, relative to the signal's, that should go if it is pinned: an estimate |
| introduced_sqnr_db, …_cosine, …_rel_l2, …_max_error | what the layer loses given the reference's inputs |
| introduced_nan, …_inf, …_vanished | the NaN, Inf, and values that became 0 in that |
| introduced_low_db, …_quarter_db, …_median_db, …_three_quarters_db, …_high_db | of single samples: least to greatest |
| introduced_worst | the name of the sample with the least SQNR |
| inherited_sqnr_db, … | what its outputs have lost so far, without pins |
| mixed_sqnr_db | the same under the plan found |
| engine_sqnr_db | the same in the engine that was taken, measured; empty where the layer could not be looked at |
| engine_types | what the layer's kernels give there, such as `fp16`; empty where the engine does not tell |
| engine_pin | what became of the layer's pin there: taken, swallowed, unknown, or not found |
| engine_ms | the layer's own time there, measured; empty where it runs in one kernel with others |

The last four are of real engines, run on a GPU or (types and pins) compiled for one, and empty where there is none.

`samples.csv`, a row for each variant without or with pins, tensor that is judged and sample:

| column | meaning |
|---|---|
| variant, output | as in `variants.csv` |
| held_out | whether the sample chose nothing |
| sample | its place among those that chose, or among those held out, from 0 |
| name | its name in the data |
| sqnr_db | its error on this sample, that of its worst part; empty where it is NaN, inf where there is no error |

A sample whose reference holds no number in an output has no row for it.

The fp32 variant, and outputs that are not float32, have no rows there.

In `layers.csv`, `alone_sqnr_db`, `alone_nonfinite` and `gain` rest on the samples where the precision is worst, and
are empty where no pin was searched for.

In the files, text that begins with one of `= + - @`, a tab, a line's end or an apostrophe has an apostrophe in front,
so that no spreadsheet takes a stranger's name for a formula; numbers have none (`precisionlab.report.csvfile`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import pandas as pd

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.confidence import interval
from precisionlab.compare.effects import Effect, worst_sqnr
from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.spread import Spread
from precisionlab.compare.tolerance import Bound
from precisionlab.model import Layer
from precisionlab.precision import Pin
from precisionlab.report.details import SPREAD_PARTS
from precisionlab.report.views import VERDICT
from precisionlab.rewrite.flow import format_of, precision_of
from precisionlab.search.certificate import Figures
from precisionlab.search.cost import LayerCost
from precisionlab.search.rank import relative_gain
from precisionlab.search.size import weight_bytes

if TYPE_CHECKING:
    from precisionlab.results import EngineVariant, PrecisionResult, SampleNames, SweepResult, Variant


Row = dict[str, Any]
"""Column → value. None stands for a figure that does not exist; a NaN was measured."""

_FIGURES = (
    *("sqnr_db", "cosine", "rel_l2", "max_error", "ref_max", "top1", "metric", "metric_error"),
    *("sqnr_low_db", "sqnr_high_db", "cost_us", "cost_of_fp32", "released_figure", "gain"),
    *(f"_{part}_db" for part in SPREAD_PARTS),
)
_SAMPLE_COLUMNS = ("variant", "output", "held_out", "sample", "name", "sqnr_db")
_ENGINE = ("latency_ms", "latency_low_ms", "latency_high_ms", "engine_mb", "engine_ms", "weight_mb")
PART_TEXTS = ("part_of", "role", "worst_part")
VARIANT_TEXTS = (
    *("variant", "precision", "figures", "tolerance", "metric_name", "target", "cost_figures", "output"),
    *PART_TEXTS,
)
LAYER_TEXTS = (
    *("precision", "figures", "layer", "kind", "nodes", "inputs", "runs_in", "fixed", "pinned_to", "reason", "cause"),
    *("shape", "format", "cost_figures", "engine_types", "engine_pin", "introduced_worst", "inherited_worst"),
)
"""Columns that hold text, whatever it looks like: a layer may be called `3`."""

VARIANT_COUNTS = ("held_out_samples", "held_out_nonfinite_tensors", "nan", "inf")
_ERROR_COUNTS = tuple(f"{kind}_{name}" for kind in ("introduced", "inherited") for name in ("nan", "inf", "vanished"))
LAYER_COUNTS = ("rank", "multiply_adds", "overflow", "released_nonfinite", "alone_nonfinite", *_ERROR_COUNTS)


def variants_table(result: SweepResult) -> pd.DataFrame:
    """The table of `variants.csv`. In float columns a figure that does not exist looks like a NaN."""
    return _table(variant_rows(result), VARIANT_COUNTS)


def layers_table(result: SweepResult) -> pd.DataFrame:
    """The table of `layers.csv`, as `variants_table`."""
    return _table(layer_rows(result), LAYER_COUNTS)


def samples_table(result: SweepResult) -> pd.DataFrame:
    """The table of `samples.csv`; it has its columns where it has no row."""
    rows: pd.DataFrame = pd.DataFrame(sample_rows(result), columns=list(_SAMPLE_COLUMNS))
    rows["sqnr_db"] = rows["sqnr_db"].astype("float64")
    return rows


def sample_rows(result: SweepResult) -> list[Row]:
    """The rows of `samples.csv`."""
    rows = []
    for found in result.precisions:
        variants = [found.low] if found.mixed is found.low else [found.low, found.mixed]
        for variant in [*variants, *(engine.variant for engine in engines_of(found))]:
            rows += _rows_of_samples(variant, result.samples)
    return rows


def _rows_of_samples(variant: Variant, names: SampleNames) -> list[Row]:
    parts = [(False, names.chosen, variant.comparison)]
    parts += [(True, names.held_out, variant.held_out)] if variant.held_out else []
    return [
        {
            "variant": variant.name,
            "output": output,
            "held_out": held,
            "sample": number,
            "name": name,
            "sqnr_db": least(figures),
        }
        for output in variant.comparison.outputs
        for held, called, comparison in parts
        for number, (name, one) in enumerate(zip(called, comparison.each.get(output, ()), strict=False))
        if not (one.errors is not None and one.errors.judges_nothing) and (figures := one.figures("sqnr").values())
    ]


def _table(rows: Sequence[Row], counts: Sequence[str]) -> pd.DataFrame:
    figures = [name for name in rows[0] if name.endswith((*_FIGURES, *_ENGINE))]
    types = {**dict.fromkeys(figures, "float64"), **dict.fromkeys(counts, "Int64")}
    table: pd.DataFrame = pd.DataFrame(rows).astype(types)
    return table


UNSEEN = "nothing in it is large enough to be seen"


def variant_rows(result: SweepResult) -> list[Row]:
    """The rows of `variants.csv`."""
    rows = _rows_of(result, result.reference, None)
    if result.engine is not None:
        rows += _rows_of(result, result.engine.variant, None, result.engine)
    for found in result.precisions:
        for variant in [found.low] if found.mixed is found.low else [found.low, found.mixed]:
            rows += _rows_of(result, variant, found)
        for engine in engines_of(found):
            rows += _rows_of(result, engine.variant, found, engine)
    return rows


def engines_of(found: PrecisionResult) -> list[EngineVariant]:
    """The engines of one precision, each once: without pins, and with those that were taken."""
    if found.engine is None:
        return []
    low, mixed = found.engine.low, found.engine.mixed
    return [engine for engine in ([low] if mixed is low else [low, mixed]) if engine is not None]


def _rows_of(
    result: SweepResult, variant: Variant, found: PrecisionResult | None, engine: EngineVariant | None = None
) -> list[Row]:
    """A row for each output; `found` is None for float32's own."""
    comparison, held_out = variant.comparison, variant.held_out
    head = {
        "variant": variant.name,
        "precision": variant.plan.default.value,
        "figures": variant.figures,
        "samples": comparison.samples,
        "held_out_samples": held_out.samples if held_out else None,
        "pins": len(variant.plan.pins),
        "layers": len(found.ranked) if found else 0,
        "tolerance": ", ".join(map(str, variant.tolerance)),
        "met": variant.met,
        VERDICT: str(found.mark_of(variant) if found else variant.mark(result.terms)),
        "nonfinite_tensors": len(comparison.nonfinite),
        "held_out_nonfinite_tensors": len(held_out.nonfinite) if held_out else None,
        "metric_name": comparison.metric_name,
        "metric": comparison.metric,
        "reference_metric": comparison.reference_metric,
        "metric_error": comparison.metric_error,
        "held_out_metric": held_out.metric if held_out else None,
        **_cost_columns(variant, result.reference),
        "latency_ms": engine.latency.median if engine else None,
        "latency_low_ms": engine.latency.low if engine else None,
        "latency_high_ms": engine.latency.high if engine else None,
        "engine_mb": engine.inside.built.size / 1e6 if engine else None,
        "weight_mb": weight_bytes(result.model, variant.plan) / 1e6,
    }
    rows = []
    for name, errors in comparison.outputs.items():
        rows.append({**head, **_output_columns(name, comparison, held_out)})
        rows += [{**head, **_part_columns(name, part, comparison, held_out)} for part in errors.parts]
    return rows


def _cost_columns(variant: Variant, reference: Variant) -> Row:
    cost = variant.cost
    fp32 = reference.cost.seconds if reference.cost else 0.0
    return {
        "target": cost.device if cost else "",
        "cost_us": cost.seconds * 1e6 if cost else None,
        "cost_of_fp32": cost.seconds / fp32 if cost and fp32 else None,
        "cost_figures": cost.figures if cost else "",
    }


def _output_columns(name: str, comparison: Comparison, held_out: Comparison | None) -> Row:
    """The figures of a tensor that is judged: those of its worst part, where it has parts."""
    found = comparison.outputs[name]
    e, top1, held = found.errors, found.top1, held_out.outputs.get(name) if held_out else None
    worst_part, _ = comparison.worst_of("sqnr", name)
    return {
        "output": name,
        "part_of": "",
        "role": found.role,
        "counts": found.counts,
        "worst_part": worst_part if worst_part != name else "",
        **_figure_columns("", name, comparison),
        **_interval_columns(name, comparison),
        "nan": e.nan if e else None,
        "inf": e.inf if e else None,
        "top1": top1.share if top1.total else None,
        **_figure_columns("held_out_", name, held_out),
        "held_out_top1": held.top1.share if held and held.top1.total else None,
    }


def _part_columns(output: str, name: str, comparison: Comparison, held_out: Comparison | None) -> Row:
    """The figures of a part of an output; it has no NaN and Inf, and no top-1, beside the output's."""
    found = comparison.outputs[output]
    is_seen = name in found.judged or not found.parts[name].counts
    return {
        "output": name,
        "part_of": output,
        "role": "" if is_seen else UNSEEN,
        "counts": found.counts and name in found.judged,
        "worst_part": "",
        **_figure_columns("", name, comparison),
        **_interval_columns(name, comparison),
        "nan": found.parts[name].errors.nan,
        "inf": found.parts[name].errors.inf,
        "top1": None,
        **_figure_columns("held_out_", name, held_out),
        "held_out_top1": None,
    }


def _figure_columns(prefix: str, name: str, comparison: Comparison | None) -> Row:
    columns = {"sqnr_db": "sqnr", "cosine": "cosine", "rel_l2": "rel_l2", "max_error": "max_error"}
    return {
        prefix + column: comparison.worst(metric, name) if comparison and comparison.figures(metric, name) else None
        for column, metric in columns.items()
    }


def _interval_columns(name: str, comparison: Comparison) -> Row:
    ends = interval(comparison, Bound("sqnr", True, 0.0, name))
    return {"sqnr_low_db": ends.low if ends else None, "sqnr_high_db": ends.high if ends else None}


def least(values: Iterable[float]) -> float:
    """The least of some figures; NaN if one is."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else min(found)


def layer_rows(result: SweepResult) -> list[Row]:
    """The rows of `layers.csv`."""
    rows = []
    sources = layer_inputs(result.model.layers)
    for found in result.precisions:
        known = _Known.of(found)
        rows += [
            _layer_row(result, found, known, index, layer, " ".join(map(str, sources[index])))
            for index, layer in enumerate(result.model.layers)
        ]
    return rows


def layer_inputs(layers: Sequence[Layer]) -> list[list[int]]:
    """For each layer, the places of those that it takes from, in rising order."""
    source = {tensor: index for index, layer in enumerate(layers) for tensor in layer.outputs}
    return [
        sorted({source[tensor] for tensor in layer.inputs if tensor in source} - {index})
        for index, layer in enumerate(layers)
    ]


@dataclass(frozen=True)
class _Known:
    """What the result of one precision says of its layers, by name."""

    rank: Mapping[str, int]
    pins: Mapping[str, Pin]
    releases: Mapping[str, Figures]
    costs: Mapping[str, LayerCost]

    @classmethod
    def of(cls, found: PrecisionResult) -> _Known:
        return cls(
            {name: place for place, name in enumerate(found.ranked, 1)},
            {pin.layer: pin for pin in found.plan.pins},
            {r.layer: r.figures for r in found.certificate.releases} if found.certificate else {},
            {cost.layer: cost for cost in found.low.cost.layers} if found.low.cost else {},
        )


def _layer_row(
    result: SweepResult, found: PrecisionResult, known: _Known, index: int, layer: Layer, inputs: str
) -> Row:
    pin, released, cost = known.pins.get(layer.name), known.releases.get(layer.name), known.costs.get(layer.name)
    inherited = layer_errors(layer, found.low.comparison.inherited)
    mixed = layer_errors(layer, found.mixed.comparison.inherited)
    shape = result.model.tensors[layer.outputs[0]].shape if layer.outputs else None
    return {
        "precision": found.precision.value,
        "figures": found.low.figures,
        "index": index,
        "layer": layer.name,
        "kind": layer.kind,
        "nodes": " + ".join(layer.nodes),
        "inputs": inputs,
        "runs_in": precision_of(layer, found.low.plan).value,
        "fixed": layer.fixed or "",
        "rank": known.rank.get(layer.name),
        "pinned": pin is not None,
        "pinned_to": pin.precision.value if pin else "",
        "reason": pin.reason if pin else "",
        "released_figure": next(iter(released.values.values()), None) if released else None,
        "released_nonfinite": released.nonfinite if released else None,
        "cause": found.causes.get(layer.name, ""),
        "shape": "×".join("?" if dim is None else str(dim) for dim in shape) if shape is not None else "",
        "multiply_adds": layer.multiply_adds,
        "weight_bytes": layer.weight_bytes,
        "cost_us": cost.seconds * 1e6 if cost else None,
        "cost_figures": "" if cost is None else "measured" if cost.bound == "measured" else "estimated",
        "format": format_of(layer, found.low.plan).title.lower(),
        "ref_max": inherited.max_ref if inherited else None,
        "overflow": inherited.overflow if inherited else None,
        **_effect_columns(found.effects.get(layer.name)),
        **_error_columns("introduced", layer_errors(layer, found.low.comparison.introduced)),
        **_spread_columns("introduced", layer, found.low.comparison.spreads.introduced, result.samples),
        **_error_columns("inherited", inherited),
        **_spread_columns("inherited", layer, found.low.comparison.spreads.inherited, result.samples),
        "mixed_sqnr_db": mixed.sqnr if mixed else None,
        **_engine_columns(layer, found),
    }


def _engine_columns(layer: Layer, found: PrecisionResult) -> Row:
    """What the engine of the plan found is to the layer, and what was measured of it there."""
    inside, engine = found.inside, found.engine.mixed if found.engine else None
    errors = layer_errors(layer, engine.variant.comparison.inherited) if engine else None
    pins = inside.pins if inside else ()
    return {
        "engine_sqnr_db": errors.sqnr if errors else None,
        "engine_types": " ".join(inside.got.get(layer.name, ())) if inside else "",
        "engine_pin": next((pin.verdict for pin in pins if pin.layer == layer.name), ""),
        "engine_ms": engine.times.get(layer.name) if engine else None,
    }


def _effect_columns(outputs: Mapping[str, Effect] | None) -> Row:
    """What the layer alone does to the final outputs; all empty where that was not measured."""
    if outputs is None:
        return {"alone_sqnr_db": None, "alone_nonfinite": None, "gain": None}
    return {
        "alone_sqnr_db": worst_sqnr(outputs),
        "alone_nonfinite": sum(effect.errors.new_nonfinite for effect in outputs.values()),
        "gain": relative_gain(outputs),
    }


def layer_errors(layer: Layer, errors: Mapping[str, ErrorSums]) -> ErrorSums | None:
    """The statistics of all outputs of a layer together; None where none was measured.

    Of what is inside its bodies the largest values and the NaN and Inf.
    """
    found = [errors[name] for name in layer.outputs if name in errors]
    found += [errors[name].extremes for name in layer.inside if name in errors]
    return reduce(add, found) if found else None


def _error_columns(prefix: str, errors: ErrorSums | None) -> Row:
    return {
        f"{prefix}_sqnr_db": errors.sqnr if errors else None,
        f"{prefix}_cosine": errors.cosine if errors else None,
        f"{prefix}_rel_l2": errors.rel_l2 if errors else None,
        f"{prefix}_max_error": errors.max_error if errors else None,
        f"{prefix}_nan": errors.nan if errors else None,
        f"{prefix}_inf": errors.inf if errors else None,
        f"{prefix}_vanished": errors.vanished if errors else None,
    }


def _spread_columns(prefix: str, layer: Layer, spreads: Mapping[str, Spread], names: SampleNames) -> Row:
    """How the layer's error lies over the samples: that of the output with the least median."""
    found = [spreads[name] for name in layer.outputs if name in spreads]
    spread = min(found, key=lambda s: s.median if s.median == s.median else -math.inf) if found else None
    figures = {f"{prefix}_{part}_db": getattr(spread, part) if spread else None for part in SPREAD_PARTS}
    return {**figures, f"{prefix}_worst": names.chosen[spread.worst] if spread else ""}
