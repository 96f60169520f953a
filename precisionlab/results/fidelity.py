"""How true the emulation is, as values: each layer emulated beside real, and the goals of these figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from precisionlab.compare.fidelity import Agreements, number_or_none
from precisionlab.precision import Precision

FIDELITY_SCHEMA = 2
"""Which names `fidelity.json` and `fidelity.csv` have. 1, where none is written: `unsupported` was `unreal`."""


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted: `figure` as it is, None where there is none; at least `least`, or at most `most`."""

    name: str
    figure: float | None
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """None where there is no figure."""
        if self.figure is None or math.isnan(self.figure):
            return None
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)


@dataclass(frozen=True)
class Row:
    """One tensor that a layer gives: SQNR in dB, emulated and real; None where a flow does not have it."""

    layer: str
    kind: str
    tensor: str
    introduced: tuple[float | None, float | None]
    inherited: tuple[float | None, float | None]
    nonfinite: tuple[bool, bool]
    unsupported: str | None


@dataclass(frozen=True)
class PrecisionFidelity:
    """One precision: the emulation (always the first of two figures) beside the real thing.

    `unsupported` says which layers cannot be had for real, and why: both sides have them in float32. `introduced` is
    None where the real side does not show layers alone. `final` is the SQNR of the worst final output over all samples,
    `typical` its mean over the samples: one sample at the edge of a decision can rule the first. `optimised` is the
    final SQNR of the whole typed model, None where it was not run, and then `optimised_note` says why.
    """

    precision: Precision
    rows: tuple[Row, ...]
    introduced: Agreements | None
    inherited: Agreements
    final: tuple[float, float]
    typical: tuple[float, float]
    optimised: float | None
    optimised_note: str
    unsupported: Mapping[str, str]
    device: str
    layers: int
    seconds: tuple[float, float]
    notes: tuple[str, ...] = ()

    @property
    def only(self) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        """The tensors with a NaN or Inf that the reference does not have: emulated alone, real alone; in both."""
        emulated = tuple(row.tensor for row in self.rows if row.nonfinite == (True, False))
        real = tuple(row.tensor for row in self.rows if row.nonfinite == (False, True))
        return emulated, real, sum(row.nonfinite == (True, True) for row in self.rows)

    @property
    def kinds(self) -> dict[str, tuple[int, float]]:
        """Kind of layer → how many have both introduced figures, and the median of real − emulated, in dB."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            emulated, real = row.introduced
            if emulated is None or real is None or row.unsupported is not None:
                continue
            if math.isfinite(emulated) and math.isfinite(real):
                found.setdefault(row.kind, []).append(real - emulated)
        return {kind: (len(each), statistics.median(each)) for kind, each in found.items()}

    @property
    def goals(self) -> tuple[Goal, ...]:
        """What is wanted of each figure, and whether it is so."""
        found = []
        for name, agreed in (("introduced", self.introduced), ("inherited", self.inherited)):
            if agreed is not None and agreed.tensors:
                found.append(Goal(f"rank correlation, {name}", agreed.spearman, least=0.99))
                found.append(Goal(f"worst {agreed.worst} shared, {name}", agreed.shared, least=agreed.worst - 1))
        emulated, real = self.final
        is_exact = emulated == real == math.inf  # nothing was rounded on either side: there is nothing to hold
        found.append(Goal("final, unoptimised: dB apart", None if is_exact else _apart(emulated, real), most=1.5))
        if self.optimised is not None:
            apart = None if is_exact else _apart(emulated, self.optimised)
            found.append(Goal("final, optimised: dB apart", apart, most=4.0))
        mine, theirs, _ = self.only
        found.append(Goal("tensors with NaN or Inf that differ", len(mine) + len(theirs), most=0))
        return tuple(found)


@dataclass(frozen=True)
class FidelityFindings:
    """All precisions of one model. `facts` is what stands in the JSON beside the figures."""

    model: str
    found: tuple[PrecisionFidelity, ...]
    facts: Mapping[str, Any]
    folder: Path


def _apart(first: float, second: float) -> float:
    """How many dB two figures differ; none where both are broken (NaN or −∞), or both exact."""
    first, second = (-math.inf if math.isnan(x) else x for x in (first, second))
    return 0.0 if first == second else abs(first - second)


def to_json(result: FidelityFindings) -> dict[str, Any]:
    """The figures and what they come from; a final figure that is not finite is text, one that is not there null."""
    return {"schema": FIDELITY_SCHEMA, **result.facts, "precisions": [plain(found) for found in result.found]}


def plain(found: PrecisionFidelity) -> dict[str, Any]:
    """One precision's figures as JSON can hold them."""
    emulated, real, both = found.only
    return {
        "precision": found.precision.value,
        "device": found.device,
        "layers": found.layers,
        "unsupported": dict(found.unsupported),
        "introduced": None if found.introduced is None else found.introduced.to_dict(),
        "inherited": found.inherited.to_dict(),
        "kinds": {kind: {"layers": count, "median_db": apart} for kind, (count, apart) in found.kinds.items()},
        "final_sqnr_db": {
            "emulated": written(found.final[0]),
            "real": written(found.final[1]),
            "optimised": None if found.optimised is None else written(found.optimised),
        },
        "typical_sqnr_db": {"emulated": written(found.typical[0]), "real": written(found.typical[1])},
        "optimised_note": found.optimised_note,
        "nonfinite": {"emulated_only": list(emulated), "real_only": list(real), "both": both},
        "goals": [{**{k: number_or_none(v) for k, v in asdict(g).items()}, "met": g.met} for g in found.goals],
        "seconds": {"emulated": found.seconds[0], "real": found.seconds[1]},
        "notes": list(found.notes),
    }


def written(value: float) -> float | str:
    """The figure as JSON can hold it."""
    return value if math.isfinite(value) else str(value)
