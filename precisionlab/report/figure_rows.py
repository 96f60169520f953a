"""The figures in a card of the report: a row each, of the reference, without pins, and of the plan found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precisionlab.compare.metrics import SQNR, RunMetric
from precisionlab.compare.tolerance import Bound, Tolerance
from precisionlab.report.cells import ABSENT, axis_text, show, value_text
from precisionlab.report.views import VariantView
from precisionlab.search.alternatives import AlternativeKind

_HELD_OUT = "on the samples held out"


@dataclass(frozen=True)
class FigureRow:
    """One row of the verdict: a figure of the reference, without pins, and with them. `below` belongs to another."""

    label: str
    cells: tuple[str, ...]
    below: bool = False


def figure_rows(
    reference: VariantView | None,
    low: VariantView | None,
    mixed: VariantView | None,
    bounds: Tolerance,
    metric: str,
) -> tuple[FigureRow, ...]:
    """The figures of the variant without pins and of the plan found, beside the reference's."""
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
