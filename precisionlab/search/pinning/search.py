"""The search for one low precision's pins: compare → rank → search → confirm → prove, on real evaluations."""

from __future__ import annotations

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import meets
from precisionlab.search.certificate import Certificate
from precisionlab.search.outcome import PrecisionResult, Variant
from precisionlab.search.pinning.choice import Aim, best
from precisionlab.search.pinning.confirming import GROWN, Confirmation
from precisionlab.search.pinning.evaluations import Evaluations
from precisionlab.search.pinning.finding import found_pins
from precisionlab.search.pinning.nearest import TYPICAL, strictly_nearest
from precisionlab.search.pinning.proving import certificate, widen_front
from precisionlab.search.pinning.suspects import suspects_by_own_error, suspects_by_sensitivity
from precisionlab.search.pinning.task import Task
from precisionlab.search.pins import likely_pins, most_evaluations, most_left
from precisionlab.system.wording import counted, duration

_ROUNDS = 2
"""How often the search starts over with a stricter tolerance where the held-out samples do not confirm its plan."""


class PinSearch:
    """One search under way."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._evaluations = Evaluations(task)
        self._confirmation = Confirmation(task, self._evaluations)
        self._stopped = ""

    def run(self, unknown: str = "") -> PrecisionResult:
        """Compare the low precision, and pin layers until its tolerance holds, as few or as cheap as asked.

        `unknown` says why nothing can be said of its tolerance: then no pin is searched for, as none can help.
        """
        task, evaluations = self._task, self._evaluations
        bare = self.bare()
        low, comparison = bare.low, bare.low.comparison
        if low.met or not task.touched or unknown:
            return bare
        self._announce(comparison)
        evaluations.allow(task.options.max_evaluations, task.deadline)
        evaluations.suspects = suspects_by_sensitivity(task, evaluations.suspects, comparison, evaluations.cost)
        mixed = self._mixed(low)
        self._stopped = evaluations.spent
        if self._confirmation.owes_it_to_its_samples(mixed) and (grown := self._confirmation.grown(mixed)) is not None:
            self._stopped = self._stopped or evaluations.spent
            return self._result(low, self._confirmation.undominated(grown), None, GROWN)
        self._stopped = self._stopped or evaluations.spent
        remark = self._chance(mixed)
        if mixed is low:
            widen_front(task, evaluations, mixed)
            return self._result(low, low, None, remark)
        return self._proven(low, mixed, remark)

    def bare(self) -> PrecisionResult:
        """The low precision compared, and no pin searched for."""
        task = self._task
        comparison = task.evaluator.compare(f"{task.precision}", task.low_plan, task.table, introduced=True)
        low = task.variant(f"{task.precision}", task.low_plan, comparison)
        self._evaluations.begin(comparison, suspects_by_own_error(task, comparison))
        return self._result(low, low, None)

    def _announce(self, low: Comparison) -> None:
        """Say beforehand how much there is."""
        task = self._task
        options, layers = task.options, len(task.touched)
        each, left = max(low.seconds, 0.1), task.deadline.left
        if left == 0:
            task.note(f"{', '.join(map(str, task.tolerance))} does not hold; no time is left to search for pins")
            return
        most = most_evaluations(layers)
        task.expected((most + most_left(likely_pins(layers))) * each)
        limits = [
            f"{duration(left)}, its part of what is left of the run's --budget" if left is not None else "",
            counted(options.max_evaluations, "evaluation") if options.max_evaluations is not None else "",
        ]
        stop = " or ".join(filter(None, limits))
        task.note(
            f"{', '.join(map(str, task.tolerance))} does not hold; searching {counted(layers, 'layer')}: "
            f"at most {most} plans of under {each:.1f} s each (about {duration(most * each)}) until one holds, then "
            "about 2·k·log2(L/k) to release what is not needed and to prove the k pins that are"
            + (f"; stops after {stop}" if stop else "")
        )

    def _mixed(self, low: Variant) -> Variant:
        """The plan found, confirmed; `low` where no pin is any better than none."""
        mixed = low
        for _ in range(_ROUNDS):
            pins = found_pins(self._task, self._evaluations)
            believed = bool(pins) and self._evaluations.passes(pins)
            mixed = self._confirmation.confirmed(pins) if pins else low
            if not believed or not self._confirmation.asks_for_another_round(mixed):
                break
        return mixed

    def _chance(self, mixed: Variant) -> str:
        """That another plan is nearer by its figures alone, where none is right and that is so."""
        tried, strict = self._evaluations.comparisons, self._evaluations.strict
        key = frozenset(self._evaluations.assignment(mixed.plan).items())
        is_right = meets(mixed.comparison, self._task.tolerance)
        return "" if is_right or strictly_nearest(tried, strict) == key else TYPICAL

    def _proven(self, low: Variant, mixed: Variant, remark: str) -> PrecisionResult:
        """The plan with its certificate; one that proves better on the way takes its place."""
        task, evaluations = self._task, self._evaluations
        certificate(task, evaluations, mixed)
        widen_front(task, evaluations, mixed)
        while (better := self._confirmation.undominated(mixed)) is not mixed:
            mixed = better
            certificate(task, evaluations, mixed)
        return self._result(low, mixed, certificate(task, evaluations, mixed), remark)

    def _result(self, low: Variant, mixed: Variant, proof: Certificate | None, remark: str = "") -> PrecisionResult:
        suspects = self._evaluations.suspects
        return PrecisionResult(
            self._task.precision,
            low,
            mixed,
            suspects.ranking.order,
            suspects.causes,
            len(self._evaluations.comparisons),
            self._task.table,
            suspects.sensitivities,
            proof,
            tuple(self._evaluations.points(self._task.tolerance)),
            remark,
            limit=self._limit(),
            stopped=self._stopped,
            running_sums=self._task.running_sums,
            sensitivity_samples=suspects.sensitivity_samples,
        )

    def _limit(self) -> str:
        """What the user allowed that leaves out other plans; nothing where it leaves out none."""
        task, evaluations = self._task, self._evaluations
        most = task.options.max_pins
        if most is not None and most < len(evaluations.suspects.ranking.order):
            return f"at most {counted(most, 'pin')}, and more were not allowed"
        if task.options.max_cost is None:
            return ""
        limit = f"at most {task.options.max_cost:.0%} of FP32's cost"
        right = best(evaluations.trials(task.tolerance), Aim.COST)
        if right is None:
            return limit
        held = f"{counted(right.pins, 'pin')} at {right.cost / task.fp32_seconds:.0%}"
        return f"{limit} ({held} held on the samples that chose)"
