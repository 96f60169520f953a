"""What the errors of single layers let one expect of plans that were not evaluated yet: where to begin, what to skip.

Errors that are rounded apart would add up in energy. They do not quite (sums of layers' alone were 0.3 to 390 times
what all made together), so that nothing is believed for it: every plan that is taken was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from precisionlab.search.carriers import carriers_of

_WRONG_BY = 8.0
"""Pins whose errors together are so many times what is left to give are not tried as one group.

Of 150 searches (benchmarks/README.md, "The way to the pins") half of it cost a pin in one, this in none.
"""


@dataclass(frozen=True)
class Expectation:
    """Layer → its squared error alone, Σerr² / Σref² of the output that it harms most; what is missing is not known."""

    harms: Mapping[str, float] = field(default_factory=dict)

    def allowed(self, layers: Iterable[str], excess: float) -> float:
        """How much of these layers' harm the tolerance leaves room for, where none of them is pinned.

        `excess` is how many times the squared error that is allowed there is then. NaN where that, or a layer's harm,
        is not known.
        """
        total = sum(self.harms.get(name, math.nan) for name in layers)
        return total / excess if math.isfinite(total) and math.isfinite(excess) and excess > 1 else math.nan

    def first(self, order: Sequence[str], allowed: float) -> int:
        """How many layers of the ranking to begin with.

        One, but where the error is diffuse: so many that those behind them do no more harm than is allowed, and half of
        them where that is not known.
        """
        carriers = carriers_of(self.harms[name] for name in order if name in self.harms)
        if carriers is None or not carriers.is_diffuse:
            return 1
        if math.isnan(allowed):
            return max(1, len(order) // 2)
        left = 0.0
        for count in range(len(order), 1, -1):
            left += self.harms[order[count - 1]]
            if left > allowed:
                return count
        return 1

    def is_hopeless(self, group: Iterable[str], allowed: float, excess: float) -> bool:
        """Whether to give up these pins together is out of reach; with them there is `excess` of the error allowed."""
        harm = sum(self.harms.get(name, math.nan) for name in group)
        return harm > _WRONG_BY * allowed * (1 - excess)  # never where one of them is NaN


NOTHING = Expectation()
"""Of a model that nobody measured layers of."""
