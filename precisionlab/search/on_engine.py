"""From emulation to engines: the emulation ranks and searches, engines are built to measure and to verify.

A build takes minutes, so their number is what is kept small, and is told beforehand: one engine of the low precision,
one of the plan found, and where that is not right on the GPU a few with longer prefixes of the ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, closeness, meets
from precisionlab.errors import BuildError, EngineError
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.model import Model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.cost import CostModel
from precisionlab.search.devices import DevicePeaks
from precisionlab.search.outcome import CompiledVariant, EngineResult, EngineVariant, PrecisionResult, Variant
from precisionlab.search.worst import worst_first
from precisionlab.system.deadline import Deadline
from precisionlab.system.observer import Observer
from precisionlab.system.wording import counted

if TYPE_CHECKING:
    from precisionlab.backends.engine import EngineBackend

T = TypeVar("T")


class EngineStage:
    """Builds and measures the engines of one sweep."""

    def __init__(self, evaluator: Evaluator, backend: EngineBackend, device: DevicePeaks, most_builds: int) -> None:
        """`evaluator` evaluates by `backend`; `device` is what is not measured is estimated for.

        Of each precision at most `most_builds` engines are built, those for looking at layers not counted.
        """
        self._evaluator = evaluator
        self._backend = backend
        self._device = device
        self._most = most_builds
        self._times: dict[tuple[str, Precision], float] = {}
        self._refused: dict[str, str] = {}

    @property
    def cost(self) -> CostModel:
        """Costs with all layer times that were measured so far in place of estimates."""
        return CostModel(self._backend.model, self._device, dict(self._times))

    def take_times(self, other: EngineStage) -> None:
        """Take over the times of another model's layers that are this one's too: it has fp32, which is built once."""
        mine, theirs = self._backend.model.layer, other._backend.model.layer
        for (name, precision), seconds in other._times.items():
            if name in mine and mine[name].nodes == theirs[name].nodes:
                self._times.setdefault((name, precision), seconds)

    def announce(self, precisions: Sequence[Precision]) -> None:
        """Say how many engines will be built."""
        least, most = 1 + len(precisions), 1 + self._most * len(precisions)
        self._evaluator.observer.note(
            f"engines on {self._backend.device}: {least} at least (fp32 and each precision), {most} at most, "
            "and those in which layers are looked at"
        )

    def measure(
        self, name: str, plan: PrecisionPlan, table: CalibrationTable | None, tolerance: Tolerance
    ) -> EngineVariant | None:
        """Build a plan's engine, compare every layer that can be looked at, time it; None where it cannot be built."""
        return self._attempt(name, plan, table, lambda: self._measured(name, plan, table, tolerance))

    def _measured(
        self, name: str, plan: PrecisionPlan, table: CalibrationTable | None, tolerance: Tolerance
    ) -> EngineVariant:
        evaluator, backend = self._evaluator, self._backend
        comparison = evaluator.compare(f"{name} engine, every layer", plan, table)
        held_out = evaluator.hold_outputs_to(f"{name} engine", plan, table)
        times = backend.times(plan, table, next(iter(evaluator.chosen)))
        self._keep_times(plan, times.layers)
        met = meets(comparison, tolerance) and (held_out is None or meets(held_out, tolerance))
        variant = Variant(
            f"{name} engine", plan, comparison, backend.figures, tolerance, met, held_out, self.cost.of(plan)
        )
        return EngineVariant(variant, backend.inside(plan, table), times.latency, times.layers, times.kernels)

    def measure_plan(
        self,
        precision: Precision,
        bare: PrecisionPlan,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        tolerance: Tolerance,
    ) -> EngineResult:
        """A plan of the user's on the GPU, beside the same precision without pins."""
        low = self.measure(f"{precision}", bare, table, tolerance)
        return self._result(low, self.measure(f"{precision} mixed", plan, table, tolerance), 2)

    def verify(
        self, found: PrecisionResult, low: EngineVariant | None, table: CalibrationTable | None, deadline: Deadline
    ) -> EngineResult:
        """The plan that the emulation found, on the GPU; where it is not right there, with more pins in time."""
        if low is not None and (found.unknown or (low.variant.met and not low.inside.overridden)):
            return self._result(low, low, 1)
        builds, nearest, best = 1, None, None
        for plan in candidates(self._backend.model, found):
            if builds >= self._most or (builds > 1 and deadline.left == 0):
                break
            builds += 1
            outputs = self._judged(f"{found.precision}, {counted(len(plan.pins), 'pin')}", plan, table)
            if outputs is None:
                continue
            holds = meets(outputs, found.mixed.tolerance) and not self._backend.inside(plan, table).overridden
            near = (holds, closeness(outputs, found.mixed.tolerance))
            if nearest is None or near > nearest:
                nearest, best = near, plan
            if near[0]:
                break
        if best is None:
            return self._result(low, low, builds)
        return self._result(low, self.measure(f"{found.precision} mixed", best, table, found.mixed.tolerance), builds)

    def _judged(self, name: str, plan: PrecisionPlan, table: CalibrationTable | None) -> Comparison | None:
        """The final outputs of a plan's engine alone; None where TensorRT refuses to build it."""
        return self._attempt(name, plan, table, lambda: self._evaluator.judge(f"{name}, engine", plan, table, None))

    def _attempt(
        self, name: str, plan: PrecisionPlan, table: CalibrationTable | None, work: Callable[[], T]
    ) -> T | None:
        """What the work on a plan's engine gives; None where there is no engine, which says nothing of its accuracy.

        A refusal is journalled, so that it is not asked for again; a process that has died may live another time.
        """
        journal = self._evaluator.journal
        key = {"engine": plan.to_dict(), "ranges": None if table is None else table.digest, "by": self._backend.name}
        refused = journal.known(key)
        if not isinstance(refused, str):  # nothing, or nothing of ours
            try:
                return work()
            except BuildError as error:
                refused = str(error)
                journal.record(key, refused)
            except EngineError as error:
                refused = str(error)
        self._refused[name] = refused
        self._evaluator.observer.note(f"  {name}: no engine: {refused}")
        return None

    def _keep_times(self, plan: PrecisionPlan, times: Mapping[str, float]) -> None:
        """Keep each layer's milliseconds, in the precision that it has under the plan."""
        for name, layer in self._backend.model.layer.items():
            if name in times:
                self._times[name, precision_of(layer, plan)] = times[name] / 1e3

    def _result(self, low: EngineVariant | None, mixed: EngineVariant | None, builds: int) -> EngineResult:
        notes = (*self._backend.notes, *(f"{name}: no engine: {why}" for name, why in self._refused.items()))
        refused = "" if mixed is not None else next(reversed(self._refused.values()), "")
        self._backend.notes.clear()
        self._refused.clear()
        return EngineResult(low, mixed, builds, notes, refused)


