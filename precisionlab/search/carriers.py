"""How an error is spread over the layers that make it: how many carry most of it, and which cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

SHARE = 0.9
"""The share of an error that its carriers make."""

_PERCENT = f"{100 * SHARE:.0f} %"

_FEW = 3
"""Of so many nobody says that they are many, whatever the model."""

_SAME = 1e-6
"""Relative; figures of float32 outputs that are nearer say nothing of which is larger."""


@dataclass(frozen=True)
class Carriers:
    """Of `layers` that were measured alone the `carrying` worst make `SHARE` of their error, and no fewer do."""

    carrying: int
    layers: int

    @property
    def is_diffuse(self) -> bool:
        """Whether so many carry it that finding how many must be pinned is shorter by halves of the ranking.

        k of L layers take about 2·log2(k) plans by doubling from one, log2(L) by halves: more from √L on.
        """
        return self.carrying > max(_FEW, math.sqrt(self.layers))

    def words(self, touched: int) -> str:
        """In a sentence without a full stop; `touched` are the layers that could have been measured."""
        of = f"{self.layers} layers" if self.layers >= touched else f"the {self.layers} layers measured"
        if self.is_diffuse:
            return f"the error is diffuse: {self.carrying} of {of} make {_PERCENT} of it, by what each does alone"
        makes = "makes" if self.carrying == 1 else "make"
        return f"{self.carrying} of {of} {makes} {_PERCENT} of the error, by what each does alone"

    def to_dict(self) -> dict[str, Any]:
        """As `run.json` holds it; read back by `from_dict`."""
        return {"share": SHARE, "layers": self.carrying, "measured": self.layers, "diffuse": self.is_diffuse}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Carriers:
        """What `to_dict` wrote."""
        return cls(int(data["layers"]), int(data["measured"]))


def carriers_of(errors: Iterable[float]) -> Carriers | None:
    """Who carries these squared errors (≥ 0), of each layer alone, in any unit.

    None where there is none, or one is not finite: of what is NaN or Inf no part is 90 %.
    """
    ranked = sorted(errors, key=lambda error: -error)
    total = math.fsum(ranked)
    if not math.isfinite(total) or total <= 0:
        return None
    enough = SHARE * total * (1 - _SAME)  # sums in another order differ in their last digits
    carrying = next(count for count, sum_ in enumerate(accumulate(ranked), 1) if sum_ >= enough)
    return Carriers(carrying, len(ranked))


def tied(order: Sequence[str], harms: Mapping[str, float]) -> Iterator[tuple[int, int]]:
    """Where layers of a ranking stand that their harm does not tell apart: of each such run its start and end.

    A Transpose behind a product rounds the same values as the product: each alone does the same. Layers without any
    harm are not tied: nothing was seen of them.
    """
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and _is_same(harms.get(order[start]), harms.get(order[end])):
            continue
        if end - start > 1:
            yield start, end
        start = end


def _is_same(first: float | None, other: float | None) -> bool:
    if first is None or other is None or not (math.isfinite(first) and math.isfinite(other)):
        return False
    return first > 0 and math.isclose(first, other, rel_tol=_SAME)
