"""Which repairs a model needs: found where it breaks, kept by whole evaluations, released where they are not needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, closeness, meets
from precisionlab.errors import PlanError
from precisionlab.model import Model
from precisionlab.model.repair import Repair
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import Sight, found_repairs
from precisionlab.search.certificate import is_worse
from precisionlab.system.deadline import BudgetExhausted
from precisionlab.system.wording import counted

_ROUNDS = 4
"""Behind what is repaired something else may break; nothing that was seen took more than two."""

Repairs = tuple[Repair, ...]


class Trials(Protocol):
    """The model with repairs, in the low precision and without pins."""

    def model(self, repairs: Repairs) -> Model:
        """The repaired model. Raises PlanError where one of them cannot be carried out."""
        ...

    def keeps_float32(self, repairs: Repairs) -> bool:
        """Whether the repaired model's float32 is what its repairs promise, on all samples."""
        ...

    def judged(self, repairs: Repairs) -> Comparison:
        """Its final outputs in the low precision, beside its float32."""
        ...

    def broken(self, repairs: Repairs) -> Mapping[str, str]:
        """Layer → why it breaks."""
        ...

    def histograms(self, repairs: Repairs) -> Mapping[str, CoarseHistogram]:
        """Tensor → what it holds in float32."""
        ...


@dataclass(frozen=True)
class Found:
    """The repairs that are kept, in the order in which they are made.

    `broken` are the layers that are left broken, with why, where it is not right; `released` were found, and are not
    needed or do not help. `evaluations` counts the sets of repairs that were judged.
    """

    repairs: Repairs
    released: Repairs
    broken: Mapping[str, str]
    evaluations: int


def find_repairs(
    trials: Trials,
    precision: Precision,
    tolerance: Tolerance,
    note: Callable[[str], None],
    around: Precision | None = None,
) -> Found:
    """The repairs that bring the low precision nearest to its tolerance, and none of them needless.

    Of a quantized one those of the float layers `around`.

    Each round looks at what is broken now, and takes all that applies there if that comes nearer; then each is
    released in turn, the last first. Where a budget ends that (BudgetExhausted), what was kept until then is taken.
    """
    search = _Search(trials, around or precision, tolerance, note)
    try:
        search.collect()
        search.release()
        broken = {} if search.holds else trials.broken(search.kept)
    except BudgetExhausted as end:
        taken = counted(len(search.kept), "repair") if search.kept else "none"
        note(f"{precision}: {end} while repairs were tried: {taken} so far")
        broken = {}
    return Found(search.kept, tuple(search.released), broken, len(search.known))


class _Search:
    def __init__(self, trials: Trials, precision: Precision, tolerance: Tolerance, note: Callable[[str], None]) -> None:
        self._trials, self._precision, self._tolerance, self._note = trials, precision, tolerance, note
        self.kept: Repairs = ()
        self.released: list[Repair] = []
        self.known: dict[Repairs, Comparison] = {}
        self._kept_float32: dict[Repairs, bool] = {}

    @property
    def holds(self) -> bool:
        """Whether what is kept makes it right."""
        return self._holds(self.kept)

    def collect(self) -> None:
        for _ in range(_ROUNDS):
            if self._holds(self.kept):
                return
            more = self._applicable()
            if not more:
                return
            together = (*self.kept, *more)
            if self._is_better(together):
                self.kept = together
                continue
            one_by_one = self.kept
            for repair in more:
                if self._is_better((*self.kept, repair)):
                    self.kept = (*self.kept, repair)
                else:
                    self.released.append(repair)
            if self.kept == one_by_one:
                return

    def release(self) -> None:
        for repair in reversed(self.kept):
            rest = tuple(other for other in self.kept if other is not repair)
            try:
                needless = self._is_as_right(rest) if self.holds else self._is_no_worse(rest)
            except PlanError:  # another one is made of what this one has made
                continue
            if needless:
                self.kept = rest
                self.released.append(repair)

    def _applicable(self) -> Repairs:
        """What is found in the model as it is repaired so far, and can be carried out in turn."""
        model, broken = self._trials.model(self.kept), self._trials.broken(self.kept)
        sight = Sight(model, self._trials.histograms(self.kept), frozenset(broken), self._precision.number_format)
        found: list[Repair] = []
        known = {(repair.kind, repair.nodes) for repair in (*self.released, *self.kept)}
        for applicable in found_repairs(sight):
            if (applicable.kind, applicable.nodes) in known:
                continue
            repair = replace(applicable, reason=broken.get(applicable.layer, ""))
            try:
                self._trials.model((*self.kept, *found, repair))
            except PlanError:
                continue
            found.append(repair)
        return tuple(found)

    def _judged(self, repairs: Repairs) -> Comparison:
        if repairs not in self.known:
            self.known[repairs] = found = self._trials.judged(repairs)
            names = ", ".join(map(str, repairs)) or "no repair"
            self._note(f"  {names}: {'holds' if meets(found, self._tolerance) else 'does not hold'}")
        return self.known[repairs]

    def _holds(self, repairs: Repairs) -> bool:
        return meets(self._judged(repairs), self._tolerance)

    def _closeness(self, repairs: Repairs) -> tuple[int, float]:
        return closeness(self._judged(repairs), self._tolerance)

    def _is_better(self, repairs: Repairs) -> bool:
        """Whether these come nearer than what is kept, and change nothing in float32 that they must not.

        Nearer is too what leaves fewer tensors with NaN or Inf: behind a division by Inf a 0 hides what breaks there,
        and pins may do the rest.
        """
        if self._closeness(repairs) <= self._closeness(self.kept) and self._nonfinite(repairs) >= self._nonfinite(
            self.kept
        ):
            return False
        if repairs not in self._kept_float32:
            self._kept_float32[repairs] = is_same = self._trials.keeps_float32(repairs)
            if not is_same:
                self._note(f"  {', '.join(map(str, repairs))}: not what the original gives in float32; not taken")
        return self._kept_float32[repairs]

    def _is_as_right(self, repairs: Repairs) -> bool:
        return not is_worse(self._judged(self.kept), self._judged(repairs), self._tolerance)

    def _is_no_worse(self, repairs: Repairs) -> bool:
        if self._nonfinite(repairs) > self._nonfinite(self.kept):
            return False
        return self._closeness(repairs) >= self._closeness(self.kept)

    def _nonfinite(self, repairs: Repairs) -> int:
        return len(self._judged(repairs).nonfinite)
