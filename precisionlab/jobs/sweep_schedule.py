"""The time of a whole sweep: what cannot be left out, and what `--budget` leaves for tries, ranking and search.

What cannot be left out is the model as it is (float32, its tensors, each precision), the last look at the plan found,
on the samples held out too, and the report. How long that takes is estimated from what the first passes took. A budget
that is smaller ends nothing: without them there would be no result at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from precisionlab.precision import Precision
from precisionlab.search.outcome import Variant
from precisionlab.search.pins import likely_pins, most_evaluations, most_left
from precisionlab.system.deadline import Deadline
from precisionlab.system.observer import Foretold, Observer, Tried, tell_of
from precisionlab.system.wording import counted, duration

_BARE = 3.0
"""A precision as it is takes at most about so many times what float32 beside itself takes: each layer alone, sums."""

_TRIES = {False: 5, True: 48}
"""Repairs are tried in about so many passes, in a float precision and in a quantized one, where each has its ranges."""

BY_ITSELF = 12.0
"""A comparison takes about so many times what one run does of all that follows a layer, half of the model."""

_REPORT, _REPORT_LAYER = 0.5, 0.005
"""Seconds that tables and pages take, and of these each layer of each precision."""


class Schedule:
    """What is left of one sweep, in seconds, as far as it can be told."""

    def __init__(self, budget: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`budget` is in seconds, from now on and for the whole sweep; None: as long as it takes."""
        self._clock, self._budget = clock, budget
        self._deadline = Deadline(budget, clock=clock)
        self._to_come: list[Precision] = []
        self._layers = 0
        self._pass: float | None = None
        self._bare = self._engine = 0.0
        self._report = 0.0
        self._is_searched, self._is_compared, self._is_met = True, False, False
        self._search: tuple[float, float] | None = None
        self._trial: tuple[float, float] | None = None
        self._compared_at = 0.0
        self._runs_by_itself, self._through_at = 0.0, 0.0
        self._is_through = False

    def begin(
        self,
        reference: Variant,
        precisions: Sequence[Precision],
        layers: int,
        engine: float = 0.0,
        *,
        searched: bool = True,
        by_itself: float = 0.0,
    ) -> None:
        """Float32 has been measured, and these precisions are to come, `searched` or with a plan that is given.

        An engine took so many seconds, 0 for none. Each layer is measured by itself on the share `by_itself` of the
        samples.
        """
        self._is_searched = searched
        self._to_come, self._layers, self._engine = list(precisions), layers, engine
        self._pass = _seconds_warm(reference)
        self._bare = _BARE * self._pass
        self._report = _REPORT + _REPORT_LAYER * layers * len(precisions)
        self._runs_by_itself = 2 * layers * by_itself

    def compared(self, bare: Variant) -> None:
        """The precision at hand has been measured as it is: what is estimated goes by that."""
        self._is_compared, self._is_met = True, bare.met
        self._bare, self._compared_at = seconds_of(bare), self._clock()
        if self._pass is not None:  # the first of a run may have loaded what takes long
            self._pass = min(self._pass, _seconds_warm(bare))

    def searched(self) -> None:
        """The plan of the precision at hand is found; what is left of it is each layer by itself."""
        self._is_through, self._through_at = True, self._clock()

    def searching(self, seconds: float) -> None:
        """Pins of the precision at hand are searched for, which takes about so many seconds from now on."""
        self._search = (self._clock(), seconds)

    def trying(self, seconds: float) -> None:
        """Repairs of the precision at hand are tried, which takes about so many seconds from now on."""
        self._trial = (self._clock(), seconds)

    def finished(self) -> None:
        """The precision at hand is done."""
        del self._to_come[:1]
        self._is_compared, self._is_met, self._search, self._trial = False, False, None, None
        self._is_through = False

    @property
    def needed(self) -> float:
        """About how many seconds it takes what is still to come and cannot be left out; 0 as long as nobody knows."""
        bare = self._bare + self._engine
        all_of_them = len(self._to_come) * (bare + self._found)
        return all_of_them - (bare if self._is_compared else 0.0) + self._report

    def to_search(self) -> Deadline:
        """The end of what may be left out for the precision at hand: an equal part of what is left beside the rest."""
        left = self._deadline.left
        if left is None:
            return self._deadline
        spare = max(0.0, left - self.needed) / max(1, len(self._to_come))
        return Deadline(spare, budget=self._budget, clock=self._clock)

    @property
    def said(self) -> str:
        """What a budget comes to, once float32 has been measured; "" where there is none."""
        left, needed = self._deadline.left, self.needed
        if left is None or self._budget is None:
            return ""
        rest = "each precision as it is, a last look at the plan found, held-out samples, the report"
        if needed < left:
            return (
                f"of the budget of {duration(self._budget)} about {duration(needed)} are kept for what cannot be left "
                f"out ({rest}), and {duration(left - needed)} are for int8 ranges, repairs, ranking and search"
            )
        whole = self._budget - left + needed
        return (
            f"the budget of {duration(self._budget)} is too small: what cannot be left out takes about "
            f"{duration(whole)} ({rest}); that is done all the same, and nothing is searched for"
        )

    @property
    def left(self) -> str:
        """What is left of the whole sweep, for people; "" where nobody can tell."""
        within = self._deadline.left
        if within is not None:
            most = max(within, self.needed)
            return f"about {duration(most)} left at most" if most else ""
        if self._pass is None:
            return ""
        each = self._each_layers
        sure, searched = self._sure(self._pass) + each, self._with_searches(self._pass) + each
        if duration(sure) == duration(searched):
            return f"about {duration(sure)} left"
        return f"about {duration(sure)} left, about {duration(searched)} with a search"

    def _sure(self, a_pass: float) -> float:
        """What is left where all that nobody has looked at yet is right as it is."""
        if not self._is_searched:
            return self.needed
        unseen = (len(self._to_come) - self._is_compared) * (a_pass + self._engine)
        found = 0.0
        if self._is_wrong:  # as long as repairs are tried they may be all that it takes
            tries = self._tries_of(self._to_come[0]) if self._search is None else self._search_of(self._to_come[0], 0.0)
            found = self._found + tries
        return self._report + unseen + found

    def _with_searches(self, a_pass: float) -> float:
        """What is left where all of that has to be searched for."""
        if not self._is_searched:
            return self.needed
        right = self._found if self._is_compared and not self._is_wrong else 0.0
        unseen = self._to_come[self._is_compared :]
        searches = sum(self._search_of(precision, a_pass) for precision in unseen)
        own = self._search_of(self._to_come[0], a_pass) if self._is_wrong else 0.0
        return self.needed - right + searches + own

    @property
    def _is_wrong(self) -> bool:
        """Whether the precision at hand does not hold as it is, and no plan of it is found."""
        return self._is_compared and not self._is_met and not self._is_through

    @property
    def _each_layers(self) -> float:
        """What is left of measuring each layer by itself, in all precisions that are to come."""
        done = self._clock() - self._through_at if self._is_through else 0.0
        one = self._runs_by_itself * (self._pass or 0.0) / BY_ITSELF
        return max(0.0, len(self._to_come) * one - min(done, one))

    @property
    def _found(self) -> float:
        """A last look at a plan that was found."""
        return self._bare + 2 * self._engine

    def _search_of(self, precision: Precision, a_pass: float) -> float:
        """About what tries, ranking and search take; of the one that is under way, what is left of that."""
        if self._search is not None and precision is self._to_come[0]:
            since, seconds = self._search
            return max(0.0, seconds - (self._clock() - since))
        plans = most_evaluations(self._layers) + most_left(likely_pins(self._layers))
        return self._tries_of(precision) + plans * a_pass

    def _tries_of(self, precision: Precision) -> float:
        """About what is left of trying repairs."""
        a_pass = self._pass or 0.0
        whole = _TRIES[precision.is_quantized] * a_pass
        if not (self._is_compared and precision is self._to_come[0]):
            return whole
        since, seconds = self._trial or (self._compared_at, whole)
        return max(a_pass, seconds - (self._clock() - since))


