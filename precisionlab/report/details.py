"""What is known of a layer beside its row in the table, as compact JSON that the page's script opens on demand.

Rows of text for thousands of layers would make the page heavy; a list of figures for each stays small. Names in it
come from strangers' models: the JSON is written so that it cannot end the script element that it stands in, and the
script shows every string as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from precisionlab.compare.metrics import error_metrics
from precisionlab.report.cells import ABSENT, Row, as_format, as_number, as_text, show, visible
from precisionlab.report.column_kinds import SPREAD_PARTS

_COUNTS = {"nan": "NaN", "inf": "Inf", "underflow": "Underflow"}
_NODES = 12  # of a compiled engine's layer there may be hundreds


def details_json(rows: Iterable[Row]) -> Markup:
    """The details of the layers of one precision.

    An object from the layer's index to its facts, and `formats`, an object from the title of each number format among
    them to its largest, smallest normal and smallest value.

    Facts are `e`, the introduced and the inherited errors as texts (in the order of
    `error_labels`), `s`, how the SQNR of both lies over the samples as texts (least, quartiles, greatest, the worst
    sample's name), `m`, largest value of the reference as a number, `h`, the title of the format that the outputs are
    held in, `f`, pairs of what else is known and its text. What was not measured is left out.
    """
    every = list(rows)
    formats = {found.title: [found.largest, found.normal, found.least] for found in map(as_format, every)}
    return script_json({show(as_number(row, "index"), ".0f"): _facts(row) for row in every} | {"formats": formats})


def error_labels() -> Markup:
    """What the texts of a layer's errors are, as a list in a script."""
    labels = json.dumps([*(metric.label for metric in error_metrics()), *_COUNTS.values()], ensure_ascii=False)
    return Markup(labels)


def script_json(value: Any) -> Markup:
    """JSON as it can stand in a script element of an HTML page: nothing in it is markup, and no line ends a string."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _facts(row: Row) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    errors = [_errors(row, kind) for kind in ("introduced", "inherited")]
    if any(errors):
        facts["e"] = errors
    spreads = [_spread(row, kind) for kind in ("introduced", "inherited")]
    if any(spreads):
        facts["s"] = spreads
    largest = as_number(row, "ref_max")
    if largest is not None and largest != float("inf"):
        facts["m"] = float(f"{largest:.4g}")
    facts["h"] = as_format(row).title
    facts["f"] = [[name, text] for name, text in _others(row) if text]
    return facts


def _errors(row: Row, kind: str) -> list[str]:
    counted = f"{kind}_nan"
    if as_number(row, counted) is None:
        return []
    columns = {f"{kind}_{metric.column}": metric.layer_form or metric.form for metric in error_metrics()}
    # A run that was made before a metric was added lacks its column.
    figures = [show(as_number(row, name, counted), form) if name in row else ABSENT for name, form in columns.items()]
    return figures + [show(as_number(row, f"{kind}_{name}"), ".0f") for name in _COUNTS]


def _spread(row: Row, kind: str) -> list[str]:
    """How the SQNR lies over the samples; nothing where it was not measured, or by an older version."""
    named = f"{kind}_worst"
    if named not in row or not as_text(row, named):
        return []
    # An empty cell is a NaN here: where there is a worst sample, all five were measured.
    figures = [as_number(row, f"{kind}_{part}_db", named) for part in SPREAD_PARTS]
    return [show(math.nan if figure is None else figure, ".1f") for figure in figures] + [visible(row[named])]


def _others(row: Row) -> Iterable[tuple[str, str]]:
    """What else is known. Those that stand in the row as well are left to the script."""
    nodes = as_text(row, "nodes")
    if nodes != as_text(row, "layer"):
        names = nodes.split(" + ")
        more = f" and {len(names) - _NODES} more" if len(names) > _NODES else ""
        yield "ONNX nodes", visible(" + ".join(names[:_NODES])) + more
    yield "Without pins", as_text(row, "runs_in").upper()
    yield "Outputs with only it low", _by_itself(row, "one_on")
    yield "Outputs with all low but it", _by_itself(row, "one_off")
    yield "In the engine", _cell(row, "engine_types").upper().replace(" ", " and ")
    yield "Its pin there", _cell(row, "engine_pin")
    yield "Adds up there", _sum(row)
    yield from _half_sums(row)
    yield "SQNR there, measured", _figure(row, "engine_sqnr_db", ".1f", " dB")
    yield "Looked at there", _cell(row, "engine_seen")
    yield "Time there, measured", _figure(row, "engine_ms", ".3g", " ms")
    if (overflow := as_number(row, "overflow")) is not None and overflow:
        held_in = as_format(row)
        yield f"Reference’s values beyond {held_in.largest:.5g}, where {held_in.title} ends", show(overflow, ".0f")
    if (released := as_number(row, "released_nonfinite")) is not None and released:
        yield "NaN or Inf if its pin is released", f"in {show(released, '.0f')} tensors"
    if (gain := as_number(row, "gain", "alone_nonfinite")) is not None:
        yield "Error that pinning it should remove", f"{show(gain, '.3g')} of the outputs’ signal power (estimated)"
    for column, name in (("multiply_adds", "Multiply-adds"), ("weight_bytes", "Bytes of weights, FP32")):
        if (number := as_number(row, column)) is not None and number:
            yield name, f"{number:,.0f}"
    cost = as_number(row, "cost_us")
    if cost is not None:
        yield "Cost without pins", f"{show(cost, '.3g')} µs, {as_text(row, 'cost_figures')}"


def _by_itself(row: Row, prefix: str) -> str:
    """`35.4 dB, task metric 0.981`; empty where it was not measured."""
    counted = f"{prefix}_nonfinite"
    if counted not in row or as_number(row, counted) is None:
        return ""
    sqnr, metric = as_number(row, f"{prefix}_sqnr_db", counted), as_number(row, f"{prefix}_metric")
    return f"{show(sqnr, '.1f')} dB" + ("" if metric is None else f", task metric {show(metric, '.3f')}")


def _sum(row: Row) -> str:
    """`in half, 576 products on tensor cores`, by the kernel's name; empty where that does not tell."""
    kind, order = _cell(row, "engine_sum"), _cell(row, "engine_order")
    if not (kind or order):
        return ""
    products = as_number(row, "products") if "products" in row else None
    parts = [f"in {kind.replace(' ', ' and in ')}"] * bool(kind)
    parts += [f"{products:,.0f} products"] * bool(products)
    return ", ".join([*parts, *[visible(order)] * bool(order)]) + " (by its kernel’s name)"


def _half_sums(row: Row) -> Iterable[tuple[str, str]]:
    """What becomes of the layer where its kernel keeps its sums in half; runs of older versions do not say."""
    blocks = as_number(row, "blocks") if "blocks" in row else None
    if not blocks:
        return
    products = as_number(row, "products")
    of = f"{products:,.0f} products, in" if products else "In"
    yield "Sums in half", f"{of} {blocks:,.0f} block{'' if blocks == 1 else 's'}, each rounded on tensor cores"
    end = as_format(row).largest
    bound, largest = as_number(row, "sum_bound"), as_number(row, "largest_running_sum")
    is_beyond = largest is not None and largest > end
    if not is_beyond:
        yield (
            "SQNR of such sums, estimated",
            f"{_figure(row, 'half_sums_sqnr_db', '.1f', ' dB')}, by the number of blocks",
        )
    if largest is not None:
        beyond = f", beyond {end:.5g}: infinite there" if is_beyond else ""
        yield "Largest sum on the way", f"{show(largest, '.6g')} on these samples{beyond}"
    elif bound is not None:
        why = (
            f"its operands themselves go beyond {end:.5g}"
            if bound > end
            else f"{as_format(row).title} ends at {end:.5g}"
        )
        yield "Largest sum on the way", f"at most {show(bound, '.3g')} by a bound; {why}"


def _cell(row: Row, column: str) -> str:
    """A column that runs of older versions lack."""
    return as_text(row, column) if column in row else ""


def _figure(row: Mapping[str, Any], column: str, form: str, unit: str) -> str:
    value = as_number(row, column) if column in row else None
    return "" if value is None else show(value, form) + unit
