"""Odd values, and the places of a file's structure where they are put."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from test_strange_runs import ODD as SOME
from test_strange_runs import places

ODD: tuple[Any, ...] = (
    *SOME,
    *(0.5, -1.5, float("nan"), float("inf"), -float("inf"), 2**53 + 1, 2**63, -(2**63), 5e-324, 10**20),
    *("../../outside/secret", "/etc/passwd", "a\0b", "\ud800", '"><pwned onload=pwned()>', "=pwned()", "x" * 100_000),
    *([1, 2], ["x", 1], {"": ""}, [None] * 1000, [[[[[[]]]]]]),
)

__all__ = ["ODD", "change", "nested", "place_of", "places"]


def place_of(value: Any, number: int) -> tuple[Any, Any]:
    """The object or list of a place, and its key there."""
    for at, place in enumerate(places(value)):
        if at == number:
            return place
    raise IndexError(number)


def change(holder: Any, key: Any, dice: random.Random, odd: Sequence[Any] = ODD) -> None:
    """Put something odd there, or remove what is."""
    if dice.random() < 0.15:
        del holder[key]
    else:
        holder[key] = dice.choice(odd)


def nested(depth: int) -> Any:
    """Lists in lists."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found
