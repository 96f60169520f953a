"""The compiled assignment of rows to rows: pairs that are each other's nearest, until none is left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from precisionlab.system.loops import compiled


@compiled()
def _distance(a, b, p, q, integer):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.size):
        e = a[k] - b[k]
        total += e * e
    for k in range(p.size):
        if p[k] != q[k]:
            total += integer
    return total if total == total else np.inf


@compiled()
def _nearest(i, first, second, p, q, integer, width, taken):  # type: ignore[no-untyped-def]
    """The nearest row of `second` that is not taken; of equally near ones that closest in the order."""
    best, where = np.inf, -1
    for j in range(max(0, i - width), min(len(second), i + width + 1)):
        if taken[j]:
            continue
        d = _distance(first[i], second[j], p[i], q[j], integer)
        if d < best or (where >= 0 and d == best and abs(j - i) < abs(where - i)):
            best, where = d, j
    return where, best


@compiled()
def _assign(first, second, p, q, integer, width):  # type: ignore[no-untyped-def]
    n, m = len(first), len(second)
    twin, distance = np.full(n, -1, np.int64), np.full(n, np.inf)
    taken_first, taken_second = np.zeros(n, np.bool_), np.zeros(m, np.bool_)
    to_second, away = np.full(n, -1, np.int64), np.full(n, np.inf)
    to_first, back = np.full(m, -1, np.int64), np.full(m, np.inf)
    for i in range(n):
        to_second[i], away[i] = _nearest(i, first, second, p, q, integer, width, taken_second)
    for j in range(m):
        to_first[j], back[j] = _nearest(j, second, first, q, p, integer, width, taken_first)
    while True:
        found = 0
        for i in range(n):
            j = to_second[i]
            if not taken_first[i] and j >= 0 and not taken_second[j] and to_first[j] == i:
                twin[i], distance[i] = j, away[i]
                taken_first[i] = taken_second[j] = True
                found += 1
        if found == 0:
            break
        for i in range(n):  # whose nearest has gone looks again
            if not taken_first[i] and to_second[i] >= 0 and taken_second[to_second[i]]:
                to_second[i], away[i] = _nearest(i, first, second, p, q, integer, width, taken_second)
        for j in range(m):
            if not taken_second[j] and to_first[j] >= 0 and taken_first[to_first[j]]:
                to_first[j], back[j] = _nearest(j, second, first, q, p, integer, width, taken_first)
    return twin, distance


def assign(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    first_integers: NDArray[np.int64],
    second_integers: NDArray[np.int64],
    integer: float,
    width: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each row of `first`, (n, d), its twin in `second`, (m, d), or −1; and their distance.

    Greedy: the pair that is closest of all goes first, then the closest of what is left. The distance is the sum of
    squared differences, and `integer` for each of the integers (n, k) and (m, k) that differs. Only rows whose places
    are within `width` are compared. A row with NaN or Inf has no twin.
    """
    twin, distance = _assign(first, second, first_integers, second_integers, integer, width)
    return twin, distance
