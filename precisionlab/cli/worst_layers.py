"""The layers that do the most harm in one precision, as a table in the terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from rich.table import Table

from precisionlab.cli.console import Console, shortened
from precisionlab.evaluate.each_layer import EachLayer, LayerFigures, extremes
from precisionlab.jobs.result import SweepResult
from precisionlab.model.selections import moving_layers
from precisionlab.report.layer_rows import layer_errors
from precisionlab.search.outcome import PrecisionResult
from precisionlab.search.worst import order_words, worst_first
from precisionlab.system.prefix import common_prefix
from precisionlab.system.wording import counted, decibel, number

_SHOWN = 8
_OTHER_COLUMNS = 52  # what the table of layers needs beside the names
_SHARE = 7  # what its share of the error takes of that


def print_worst_layers(console: Console, result: SweepResult, outcome: PrecisionResult) -> None:
    """A table of the worst, what its columns mean, and what it is ordered by."""
    plan, names = outcome.plan, worst_first(result.model, outcome)[:_SHOWN]
    prefix = common_prefix(names)
    console.print(_table(console, result, outcome, names, prefix))
    marks = (*["; * pinned"] * bool(plan.pins), *["; ~ repaired"] * bool(plan.repairs))
    console.print(f"own: introduced by the layer itself; so far: with what it inherited{''.join(marks)}", style="dim")
    if prefix:
        console.print(f"at the beginning of a name … stands for {prefix}", style="dim")
    if outcome.carriers is not None:
        console.print(outcome.carriers.words(len(outcome.ranked)), style="dim")
    order, above = _order(outcome), itertools.takewhile(lambda one: one is not outcome, result.precisions)
    if order not in {_order(one) for one in above if one.ranked}:  # said once for all tables that have it
        console.print(f"order: {order}", style="dim")


def by_itself_lines(outcome: PrecisionResult, each: EachLayer) -> Iterator[str]:
    """Which layer harms most alone in the low precision, and which buys most alone in float32."""
    metric = outcome.low.comparison.metric_name or ""

    def told(found: LayerFigures) -> str:
        return f"{decibel(found.sqnr)} dB" + ("" if found.metric is None else f", {metric} {number(found.metric, 3)}")

    on, off = ({name: found.sqnr for name, found in part.items()} for part in (each.one_on, each.one_off))
    worst, best = extremes(each.low.sqnr, on, off)
    samples = counted(each.samples, "sample")
    yield f"each layer by itself, on {samples}; {outcome.precision} throughout: {told(each.low)}"
    if worst is not None:
        yield f"  only one in {outcome.precision}: worst {worst}, {told(each.one_on[worst])}"
    if best is not None:
        yield f"  all but one in it: best without {best}, {told(each.one_off[best])}"
    elif off:
        yield "  all but one in it: no single layer gains a tenth of a decibel"


def _order(outcome: PrecisionResult) -> str:
    return order_words(len(outcome.output_shares), len(outcome.ranked))


def _table(
    console: Console, result: SweepResult, outcome: PrecisionResult, names: tuple[str, ...], prefix: str
) -> Table:
    shares, width = outcome.output_shares, console.width - _OTHER_COLUMNS
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"worst layers in {outcome.precision}")
    table.title_justify = "left"
    table.add_column("#", justify="right")
    table.add_column("layer", no_wrap=True)
    table.add_column("kind", max_width=16 - _SHARE // 2 * bool(shares), overflow="ellipsis", no_wrap=True)
    for head in (*["share"] * bool(shares), "own dB", "so far dB", "largest"):
        table.add_column(head, justify="right", no_wrap=True)
    pinned, moving = {pin.layer for pin in outcome.plan.pins}, moving_layers(result.model)
    repaired = {repair.layer for repair in outcome.plan.repairs}
    for place, name in enumerate(names, 1):
        layer = result.model.layer[name]
        own = layer_errors(layer, outcome.low.comparison.introduced)
        far = layer_errors(layer, outcome.low.comparison.inherited)
        table.add_row(
            str(place),
            shortened(_without(name, prefix), width - _SHARE * bool(shares))
            + (" *" if name in pinned else " ~" if name in repaired else ""),
            layer.kind,
            *([_share(shares.get(name))] if shares else []),
            decibel(own.sqnr) if own and name not in moving.own else "–",
            decibel(far.sqnr) if far and name not in moving.so_far else "–",
            f"{far.max_ref:.3g}" if far else "–",
        )
    return table


def _without(name: str, prefix: str) -> str:
    return f"…{name[len(prefix) :]}" if prefix and name.startswith(prefix) else name


def _share(share: float | None) -> str:
    return "–" if share is None else "breaks" if math.isnan(share) else f"{100 * share:.1f}%"
