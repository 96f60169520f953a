"""All that the report says of one low precision: verdict, proof, pins, layers and drawings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from precisionlab.compare.metrics import SQNR, RunMetric
from precisionlab.compare.tolerance import Bound, Tolerance
from precisionlab.plan.file import plan_files
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.report.cells import (
    ABSENT,
    Row,
    as_flag,
    as_number,
    axis_text,
    bound_text,
    bounds_of,
    figure_text,
    in_unit,
    is_absent,
    is_quantized,
    percent,
    show,
    tolerance_text,
    value_text,
)
from precisionlab.report.chart import Chart, draw_chart
from precisionlab.report.details import details_json
from precisionlab.report.front import Front, draw_front
from precisionlab.report.histograms import RunHistograms
from precisionlab.report.inside import inside_lines
from precisionlab.report.views import LayerView, PinView, VariantView, layer_view, pin_views, variant_view
from precisionlab.search.alternatives import AlternativeKind
from precisionlab.search.verdict import State, Verdict
from precisionlab.system.wording import counted, rungs

WORST_SHOWN = 10  # layers in a notebook's short form


@dataclass(frozen=True)
class FigureRow:
    """One row of the verdict: a figure of the reference, without pins, and with them. `below` belongs to another."""

    label: str
    cells: tuple[str, ...]
    below: bool = False


@dataclass(frozen=True)
class Doubt:
    """A bound whose verdict other samples might turn."""

    bound: str
    figure: str
    low: str
    high: str


@dataclass(frozen=True)
class PrecisionSection:
    """All that the page says of one low precision.

    `proven` says whether no pin can be released; None where none was to be proved; `strict`, that this holds for more
    than was asked. `absorbed` is the number of tensors with an Inf that does the outputs no harm. `fused` says whether
    a pinned layer has nodes of other names. `repairs` are those that apply and were not tried, `repaired` counts those
    that the plan has. `released` names the figure that stands for released pins.
    """

    name: str
    title: str
    verdict: Verdict
    headline: str
    tolerance: str
    rows: tuple[FigureRow, ...]
    proven: bool | None
    strict: bool
    only_chosen: bool
    remark: str
    picked: tuple[str, ...]
    engine: Mapping[str, Any] | None
    compiled: Sequence[Mapping[str, Any]]
    unscaled: Mapping[str, Any] | None
    inside: tuple[str, ...]
    latency: str
    doubts: tuple[Doubt, ...]
    absorbed: int
    pins: tuple[PinView, ...]
    fused: bool
    rungs: str
    released: str
    bound: Bound | None
    touched: int
    given_up: str
    cost: str
    evaluations: int
    repairs: tuple[str, ...]
    repaired: int
    first_nonfinite: str | None
    first_nonfinite_layer: str | None
    table: str | None
    around: str | None
    plan_file: str
    low: VariantView | None
    mixed: VariantView | None
    layers: tuple[LayerView, ...]
    worst: tuple[LayerView, ...]
    details: Markup | None
    chart: Chart | None
    front: Front | None

    @property
    def met(self) -> bool:
        """Whether the verdict is that the tolerance is met."""
        return self.verdict.met

    @property
    def changes(self) -> str:
        """What the plan found does, in a few words: `3 pinned`, `1 repair`, or both."""
        repaired = [counted(self.repaired, "repair")] if self.repaired else []
        pinned = [f"{len(self.pins)} pinned"] if self.pins or not repaired else []
        return ", ".join([*repaired, *pinned])


@dataclass(frozen=True)
class Tables:
    """The rows that all sections are made from."""

    variants: Sequence[Row]
    layers: Sequence[Row]
    pareto: Sequence[Row]
    samples: Sequence[Row] = ()
    histograms: RunHistograms | None = None


def section_of(
    name: str, run: Mapping[str, Any], tables: Tables, plans: Mapping[str, PrecisionPlan], charted: bool
) -> PrecisionSection:
    """The section of one precision; its drawings only where `charted`."""
    facts, title = run["precisions"][name], name.upper()
    touched = int(facts["touched"])
    rows = [row for row in tables.layers if row["precision"] == name]
    views = tuple(map(layer_view, rows))
    pins = plans[name].pins if name in plans else ()
    verdict = verdict_in(run, name)
    reference, low, *changed = (
        _variant(tables.variants, v) for v in ("fp32", name, f"{name} mixed", f"{name} repaired")
    )
    mixed = next(filter(None, changed), None)
    last = mixed or low
    bounds = bounds_of(str(run["tolerance"][name]))
    bound = bounds[0] if bounds else None
    ranked = sorted(views, key=lambda view: math.inf if view.rank is None else view.rank)
    return PrecisionSection(
        name=name,
        title=title,
        verdict=verdict,
        headline=verdict.sentence[:1].upper() + verdict.sentence[1:],
        tolerance=tolerance_text(str(run["tolerance"][name])),
        rows=_figure_rows(reference, low, mixed, bounds, metric_name(tables.variants)),
        proven=facts["proven"],
        strict=bool(facts["proven"]) and any(_admitted(view, bounds) for view in views),
        only_chosen=bool(facts["proven"]) and last is not None and _misses_held_out(last, bounds),
        remark=str(facts["remark"]),
        repairs=tuple(map(str, facts.get("repairs", ()))),  # nor do they of these
        repaired=len(plans[name].repairs) if name in plans else 0,
        picked=tuple(map(str, facts.get("rows", ()))),  # runs of older versions do not say
        engine=facts["engine"],
        compiled=facts["compiled"],
        unscaled=facts.get("unscaled"),  # runs of older versions do not say
        inside=_inside(facts),
        latency=_latency(tables.variants, name),
        doubts=tuple(_doubt(entry) for entry in facts["inconclusive"]),
        absorbed=int(last.nonfinite_tensors or 0) if last and verdict.met else 0,
        pins=pin_views(pins, views),
        fused=any(pin.nodes != (pin.layer,) for pin in pins),
        rungs=rungs(pin.precision.value.upper() for pin in pins),
        released=figure_text(bound) if bound else "",
        bound=bound,
        touched=touched,
        given_up=_given_up(rows),
        cost=_cost(low, mixed),
        evaluations=int(facts["evaluations"]),
        first_nonfinite=facts["first_nonfinite"],
        first_nonfinite_layer=facts["first_nonfinite_layer"],
        # The run may hold the table for every precision; only int8 uses it.
        table=facts["table"] if is_quantized(name) else None,
        around=plans[name].around.value.upper() if name in plans and is_quantized(name) else None,
        plan_file=plan_files(run["precisions"])[name],
        low=low,
        mixed=mixed,
        layers=tuple(ranked),
        worst=tuple(view for view in ranked[:WORST_SHOWN] if view.rank is not None),
        details=details_json(rows) if charted else None,
        chart=draw_chart(title, views) if charted and any(view.measured for view in views) else None,
        front=_front(name, bound, tables.pareto, run) if charted else None,
    )


def metric_name(rows: Iterable[Row]) -> str:
    """What the task metric is called; nothing where there is none."""
    return next((str(row["metric_name"]) for row in rows if not is_absent(row["metric_name"])), "")


def _variant(rows: Iterable[Row], name: str) -> VariantView | None:
    own = [row for row in rows if row["variant"] == name]
    return variant_view(own) if own else None


def _inside(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What is said of the inside of the engine of the plan found, run or only compiled."""
    if facts["engine"] is not None:
        return inside_lines(facts["engine"])
    return inside_lines(facts["compiled"][-1]) if facts["compiled"] else ()