def seconds_of(variant: Variant) -> float:
    """How long measuring a variant took: on all samples, and under what else kernels may do."""
    held_out = 0.0 if variant.held_out is None else variant.held_out.seconds
    return variant.comparison.seconds + held_out + sum(other.comparison.seconds for other in variant.alternatives)


def _seconds_warm(reference: Variant) -> float:
    """How long a comparison takes once all is loaded: the first of a run loads libraries too, its second part tells."""
    first, second = reference.comparison, reference.held_out
    if second is None or not second.samples:
        return first.seconds
    return min(first.seconds, second.seconds * first.samples / second.samples) + second.seconds


def announcement(precisions: Sequence[Precision], layers: int, samples: int, searched: bool) -> str:
    """How much there is to do, in passes over the samples: how long one takes nobody knows before it is measured."""
    least = 2 + len(precisions)
    names = " and ".join(map(str, precisions)) + (" as it is" if len(precisions) == 1 else " as they are")
    text = f"{least} passes over {counted(samples, 'sample')} at least: fp32, what its tensors hold, {names}"
    if not searched:
        return f"{text}, and the plan"
    return (
        f"{text}; where one does not hold, repairs, a ranking, and up to {most_evaluations(layers)} plans until one "
        "does, each of them a pass"
    )


class Foretelling:
    """Tells an observer how work goes, and before each stage what is left of the whole."""

    def __init__(self, observer: Observer, schedule: Schedule) -> None:
        self._observer, self._schedule = observer, schedule

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        """A stage begins."""
        if isinstance(self._observer, Foretold):
            self._observer.left(self._schedule.left)
        self._observer.stage(title, total, unit)

    def advance(self, done: int) -> None:
        """So many are done."""
        self._observer.advance(done)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._observer.note(text)

    def tried(self, plan: Tried) -> None:
        """A plan has been evaluated."""
        tell_of(plan, self._observer)
