"""The search for a small set of pins: pure decisions; every set that it accepts was evaluated.

1. The required pins, and with them layers where NaN or Inf still starts, until there is none.
2. The shortest prefix of the ranking that passes: doubled until one does, then bisected. The first one tried is of one
   layer; of a diffuse error it is as long as the layers' own errors let one expect (see `expectation`), about half.
3. Pins are released again, in groups that halve, as long as the rest still passes. Groups that are far beyond what is
   left to give are not tried; single pins all are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from precisionlab.search.expectation import NOTHING, Expectation
from precisionlab.search.rank import Ranking
from precisionlab.system.deadline import BudgetExhausted


@dataclass(frozen=True)
class Verdict:
    """What evaluating one set of pins found.

    `closeness` orders sets that fail, the nearest to passing last. `starts` are the layers where a NaN
    or Inf starts under it, that are not pinned. `excess` is how many times the squared error that is allowed there is,
    NaN where that is not known.
    """

    passes: bool
    closeness: tuple[int, float]
    starts: tuple[str, ...]
    excess: float = math.nan


@dataclass(frozen=True)
class Found:
    """The smallest passing set that was evaluated, or, where none passed, the nearest one."""

    pins: frozenset[str]
    passes: bool


Evaluate = Callable[[frozenset[str]], Verdict]


def find_pins(ranking: Ranking, evaluate: Evaluate, max_pins: int | None, expected: Expectation = NOTHING) -> Found:
    """Search for pins; `evaluate` is called with sets of layer names, the empty one first.

    `expected` says what is tried first, and which groups are not worth a try; whatever it is, no single pin can be
    taken from a result that passes. Where `evaluate` raises BudgetExhausted, the search ends with the smallest passing
    set so far.
    """
    tried: dict[frozenset[str], Verdict] = {}

    def verdict(pins: frozenset[str]) -> Verdict:
        if pins not in tried:
            tried[pins] = evaluate(pins)
        return tried[pins]

    limit = len(ranking.order) if max_pins is None else min(max_pins, len(ranking.order))
    try:
        pins = _found(ranking, verdict, tried, limit, expected)
        if tried[pins].passes:
            return Found(pins, True)
    except BudgetExhausted:
        passing = [p for p in tried if tried[p].passes]
        if passing:
            return Found(min(passing, key=len), True)
        if not tried:
            raise
    return Found(max(tried, key=lambda p: (tried[p].closeness, -len(p))), False)


def _found(
    ranking: Ranking,
    verdict: Callable[[frozenset[str]], Verdict],
    tried: Collection[frozenset[str]],
    limit: int,
    expected: Expectation,
) -> frozenset[str]:
    """What the three steps come to; it does not pass where nothing within the limit was found to."""

    def passes(pins: frozenset[str]) -> bool:
        return verdict(pins).passes

    pins: frozenset[str] = frozenset()
    if not passes(pins):
        pins = _without_nonfinite(ranking, verdict, limit)
    others = [name for name in ranking.order if name not in pins]
    allowed = expected.allowed(others, verdict(pins).excess)
    if not passes(pins):
        pins = _shortest_prefix(others, pins, passes, limit, expected.first(others, allowed))

    def is_worth_it(kept: frozenset[str], rest: frozenset[str]) -> bool:
        return rest in tried or not expected.is_hopeless(kept - rest, allowed, verdict(kept).excess)

    return released(pins, ranking.order, passes, is_worth_it) if passes(pins) else pins


def _without_nonfinite(ranking: Ranking, verdict: Callable[[frozenset[str]], Verdict], limit: int) -> frozenset[str]:
    """The required pins, and then whatever layer a NaN or Inf still starts in, as long as the limit allows."""
    pins = frozenset(ranking.required[:limit])
    while len(pins) < limit and (starts := [s for s in verdict(pins).starts if s not in pins]):
        pins |= frozenset(starts[: limit - len(pins)])
    return pins


def _shortest_prefix(
    others: Sequence[str],
    pins: frozenset[str],
    passes: Callable[[frozenset[str]], bool],
    limit: int,
    first: int,
) -> frozenset[str]:
    """`pins` with the shortest prefix of the other layers that passes, among those tried; of `first` layers at first.

    Where none does, the longest that the limit allows.
    """
    longest = min(len(others), limit - len(pins))
    low, high = 0, first
    while high < longest and not passes(pins | frozenset(others[:high])):
        low, high = high, high * 2
    high = min(high, longest)
    if not passes(pins | frozenset(others[:high])):
        return pins | frozenset(others[:high])
    while high - low > 1:
        middle = (low + high) // 2
        if passes(pins | frozenset(others[:middle])):
            high = middle
        else:
            low = middle
    return pins | frozenset(others[:high])


def released(
    pins: frozenset[str],
    order: Sequence[str],
    passes: Callable[[frozenset[str]], bool],
    is_worth_it: Callable[[frozenset[str], frozenset[str]], bool] = lambda kept, rest: True,
) -> frozenset[str]:
    """The pins without those that can be released, tried from the least suspect, in halving groups.

    The last rounds try one at a time until none can go: no single pin can be taken from the result. `is_worth_it` takes
    what is kept and what would be left of it, and says of a group of several whether to try it.
    """
    kept = [name for name in reversed(order) if name in pins]
    size = max(1, len(kept) // 2)
    while True:
        before = len(kept)
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            is_tried = size == 1 or is_worth_it(frozenset(kept), frozenset(rest))
            if is_tried and passes(frozenset(rest)):
                kept = rest
            else:
                start += size
        if size == 1 and len(kept) == before:
            return frozenset(kept)
        size = max(1, size // 2)


def most_left(pins: int) -> int:
    """About how many plans may be evaluated once so many pins hold: to release, to prove, and a few around them."""
    return 3 * pins + 8


def likely_pins(layers: int) -> int:
    """About how many pins are looked for: 0 to 8 on real models of 33 to 92 layers, 19 of 51 on the worst of them."""
    return math.isqrt(layers) + 1


def most_evaluations(layers: int) -> int:
    """The most that steps 1 and 2 evaluate for so many layers, but for NaN that starts anew on the way.

    Releasing k pins takes about as many again as 2·k in the worst case.
    """
    return 2 + 2 * math.ceil(math.log2(max(2, layers)))