def _latency(rows: Iterable[Row], name: str) -> str:
    """The measured times of FP32, of the precision without pins and of the engine taken; nothing without engines."""
    engines = {
        "FP32": "fp32 engine",
        "without pins": f"{name} engine",
        "with pins": f"{name} mixed engine",
        "repaired": f"{name} repaired engine",
    }
    times = {v: as_number(row, "latency_ms") for row in rows if (v := str(row["variant"])) in engines.values()}
    latencies = [(label, times.get(variant)) for label, variant in engines.items()]
    parts = [f"{show(time, '.3g')} ms {label}" for label, time in latencies if time is not None]
    return ", ".join(parts) + " for a sample" if parts else ""


def _front(name: str, bound: Bound | None, rows: Iterable[Row], run: Mapping[str, Any]) -> Front | None:
    mine = [row for row in rows if row["precision"] == name]
    return draw_front(name.upper(), bound, mine, str(run["target"]["title"]))


# The verdict

_HELD_OUT = "on the samples held out"


def verdict_in(run: Mapping[str, Any], name: str) -> Verdict:
    """The verdict on a precision in `run.json`; runs of older versions hold but whether the tolerance was met."""
    facts = run["precisions"][name]
    if "verdict" in facts:
        return Verdict.from_dict(facts["verdict"])
    how = f"with {counted(int(facts['pins']), 'pin')}" if facts["pins"] else "as it is"
    if facts["met"]:
        return Verdict(State.MET, f"right {how}")
    return Verdict(State.NOT_MET, f"NOT right {how}")


