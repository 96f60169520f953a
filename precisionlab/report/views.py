"""Variants, layers and pins as the report shows them, made from the tables' rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from precisionlab.compare.metrics import SQNR, ErrorMetric, Scope, output_metrics, tabled_metrics
from precisionlab.compare.tolerance import Bound
from precisionlab.plan.plan import Pin
from precisionlab.precision import Format
from precisionlab.report.cells import Row, as_flag, as_format, as_number, as_text, is_absent
from precisionlab.report.repair_views import repair_title
from precisionlab.search.alternatives import AlternativeKind
from precisionlab.search.verdict import Mark, State

VERDICT = "verdict"
"""The column of `variants.csv` with what is said of a variant; runs of older versions lack it."""

# Variants


@dataclass(frozen=True)
class ErrorFigures:
    """How far an output, or the worst of all, is from the reference's, by the name of the metric."""

    figures: Mapping[str, float | None]

    def of(self, metric: str) -> float | None:
        """The figure of a metric of outputs; None where it was not taken."""
        return self.figures.get(metric)

    @property
    def sqnr(self) -> float | None:
        """The headline."""
        return self.of(SQNR)


@dataclass(frozen=True)
class IntervalFigures(ErrorFigures):
    """The same with the ends of the SQNR's interval over samples; None where there is none."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class OutputFigures(IntervalFigures):
    """What one output of a variant has lost, or the worst of all its outputs.

    `held_out` is the same on the samples that chose nothing. `part_of`, `role`, `counts` and `worst_part` are those of
    `variants.csv`; the worst of all has as `worst_part` the name of the output or part that it is.
    """

    name: str
    nan: float | None
    inf: float | None
    held_out: IntervalFigures
    part_of: str = ""
    role: str = ""
    counts: bool = True
    worst_part: str = ""


@dataclass(frozen=True)
class AlternativeView:
    """The worst output's SQNR where kernels do something else, and what is said of the variant there."""

    sqnr: float | None
    mark: Mark


@dataclass(frozen=True)
class VariantView:
    """One variant: its worst figures, and those of each output."""

    name: str
    reference: bool
    figures: str
    pins: float | None
    repairs: float | None
    layers: float | None
    met: bool
    mark: Mark
    nonfinite_tensors: float | None
    held_out_nonfinite: float | None
    metric: float | None
    metric_error: float | None
    held_out_metric: float | None
    reference_metric: float | None
    cost: float | None
    cost_figures: str
    weight_mb: float | None
    latency: float | None
    engine_mb: float | None
    worst: OutputFigures
    outputs: tuple[OutputFigures, ...]
    tabled: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    alternatives: Mapping[AlternativeKind, AlternativeView] = field(default_factory=dict)

    def run(self, metric: str) -> tuple[float | None, float | None]:
        """The figure of a metric of the task or the network, and that on the samples held out."""
        own = {
            "metric": (self.metric, self.held_out_metric),
            "nonfinite": (self.nonfinite_tensors, self.held_out_nonfinite),
        }
        return own.get(metric) or self.tabled.get(metric, (None, None))

    def of(self, bound: Bound) -> tuple[float | None, float | None]:
        """The figure that a bound is about, on the samples that chose and on those held out; None where it has none."""
        if bound.of_metric.scope is not Scope.OUTPUT:
            return self.run(bound.metric)
        one = self.worst if bound.output is None else next((o for o in self.outputs if o.name == bound.output), None)
        return (one.of(bound.metric), one.held_out.of(bound.metric)) if one else (None, None)


def _tabled(head: Row) -> dict[str, tuple[float | None, float | None]]:
    """The figures of metrics that no other column tells more of; runs from before such a metric lack them."""
    columns = {m.name: m.column for m in tabled_metrics() if m.column in head}
    # A figure that was taken stands in every row; an empty cell is a NaN.
    return {
        name: (as_number(head, column, "samples"), as_number(head, f"held_out_{column}", "held_out_samples"))
        for name, column in columns.items()
    }


