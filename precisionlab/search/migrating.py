"""Which channels of a model are scaled for int8, and by which rule: group by group, and by whole evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, closeness
from precisionlab.model import Model
from precisionlab.model.repair import Repair
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import MIGRATE, Sight
from precisionlab.rewrite.repairs.channel_values import ChannelValues
from precisionlab.rewrite.repairs.migrate_channels import Migration
from precisionlab.rewrite.repairs.profiles import Profile
from precisionlab.search.repairing import Found, Repairs

_CLEAR = 10 ** (-1 / 10)
"""What a group's own noise must at least come down to, 1 dB, to be kept without being tried without."""

_WORTH = 0.1
"""dB that all groups together must bring, and each node that is computed a second time: less is chance."""


class MigrationTrials(Protocol):
    """The model with repairs, in int8 and without pins."""

    def model(self, repairs: Repairs) -> Model:
        """The repaired model."""
        ...

    def keeps_float32(self, repairs: Repairs) -> bool:
        """Whether the repaired model's float32 is what its repairs promise, on all samples."""
        ...

    def channels(self, profiles: Mapping[str, Profile]) -> Mapping[str, ChannelValues]:
        """What tensors of the model as it is hold by channels, on the samples that choose."""
        ...

    def alike(self, repairs: Repairs) -> Comparison:
        """All tensors, and what each layer loses by itself: with ranges by the method that is best without repairs."""
        ...

    def judged(self, repairs: Repairs) -> Comparison:
        """The final outputs with the ranges that are best for this model."""
        ...

    def broken(self, repairs: Repairs) -> Mapping[str, str]:
        """Layer → why it breaks."""
        ...

    def to_come(self, count: int) -> None:
        """Hear that about so many sets are still to be evaluated."""
        ...


def find_migrations(
    trials: MigrationTrials, precision: Precision, tolerance: Tolerance, note: Callable[[str], None]
) -> Found:
    """The groups of channels whose scales bring the final outputs nearer to their float32, and those scales.

    Each rule for scales is evaluated on all groups at once. Of each group the rule is taken under which the products
    that take its channels lose least, measured; then the set, or the best single rule, whichever comes nearer. What
    changes little by itself is released, many at once, where the outputs come no less near without.
    """
    sight = Sight(trials.model(()), {}, frozenset(), precision.number_format, trials.channels)
    choices = MIGRATE.choices(sight)
    if not any(choices.values()):
        return Found((), (), trials.broken(()), 1)
    search = _Search(trials, tolerance, note)
    alone = search.alone(choices)
    kept = tuple(alone[one.nodes[0]].explained(one) for one in search.released(search.chosen(choices), alone))
    every = {(one.kind, one.nodes): one for own in choices.values() for one in (m.repair for m in own)}
    broken, margin = closeness(trials.judged(()), tolerance)
    if closeness(trials.judged(kept), tolerance) <= (broken, margin + _worth(tolerance)):
        kept = ()
    if kept and not trials.keeps_float32(kept):
        note("  channels: float32 itself is not the same to the bit; none is scaled")
        kept = ()
    places = {(one.kind, one.nodes) for one in kept}
    released = tuple(one for place, one in every.items() if place not in places)
    return Found(kept, released, trials.broken(kept), len(search.known) + 2)


@dataclass(frozen=True)
class _Own:
    """What a group's products lose by themselves: with the scales that lose least, and with none."""

    best: Migration | None
    noise: float
    before: float

    @property
    def is_clear(self) -> bool:
        return self.noise <= _CLEAR * self.before

    def explained(self, repair: Repair) -> Repair:
        """The repair with what it was tried for."""
        if not 0 < self.noise < self.before < math.inf:
            return repair
        gained = 10 * math.log10(self.before / self.noise)
        return replace(repair, reason=f"the products that take its channels lose {gained:.1f} dB less by themselves")


