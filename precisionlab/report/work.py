"""Where the work of a plan is: by the precision that layers run in, and by their operators."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from precisionlab.report.cells import Row, as_number, as_text, percent, visible

_KINDS = 8  # kinds of layers that are shown; those with more work


@dataclass(frozen=True)
class Share:
    """What one group of layers has of all: counts and percentages as texts, `–` for what is not known.

    `bar` is its share of the multiply-adds, 0 to 1, for a drawing.
    """

    name: str
    layers: int
    multiply_adds: str
    weights: str
    cost: str
    time: str
    bar: float


@dataclass(frozen=True)
class Work:
    """All of a plan; `timed` says whether times of layers were measured in an engine."""

    precisions: tuple[Share, ...]
    kinds: tuple[Share, ...]
    timed: bool


def work_of(rows: Sequence[Row]) -> Work | None:
    """The rows of one precision in `layers.csv`, of which those that compute in floats count; None where none does."""
    computing = [row for row in rows if not as_text(row, "fixed")]
    if not computing:
        return None
    by_precision = _shares(computing, lambda row: as_text(row, "pinned_to") or as_text(row, "runs_in"))
    by_kind = _shares(computing, lambda row: as_text(row, "kind"))
    timed = any(_number(row, "engine_ms") for row in computing)
    return Work(tuple(by_precision), tuple(by_kind[:_KINDS]), timed)


def _shares(rows: Sequence[Row], group: Callable[[Row], str]) -> list[Share]:
    """The groups, those with the most multiply-adds first, then with the most layers."""
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    found = []
    for name, own in groups.items():
        shares = [_share(own, rows, column) for column in _COLUMNS]
        work, weights, cost, time = (percent(share).removesuffix(" %") for share in shares)
        found.append(Share(visible(name), len(own), work, weights, cost, time, shares[0] or 0.0))
    return sorted(found, key=lambda one: (-one.bar, -one.layers, one.name))


_COLUMNS = ("multiply_adds", "weight_bytes", "cost_us", "engine_ms")


def _share(own: Sequence[Row], rows: Sequence[Row], column: str) -> float | None:
    total = sum(_number(row, column) for row in rows)
    return sum(_number(row, column) for row in own) / total if total else None


def _number(row: Row, column: str) -> float:
    return (as_number(row, column) if column in row else None) or 0.0
