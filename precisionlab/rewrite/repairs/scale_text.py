"""The scales of a group's channels as a plan holds them: channels by their exponent of 2, in ranges as `0-3,7`."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_FURTHEST = 64
_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def scale_texts(scales: NDArray[np.int32]) -> tuple[tuple[str, int], ...]:
    """Which channels have which exponent, the least first; those of 0 are left out."""
    return tuple(
        (_ranges(np.flatnonzero(scales == exponent).tolist()), int(exponent))
        for exponent in np.unique(scales)
        if exponent
    )


def read_scales(texts: Iterable[tuple[str, int]], channels: int) -> NDArray[np.int32]:
    """The exponent of each channel: int32, (channels,). Raises ValueError for what `scale_texts` did not write."""
    scales = np.zeros(channels, np.int32)
    for text, exponent in texts:
        if not _RANGES.fullmatch(text) or abs(exponent) > _FURTHEST:
            raise ValueError(f"{text!r}: {exponent} is no exponent of channels, such as '0-3,7': -2")
        for part in text.split(","):
            first, _, last = part.partition("-")
            start, end = int(first), int(last or first)
            if not start <= end < channels:
                raise ValueError(f"it has scales for channels {part}, of {channels}")
            if scales[start : end + 1].any():
                raise ValueError(f"it has two scales for channels {part}")
            scales[start : end + 1] = exponent
    return scales


def _ranges(places: list[int]) -> str:
    """Ascending numbers as ranges."""
    texts = []
    start = previous = places[0]
    for place in [*places[1:], -1]:
        if place != previous + 1:
            texts.append(f"{start}" if start == previous else f"{start}-{previous}")
            start = place
        previous = place
    return ",".join(texts)
