"""How true one set of per-tensor error figures is to another: ranks, the worst ten, differences in dB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORST = 10


@dataclass(frozen=True)
class Agreements:
    """Two figures of each of `tensors` tensors, in dB, held against each other.

    `spearman` is the correlation of their ranks, NaN where there are none or all are the same. `shared` of the `worst`
    tensors with the lowest figures are so in both. `median_db` is the median of |a − b| over the `finite` tensors where
    both are finite, NaN where none are. `broken` counts figures of NaN or −∞, `exact` those of +∞, in the first and
    in the second.
    """

    tensors: int
    spearman: float
    shared: int
    worst: int
    median_db: float
    finite: int
    broken: tuple[int, int]
    exact: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; figures that are not finite become null."""
        return {name: number_or_none(value) for name, value in asdict(self).items()}


def agreements(first: Mapping[str, float], second: Mapping[str, float]) -> Agreements:
    """Hold two figures of the tensors that have both against each other, in the first's order."""
    names = [name for name in first if name in second]
    a, b = [first[name] for name in names], [second[name] for name in names]
    differences = [abs(x - y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Agreements(
        tensors=len(names),
        spearman=spearman(a, b),
        shared=len(frozenset(lowest(a, WORST)) & frozenset(lowest(b, WORST))),
        worst=min(WORST, len(names)),
        median_db=float(np.median(differences)) if differences else math.nan,
        finite=len(differences),
        broken=(_broken(a), _broken(b)),
        exact=(sum(x == math.inf for x in a), sum(x == math.inf for x in b)),
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, in −1…1; NaN where there are fewer than two, or one side is all the same."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean() if a.size else a, b - b.mean() if b.size else b
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / norm)) if norm else math.nan


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs. NaN and −∞ are equal and the lowest, +∞ is the highest."""
    keys = np.array([_key(value) for value in values], np.float64)
    order = np.argsort(keys, kind="stable")
    _, first, counts = np.unique(keys[order], return_index=True, return_counts=True)
    found = np.empty(len(keys), np.float64)
    found[order] = np.repeat(first + (counts + 1) / 2, counts)
    return found


def lowest(values: Sequence[float], count: int) -> list[int]:
    """The places of the lowest values, lowest first; of equal ones the earlier."""
    return sorted(range(len(values)), key=lambda i: (_key(values[i]), i))[:count]


def number_or_none(value: Any) -> Any:
    """The value as JSON can hold it: numbers that are not finite are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _key(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _broken(values: Sequence[float]) -> int:
    return sum(math.isnan(x) or x == -math.inf for x in values)
