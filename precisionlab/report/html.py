"""The HTML report: one file that opens from disk, offline, and answers without a manual.

Is it right? Which layers, and why? What is given up? What now? Everything is drawn from exactly what
stands in `run.json`, `variants.csv`, `layers.csv` and the plans, so that a report can be
drawn again from a run's folder.

Names come from strangers' models. Jinja2 escapes whatever it prints; the two pieces of markup made here
are the charts, which an XML serialiser writes, and nothing foreign ever stands inside a script. The
page's content security policy forbids every request and every script but its own.

NaN, ∞ and −∞ are shown as such; "–" stands for a figure that was never taken. The two look alike in a
table's float columns, so the counts beside them (`nan`, `introduced_nan`, …), which are empty only where
nothing was measured, tell them apart.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from precisionlab.precision import Pin, PrecisionPlan

if TYPE_CHECKING:
    import pandas as pd

ABSENT = "–"
FP16_MAX = 65504.0  # IEEE 754 binary16
WORST_SHOWN = 10  # layers in a notebook's short form

Row = Mapping[str, Any]


def render(
    run: Mapping[str, Any], variants: pd.DataFrame, layers: pd.DataFrame, plans: Mapping[str, PrecisionPlan]
) -> str:
    """The whole page.

    `run` is what `run.json` holds, `variants` and `layers` are the tables documented in
    `precisionlab.report.tables`, `plans` maps each precision to the plan found.
    """
    return _draw("page", run, variants, layers, plans)


def render_fragment(
    run: Mapping[str, Any], variants: pd.DataFrame, layers: pd.DataFrame, plans: Mapping[str, PrecisionPlan]
) -> str:
    """Verdict, variants, worst layers and pins, to stand inside another page such as a notebook.

    It has no script and no ids, and its style reaches only what stands inside it.
    """
    return _draw("fragment", run, variants, layers, plans)


def _draw(
    kind: str,
    run: Mapping[str, Any],
    variants: pd.DataFrame,
    layers: pd.DataFrame,
    plans: Mapping[str, PrecisionPlan],
) -> str:
    of_variants: list[Row] = records_of(variants)
    of_layers: list[Row] = records_of(layers)
    text = load_template().render(
        kind=kind,
        run=run,
        model_name=PurePath(str(run["model"]["path"])).name,
        precisions=[_section(name, run, of_variants, of_layers, plans, kind == "page") for name in run["precisions"]],
        variants=[_variant(list(rows)) for _, rows in groupby(of_variants, key=lambda row: row["variant"])],
        outputs=list(dict.fromkeys(row["output"] for row in of_variants)),
        metric_name=_metric_name(of_variants),
        command=shlex.join(map(str, run["command"])),
    )
    # A path on a POSIX system may hold bytes that are not UTF-8, as lone surrogates that no file can take.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def records_of(table: pd.DataFrame) -> list[Row]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


@cache
def load_template() -> Template:
    environment = Environment(
        loader=PackageLoader("precisionlab", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        db=lambda value: show(value, ".1f"),
        short=lambda value: show(value, ".3g"),
        share=lambda value: show(value, ".3f"),
        cosine=lambda value: show(value, ".5f"),
        count=lambda value: show(value, ".0f"),
        visible=visible,
        csp_hash=_csp_hash,
        quoted=shlex.quote,
    )
    return environment.get_template("report.html.j2")


def _csp_hash(script: str) -> str:
    """The source expression that lets exactly this script run (Content Security Policy, level 2)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# Figures and names as text


def show(value: float | None, form: str) -> str:
    """A figure as text: NaN and infinities by name, "–" for None."""
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return format(value, form).replace("-", "−")


_CONTROLS = {**{code: 0x2400 + code for code in range(0x20)}, 0x7F: 0x2421}


def visible(text: Any) -> str:
    """A name with its control characters shown as their pictures (␊ for a newline)."""
    return str(text).translate(_CONTROLS)


def _absent(value: Any) -> bool:
    """Whether a cell is empty: None, NaN or NA, as tables and files write it."""
    return value is None or value != value or type(value).__name__ == "NAType"


def as_number(row: Row, column: str, counted: str | None = None) -> float | None:
    """A cell as a float; None where it is empty.

    With `counted`, a count that is only empty where nothing was measured, an empty cell beside a filled
    count is a NaN that was measured.
    """
    value = row[column]
    if not _absent(value):
        return float(value)
    return None if counted is None or _absent(row[counted]) else math.nan


