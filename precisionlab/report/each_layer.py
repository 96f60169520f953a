"""Each layer by itself, alone in the low precision (one on) and alone in float32 (one off), as rows with a strip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from precisionlab.evaluate.each_layer import extremes
from precisionlab.report.cells import Row, as_number, as_text, show
from precisionlab.report.drawing import SETTLED
from precisionlab.report.each_chart import EachPoint, draw_each
from precisionlab.system.wording import counted

_MOST = 25
"""Rows that are shown; all stand in layers.csv."""


@dataclass(frozen=True)
class OneLayer:
    """A layer's figures as texts, and where its two marks stand on the strip: 0 to 100, None for none.

    `words` say the same as the strip.
    """

    layer: str
    index: int
    on_sqnr: str
    on_metric: str
    off_sqnr: str
    off_metric: str
    on: float | None
    off: float | None
    words: str


@dataclass(frozen=True)
class ByItself:
    """The worst layers of one precision, of as many as were `measured` on so many samples.

    `figure` names what the strip shows, `low` and `high` its ends, `metric` the task metric, "" for none; `whole` and
    `reference` are what the precision throughout and float32 come to, as texts, `at` where the first stands.
    """

    rows: tuple[OneLayer, ...]
    samples: int
    measured: int
    metric: str
    figure: str
    low: str
    high: str
    whole: str
    reference: str
    at: float | None
    chart: Markup


@dataclass(frozen=True)
class _Axis:
    """Where figures stand; what is no number at its worse end, which is the lower one where `rising`."""

    low: float
    high: float
    rising: bool

    @classmethod
    def of(cls, values: Sequence[float], rising: bool) -> _Axis:
        """An axis for these values."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        return cls(low, high if high > low else low + 1.0, rising)

    def place(self, value: float | None) -> float | None:
        """0 to 100; None where there is no value."""
        if value is None:
            return None
        if math.isnan(value):
            return 0.0 if self.rising else 100.0
        return round(100 * min(1.0, max(0.0, (min(value, self.high) - self.low) / (self.high - self.low))), 1)


@dataclass(frozen=True)
class _Figures:
    """One layer's numbers: NaN was measured, None was not."""

    layer: str
    index: int
    on: Mapping[str, float | None]
    off: Mapping[str, float | None]


def by_itself(facts: Mapping[str, Any] | None, rows: Sequence[Row], title: str) -> ByItself | None:
    """What `--each-layer` has found of one precision; None where it was not asked for, or nothing was measured.

    `facts` stand in `run.json`, `rows` are those of the precision in `layers.csv`.
    """
    if not facts:
        return None
    metric = str(facts.get("metric") or "")
    found = [figures for row in _worst_first(rows) if (figures := _figures(row, bool(metric))) is not None]
    if not found:
        return None
    shown, low = found[:_MOST], facts["low"]
    whole = {"sqnr": _number(low["sqnr"]), "metric": _number(low["metric"])}
    by = "metric" if metric and len(_values(shown, "metric")) > 1 else "sqnr"
    ends = [min(v, SETTLED) if by == "sqnr" else v for v in (*_values(shown, by), *_known(whole[by]))]
    axis = _Axis.of(ends, by == "sqnr" or bool(facts["higher_is_better"]))
    figure = metric if by == "metric" else "SQNR, dB"
    reference = _number(facts["reference"]["metric"])
    return ByItself(
        rows=tuple(_row(one, axis, by, figure, title) for one in shown),
        samples=int(facts["samples"]),
        measured=len(found),
        metric=metric,
        figure=figure,
        low=show(axis.low, ".3g"),
        high=show(axis.high, ".3g") + (" and more" if by == "sqnr" and axis.high == SETTLED else ""),
        whole=f"{show(whole['sqnr'], '.1f')} dB" + (f", {metric} {show(whole['metric'], '.3f')}" if metric else ""),
        reference=show(reference, ".3f") if metric else "",
        at=axis.place(whole[by]),
        chart=_chart(found, whole[by], by, figure, title),
    )


def told_in_words(facts: Mapping[str, Any] | None, rows: Sequence[Row], title: str) -> str:
    """Which layer harms most alone in the low precision, and which buys most alone in float32; "" where none was asked.

    `facts` and `rows` are as `by_itself` has them.
    """
    found = [figures for row in rows if (figures := _figures(row, with_metric=False)) is not None] if facts else []
    if not facts or not found:
        return ""
    on, off = ({one.layer: v for one, v in pairs if v is not None} for pairs in _pairs(found))
    low = _number(facts["low"]["sqnr"])
    worst, best = extremes(math.nan if low is None else low, on, off)
    said = [f"on {counted(int(facts['samples']), 'sample')}, {title} throughout {show(low, '.1f')} dB"]
    if worst is not None:
        said.append(f"only one layer in {title}: worst {worst}, {show(on[worst], '.1f')} dB")
    if best is not None:
        said.append(f"all but one: best without {best}, {show(off[best], '.1f')} dB")
    elif off:
        said.append("all but one: no single layer gains a tenth of a decibel")
    return "; ".join(said)


def _pairs(
    found: Sequence[_Figures],
) -> tuple[list[tuple[_Figures, float | None]], list[tuple[_Figures, float | None]]]:
    """Each layer with its SQNR in dB: alone in the low precision, and alone in float32."""
    return [(one, one.on["sqnr"]) for one in found], [(one, one.off["sqnr"]) for one in found]


def _chart(found: Sequence[_Figures], whole: float | None, by: str, figure: str, title: str) -> Markup:
    points = [EachPoint(one.index, one.on[by], one.off[by]) for one in sorted(found, key=lambda one: one.index)]
    words = f"{title}: {figure} with each layer alone in it, and alone in FP32, in the network's order"
    return draw_each(words, figure, points, whole, decibels=by == "sqnr")


def _worst_first(rows: Sequence[Row]) -> list[Row]:
    """The rows by rank; those without one are not touched."""
    ranked = [(rank, row) for row in rows if (rank := as_number(row, "rank")) is not None]
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def _figures(row: Row, with_metric: bool) -> _Figures | None:
    if "one_on_sqnr_db" not in row:
        return None
    parts: list[dict[str, float | None]] = []
    for prefix in ("one_on", "one_off"):
        counted = f"{prefix}_nonfinite"
        metric = as_number(row, f"{prefix}_metric", counted) if with_metric else None
        parts.append({"sqnr": as_number(row, f"{prefix}_sqnr_db", counted), "metric": metric})
    if all(part["sqnr"] is None for part in parts):
        return None
    return _Figures(as_text(row, "layer"), int(as_number(row, "index") or 0), *parts)


def _values(rows: Sequence[_Figures], by: str) -> list[float]:
    """The values of either kind that differ, of those that are there."""
    return list(dict.fromkeys(v for row in rows for part in (row.on, row.off) for v in _known(part[by])))


def _known(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _row(one: _Figures, axis: _Axis, by: str, figure: str, title: str) -> OneLayer:
    form = ".1f" if by == "sqnr" else ".3f"
    on, off = ("not measured" if part[by] is None else show(part[by], form) for part in (one.on, one.off))
    return OneLayer(
        layer=one.layer,
        index=one.index,
        on_sqnr=show(one.on["sqnr"], ".1f"),
        on_metric=show(one.on["metric"], ".3f"),
        off_sqnr=show(one.off["sqnr"], ".1f"),
        off_metric=show(one.off["metric"], ".3f"),
        on=axis.place(one.on[by]),
        off=axis.place(one.off[by]),
        words=f"{figure}: {on} with it alone in {title}, {off} with it alone in FP32",
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
