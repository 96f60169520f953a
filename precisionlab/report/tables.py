"""The two tables of a run, with stable columns.

`variants.csv`, a row for each variant and final output:

| column | meaning |
|---|---|
| variant | fp32, fp16, int8, …, or "<precision> mixed" with pins |
| precision | the plan's default precision |
| figures | emulated or measured: where the error figures come from |
| samples | how many samples they rest on |
| pins, layers | pinned layers, of the layers that the precision touches |
| tolerance, met | what was asked, and whether this variant holds it |
| nonfinite_tensors | tensors on the way with a NaN or Inf that the reference does not have |
| metric_name, metric, reference_metric | task metric of the variant and of the float32 reference |
| output | the final output's name |
| sqnr_db, cosine, rel_l2, max_error | its error; empty for outputs that are not float32 |
| nan, inf | its non-finite values |
| top1 | share of equal top-1, empty where it has no class axis |

`layers.csv`, a row for each low precision and layer in topological order:

| column | meaning |
|---|---|
| precision, figures | the low precision, and where the error figures come from |
| index, layer, kind, nodes | place, name, operators and ONNX nodes of the layer |
| runs_in | the precision that the layer has in the variant without pins |
| fixed | why it cannot be given a precision, else empty |
| rank | 1 is the worst; empty for layers that the precision does not touch |
| pinned, reason | whether the plan found pins it to float32, and why |
| cause | what breaks in it (overflow, a constant that vanishes, …) |
| shape, multiply_adds, weight_bytes | of its first output, at the first sample's shapes; float32 bytes |
| ref_max, overflow | largest |x| of its outputs in the reference; values beyond 65504, float16's largest |
| introduced_sqnr_db, …_cosine, …_rel_l2, …_max_error | what the layer loses given the reference's inputs |
| introduced_nan, …_inf, …_vanished | the NaN, Inf, and values that became 0 in that |
| inherited_sqnr_db, … | what its outputs have lost so far, without pins |
| mixed_sqnr_db | the same under the plan found |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import pandas as pd

from precisionlab.compare.errors import ErrorSums
from precisionlab.model import Layer
from precisionlab.rewrite.flow import precision_of

if TYPE_CHECKING:
    from precisionlab.results import PrecisionResult, SweepResult, Variant


Row = dict[str, Any]
"""Column → value. None stands for a figure that does not exist; a NaN was measured."""

_FIGURES = ("sqnr_db", "cosine", "rel_l2", "max_error", "ref_max", "top1", "metric")
_VARIANT_COUNTS = ("nan", "inf")
_ERROR_COUNTS = tuple(f"{kind}_{name}" for kind in ("introduced", "inherited") for name in ("nan", "inf", "vanished"))
_LAYER_COUNTS = ("rank", "multiply_adds", "overflow", *_ERROR_COUNTS)


def variants_table(result: SweepResult) -> pd.DataFrame:
    """The table of `variants.csv`. In float columns a figure that does not exist looks like a NaN."""
    return _table(variant_rows(result), _VARIANT_COUNTS)


def layers_table(result: SweepResult) -> pd.DataFrame:
    """The table of `layers.csv`, as `variants_table`."""
    return _table(layer_rows(result), _LAYER_COUNTS)


def _table(rows: Sequence[Row], counts: Sequence[str]) -> pd.DataFrame:
    figures = [name for name in rows[0] if name.endswith(_FIGURES)]
    types = {**dict.fromkeys(figures, "float64"), **dict.fromkeys(counts, "Int64")}
    table: pd.DataFrame = pd.DataFrame(rows).astype(types)
    return table


def variant_rows(result: SweepResult) -> list[Row]:
    """The rows of `variants.csv`."""
    variants = [result.reference]
    touched = [0]
    for found in result.precisions:
        variants += [found.low] if found.mixed is found.low else [found.low, found.mixed]
        touched += [len(found.ranked)] * (len(variants) - len(touched))
    return [row for v, n in zip(variants, touched, strict=True) for row in _rows_of(v, n)]


def _rows_of(variant: Variant, layers: int) -> list[Row]:
    comparison = variant.comparison
    head = {
        "variant": variant.name,
        "precision": variant.plan.default.value,
        "figures": variant.figures,
        "samples": comparison.samples,
        "pins": len(variant.plan.pins),
        "layers": layers,
        "tolerance": ", ".join(map(str, variant.tolerance)),
        "met": variant.met,
        "nonfinite_tensors": len(comparison.nonfinite),
        "metric_name": comparison.metric_name,
        "metric": comparison.metric,
        "reference_metric": comparison.reference_metric,
    }
    rows = []
    for name, output in comparison.outputs.items():
        e = output.errors
        rows.append(
            {
                **head,
                "output": name,
                "sqnr_db": e.sqnr if e else None,
                "cosine": e.cosine if e else None,
                "rel_l2": e.rel_l2 if e else None,
                "max_error": e.max_error if e else None,
                "nan": e.nan if e else None,
                "inf": e.inf if e else None,
                "top1": output.top1.share if output.top1.total else None,
            }
        )
    return rows


def layer_rows(result: SweepResult) -> list[Row]:
    """The rows of `layers.csv`."""
    return [
        _layer_row(result, found, index, layer)
        for found in result.precisions
        for index, layer in enumerate(result.model.layers)
    ]


def _layer_row(result: SweepResult, found: PrecisionResult, index: int, layer: Layer) -> Row:
    pins = {pin.layer: pin.reason for pin in found.mixed.plan.pins}
    rank = {name: place for place, name in enumerate(found.ranked, 1)}
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
        "runs_in": precision_of(layer, found.low.plan).value,
        "fixed": layer.fixed or "",
        "rank": rank.get(layer.name),
        "pinned": layer.name in pins,
        "reason": pins.get(layer.name, ""),
        "cause": found.causes.get(layer.name, ""),
        "shape": "×".join("?" if dim is None else str(dim) for dim in shape) if shape is not None else "",
        "multiply_adds": layer.multiply_adds,
        "weight_bytes": layer.weight_bytes,
        "ref_max": inherited.max_ref if inherited else None,
        "overflow": inherited.overflow if inherited else None,
        **_error_columns("introduced", layer_errors(layer, found.low.comparison.introduced)),
        **_error_columns("inherited", inherited),
        "mixed_sqnr_db": mixed.sqnr if mixed else None,
    }


def layer_errors(layer: Layer, errors: Mapping[str, ErrorSums]) -> ErrorSums | None:
    """The statistics of all outputs of a layer together; None where none was measured."""
    found = [errors[name] for name in layer.outputs if name in errors]
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