def as_text(row: Row, column: str) -> str:
    value = row[column]
    return "" if _absent(value) else str(value)


def as_flag(row: Row, column: str) -> bool:
    return str(row[column]) == "True"  # a file may give it back as text


_SIGNS = {">=": "≥", "<=": "≤"}
_UNITS = {"sqnr": ("SQNR", " dB"), "rel_l2": ("relative L2 error", ""), "max_error": ("largest error", "")}
_NAMES = {"top1": "equal top-1", "metric_drop": "loss of the task metric", "metric": "task metric"}


def tolerance_text(text: str) -> str:
    """A tolerance such as "sqnr>=30" in words; what is not understood stays as it was written."""
    return ", ".join(_bound_text(part.strip()) for part in text.split(",")) or "no bound"


def _bound_text(bound: str) -> str:
    match = re.fullmatch(r"(\w+)\s*(>=|<=)\s*(\S+)", bound)
    if not match:
        return bound
    name, unit = _UNITS.get(match[1], (_NAMES.get(match[1], match[1]), ""))
    return f"{name} {_SIGNS[match[2]]} {match[3]}{unit}"


# Variants


@dataclass(frozen=True)
class OutputFigures:
    """What one output of a variant has lost, or the worst of all its outputs."""

    name: str
    sqnr: float | None
    cosine: float | None
    rel_l2: float | None
    max_error: float | None
    nan: float | None
    inf: float | None
    top1: float | None


@dataclass(frozen=True)
class VariantView:
    """One variant: its worst figures, and those of each output."""

    name: str
    reference: bool
    figures: str
    pins: float | None
    layers: float | None
    met: bool
    nonfinite_tensors: float | None
    metric: float | None
    reference_metric: float | None
    worst: OutputFigures
    outputs: tuple[OutputFigures, ...]


def _variant(rows: Sequence[Row]) -> VariantView:
    head = rows[0]
    outputs = tuple(map(_output, rows))
    # A metric that was taken has a name, whatever its value.
    return VariantView(
        name=str(head["variant"]),
        reference=head["precision"] == "fp32" == head["variant"],
        figures=as_text(head, "figures"),
        pins=as_number(head, "pins"),
        layers=as_number(head, "layers"),
        met=as_flag(head, "met"),
        nonfinite_tensors=as_number(head, "nonfinite_tensors"),
        metric=as_number(head, "metric", "metric_name"),
        reference_metric=as_number(head, "reference_metric", "metric_name"),
        worst=_worst(outputs),
        outputs=outputs,
    )


def _output(row: Row) -> OutputFigures:
    return OutputFigures(
        name=str(row["output"]),
        sqnr=as_number(row, "sqnr_db", "nan"),
        cosine=as_number(row, "cosine", "nan"),
        rel_l2=as_number(row, "rel_l2", "nan"),
        max_error=as_number(row, "max_error", "nan"),
        nan=as_number(row, "nan"),
        inf=as_number(row, "inf"),
        top1=as_number(row, "top1"),
    )


def _worst(outputs: Sequence[OutputFigures]) -> OutputFigures:
    def of(name: str, choose: Callable[[Iterable[float]], float]) -> float | None:
        found = [value for o in outputs if (value := getattr(o, name)) is not None]
        if any(map(math.isnan, found)):
            return math.nan
        return choose(found) if found else None

    return OutputFigures(
        name="worst output",
        sqnr=of("sqnr", min),
        cosine=of("cosine", min),
        rel_l2=of("rel_l2", max),
        max_error=of("max_error", max),
        nan=of("nan", sum),
        inf=of("inf", sum),
        top1=of("top1", min),
    )


def _metric_name(rows: Iterable[Row]) -> str:
    return next((name for row in rows if (name := as_text(row, "metric_name"))), "")


# Precisions


@dataclass(frozen=True)
class PinView:
    """One pinned layer, and what it loses in the low precision."""

    layer: str
    nodes: tuple[str, ...]
    reason: str
    sqnr: float | None


@dataclass(frozen=True)
class LayerView:
    """One row of the layer table."""

    index: float | None
    rank: float | None
    layer: str
    kind: str
    shape: str
    introduced: float | None
    max_error: float | None
    nonfinite: float | None
    inherited: float | None
    mixed: float | None
    ref_max: float | None
    over: bool
    cause: str
    fixed: str
    pinned: bool
    reason: str


