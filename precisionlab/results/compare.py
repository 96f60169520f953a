"""What came of holding a second model beside the first: layer by layer, and a verdict on its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.confidence import Interval, inconclusive_bounds, interval
from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.metrics import SQNR, error_metrics
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.search.certificate import json_number
from precisionlab.search.grounds import Grounds
from precisionlab.search.verdict import State, Verdict
from precisionlab.system.wording import decibel

COMPARE_SCHEMA = 1
"""Which names `compare.json` and `compare.csv` have."""


@dataclass(frozen=True)
class CompareRow:
    """One float tensor that a layer of the first model gives, and its twin in the second.

    `twin`, `by`, `operator` and `type` are empty where it has none, and then there are no errors. `inherited` is what
    the second model has lost there so far, `introduced` since the nearest twins ahead, given the first model's values.
    `operator` and `type` are what the second model computes it by, and in. `why` says why there is no twin, or no
    figure of one.
    """

    layer: str
    kind: str
    tensor: str
    twin: str
    by: str
    operator: str
    type: str
    inherited: ErrorSums | None
    introduced: ErrorSums | None
    why: str = ""


@dataclass(frozen=True)
class CompareFindings:
    """A second model beside the first. `facts` is what stands in the JSON beside the figures.

    `alone` are the float tensors of the second model that have no twin. `folder` is None where nothing was written.
    """

    model: str
    other: str
    rows: tuple[CompareRow, ...]
    alone: tuple[str, ...]
    comparison: Comparison
    tolerance: Tolerance
    verdict: Verdict
    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    folder: Path | None = None

    @property
    def met(self) -> bool:
        """Whether the verdict is that the tolerance is met."""
        return self.verdict.met

    @property
    def unmatched(self) -> tuple[CompareRow, ...]:
        """The rows without a twin."""
        return tuple(row for row in self.rows if not row.twin)

    def worst_rows(self, count: int) -> tuple[CompareRow, ...]:
        """The rows that introduce the largest error, worst first."""
        known = [row for row in self.rows if row.introduced is not None and row.introduced.sqnr != float("inf")]
        return tuple(sorted(known, key=lambda row: _ascending(row.introduced))[:count])


def _ascending(errors: ErrorSums | None) -> float:
    sqnr = float("-inf") if errors is None else errors.sqnr
    return sqnr if sqnr == sqnr else float("-inf")


def compare_verdict(
    comparison: Comparison, tolerance: Tolerance, grounds: Grounds, rows: tuple[CompareRow, ...]
) -> Verdict:
    """What is said of the second model, by the tolerance and the grounds that the reference gives for one."""
    figure = ", ".join(f"{bound.figure} {_value(bound.of(comparison), bound.metric)}" for bound in tolerance)
    asked = ", ".join(map(str, tolerance))
    if unknown := grounds.unknown(tolerance):
        return Verdict(State.NOT_KNOWN, f"not known: {unknown}", figure)
    if meets(comparison, tolerance):
        caveat = grounds.caveat(tolerance)
        said = f"right: the second model is within {asked}" + (f"; but {caveat}" if caveat else "")
        return Verdict(State.MET, said + _hanging(comparison, tolerance), figure, in_part=bool(caveat))
    layer = {row.tensor: row.layer for row in rows}
    if comparison.broken:
        first = comparison.broken[0]
        what = f"a NaN or Inf that no rounding gives begins at layer {layer[first]}"
    else:
        what = f"the second model is NOT within {asked}"
        if comparison.nonfinite:
            what += f"; its first NaN or Inf is of layer {layer[comparison.nonfinite[0]]}"
    return Verdict(State.NOT_MET, f"NOT right: {what}" + _hanging(comparison, tolerance), figure)


def _hanging(comparison: Comparison, tolerance: Tolerance) -> str:
    """Which bounds other samples might turn."""
    found = [
        f"{bound} hangs on the samples (95 % interval {_value(ends.low, bound.metric)} to "
        f"{_value(ends.high, bound.metric)})"
        for bound, ends in inconclusive_bounds(comparison, tolerance)
    ]
    return f"; {'; '.join(found)}" if found else ""


def _value(value: float, metric: str) -> str:
    return f"{decibel(value)} dB" if metric == SQNR else f"{value:.4g}"


def compare_json(found: CompareFindings) -> dict[str, Any]:
    """The figures and what they come from; a figure that is not finite is text."""
    comparison = found.comparison
    return {
        "schema": COMPARE_SCHEMA,
        **found.facts,
        "tolerance": [str(bound) for bound in found.tolerance],
        "met": found.met,
        "verdict": found.verdict.to_dict(),
        "bounds": [
            {
                "bound": str(bound),
                "figure": json_number(bound.of(comparison)),
                "holds": bound.holds(comparison),
                "interval": _ends(interval(comparison, bound)),
            }
            for bound in found.tolerance
        ],
        "outputs": {
            name: {"role": errors.role, **{m: _worst(comparison, m, name) for m in _figures(comparison, name)}}
            for name, errors in comparison.outputs.items()
        },
        "broken": list(comparison.broken),
        "nonfinite": list(comparison.nonfinite),
        "matched": len(found.rows) - len(found.unmatched),
        "unmatched": {"model": [row.tensor for row in found.unmatched], "other": list(found.alone)},
        "notes": list(found.notes),
        "layers": [_plain(row) for row in found.rows],
    }


def _ends(ends: Interval | None) -> list[float | str] | None:
    return None if ends is None else [json_number(ends.low), json_number(ends.high)]


def _figures(comparison: Comparison, name: str) -> list[str]:
    metrics = (*(metric.name for metric in error_metrics()), "top1")
    return [metric for metric in metrics if comparison.figures(metric, name)]


def _worst(comparison: Comparison, metric: str, output: str) -> float | str:
    return json_number(comparison.worst(metric, output))


def _plain(row: CompareRow) -> dict[str, Any]:
    return {
        "layer": row.layer,
        "kind": row.kind,
        "tensor": row.tensor,
        "twin": row.twin or None,
        "by": row.by or None,
        "introduced_sqnr_db": None if row.introduced is None else json_number(row.introduced.sqnr),
        "inherited_sqnr_db": None if row.inherited is None else json_number(row.inherited.sqnr),
    }
