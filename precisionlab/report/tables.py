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
| verdict | what is said of the variant (`search.verdict`); not known where the inputs were random unasked |
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
| cause_kinds | the same as words for programs, such as `first_nonfinite overflow` |
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
| inherited_sqnr_db, … | what its outputs have lost so far, without pins; empty of rows picked by value |
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
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from precisionlab.compare.metrics import SQNR, output_metrics
from precisionlab.report.cells import Row
from precisionlab.report.details import SPREAD_PARTS
from precisionlab.report.layer_rows import layer_rows
from precisionlab.report.variant_rows import engines_of, variant_rows

if TYPE_CHECKING:
    from precisionlab.results import SampleNames, SweepResult
    from precisionlab.search.outcome import Variant

_FIGURES = (
    *("ref_max", "metric", "metric_error"),
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
    "cause_kinds",
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
        if not (one.errors is not None and one.errors.judges_nothing) and (figures := one.figures(SQNR).values())
    ]


def least(values: Iterable[float]) -> float:
    """The least of some figures; NaN if one is."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else min(found)


def _table(rows: Sequence[Row], counts: Sequence[str]) -> pd.DataFrame:
    ends = (*_FIGURES, *_ENGINE, *(metric.column for metric in output_metrics()))
    figures = [name for name in rows[0] if name.endswith(ends)]
    types = {**dict.fromkeys(figures, "float64"), **dict.fromkeys(counts, "Int64")}
    table: pd.DataFrame = pd.DataFrame(rows).astype(types)
    return table