@dataclass(frozen=True)
class Chart:
    """The drawing, and which of its parts need a word in the legend."""

    svg: Markup
    first: float  # the place of layer 0 and the width of one layer, for the script that reads the chart
    step: float
    mixed: bool
    pins: bool


@dataclass(frozen=True)
class PrecisionSection:
    """All that the page says of one low precision."""

    name: str
    title: str
    met: bool
    headline: str
    tolerance: str
    pins: tuple[PinView, ...]
    touched: int
    given_up: str
    evaluations: int
    first_nonfinite: str | None
    first_nonfinite_layer: str | None
    table: str | None
    around: str | None
    plan_file: str
    low: VariantView | None
    mixed: VariantView | None
    layers: tuple[LayerView, ...]
    worst: tuple[LayerView, ...]
    chart: Chart | None


def _section(
    name: str,
    run: Mapping[str, Any],
    variants: Sequence[Row],
    layers: Sequence[Row],
    plans: Mapping[str, PrecisionPlan],
    charted: bool,
) -> PrecisionSection:
    found = run["precisions"][name]
    rows = [row for row in layers if row["precision"] == name]
    views = tuple(map(_layer, rows))
    pins = plans[name].pins if name in plans else ()
    low = [row for row in variants if row["variant"] == name]
    mixed = [row for row in variants if row["variant"] == f"{name} mixed"]
    ranked = sorted(views, key=lambda view: math.inf if view.rank is None else view.rank)
    return PrecisionSection(
        name=name,
        title=name.upper(),
        met=bool(found["met"]),
        headline=_headline(bool(found["met"]), int(found["pins"]), int(found["touched"]), name.upper()),
        tolerance=tolerance_text(str(run["tolerance"][name])),
        pins=_pins(pins, views),
        touched=int(found["touched"]),
        given_up=_given_up(rows),
        evaluations=int(found["evaluations"]),
        first_nonfinite=found["first_nonfinite"],
        first_nonfinite_layer=found["first_nonfinite_layer"],
        # The run may hold the table for every precision; only int8 uses it.
        table=found["table"] if name == "int8" else None,
        around=plans[name].around.value.upper() if name in plans and name == "int8" else None,
        plan_file="plan.json" if len(run["precisions"]) == 1 else f"plan.{name}.json",  # as the sweep names it
        low=_variant(low) if low else None,
        mixed=_variant(mixed) if mixed else None,
        layers=tuple(ranked),
        worst=tuple(view for view in ranked[:WORST_SHOWN] if view.rank is not None),
        chart=draw_chart(name.upper(), views) if charted and any(map(_measured, views)) else None,
    )


def _headline(met: bool, pins: int, touched: int, title: str) -> str:
    kept = f"{pins} of {touched} layers kept in FP32"
    if touched == 0:
        return f"{title} touches no layer of this model"
    if met:
        return f"Right with {kept}" if pins else "Right as it is: no layer needs FP32"
    return f"Still wrong with {kept}, the best plan found" if pins else "Wrong, and no pin was found that helps"


def _pins(pins: Sequence[Pin], layers: Sequence[LayerView]) -> tuple[PinView, ...]:
    sqnr = {view.layer: view.introduced for view in layers}
    return tuple(PinView(pin.layer, pin.nodes, pin.reason, sqnr.get(pin.layer)) for pin in pins)


def _given_up(rows: Iterable[Row]) -> str:
    """The pinned layers' share of work and weights, among the layers that the precision touches."""
    touched = [row for row in rows if not _absent(row["rank"])]
    parts = []
    for column, what in (("multiply_adds", "multiply-adds"), ("weight_bytes", "weights")):
        total = sum(as_number(row, column) or 0 for row in touched)
        pinned = sum(as_number(row, column) or 0 for row in touched if as_flag(row, "pinned"))
        if total:
            parts.append(f"{_percent(pinned / total)} of the {what}")
    return " and ".join(parts)


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %" if share else "0 %"


