"""Where the time of a measured engine goes: by the kind of its layers, by the type that they give, by kernel.

The kinds, the names and the tactics are TensorRT's own, as its engine inspector has them. Times are what its profiler
told, the mean of some runs: watching costs time, so that they add up to more than the engine's latency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precisionlab.report.cells import ABSENT, percent, show, visible

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.jobs import EngineLayer
    from precisionlab.search.outcome import EngineVariant

UNTOLD = "not told"

_TACTICS, _SLOWEST = 30, 20
"""So many rows are kept; those with most time."""

_LONGEST = 160
"""Letters of a kernel's name, which may be that of all that is fused in it."""


def kernel_times(engine: EngineVariant | None) -> dict[str, Any] | None:
    """What stands in run.json of an engine's times; None where there is no engine, or it told none."""
    if engine is None or not engine.kernels:
        return None
    known = {layer.name: layer for layer in engine.inside.built.layers}
    rows = [_Kernel.of(name, known.get(name), taken) for name, taken in engine.kernels.items()]
    slowest = sorted(rows, key=lambda row: (-row.milliseconds, row.name))[:_SLOWEST]
    return {
        "milliseconds": sum(row.milliseconds for row in rows),
        "kernels": len(rows),
        "kinds": _groups(rows, lambda row: row.kind),
        "types": _groups(rows, lambda row: row.gives),
        "tactics": _groups(rows, lambda row: row.tactic)[:_TACTICS],
        "slowest": [vars(row) for row in slowest],
    }


@dataclass(frozen=True)
class _Kernel:
    """One engine layer: what it is, the types that it takes and gives, and its milliseconds."""

    name: str
    kind: str
    takes: str
    gives: str
    tactic: str
    milliseconds: float

    @classmethod
    def of(cls, name: str, layer: EngineLayer | None, milliseconds: float) -> _Kernel:
        """An engine layer by its name; `layer` is what the inspector says of it."""
        if layer is None:
            return cls(_short(name), UNTOLD, UNTOLD, UNTOLD, UNTOLD, milliseconds)
        takes, gives = (_types(tensor.dtype for tensor in side) for side in (layer.inputs, layer.outputs))
        return cls(_short(name), layer.kind or UNTOLD, takes, gives, _short(layer.tactic or "") or UNTOLD, milliseconds)


def _types(found: Iterable[str | None]) -> str:
    return " and ".join(sorted({kind for kind in found if kind})) or UNTOLD


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _groups(rows: Sequence[_Kernel], group: Callable[[_Kernel], str]) -> list[dict[str, Any]]:
    """The groups with their number of kernels and their milliseconds, those with most time first."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(group(row), []).append(row.milliseconds)
    groups = [{"name": name, "kernels": len(own), "milliseconds": sum(own)} for name, own in found.items()]
    return sorted(groups, key=lambda one: (-float(str(one["milliseconds"])), str(one["name"])))


# On the page


@dataclass(frozen=True)
class TimeShare:
    """One group as texts; `bar` is its share of all time, 0 to 1, `beside` the same group's time in float32."""

    name: str
    kernels: str
    milliseconds: str
    share: str
    bar: float
    beside: str


@dataclass(frozen=True)
class SlowKernel:
    """One kernel as texts."""

    name: str
    kind: str
    types: str
    tactic: str
    milliseconds: str
    share: str


@dataclass(frozen=True)
class Times:
    """All of one engine; `beside` says whether float32's times are known too."""

    total: str
    kernels: int
    kinds: tuple[TimeShare, ...]
    types: tuple[TimeShare, ...]
    tactics: tuple[TimeShare, ...]
    slowest: tuple[SlowKernel, ...]
    beside: bool


def times_view(facts: Mapping[str, Any] | None, float32: Mapping[str, Any] | None) -> Times | None:
    """The times of an engine beside those of float32's, both by `kernel_times`; None where it told none."""
    if not facts:
        return None
    total = float(facts["milliseconds"])
    other = {one["name"]: float(one["milliseconds"]) for one in (float32 or {}).get("kinds", ())}
    return Times(
        total=show(total, ".3g"),
        kernels=int(facts["kernels"]),
        kinds=tuple(_share(one, total, other.get(one["name"])) for one in facts["kinds"]),
        types=tuple(_share(one, total, None) for one in facts["types"]),
        tactics=tuple(_share(one, total, None) for one in facts["tactics"]),
        slowest=tuple(_slow(one, total) for one in facts["slowest"]),
        beside=bool(other),
    )


def _share(one: Mapping[str, Any], total: float, beside: float | None) -> TimeShare:
    taken = float(one["milliseconds"])
    return TimeShare(
        name=visible(one["name"]),
        kernels=str(int(one["kernels"])),
        milliseconds=show(taken, ".3g"),
        share=_percent(taken, total),
        bar=taken / total if total else 0.0,
        beside=ABSENT if beside is None else show(beside, ".3g"),
    )


def _slow(one: Mapping[str, Any], total: float) -> SlowKernel:
    takes, gives, taken = str(one["takes"]), str(one["gives"]), float(one["milliseconds"])
    types = gives if takes == gives else f"{takes} → {gives}"
    name, kind, tactic = (visible(one[key]) for key in ("name", "kind", "tactic"))
    return SlowKernel(name, kind, visible(types), tactic, show(taken, ".3g"), _percent(taken, total))


def _percent(taken: float, total: float) -> str:
    return percent(taken / total if total else None).removesuffix(" %")
