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
    """One row of the verdict: a figure of the reference, without pins, and with them. `below` belongs to another.

    `missed` says of each cell whether its figure is not what was asked; it is shorter where none is asked of.
    """

    label: str
    cells: tuple[str, ...]
    below: bool = False
    missed: tuple[bool, ...] = ()

    @property
    def marked(self) -> tuple[tuple[str, bool], ...]:
        """Each cell, and whether its figure is not what was asked."""
        return tuple((cell, place < len(self.missed) and self.missed[place]) for place, cell in enumerate(self.cells))


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
    asked = {bound.figure: bound for bound in bounds}
    all_of = [reference, *variants]
    headline = [show(v.worst.sqnr, ".1f") if v else ABSENT for v in all_of]
    rows = [_row("Worst output’s SQNR, dB", headline, asked.get(SQNR), variants)]
    held_out = [show(v.worst.held_out.sqnr, ".1f") if v else ABSENT for v in all_of]
    rows += _row_below(_HELD_OUT, held_out, asked.get(SQNR), variants)
    rows += _row_below("95 % interval", [ABSENT, *(_interval(v) for v in variants)])
    for kind in AlternativeKind:
        rows += _row_below(kind.words, [ABSENT, *(_under(v, kind) for v in variants)])
    for bound in bounds:
        if _has_row(bound):
            figures = [v.of(bound) if v else (None, None) for v in all_of]
            label = axis_text(bound)
            cells = [[value_text(bound, figure[place]) for figure in figures] for place in (0, 1)]
            rows.append(_row(label[0].upper() + label[1:], cells[0], bound, variants))
            rows += _row_below(_HELD_OUT, cells[1], bound, variants)
    if metric:
        figures_of_task = [show(low.reference_metric, ".3f"), *(show(v.metric, ".3f") for v in variants)]
        rows.append(_row(metric, figures_of_task, asked.get("metric"), variants))
        held = [show(v.held_out_metric, ".3f") if v else ABSENT for v in all_of]
        rows += _row_below(_HELD_OUT, held, asked.get("metric"), variants)
        rows += _row_below("95 % interval, ±", [_half_width(v) for v in all_of])
    if any(v.cost is not None for v in variants):
        kinds = " and ".join(dict.fromkeys(v.cost_figures for v in variants))
        rows.append(_row(f"Cost, % of FP32 ({kinds})", ["100", *(_percentage(v.cost) for v in variants)]))
    broken = [show(v.nonfinite_tensors, ".0f") if v else ABSENT for v in all_of]
    rows.append(_row("Tensors with new NaN or Inf", broken, asked.get("nonfinite"), variants))
    if any(v.held_out_nonfinite not in (None, v.nonfinite_tensors) for v in variants):
        rows += _row_below(_HELD_OUT, [show(v.held_out_nonfinite, ".0f") if v else ABSENT for v in all_of])
    return tuple(rows)


def _has_row(bound: Bound) -> bool:
    """Whether the figure has a row of its own; the headline, the task metric and NaN and Inf have theirs anyway."""
    metric = bound.of_metric
    return metric.tabled if isinstance(metric, RunMetric) else bound.figure != SQNR


def _row(
    label: str, cells: Sequence[str], bound: Bound | None = None, variants: Sequence[VariantView] = ()
) -> FigureRow:
    """A row; `bound` is what its figures on the samples that chose were held to, those of the reference not."""
    return FigureRow(label, tuple(cells), missed=_missed(bound, variants, 0))


def _row_below(
    label: str, cells: Sequence[str], bound: Bound | None = None, variants: Sequence[VariantView] = ()
) -> list[FigureRow]:
    """A row that belongs to the one above, of the samples held out; none where it would be empty."""
    if set(cells) == {ABSENT}:
        return []
    return [FigureRow(label, tuple(cells), below=True, missed=_missed(bound, variants, 1))]


def _missed(bound: Bound | None, variants: Sequence[VariantView], place: int) -> tuple[bool, ...]:
    """Of the reference and of each variant, whether its figure is not what the bound asks."""
    figures = [] if bound is None else [variant.of(bound)[place] for variant in variants]
    return (False, *(figure is not None and bound is not None and not bound.admits(figure) for figure in figures))


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
