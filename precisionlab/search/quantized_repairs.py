"""Repairs of a quantized precision: what its float layers break in, and then the channels that leave others few levels.

Where layers around quantized ones are in half, what breaks there breaks whatever the others are quantised to, and has
half's own repairs. Channels are scaled on the model that these leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import repaired_precisions
from precisionlab.rewrite.repairs.channel_values import ChannelValues
from precisionlab.rewrite.repairs.profiles import Profile
from precisionlab.search.migrating import find_migrations
from precisionlab.search.repairing import Found, Repairs, Trials, find_repairs
from precisionlab.system.deadline import BudgetExhausted


class QuantizedTrials(Trials, Protocol):
    """The model with repairs, in a quantized precision and without pins."""

    def channels(self, profiles: Mapping[str, Profile], repairs: Repairs = ()) -> Mapping[str, ChannelValues]:
        """What tensors of the model with these repairs hold by channels, on the samples that choose."""
        ...

    def alike(self, repairs: Repairs) -> Comparison:
        """All tensors, and what each layer loses by itself: with ranges by the method that is best without repairs."""
        ...

    def to_come(self, count: int) -> None:
        """Hear that about so many sets are still to be evaluated."""
        ...


def find_quantized_repairs(
    trials: QuantizedTrials, precision: Precision, around: Precision, tolerance: Tolerance, note: Callable[[str], None]
) -> Found:
    """The repairs that bring a quantized precision among floats `around` nearest to its tolerance."""
    floats = Found((), (), {}, 0)
    if around in repaired_precisions():
        floats = find_repairs(trials, precision, tolerance, note, around)
    if precision not in repaired_precisions():
        return floats
    try:
        if meets(trials.judged(floats.repairs), tolerance):
            return floats
        found = find_migrations(_Behind(trials, floats.repairs), precision, tolerance, note)
    except BudgetExhausted as end:
        note(f"{precision}: {end} while channels were tried: none is scaled")
        return floats
    return Found(
        (*floats.repairs, *found.repairs),
        (*floats.released, *found.released),
        found.broken,
        floats.evaluations + found.evaluations,
    )


@dataclass(frozen=True)
class _Behind:
    """The trials with these repairs in front of all that are tried, as if the model had been so."""

    trials: QuantizedTrials
    before: Repairs

    def model(self, repairs: Repairs) -> Model:
        return self.trials.model((*self.before, *repairs))

    def keeps_float32(self, repairs: Repairs) -> bool:
        return self.trials.keeps_float32((*self.before, *repairs))

    def channels(self, profiles: Mapping[str, Profile]) -> Mapping[str, ChannelValues]:
        return self.trials.channels(profiles, self.before)

    def alike(self, repairs: Repairs) -> Comparison:
        return self.trials.alike((*self.before, *repairs))

    def judged(self, repairs: Repairs) -> Comparison:
        return self.trials.judged((*self.before, *repairs))

    def broken(self, repairs: Repairs) -> Mapping[str, str]:
        return self.trials.broken((*self.before, *repairs))

    def to_come(self, count: int) -> None:
        self.trials.to_come(count)