def variant_view(rows: Sequence[Row]) -> VariantView:
    """One variant from its rows, one for each output."""
    head = rows[0]
    outputs = tuple(map(_output, rows))
    # A metric that was taken has a name, whatever its value.
    named = None if not as_text(head, "metric_name") else "held_out_samples"
    return VariantView(
        name=str(head["variant"]),
        reference=head["precision"] == "fp32" == head["variant"],
        figures=as_text(head, "figures"),
        pins=as_number(head, "pins"),
        repairs=_optional(head, "repairs"),
        layers=as_number(head, "layers"),
        met=as_flag(head, "met"),
        mark=_mark(head),
        nonfinite_tensors=as_number(head, "nonfinite_tensors"),
        held_out_nonfinite=as_number(head, "held_out_nonfinite_tensors"),
        metric=as_number(head, "metric", "metric_name"),
        metric_error=as_number(head, "metric_error"),
        held_out_metric=as_number(head, "held_out_metric", named),
        reference_metric=as_number(head, "reference_metric", "metric_name"),
        cost=as_number(head, "cost_of_fp32"),
        cost_figures=as_text(head, "cost_figures"),
        weight_mb=_optional(head, "weight_mb"),
        latency=_optional(head, "latency_ms"),
        engine_mb=_optional(head, "engine_mb"),
        worst=_worst(outputs),
        outputs=outputs,
        tabled=_tabled(head),
        alternatives=_alternatives(rows, outputs),
    )


def _alternatives(rows: Sequence[Row], outputs: Sequence[OutputFigures]) -> dict[AlternativeKind, AlternativeView]:
    """What was measured under other kernels; runs of older versions hold nothing of it."""
    found = {}
    judged = [row for row, o in zip(rows, outputs, strict=True) if o.counts and not o.part_of and o.nan is not None]
    for kind in AlternativeKind:
        verdict = f"{kind.value}_verdict"
        if said := _text(rows[0], verdict):
            sqnr = _chosen((as_number(row, f"{kind.value}_{SQNR}_db", verdict) for row in judged), min)
            found[kind] = AlternativeView(sqnr, Mark.parse(said))
    return found


def _mark(row: Row) -> Mark:
    """What is said of the variant; runs of older versions say no more than whether its figures hold."""
    said = as_text(row, VERDICT) if VERDICT in row else ""
    return Mark.parse(said) if said else Mark(State.MET if as_flag(row, "met") else State.NOT_MET)


def _optional(row: Row, column: str) -> float | None:
    """A figure whose column runs of older versions lack."""
    return as_number(row, column) if column in row else None


def is_part(row: Row) -> bool:
    """Whether a row of `variants.csv` is that of a part."""
    return bool(_text(row, "part_of"))


def _text(row: Row, column: str) -> str:
    """A word whose column runs of older versions lack."""
    return as_text(row, column) if column in row else ""


def _output(row: Row) -> OutputFigures:
    # What is no float32 has no errors, held out or not.
    held = None if as_number(row, "nan") is None else "held_out_samples"
    return OutputFigures(
        name=str(row["output"]),
        figures=_figures(row, "", "nan"),
        nan=as_number(row, "nan"),
        inf=as_number(row, "inf"),
        low=as_number(row, "sqnr_low_db"),
        high=as_number(row, "sqnr_high_db"),
        held_out=IntervalFigures(_figures(row, "held_out_", held), *_held_out_ends(row)),
        part_of=_text(row, "part_of"),
        role=_text(row, "role"),
        counts=as_flag(row, "counts") if "counts" in row else True,
        worst_part=_text(row, "worst_part"),
    )


def _figures(row: Row, prefix: str, counted: str | None) -> dict[str, float | None]:
    """The metrics of an output by name; `counted` is the column that is empty where it has no errors."""
    columns = {metric: prefix + metric.column for metric in output_metrics()}
    return {
        metric.name: as_number(row, column, counted if isinstance(metric, ErrorMetric) else None)
        for metric, column in columns.items()
        if column in row
    }


def _worst(every: Sequence[OutputFigures]) -> OutputFigures:
    outputs = [o for o in every if o.counts and not o.part_of]
    worst = _worst_errors(outputs)
    least = next((o for o in outputs if o.sqnr is not None and o.sqnr == worst.sqnr), None)
    return OutputFigures(
        name="worst output",
        figures=worst.figures,
        nan=_chosen((o.nan for o in outputs), sum),
        inf=_chosen((o.inf for o in outputs), sum),
        low=worst.low,
        high=worst.high,
        held_out=_worst_errors([o.held_out for o in outputs]),
        worst_part=(least.worst_part or least.name) if least and len(every) > 1 else "",
    )


def _worst_errors(errors: Sequence[IntervalFigures]) -> IntervalFigures:
    """The worst of each figure; the interval is that of the output with the least SQNR."""
    figures = {
        m.name: _chosen((e.of(m.name) for e in errors), min if m.higher_is_better else max) for m in output_metrics()
    }
    least = next((e for e in errors if e.sqnr is not None and e.sqnr == figures[SQNR]), None)
    return IntervalFigures(figures, least.low if least else None, least.high if least else None)


def _held_out_ends(row: Row) -> tuple[float | None, float | None]:
    return _optional(row, f"held_out_{SQNR}_low_db"), _optional(row, f"held_out_{SQNR}_high_db")


