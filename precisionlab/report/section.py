"""All that the report says of one low precision: verdict, proof, pins, layers and drawings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup

from precisionlab.compare.tolerance import Bound, Tolerance
from precisionlab.plan.file import plan_files
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.report.cells import (
    Row,
    as_flag,
    as_number,
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
    visible,
)
from precisionlab.report.chart import Chart, draw_chart
from precisionlab.report.details import details_json
from precisionlab.report.each_layer import ByItself, by_itself
from precisionlab.report.figure_rows import FigureRow, figure_rows
from precisionlab.report.front import Front, draw_front
from precisionlab.report.hazard import capital
from precisionlab.report.histograms import RunHistograms
from precisionlab.report.inside import inside_lines
from precisionlab.report.kernel_times import Times, times_view
from precisionlab.report.repair_views import RepairedView, repaired_view
from precisionlab.report.views import LayerView, PinView, VariantView, layer_view, pin_views, variant_view
from precisionlab.report.work import Work, work_of
from precisionlab.search.carriers import Carriers
from precisionlab.search.verdict import State, Verdict
from precisionlab.search.worst import order_words
from precisionlab.system.prefix import common_prefix
from precisionlab.system.wording import counted, rungs

WORST_SHOWN = 10  # layers in a notebook's short form


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
    that the plan has. `not_for` says of tools why the plan cannot be had for them. `released` names the figure that
    stands for released pins.
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
    carriers: Carriers | None
    repairs: tuple[str, ...]
    repaired: int
    first_nonfinite: str | None
    first_nonfinite_layer: str | None
    table: str | None
    weights: str | None
    around: str | None
    plan_file: str
    not_for: Mapping[str, str]
    repaired_parts: RepairedView | None
    low: VariantView | None
    mixed: VariantView | None
    layers: tuple[LayerView, ...]
    worst: tuple[LayerView, ...]
    work: Work | None
    times: Times | None
    by_itself: ByItself | None
    details: Markup | None
    chart: Chart | None
    front: Front | None

    @property
    def met(self) -> bool:
        """Whether the verdict is that the tolerance is met."""
        return self.verdict.met

    @cached_property
    def prefix(self) -> str:
        """What the names of most layers begin with, as it is shown; empty where that is nothing much."""
        return common_prefix(visible(view.layer) for view in self.layers)

    @property
    def order(self) -> str:
        """What the layers are ordered by, in words."""
        return order_words(sum(view.share is not None for view in self.layers), self.touched)

    @property
    def spread(self) -> str:
        """How many layers make most of the error, as a sentence; empty where that was not measured."""
        return "" if self.carriers is None else capital(self.carriers.words(self.touched)) + "."

    @property
    def bare_words(self) -> str:
        """The model in the precision throughout, in a few words: as it is, where the plan found repairs it."""
        return "as it is" if self.repaired else "no pins"

    @property
    def found_words(self) -> str:
        """The plan found, in a few words: `with pins`, `repaired`, or both."""
        if not self.repaired:
            return "with pins"
        return "repaired, with pins" if self.pins else "repaired"

    @property
    def kept_words(self) -> str:
        """How the plan found deals with what breaks: `1 repair`, `2 layers kept in FP32`, or both."""
        repaired = [counted(self.repaired, "repair")] if self.repaired else []
        kept = [f"{counted(len(self.pins), 'layer')} kept in {self.rungs}"] if self.pins else []
        return " and ".join([*repaired, *kept]) or "the outputs are right as they are"

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
    rows = [row for row in tables.layers if row["precision"] == name]
    views = tuple(map(layer_view, rows))
    pins, repairs = (plans[name].pins, plans[name].repairs) if name in plans else ((), ())
    verdict = verdict_in(run, name)
    reference, low, *changed = (
        _variant(tables.variants, v) for v in ("fp32", name, f"{name} mixed", f"{name} repaired")
    )
    mixed = next(filter(None, changed), None)
    last = mixed or low
    bound = next(iter(bounds := bounds_of(str(run["tolerance"][name]))), None)
    ranked = sorted(views, key=lambda view: math.inf if view.rank is None else view.rank)
    return PrecisionSection(
        name=name,
        title=title,
        verdict=verdict,
        headline=verdict.sentence[:1].upper() + verdict.sentence[1:],
        tolerance=tolerance_text(str(run["tolerance"][name])),
        rows=figure_rows(reference, low, mixed, bounds, metric_name(tables.variants)),
        proven=facts["proven"],
        strict=bool(facts["proven"]) and any(_admitted(view, bounds) for view in views),
        only_chosen=bool(facts["proven"]) and last is not None and _misses_held_out(last, bounds),
        remark=str(facts["remark"]),
        repairs=tuple(map(str, facts.get("repairs", ()))),  # nor do they of these
        repaired=len(repairs),
        repaired_parts=repaired_view(repairs, facts.get("repaired"), bound, charted) if repairs else None,
        picked=tuple(map(str, facts.get("rows", ()))),  # runs of older versions do not say
        engine=facts["engine"],
        compiled=facts["compiled"],
        unscaled=facts.get("unscaled"),  # runs of older versions do not say
        inside=_inside(facts),
        latency=_latency(tables.variants, name, bool(repairs)),
        doubts=tuple(_doubt(entry) for entry in facts["inconclusive"]),
        absorbed=int(last.nonfinite_tensors or 0) if last and verdict.met else 0,
        pins=pin_views(pins, views),
        fused=any(pin.nodes != (pin.layer,) for pin in pins),
        rungs=rungs(pin.precision.value.upper() for pin in pins),
        released=figure_text(bound) if bound else "",
        bound=bound,
        touched=int(facts["touched"]),
        given_up=_given_up(rows),
        cost=_cost(low, mixed, "as it is" if repairs else "without pins"),
        evaluations=int(facts["evaluations"]),
        carriers=Carriers.from_dict(facts["carriers"]) if facts.get("carriers") else None,  # nor of this
        first_nonfinite=facts["first_nonfinite"],
        first_nonfinite_layer=facts["first_nonfinite_layer"],
        **_quantized(name, facts, plans),
        plan_file=plan_files(run["precisions"])[name],
        not_for=facts.get("not_for") or {},  # nor of this
        low=low,
        mixed=mixed,
        layers=tuple(ranked),
        worst=tuple(view for view in ranked[:WORST_SHOWN] if view.rank is not None),
        work=work_of(rows) if charted else None,
        times=times_view((facts["engine"] or {}).get("times"), run.get("fp32_times")) if charted else None,
        by_itself=by_itself(facts.get("each_layer"), rows, title) if charted else None,
        details=details_json(rows) if charted else None,
        chart=_chart(title, views, bool(pins or repairs), verdict.met) if charted else None,
        front=_front(name, bound, tables.pareto, run) if charted else None,
    )


def _quantized(name: str, facts: Mapping[str, Any], plans: Mapping[str, PrecisionPlan]) -> dict[str, Any]:
    """What is said of a quantized precision's ranges or scales, weights, and the floats around; None of others."""
    if not is_quantized(name):  # the run may hold ranges for all
        return dict.fromkeys(("table", "weights", "around"))
    around = plans[name].around.value.upper() if name in plans else None
    return {"table": facts["table"], "weights": facts.get("weights"), "around": around}


