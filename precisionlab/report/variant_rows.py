"""The rows of `variants.csv`: each variant and engine, each tensor that is judged, and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.confidence import interval
from precisionlab.compare.metrics import SQNR, AgreementMetric, agreement_metrics, error_metrics, tabled_metrics
from precisionlab.compare.output import OutputErrors
from precisionlab.compare.tolerance import Bound
from precisionlab.report.cells import Row
from precisionlab.report.views import VERDICT
from precisionlab.search.alternatives import Alternative, AlternativeKind
from precisionlab.search.size import weight_bytes
from precisionlab.search.verdict import Mark, State

if TYPE_CHECKING:
    from precisionlab.results.sweep import SweepFindings
    from precisionlab.search.outcome import EngineVariant, PrecisionResult, Variant

UNSEEN = "nothing in it is large enough to be seen"


def variant_rows(result: SweepFindings) -> list[Row]:
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
    result: SweepFindings, variant: Variant, found: PrecisionResult | None, engine: EngineVariant | None = None
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
        "repairs": len(variant.plan.repairs),
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
        **{m.column: m.of(comparison) for m in tabled_metrics()},
        **{f"held_out_{m.column}": m.of(held_out) if held_out else None for m in tabled_metrics()},
        **_verdicts_under_others(variant),
        "held_out_metric": held_out.metric if held_out else None,
        **_cost_columns(variant, result.reference),
        "latency_ms": engine.latency.median if engine else None,
        "latency_low_ms": engine.latency.low if engine else None,
        "latency_high_ms": engine.latency.high if engine else None,
        "engine_mb": engine.inside.built.size / 1e6 if engine else None,
        "weight_mb": weight_bytes(result.model, variant.plan) / 1e6,
    }
    rows: list[Row] = []
    for name, errors in comparison.outputs.items():
        rows.append(
            {**head, **_output_columns(name, comparison, held_out), **_under_others(variant.alternatives, name)}
        )
        parts = [_part_columns(name, part, comparison, held_out) for part in errors.parts]
        rows += [{**head, **part, **_under_others((), name)} for part in parts]
    return rows


def _verdicts_under_others(variant: Variant) -> Row:
    """Whether it is right under each alternative."""
    found = {other.kind: str(Mark(State.MET if other.met else State.NOT_MET)) for other in variant.alternatives}
    return {f"{kind.value}_verdict": found.get(kind, "") for kind in AlternativeKind}


def _under_others(others: Sequence[Alternative], name: str) -> Row:
    """An output's SQNR under each alternative."""
    found = {other.kind: other.comparison.worst(SQNR, name) for other in others}
    return {f"{kind.value}_{SQNR}_db": found.get(kind) for kind in AlternativeKind}


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
    e, held = found.errors, held_out.outputs.get(name) if held_out else None
    worst_part, _ = comparison.worst_of(SQNR, name)
    return {
        "output": name,
        "part_of": "",
        "role": found.role,
        "counts": found.counts,
        "worst_part": worst_part if worst_part != name else "",
        **_figure_columns("", name, comparison),
        **_interval_columns("", name, comparison),
        "nan": e.nan if e else None,
        "inf": e.inf if e else None,
        **{metric.column: _agreement(metric, found) for metric in agreement_metrics()},
        **_figure_columns("held_out_", name, held_out),
        **_interval_columns("held_out_", name, held_out),
        **{f"held_out_{metric.column}": _agreement(metric, held) for metric in agreement_metrics()},
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
        **_interval_columns("", name, comparison),
        "nan": found.parts[name].errors.nan,
        "inf": found.parts[name].errors.inf,
        **{metric.column: None for metric in agreement_metrics()},
        **_figure_columns("held_out_", name, held_out),
        **_interval_columns("held_out_", name, held_out),
        **{f"held_out_{metric.column}": None for metric in agreement_metrics()},
    }


def _figure_columns(prefix: str, name: str, comparison: Comparison | None) -> Row:
    return {
        prefix + m.column: comparison.worst(m.name, name) if comparison and comparison.figures(m.name, name) else None
        for m in error_metrics()
    }


def _agreement(metric: AgreementMetric, errors: OutputErrors | None) -> float | None:
    return metric.of(errors.top1) if errors and errors.top1.total else None


def _interval_columns(prefix: str, name: str, comparison: Comparison | None) -> Row:
    ends = interval(comparison, Bound(SQNR, True, 0.0, name)) if comparison is not None else None
    return {
        f"{prefix}{SQNR}_low_db": ends.low if ends else None,
        f"{prefix}{SQNR}_high_db": ends.high if ends else None,
    }