def _chosen(values: Iterable[float | None], choose: Callable[[Iterable[float]], float]) -> float | None:
    """One of those that there are; NaN where one of them is."""
    found = [value for value in values if value is not None]
    if any(map(math.isnan, found)):
        return math.nan
    return choose(found) if found else None


# Layers and pins


@dataclass(frozen=True)
class LayerView:
    """One row of the layer table; `repairs` are those that the plan found has for it, in words.

    `share` is its share of the final outputs' error, NaN where it alone breaks one; None where it was not measured.
    """

    index: float | None
    rank: float | None
    layer: str
    kind: str
    shape: str
    runs_in: str
    alone: float | None
    share: float | None
    introduced: float | None
    max_error: float | None
    nonfinite: float | None
    inherited: float | None
    inherited_nonfinite: float | None
    mixed: float | None
    ref_max: float | None
    running_sum: float | None
    held_in: Format
    cause: str
    cause_kinds: frozenset[str]
    fixed: str
    pinned: bool
    pinned_to: str
    reason: str
    released: float | None
    released_nonfinite: float | None
    repairs: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether the reference goes beyond the largest value of what the outputs are held in."""
        return self.ref_max is not None and self.ref_max > self.held_in.largest

    @property
    def stays_broken(self) -> bool:
        """Whether its outputs hold NaN or Inf under the plan found too, without a pin."""
        if self.pinned or not self.inherited_nonfinite or self.mixed is None:
            return False
        return math.isnan(self.mixed) or self.mixed == -math.inf

    @property
    def measured(self) -> bool:
        """Whether any of its errors is known."""
        return any(figure is not None for figure in (self.introduced, self.inherited, self.mixed))


@dataclass(frozen=True)
class PinView:
    """One pinned layer, what it loses in the low precision, and what releasing it alone did."""

    layer: str
    nodes: tuple[str, ...]
    precision: str
    reason: str
    measured: LayerView | None


def _share(row: Row) -> float | None:
    """The share of the output error; NaN where the layer was measured alone, in either way, and breaks one."""
    counted = "alone_nonfinite"
    if is_absent(row[counted]) and "one_on_nonfinite" in row:
        counted = "one_on_nonfinite"
    return as_number(row, "output_share", counted)


def layer_view(row: Row) -> LayerView:
    """One layer from its row."""
    nan, inf = as_number(row, "introduced_nan"), as_number(row, "introduced_inf")
    nan_so_far, inf_so_far = as_number(row, "inherited_nan"), as_number(row, "inherited_inf")
    return LayerView(
        index=as_number(row, "index"),
        rank=as_number(row, "rank"),
        layer=str(row["layer"]),
        kind=as_text(row, "kind"),
        shape=as_text(row, "shape"),
        runs_in=as_text(row, "runs_in"),
        alone=as_number(row, "alone_sqnr_db", "alone_nonfinite"),
        share=_share(row) if "output_share" in row else None,
        introduced=as_number(row, "introduced_sqnr_db", "introduced_nan"),
        max_error=as_number(row, "introduced_max_error", "introduced_nan"),
        nonfinite=None if nan is None or inf is None else nan + inf,
        inherited=as_number(row, "inherited_sqnr_db", "inherited_nan"),
        inherited_nonfinite=None if nan_so_far is None or inf_so_far is None else nan_so_far + inf_so_far,
        # The table holds no count for the plan found, but it is measured wherever the variant without is.
        mixed=as_number(row, "mixed_sqnr_db", "inherited_nan"),
        ref_max=as_number(row, "ref_max", "overflow"),
        running_sum=_optional(row, "largest_running_sum"),
        held_in=as_format(row),
        cause=as_text(row, "cause"),
        cause_kinds=frozenset(_text(row, "cause_kinds").split()),
        fixed=as_text(row, "fixed"),
        pinned=as_flag(row, "pinned"),
        pinned_to=as_text(row, "pinned_to"),
        reason=as_text(row, "reason"),
        released=as_number(row, "released_figure", "released_nonfinite"),
        released_nonfinite=as_number(row, "released_nonfinite"),
        repairs=tuple(map(repair_title, _text(row, "repair").split())),
    )


def pin_views(pins: Sequence[Pin], layers: Iterable[LayerView]) -> tuple[PinView, ...]:
    """The pins of a plan, with what is known of their layers."""
    known: Mapping[str, LayerView] = {view.layer: view for view in layers}
    return tuple(
        PinView(pin.layer, pin.nodes, pin.precision.value.upper(), pin.reason, known.get(pin.layer)) for pin in pins
    )
