"""The plans that two runs found for one precision: verdicts, pins and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from precisionlab.model.repair import Repair
from precisionlab.plan.plan import Pin
from precisionlab.report.cells import Row, as_number, records_of
from precisionlab.report.diff.figures import BETTER, SAME, WORSE, Change
from precisionlab.report.diff.variants import changes_of, shown_of, variants_of
from precisionlab.report.redraw import RunFiles
from precisionlab.report.repair_views import scale_texts
from precisionlab.report.section import verdict_in
from precisionlab.report.views import VariantView
from precisionlab.search.verdict import Verdict


@dataclass(frozen=True)
class PinChange:
    """A layer whose pin differs; an empty precision is none."""

    layer: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class RepairChange:
    """A repair that one of the plans has alone, or that both have at other powers of two; None where there is none."""

    before: Repair | None
    after: Repair | None

    @property
    def repair(self) -> Repair:
        """It, as the later plan has it that has one."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def texts(self) -> tuple[str, str]:
        """What it is in each plan: `x: 2^-9`; "" where there is none."""
        before, after = (_made(one) for one in (self.before, self.after))
        return before, after


@dataclass(frozen=True)
class PrecisionChange:
    """One low precision that both runs swept, and the plans that they found.

    `variants` are what these are called in each run, `found` are their figures.
    """

    name: str
    verdicts: tuple[Verdict, Verdict]
    pins: tuple[PinChange, ...]
    repairs: tuple[RepairChange, ...]
    variants: tuple[str, str]
    found: tuple[Change, ...]

    @property
    def shown(self) -> tuple[Change, ...]:
        """What is shown of the plans' figures."""
        return shown_of(self.found)

    @property
    def met(self) -> tuple[bool, bool]:
        """Whether each run's verdict is that the tolerance is met."""
        return self.verdicts[0].met, self.verdicts[1].met

    @property
    def trend(self) -> str:
        """Worse where a met tolerance no longer is, or the plan found lost and gained nothing; "mixed" where both."""
        if self.met[0] != self.met[1]:
            return BETTER if self.met[1] else WORSE
        trends = {change.trend for change in self.found if change.of.decisive}
        if {WORSE, BETTER} <= trends:
            return "mixed"
        return WORSE if WORSE in trends else BETTER if BETTER in trends else SAME

    @property
    def added(self) -> tuple[PinChange, ...]:
        """Pins of B alone."""
        return tuple(pin for pin in self.pins if not pin.before)

    @property
    def removed(self) -> tuple[PinChange, ...]:
        """Pins of A alone."""
        return tuple(pin for pin in self.pins if not pin.after)


def precision_change(name: str, before: RunFiles, after: RunFiles) -> PrecisionChange:
    """The plans that both runs found for a precision; an engine's figures follow the emulated ones."""
    runs = (before, after)
    verdicts = verdict_in(before.run, name), verdict_in(after.run, name)
    found: list[Change] = []
    for engine in ("", " engine"):
        old, new = (_found(variants_of(files), name, engine) for files in runs)
        if old is not None and new is not None:
            found += changes_of(old, new)
            found.append(Change("latency", _latency(before, old.name), _latency(after, new.name)))
    pins = _pins(*({pin.layer: pin for pin in files.plans[name].pins} for files in runs))
    repairs = _repairs(*(files.plans[name].repairs for files in runs))
    return PrecisionChange(name, verdicts, tuple(pins), tuple(repairs), _names(runs, name), tuple(found))


def _names(runs: tuple[RunFiles, RunFiles], name: str) -> tuple[str, str]:
    before, after = (_found(variants_of(files), name, "") for files in runs)
    return before.name if before else name, after.name if after else name


def _found(variants: Mapping[str, VariantView], name: str, engine: str) -> VariantView | None:
    """The variant of the plan found: the one with pins or repairs where there is one."""
    names = (f"{name} mixed{engine}", f"{name} repaired{engine}", f"{name}{engine}")
    return next((variants[found] for found in names if found in variants), None)


def _latency(files: RunFiles, variant: str) -> float | None:
    rows: Iterable[Row] = records_of(files.variants)
    return next((as_number(row, "latency_ms") for row in rows if row["variant"] == variant), None)


def _made(repair: Repair | None) -> str:
    """`x: 2^-9`, or that it is made."""
    return "" if repair is None else ", ".join(scale_texts(repair)) or "made"


def _repairs(old: Iterable[Repair], new: Iterable[Repair]) -> Iterable[RepairChange]:
    """Those that differ, by kind and first node."""
    before, after = ({(one.kind, one.nodes[0]): one for one in repairs} for repairs in (old, new))
    for key in dict.fromkeys([*before, *after]):
        change = RepairChange(before.get(key), after.get(key))
        if _facts(change.before) != _facts(change.after):
            yield change


def _facts(repair: Repair | None) -> object:
    return None if repair is None else (repair.nodes, repair.scales, repair.exactness)


def _pins(old: Mapping[str, Pin], new: Mapping[str, Pin]) -> Iterable[PinChange]:
    for layer in dict.fromkeys([*old, *new]):
        pins = old.get(layer), new.get(layer)
        before, after = (pin.precision.value if pin else "" for pin in pins)
        if before != after:
            yield PinChange(layer, before, after, next((pin.reason for pin in reversed(pins) if pin), ""))
