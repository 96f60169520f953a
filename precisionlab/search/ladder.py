"""A ladder, not a switch: a pinned layer gets the cheapest precision that holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from precisionlab.precision import Precision
from precisionlab.search.pins import released
from precisionlab.system.deadline import BudgetExhausted

Assignment = Mapping[str, Precision]
"""Pinned layer → the precision that it is pinned to."""


def lower_rungs(
    pins: Sequence[str],
    rungs: Sequence[Precision],
    passes: Callable[[Assignment], bool],
    takes: Callable[[str, Precision], bool] = lambda name, rung: True,
) -> dict[str, Precision]:
    """Give each pin the first of the rungs that holds; `pins` all in fp32 pass, and stand the worst first.

    On each rung as few as possible are left for the rungs above: no single one of them can come down. A rung is tried
    on those alone that can have it, by `takes`. Where `passes` raises BudgetExhausted, what has been found so far.
    """
    found = dict.fromkeys(pins, Precision.FP32)
    for rung in rungs:
        high = [name for name in pins if found[name] is Precision.FP32 and takes(name, rung)]
        if rung is Precision.FP32 or not high:
            continue
        best = frozenset(high)

        def holds(stay: frozenset[str], rung: Precision = rung, high: Sequence[str] = high) -> bool:
            nonlocal best
            fits = passes({**found, **{name: rung for name in high if name not in stay}})
            if fits and len(stay) < len(best):
                best = stay
            return fits

        try:
            if not holds(frozenset()):
                released(frozenset(high), high, holds)
        except BudgetExhausted:
            found.update((name, rung) for name in high if name not in best)
            return found
        found.update((name, rung) for name in high if name not in best)
    return found


def without_needless(assignment: Assignment, passes: Callable[[Assignment], bool]) -> dict[str, Precision]:
    """The assignment without pins that are not needed any more, the least suspect tried first.

    Where errors do not simply add up, a pin on another rung may make one needless that was needed before.
    """
    kept = dict(assignment)
    while True:
        needless = next((n for n in reversed(kept) if passes({k: v for k, v in kept.items() if k != n})), None)
        if needless is None:
            return kept
        del kept[needless]