def _layer(row: Row) -> LayerView:
    nan, inf = as_number(row, "introduced_nan"), as_number(row, "introduced_inf")
    ref_max = as_number(row, "ref_max", "inherited_nan")
    return LayerView(
        index=as_number(row, "index"),
        rank=as_number(row, "rank"),
        layer=str(row["layer"]),
        kind=as_text(row, "kind"),
        shape=as_text(row, "shape"),
        introduced=as_number(row, "introduced_sqnr_db", "introduced_nan"),
        max_error=as_number(row, "introduced_max_error", "introduced_nan"),
        nonfinite=None if nan is None or inf is None else nan + inf,
        inherited=as_number(row, "inherited_sqnr_db", "inherited_nan"),
        # The table holds no count for the plan found, but it is measured wherever the variant without is.
        mixed=as_number(row, "mixed_sqnr_db", "inherited_nan"),
        ref_max=ref_max,
        over=ref_max is not None and ref_max > FP16_MAX,
        cause=as_text(row, "cause"),
        fixed=as_text(row, "fixed"),
        pinned=as_flag(row, "pinned"),
        reason=as_text(row, "reason"),
    )


def _measured(view: LayerView) -> bool:
    return any(figure is not None for figure in (view.introduced, view.inherited, view.mixed))


# The chart of errors along the network

Point = tuple[float, float]
_HALF = 0.4  # half a layer's width, less a gap, so that a single layer is a stroke that can be seen


@dataclass(frozen=True)
class Scale:
    """Where figures stand: finite ones on an axis of decibels, the others in lanes of their own."""

    low: float
    high: float
    lanes: Mapping[str, float]
    lane_height: float

    def place(self, value: float, shift: float) -> float:
        """The height of a figure; `shift` in −1…1 keeps curves that share a lane apart."""
        lane = self.lanes.get(show(value, "g"))
        return value if lane is None else lane + shift * self.lane_height / 4


def _scale(values: Iterable[float]) -> Scale:
    """A scale with room for the finite values and a lane for each kind of other that occurs."""
    found = list(values)
    finite = [value for value in found if math.isfinite(value)] or [0.0, 60.0]
    low, high = math.floor(min(finite) / 10) * 10.0, math.ceil(max(finite) / 10) * 10.0
    high = max(high, low + 20)
    height = (high - low) * 0.1
    kinds = {show(value, "g") for value in found if not math.isfinite(value)}
    below = [kind for kind in ("−∞", "NaN") if kind in kinds]
    lanes: dict[str, float] = {kind: low - (place + 0.4) * height for place, kind in enumerate(below, 1)}
    if "∞" in kinds:
        lanes["∞"] = high + 1.4 * height
    return Scale(low, high, lanes, height)


def _strokes(
    places: Sequence[float], values: Sequence[float | None], scale: Scale, shift: float, joined: bool
) -> list[Point | None]:
    """One curve as strokes, None between two of them.

    Layers next to each other that share a lane make one stroke; finite ones make one where `joined`,
    and one each where not. A layer without a figure is a gap.
    """

    def stretch(item: tuple[int, tuple[float, float | None]]) -> Any:
        number, (_, value) = item
        if value is None:
            return None
        return show(value, "g") if not math.isfinite(value) else ("finite", 0 if joined else number)

    points: list[Point | None] = []
    for key, items in groupby(enumerate(zip(places, values, strict=True)), key=stretch):
        run = [(x, scale.place(value, shift)) for _, (x, value) in items if value is not None]
        if key is None:
            continue
        if isinstance(key, str):  # a lane: its two ends are enough
            run = [run[0], run[-1]]
            points += [(run[0][0] - _HALF, run[0][1]), (run[1][0] + _HALF, run[1][1]), None]
        else:
            points += [end for x, y in run for end in ((x - _HALF, y), (x + _HALF, y))] + [None]
    return points