class _Search:
    def __init__(self, trials: MigrationTrials, tolerance: Tolerance, note: Callable[[str], None]) -> None:
        self._trials, self._tolerance, self._note = trials, tolerance, note
        self.known: dict[Repairs, tuple[int, float]] = {}
        self._seen: set[Repairs] = set()
        self._to_come = 1

    def alone(self, choices: Mapping[str, Sequence[Migration]]) -> Mapping[str, _Own]:
        """By the product that a group is found at, how it does by itself under each rule."""
        groups = {one.place: one for own in choices.values() for one in own}
        # Each rule, none, of each group its own; and what is released of them.
        self._to_come = max(self._to_come, len(choices) + 2 + len(groups))
        before = self._noises((), groups)
        found = {place: _Own(None, before[place], before[place]) for place in groups}
        for own in choices.values():
            noises = self._noises(_repairs(own), groups)
            for one in own:
                if noises[one.place] < found[one.place].noise:
                    found[one.place] = _Own(one, noises[one.place], before[one.place])
        return found

    def chosen(self, choices: Mapping[str, Sequence[Migration]]) -> Repairs:
        """The best single rule, or of each group the best by itself."""
        sets = {name: _repairs(own) for name, own in choices.items()}
        sets["each group's own"] = _repairs([own.best for own in self.alone(choices).values() if own.best is not None])
        for name, repairs in sets.items():
            self._note(f"  channels by {name}: {self._words(repairs)}")
        best = max(sets.values(), key=self._closeness)
        return best if self._closeness(best) > self._closeness(()) else ()

    def released(self, kept: Repairs, alone: Mapping[str, _Own]) -> Repairs:
        """Without those that the final outputs do not need, and without copies that bring too little."""
        doubtful = [one for one in kept if not alone[one.nodes[0]].is_clear]
        self._to_come = 1 + 2 * len(doubtful) + sum(bool(one.conditions) for one in kept)
        kept = self._without(kept, sorted(doubtful, key=lambda one: -alone[one.nodes[0]].noise))
        for one in kept:
            if one.conditions:
                rest = tuple(other for other in kept if other is not one)
                broken, margin = self._closeness(kept)
                if self._closeness(rest) >= (broken, margin - _worth(self._tolerance)):
                    kept = rest
        return kept

    def _without(self, kept: Repairs, doubtful: Sequence[Repair]) -> Repairs:
        """Release all of these if that is no worse, else either half by itself."""
        if not doubtful:
            return kept
        rest = tuple(one for one in kept if not any(one is other for other in doubtful))
        if self._closeness(rest) >= self._closeness(kept):
            return rest
        if len(doubtful) == 1:
            return kept
        half = len(doubtful) // 2
        return self._without(self._without(kept, doubtful[:half]), doubtful[half:])

    def _noises(self, repairs: Repairs, groups: Mapping[str, Migration]) -> Mapping[str, float]:
        """What the products of each group lose by themselves, with these repairs."""
        introduced, layers = self._alike(repairs).introduced, self._trials.model(()).layer
        noises = {}
        for place, group in groups.items():
            outputs = [name for taker in group.takers for name in layers[taker].outputs]
            # An output that is none any more says nothing, and a group is not chosen for that.
            found = [introduced[name].rel_l2 ** 2 if name in introduced else math.inf for name in outputs]
            noises[place] = math.inf if any(map(math.isnan, found)) else sum(found)
        return noises

    def _closeness(self, repairs: Repairs) -> tuple[int, float]:
        if repairs not in self.known:
            self.known[repairs] = closeness(self._alike(repairs), self._tolerance)
        return self.known[repairs]

    def _alike(self, repairs: Repairs) -> Comparison:
        if repairs not in self._seen:
            self._seen.add(repairs)
            self._trials.to_come(self._to_come)
            self._to_come = max(1, self._to_come - 1)
        return self._trials.alike(repairs)

    def _words(self, repairs: Repairs) -> str:
        bounds = ", ".join(f"{bound.figure} {bound.of(self._alike(repairs)):.4g}" for bound in self._tolerance)
        return f"{bounds}, {len(repairs)} groups"


def _worth(tolerance: Tolerance) -> float:
    """What is worth a change, in the bounds' unit; of other units than dB anything is."""
    return _WORTH if all(bound.of_metric.unit == "dB" for bound in tolerance) else 0.0


def _repairs(own: Sequence[Migration]) -> Repairs:
    return tuple(one.repair for one in own)
