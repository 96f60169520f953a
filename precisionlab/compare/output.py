"""The errors of one tensor that is judged: as a whole, and by its parts, of which the worst is its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

from precisionlab.compare.errors import Agreement, ErrorSums
from precisionlab.compare.metrics import METRICS, AgreementMetric, ErrorMetric
from precisionlab.compare.rows import RowCounts
from precisionlab.system.plain import of_plain

SHARE_SEEN = 1e-3
"""Below it nobody sees a score of 0 to 1: detectors are evaluated from 0.001 on, and used from 0.25."""

NOTHING = 2.0**-126
"""The smallest normal float32: no value that means something lies below."""


@dataclass(frozen=True)
class PartErrors:
    """A part of a tensor: its errors, whether its values are shares of 0 to 1, and what it is made from.

    `counts` is false for a part that only bounds that name it are about.
    """

    errors: ErrorSums
    is_share: bool = False
    counts: bool = True
    source: str = ""

    def __add__(self, other: PartErrors) -> PartErrors:
        return replace(self, errors=self.errors + other.errors)

    def to_list(self) -> list[Any]:
        """Plain values, for the journal; read back by `of_plain`."""
        return [list(self.errors.to_dict().values()), self.is_share, self.counts, self.source]


@dataclass(frozen=True)
class OutputErrors:
    """One tensor that is judged: its errors (None unless float), its top-1 agreement, and its parts' errors.

    `role` says why an inner tensor is judged; it is empty for a final output. `counts` is false for a tensor that only
    bounds that name it are about. `rows` counts what became of rows that are picked by value, where it has some.

    What is judged is each part on its own scale, or the whole where there are no parts. Shares of which neither the
    reference nor the output has any above a thousandth are left out: nobody sees them. Of other values smallness says
    nothing, as their unit is not known; but a part that is nothing but zeros in the reference (padding, a dead branch)
    has no scale, and its error is held to the scale of the quietest part that has one.
    """

    errors: ErrorSums | None
    top1: Agreement
    parts: Mapping[str, PartErrors] = field(default_factory=dict)
    role: str = ""
    counts: bool = True
    rows: RowCounts | None = None
    strict: OutputErrors | None = None

    def __add__(self, other: OutputErrors) -> OutputErrors:
        errors = None if self.errors is None or other.errors is None else self.errors + other.errors
        names = dict.fromkeys((*self.parts, *other.parts))
        parts = {name: _sum(self.parts.get(name), other.parts.get(name)) for name in names}
        rows = self.rows + other.rows if self.rows and other.rows else self.rows or other.rows
        strict = (self.strict or self) + (other.strict or other) if self.strict or other.strict else None
        return replace(self, errors=errors, top1=self.top1 + other.top1, parts=parts, rows=rows, strict=strict)

    @property
    def judged(self) -> dict[str, ErrorSums]:
        """The errors that count, by the part's name; under "" those of a tensor that is one part."""
        counted = {name: part for name, part in self.parts.items() if part.counts}
        if not counted:
            return {} if self.errors is None else {"": self.errors}
        seen = {name: part for name, part in counted.items() if _is_seen(part)}
        scaled = {name: part.errors for name, part in seen.items() if part.is_share or part.errors.max_ref > NOTHING}
        if not scaled:
            return {} if self.errors is None else {"": self.errors}
        quietest = min(scaled.values(), key=lambda e: e.ref2 / max(1, e.elements))
        power = quietest.ref2 / max(1, quietest.elements)
        return {name: scaled.get(name) or replace(p.errors, ref2=power * p.errors.elements) for name, p in seen.items()}

    @property
    def scaleless(self) -> frozenset[str]:
        """Those of `judged` that are held to another part's scale; their direction says nothing."""
        return frozenset(name for name, e in self.judged.items() if name and e != self.parts[name].errors)

    def figures(self, metric: str) -> dict[str, float]:
        """The figure of each of `judged`, or under "" the whole's where the metric is none of parts; see `METRICS`."""
        found = METRICS[metric]
        if isinstance(found, AgreementMetric):
            return {"": found.of(self.top1)} if self.top1.total else {}
        if not isinstance(found, ErrorMetric):
            return {}
        if not found.by_part:
            return {} if self.errors is None else {"": found.of(self.errors)}
        judged, left_out = self.judged, self.scaleless if found.of_direction else ()
        return {name: found.of(errors) for name, errors in judged.items() if name not in left_out}

    def to_list(self) -> list[Any]:
        """Plain values, for the journal; read back by `from_list`."""
        parts = {name: part.to_list() for name, part in self.parts.items()}
        errors = self.errors and list(self.errors.to_dict().values())
        rows = self.rows and self.rows.to_list()
        return [errors, self.top1.agree, self.top1.total, parts, self.role, self.counts, rows]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> OutputErrors:
        """What `to_list` wrote. Raises ValueError where it is something else."""
        errors, agree, total, *rest = data
        return of_plain(cls, [errors, [agree, total], *rest, None])


def settled(each: Sequence[OutputErrors]) -> tuple[OutputErrors, tuple[OutputErrors, ...]]:
    """The errors of one tensor over all samples, and sample by sample; near-ties are set aside unless they are many."""
    total = reduce(add, each)
    if total.strict is not None and total.rows is not None and not total.rows.is_aside:
        each = [one.strict or one for one in each]
        total = reduce(add, each)
    return replace(total, strict=None), tuple(replace(one, strict=None) for one in each)


def _is_seen(part: PartErrors) -> bool:
    reach = part.errors.max_ref + part.errors.max_error
    return not reach <= (SHARE_SEEN if part.is_share else NOTHING)  # NaN is seen


def _sum(first: PartErrors | None, second: PartErrors | None) -> PartErrors:
    if first is None or second is None:
        found = first or second
        assert found is not None
        return found
    return first + second
