"""What many names begin with, so that it is said once and not in every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_ENDS = "/.:"
_LEAST = 8  # letters that are worth a mark in their place


def common_prefix(names: Iterable[str]) -> str:
    """The beginning, up to a `/`, `.` or `:`, that saves the most letters among those that most names have; else "".

    Names that do not begin so are to be shown as they are.
    """
    every = list(names)
    counts: Counter[str] = Counter()
    for name in every:
        counts.update(name[: place + 1] for place, sign in enumerate(name[:-1]) if sign in _ENDS)
    common = {start: count for start, count in counts.items() if 2 * count > len(every) and len(start) >= _LEAST}
    return max(common, key=lambda start: (common[start] * len(start), start), default="")