def _figure_rows(
    reference: VariantView | None,
    low: VariantView | None,
    mixed: VariantView | None,
    bounds: Tolerance,
    metric: str,
) -> tuple[FigureRow, ...]:
    if low is None:
        return ()
    variants = [low] if mixed is None else [low, mixed]
    rows = [_row("Worst output’s SQNR, dB", [ABSENT, *(show(v.worst.sqnr, ".1f") for v in variants)])]
    rows += _row_below(_HELD_OUT, [ABSENT, *(show(v.worst.held_out.sqnr, ".1f") for v in variants)])
    rows += _row_below("95 % interval", [ABSENT, *(_interval(v) for v in variants)])
    for kind in AlternativeKind:
        rows += _row_below(kind.words, [ABSENT, *(_under(v, kind) for v in variants)])
    for bound in bounds:
        if _has_row(bound):
            figures = [v.of(bound) for v in variants]
            label = axis_text(bound)
            rows.append(_row(label[0].upper() + label[1:], [ABSENT, *(value_text(bound, f) for f, _ in figures)]))
            rows += _row_below(_HELD_OUT, [ABSENT, *(value_text(bound, held) for _, held in figures)])
    if metric:
        rows.append(_row(metric, [show(low.reference_metric, ".3f"), *(show(v.metric, ".3f") for v in variants)]))
        everyone = [reference, *variants]
        held = [show(v.held_out_metric, ".3f") if v else ABSENT for v in everyone]
        rows += _row_below(_HELD_OUT, held)
        rows += _row_below("95 % interval, ±", [_half_width(v) for v in everyone])
    if any(v.cost is not None for v in variants):
        kinds = " and ".join(dict.fromkeys(v.cost_figures for v in variants))
        rows.append(_row(f"Cost, % of FP32 ({kinds})", ["100", *(_percentage(v.cost) for v in variants)]))
    rows.append(_row("Tensors with new NaN or Inf", [ABSENT, *(show(v.nonfinite_tensors, ".0f") for v in variants)]))
    if any(v.held_out_nonfinite not in (None, v.nonfinite_tensors) for v in variants):
        rows += _row_below(_HELD_OUT, [ABSENT, *(show(v.held_out_nonfinite, ".0f") for v in variants)])
    return tuple(rows)


def _has_row(bound: Bound) -> bool:
    """Whether the figure has a row of its own; the headline, the task metric and NaN and Inf have theirs anyway."""
    metric = bound.of_metric
    return metric.tabled if isinstance(metric, RunMetric) else bound.figure != SQNR


def _row(label: str, cells: Sequence[str]) -> FigureRow:
    return FigureRow(label, tuple(cells))


def _row_below(label: str, cells: Sequence[str]) -> list[FigureRow]:
    """A row that belongs to the one above; none where it would be empty."""
    return [] if set(cells) == {ABSENT} else [FigureRow(label, tuple(cells), below=True)]


def _interval(variant: VariantView) -> str:
    low, high = variant.worst.low, variant.worst.high
    return ABSENT if low is None or high is None else f"{show(low, '.1f')} to {show(high, '.1f')}"


def _under(variant: VariantView, kind: AlternativeKind) -> str:
    """The headline where kernels do something else; absent where that was not measured."""
    other = variant.alternatives.get(kind)
    return ABSENT if other is None else show(other.sqnr, ".1f")


def _half_width(variant: VariantView | None) -> str:
    error = None if variant is None else variant.metric_error
    return show(1.96 * error if error else None, ".3f")  # all samples alike say nothing of how others would spread


def _percentage(share: float | None) -> str:
    return ABSENT if share is None else show(100 * share, ".1f")


def _doubt(entry: Mapping[str, Any]) -> Doubt:
    bounds = bounds_of(str(entry["bound"]))
    low, high = float(entry["low"]), float(entry["high"])  # the words nan and inf, where JSON has no number
    if not bounds:
        return Doubt(str(entry["bound"]), str(entry["bound"]), show(low, ".4g"), show(high, ".4g"))
    bound = bounds[0]
    ends = (value_text(bound, end) for end in (low, high))
    return Doubt(bound_text(bound), figure_text(bound) + in_unit(bound), *ends)


def _misses_held_out(variant: VariantView, bounds: Sequence[Bound]) -> bool:
    """Whether a bound does not hold on the samples that chose nothing; where there are none it is not so."""
    held_out = (variant.of(bound)[1] for bound in bounds)
    return any(found is not None and not bound.admits(found) for bound, found in zip(bounds, held_out, strict=True))


def _admitted(view: LayerView, bounds: Tolerance) -> bool:
    """Whether the plan with this pin released met all that was asked, as far as one figure can tell."""
    if view.released is None or view.released_nonfinite:
        return False
    return len(bounds) == 1 and bounds[0].admits(view.released)


# What the pins cost


def _given_up(rows: Iterable[Row]) -> str:
    """The pinned layers' share of work and weights, among the layers that the precision touches."""
    touched = [row for row in rows if not is_absent(row["rank"])]
    parts = []
    for column, what in (("multiply_adds", "multiply-adds"), ("weight_bytes", "weights")):
        total = sum(as_number(row, column) or 0 for row in touched)
        pinned = sum(as_number(row, column) or 0 for row in touched if as_flag(row, "pinned"))
        if total:
            parts.append(f"{_small_share(pinned / total)} of the {what}")
    return " and ".join(parts)


def _small_share(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.001 else percent(share) if share else "0 %"


def _cost(low: VariantView | None, mixed: VariantView | None) -> str:
    """What the plan costs; nothing where it is not known."""
    last = mixed or low
    if last is None or last.cost is None:
        return ""
    without = f", {percent(low.cost)} without pins" if mixed and low and low.cost is not None else ""
    return f"{percent(last.cost)} of FP32{without}; {last.cost_figures}"