def draw_chart(title: str, layers: Sequence[LayerView]) -> Chart:
    """Introduced and inherited SQNR over the layers, what is left with the pins, and the pins."""
    import pygal  # type: ignore[import-untyped]

    places = [float(number) if view.index is None else view.index for number, view in enumerate(layers)]
    pinned = [(x, view) for x, view in zip(places, layers, strict=True) if view.pinned]
    figures = {
        "introduced": [view.introduced for view in layers],
        "inherited": [view.inherited for view in layers],
        # Without pins the plan found is the variant without pins, and its curve the same.
        "mixed": [view.mixed if pinned else None for view in layers],
    }
    scale = _scale(value for curve in figures.values() for value in curve if value is not None)
    bottom, top = min([scale.low, *scale.lanes.values()]), max([scale.high, *scale.lanes.values()])
    chart = pygal.XY(
        width=1000,
        height=360,
        margin=4,
        margin_right=12,
        range=(bottom - scale.lane_height / 2, top + scale.lane_height / 2),
        xrange=(min(places) - _HALF, max(places) + _HALF),
        y_labels=_y_labels(scale),
        x_labels=_labels(_ticks(min(places), max(places), 12, whole=True)),
        show_legend=False,
        show_dots=False,
        allow_interruptions=True,
        js=[],  # pygal's own tooltips would be fetched from the network
    )
    shifts = {"introduced": 1.0, "inherited": 0.0, "mixed": -1.0}
    names = []
    if pinned:  # first, so that the curves stand over its lines
        chart.add("pins", _pin_marks(pinned, bottom, top), show_dots=True, dots_size=4)
        names.append("pins")
    for name, values in figures.items():
        if strokes := _strokes(places, values, scale, shifts[name], joined=name != "introduced"):
            chart.add(name, strokes)
            names.append(name)
    tree = chart.render_tree()
    first, step = _tidy(tree, names)
    tree.set("role", "img")
    tree.set(
        "aria-label", f"{title}: SQNR over the layers of the network. The layer table below holds all its figures."
    )
    # An XML serialiser has escaped every name in it.
    svg = Markup(ElementTree.tostring(tree, encoding="unicode"))
    return Chart(svg, first, step, "mixed" in names, bool(pinned))


def _pin_marks(pinned: Iterable[tuple[float, LayerView]], bottom: float, top: float) -> list[Any]:
    """A line from bottom to top for each pin, with a dot that says its name."""
    marks: list[Any] = []
    for x, view in pinned:
        name = f"{visible(view.layer)}: pinned to FP32"
        marks += [{"value": (x, bottom)}, {"value": (x, top), "label": name}, None]
    return marks


def _y_labels(scale: Scale) -> list[dict[str, Any]]:
    lanes = [{"value": height, "label": kind} for kind, height in scale.lanes.items()]
    return _labels(_ticks(scale.low, scale.high, 6)) + lanes


def _labels(values: Iterable[float]) -> list[dict[str, Any]]:
    return [{"value": value, "label": show(value, "g")} for value in values]


def _ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers from low to high, about so many."""
    rough = max((high - low) / about, 1e-9)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


_DECIMALS = re.compile(r"(\.\d)\d+")


def _tidy(svg: Any, names: Sequence[str]) -> tuple[float, float]:
    """Take out of pygal's drawing what this page does not use, and say where its layers stand.

    Its style, script and hidden tooltips go (the page's own style applies); a curve becomes one path,
    with coordinates to a tenth of a pixel; classes say what a curve is. Returns the place of layer 0 on
    the drawing, and the width of one layer.
    """
    for child in list(svg):
        if not isinstance(child.tag, str) or child.tag in ("defs", "title"):
            svg.remove(child)
    svg.attrib.pop("id", None)
    graph = svg.find("g")
    for group in list(graph):
        if "text-overlay" in group.get("class", "") or "tooltip-overlay" in group.get("class", ""):
            graph.remove(group)
    for element in list(svg.iter("g")):
        _tidy_group(element, names)
    plot = graph.find("g[@class='plot']")
    left = float(re.findall(r"[\d.]+", plot.get("transform"))[0])
    marks = [
        (float(text.text.replace("−", "-")), float(text.get("x"))) for text in plot.findall("g[@class='axis x']/g/text")
    ]
    if len(marks) < 2:
        return left + (marks[0][1] if marks else 0.0), 0.0
    step = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
    return round(left + marks[0][1] - marks[0][0] * step, 2), round(step, 4)


def _tidy_group(group: Any, names: Sequence[str]) -> None:
    kind = group.get("class", "")
    if kind == "guides":  # its <title> would show a lane's height as if it were a figure
        for title in group.findall("title"):
            group.remove(title)
    elif kind == "dots":
        _name_dot(group)
    elif match := re.match(r"series serie-(\d+)", kind):
        group.set("class", f"curve {names[int(match[1])]}")
        paths = group.findall("path")
        if paths:
            drawn = "".join(path.get("d") for path in paths)
            paths[0].attrib = {"d": _DECIMALS.sub(r"\1", drawn).replace(" L", "L")}
            for path in paths[1:]:
                group.remove(path)


def _name_dot(dot: Any) -> None:
    """Turn a dot's hidden description into the <title> that browsers show; a dot without one goes."""
    label = dot.find("desc[@class='label']")
    circle = dot.find("circle")
    for child in list(dot):
        dot.remove(child)
    if label is not None:
        dot.append(circle)
        ElementTree.SubElement(circle, "title").text = label.text
