"""Small phrases that many messages share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 pin`, `2 pins`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