def _chart(title: str, views: Sequence[LayerView], changed: bool, met: bool) -> Chart | None:
    return draw_chart(title, views, changed, met) if any(view.measured for view in views) else None


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


def _latency(rows: Iterable[Row], name: str, repaired: bool) -> str:
    """The measured times of FP32, of the precision without pins and of the engine taken; nothing without engines."""
    engines = {
        "FP32": "fp32 engine",
        "as it is" if repaired else "without pins": f"{name} engine",
        "repaired, with pins" if repaired else "with pins": f"{name} mixed engine",
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


def verdict_in(run: Mapping[str, Any], name: str) -> Verdict:
    """The verdict on a precision in `run.json`; runs of older versions hold but whether the tolerance was met."""
    facts = run["precisions"][name]
    if "verdict" in facts:
        return Verdict.from_dict(facts["verdict"])
    how = f"with {counted(int(facts['pins']), 'pin')}" if facts["pins"] else "as it is"
    if facts["met"]:
        return Verdict(State.MET, f"right {how}")
    return Verdict(State.NOT_MET, f"NOT right {how}")


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


def _cost(low: VariantView | None, mixed: VariantView | None, bare: str) -> str:
    """What the plan costs, beside the variant that is called `bare`; nothing where it is not known."""
    last = mixed or low
    if last is None or last.cost is None:
        return ""
    without = f", {percent(low.cost)} {bare}" if mixed and low and low.cost is not None else ""
    return f"{percent(last.cost)} of FP32{without}; {last.cost_figures}"