def candidates(model: Model, found: PrecisionResult) -> Iterator[PrecisionPlan]:
    """The plans to try on the GPU, each with more pins than the one before.

    The plan that the emulation found; then with 1, 2, 4, … more layers of its ranking in float32; at last all.
    """
    plan = found.mixed.plan
    if found.mixed is not found.low:
        yield plan
    others = [name for name in found.ranked if name not in plan.pinned()]
    place = {name: number for number, name in enumerate(worst_first(model, found), 1)}
    count = 1
    while others:
        names = others[: min(count, len(others))]
        reason = f"not right on the GPU without it: rank {{}} of {len(found.ranked)} in the emulation"
        pins = [Pin(name, model.layer[name].nodes, Precision.FP32, reason.format(place[name])) for name in names]
        yield plan.with_pins((*plan.pins, *pins))
        if count >= len(others):
            return
        count *= 2


class Compiler:
    """Compiles plans of one model where no GPU can run them: to see what the compiler makes of them."""

    def __init__(self, backend: EngineBackend, observer: Observer) -> None:
        self._backend = backend
        self._observer = observer

    def of(self, variant: Variant, table: CalibrationTable | None) -> CompiledVariant:
        """The variant's engine; `table` has its ranges."""
        try:
            inside = self._backend.inside(variant.plan, table)
        except EngineError as error:  # refused, or the compiler's process has died
            compiled = CompiledVariant(variant.name, self._backend.device, None, str(error))
            self._observer.note(f"  {variant.name}: NOT compiled: {error}")
        else:
            compiled = CompiledVariant(variant.name, self._backend.device, inside, "")
            for note in self._backend.notes:
                self._observer.note(f"  {variant.name}: {note}")
        self._backend.notes.clear()
        return compiled
