"""Small phrases that many messages share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches


def counted(number: int, noun: str) -> str:
    """`1 pin`, `2 pins`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def either(names: Iterable[str]) -> str:
    """`fp32, fp16 or bf16`."""
    *first, last = map(str, names)
    return f"{', '.join(first)} or {last}" if first else last


def meant(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'fp16'?)` for a name that is close to one of these; empty else."""
    close = get_close_matches(name.lower(), list(names), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(text: str, most: int = 2000) -> str:
    """The text as one line to print: control characters as escapes, and no more characters than that.

    Names come out of files that somebody sent; they must not steer the terminal, nor fill it.
    """
    line = " ".join(part.strip() for part in text.splitlines())
    if len(line) > most:  # what is wrong stands behind the name, and what to do at the end
        line = f"{line[: most // 2]} … {line[-most // 2 :]}"
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


def duration(seconds: float) -> str:
    """`0.1 s`, `40 s`, `1.5 min`, `12 min`."""
    if 0 < seconds < 1:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes >= 9.95 else f"{minutes:.1f}".removesuffix(".0") + " min"


def decibel(value: float) -> str:
    """One decimal; NaN and infinities as such."""
    return number(value, 1)


def number(value: float, digits: int) -> str:
    """A figure for people with so many decimals: NaN and infinities as such."""
    return formed(value, f".{digits}f")


def formed(value: float, form: str) -> str:
    """A figure for people by a format specification: NaN and infinities as such."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return format(value, form)


def rungs(precisions: Iterable[str]) -> str:
    """The precisions that pins have, as `fp32`, or `fp16 (1) and fp32 (2)`."""
    counts = Counter(map(str, precisions))
    if len(counts) < 2:
        return next(iter(counts), "")
    return " and ".join(f"{precision} ({count})" for precision, count in counts.items())
