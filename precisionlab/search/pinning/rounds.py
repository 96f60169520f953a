"""Ranking in rounds: all layers on the worst sample, the better part on the next, those in front on two more.

What one layer alone does to the outputs is nearly the same from sample to sample, so that one sample tells the layers
that matter from those that do not: on five real models the worst one, and no other, gave as few pins as eight did in
four of five, the two worst in all. What a cheaper ranking costs is pins or evaluations, never correctness: every plan
is evaluated on all samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from precisionlab.compare.sensitivity import Sensitivities, merged, worst_sqnr
from precisionlab.search.rank import Ranking

_SECOND, _LEAST_SECOND = 1 / 4, 8
"""The share of the layers, and their least number, that are measured on the second worst sample as well."""

_THIRD, _SAMPLES_THIRD = 6, 2
"""So many are measured on so many samples more: where few pins are needed, these decide which."""

Measured = Callable[[Sequence[str], Sequence[str]], Sensitivities]
"""What these layers alone do to the outputs, over samples of these names; fewer layers where time is spent."""

Ranked = Callable[[Ranking, Sensitivities], Ranking]
"""The ranking by what was measured, of layers that are in that of before."""


@dataclass(frozen=True)
class Rounds:
    """The ranking that rounds have come to, what was measured, and of each layer on how many samples."""

    ranking: Ranking
    sensitivities: Sensitivities = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)


def ranked_in_rounds(
    first: Ranking, layers: Sequence[str], worst: Sequence[str], measured: Measured, ranked: Ranked
) -> Rounds:
    """Measure `layers`, and rank by it.

    `first` is the ranking of before, of which required pins are measured once, `worst` the names of samples, the worst
    first. A layer that goes on to another round stays in front of those that do not: a sample on which the precision is
    less wrong makes it look better than it is beside layers that were measured on the worst alone.
    """
    found = Rounds(first)
    for front, samples in _rounds(layers, worst):
        names = layers if not found.samples else _in_front(found, front)
        if not names:
            break
        more = measured(names, samples)
        found = _with(found, more, len(samples), ranked)
        if len(more) < len(names):  # time is spent
            break
    return found


def _rounds(layers: Sequence[str], worst: Sequence[str]) -> list[tuple[int, Sequence[str]]]:
    """How many layers of those in front each round measures, and on which samples."""
    second = max(_LEAST_SECOND, math.ceil(len(layers) * _SECOND))
    rounds = [(len(layers), worst[:1]), (second, worst[1:2]), (_THIRD, worst[2 : 2 + _SAMPLES_THIRD])]
    return [(count, samples) for count, samples in rounds if samples]


def _in_front(found: Rounds, count: int) -> list[str]:
    """The first of the ranking whose harm is a number: of others another sample would say the same."""
    measured = (name for name in found.ranking.order if name in found.sensitivities)
    front = (name for name in measured if name not in found.ranking.required)
    finite = [name for name in front if not math.isnan(worst_sqnr(found.sensitivities[name]))]
    return finite[:count]


def _with(found: Rounds, more: Sensitivities, samples: int, ranked: Ranked) -> Rounds:
    """What was known, and what a round has added; the ranking of the layers that it measured is new."""
    sensitivities = {**found.sensitivities, **merged([_of(found.sensitivities, more), more])}
    counts = {**found.samples, **{name: found.samples.get(name, 0) + samples for name in more}}
    ranking = ranked(found.ranking, sensitivities)
    if found.samples:
        place = {name: at for at, name in enumerate(found.ranking.order)}
        last = max((place[name] for name in more), default=-1)
        front, behind = found.ranking.order[: last + 1], found.ranking.order[last + 1 :]
        inside = [name for name in ranking.order if name in set(front)]
        ranking = Ranking((*inside, *behind), ranking.required)
    return Rounds(ranking, sensitivities, counts)


def _of(sensitivities: Sensitivities, names: Iterable[str]) -> Sensitivities:
    return {name: sensitivities[name] for name in names if name in sensitivities}
