"""The compiled loops over large arrays that go to half precision: NumPy's own takes eight times as long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from precisionlab.system.loops import compiled

_MAGNITUDE = np.int32(0x7FFFFFFF)
_NORMAL = np.int32(0x38800000)  # 2^-14, half's smallest number with all digits
_TOO_LARGE = np.int32(0x47800000)  # 2^16: what half's largest is rounded up to
_INFINITY = np.int32(0x7F800000)
_DROPPED = np.int32(13)  # binary32 has so many digits more
_BELOW_HALF = np.int32(0xFFF)  # half of the last digit kept, less one of the dropped
_HALF = np.float32(0.5)
_LARGEST = np.int32(0x477FE000)  # 65504
_LEAST = np.int32(0x33800000)  # 2^-24


@compiled()
def _round(bits, subnormal, beyond, lost, out):  # type: ignore[no-untyped-def]
    for i in range(bits.size):
        magnitude = bits[i] & _MAGNITUDE
        # Ties to even: half of the last digit less one, and one more where that digit is odd.
        normal = magnitude + _BELOW_HALF + ((magnitude >> _DROPPED) & np.int32(1))
        normal = (normal >> _DROPPED) << _DROPPED
        normal = beyond if normal >= _TOO_LARGE else normal
        normal = max(subnormal[i], lost) if magnitude < _NORMAL else normal
        normal = magnitude if magnitude >= _INFINITY else normal  # Inf and NaN
        normal = magnitude if magnitude == 0 else normal
        out[i] = normal | (bits[i] & ~_MAGNITUDE)


@compiled()
def _largest_and_lost(bits, last_lost):  # type: ignore[no-untyped-def]
    largest, lost = np.int32(0), np.int32(0)
    for i in range(bits.size):
        magnitude = bits[i] & _MAGNITUDE
        largest = max(largest, magnitude if magnitude < _INFINITY else np.int32(0))
        lost |= np.int32(1) if np.int32(0) < magnitude <= last_lost else np.int32(0)
    return largest, lost


_CHUNK = 1 << 14


def rounded_to_half(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest IEEE 754 binary16 of each number, ties to even, Inf beyond; float32 of the same shape.

    NaN stays NaN, and zeros and what is rounded to one keep their sign.
    """
    return _rounded(array, _INFINITY, np.int32(0))


def clamped_to_half(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same, with half's largest number in place of what would be Inf, and its least of what would be 0.

    Inf, NaN and zeros stay. What `clamped_array` and `rounded_to_half` come to, in one walk through memory.
    """
    return _rounded(array, _LARGEST, _LEAST)


def clamped_place(array: NDArray[np.float32], first_beyond: np.float32, last_underflow: np.float32) -> int | None:
    """Where in the flat array the finite number of the largest magnitude stands that is no less than `first_beyond`.

    Where there is none, the first that is not 0 and no more than `last_underflow`; else None.
    """
    values = np.ascontiguousarray(array, np.float32).reshape(-1)
    last = last_underflow.view(np.int32)
    largest, place, lost = first_beyond.view(np.int32) - 1, None, None
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        here, is_lost = _largest_and_lost(part.view(np.int32), last)
        if here > largest:
            largest, place = here, start + int((part.view(np.int32) & _MAGNITUDE == here).argmax())
        if is_lost and lost is None:
            lost = start + int(((part != 0) & (np.abs(part) <= last_underflow)).argmax())
    return lost if place is None else place


def _rounded(array: NDArray[np.float32], beyond: np.int32, lost: np.int32) -> NDArray[np.float32]:
    """Rounded, with these bits in place of what is too large, and of what is too small and not 0."""
    values = np.ascontiguousarray(array, np.float32).reshape(-1)
    out = np.empty_like(values)
    for start in range(0, values.size, _CHUNK):  # what fits into a core's cache
        part, rounded = values[start : start + _CHUNK], out[start : start + _CHUNK]
        with np.errstate(invalid="ignore"):
            # A float32 of [0.5, 1) has the digits down to 2^-24 that a subnormal half has: adding 0.5 rounds to these.
            subnormal = (np.abs(part) + _HALF) - _HALF
        _round(part.view(np.int32), subnormal.view(np.int32), beyond, lost, rounded.view(np.int32))
    return out.reshape(np.shape(array))
