"""From one type of numbers to another: exactly, rounded where both are floats, or not at all."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Held = NDArray[np.bool_]


class LostValueError(Exception):
    """Which value another type cannot hold, to stand behind the name of the array and a comma."""


class Converted(NamedTuple):
    """An array in its new type, and whether any of its values was rounded on the way."""

    array: NDArray[Any]
    rounded: bool


def convert(array: NDArray[Any], dtype: DTypeLike) -> Converted:
    """The array as `dtype`, where that loses no value.

    Integers and truth values stay what they are, in any type that holds each of them; floats become integers where
    all are whole numbers in range. From float to float values are rounded to the nearest, as every framework does when
    it takes float64 for float32; a finite one that becomes infinite is lost. NaN and Inf stay in floats. Raises
    LostValueError with the first value that is lost, or where either type is no type of numbers.
    """
    target = np.dtype(dtype)
    if array.dtype == target:
        return Converted(array, rounded=False)
    if target.kind == "V" and array.dtype == np.dtype((np.void, target.itemsize)):
        return Converted(array.view(target), rounded=False)  # numpy.save knows no bfloat16, and writes its bytes alone
    if (source := kind(array.dtype)) == "c":
        _refuse(array, array.imag == 0, "has an imaginary part")
        array, source = array.real, "f"
    target_kind = kind(target)
    if source not in _KINDS or target_kind not in _KINDS:
        raise LostValueError(f"which is not converted to {target}")
    with np.errstate(all="ignore"):  # what overflows is looked for, and told
        if source == target_kind == "f":
            return _rounded(array, target)
        if source == "f":
            values, is_exact, why = *_whole(array, target), _NOT_WHOLE
        else:
            values, is_exact = _from_integers(array, target)
            why = f"is not a value of {target}"
    _refuse(array, is_exact, _NOT_BOOL if target_kind == "b" else why)
    return Converted(values, rounded=False)


def kind(dtype: DTypeLike) -> str:
    """The kind of numbers: b, i, u, f or c, as NumPy has them, bfloat16, int4 and their like among them; else ""."""
    found = np.dtype(dtype)
    if found.kind in "biufc":
        return found.kind
    small = {"bfloat": "f", "float": "f", "int": "i", "uint": "u"}
    return next((small[start] for start in small if found.kind == "V" and found.name.startswith(start)), "")


_KINDS = ("b", "i", "u", "f")
_NOT_BOOL = "is neither 0 nor 1"
_NOT_WHOLE = "is no whole number in its range"


def _rounded(array: NDArray[Any], target: np.dtype[Any]) -> Converted:
    values = array.astype(target)
    _refuse(array, np.isfinite(values) | ~np.isfinite(array), f"is beyond {target}")
    same = (values.astype(array.dtype) == array) | np.isnan(array)
    return Converted(values, rounded=not np.all(same))


def _whole(array: NDArray[Any], target: np.dtype[Any]) -> tuple[NDArray[Any], Held]:
    """Floats as integers or truth values, and which of them are the same."""
    wide = array if array.dtype.itemsize > 8 else array.astype(np.float64)
    between = target if target.kind in "iu" else np.dtype(np.int64)
    # Both ends are powers of two, or 0: exact as floats, where the largest int64 itself is not.
    least, beyond = float(np.iinfo(between).min), float(np.iinfo(between).max) + 1
    is_exact = (wide >= least) & (wide < beyond) & (np.trunc(wide) == wide)
    whole = np.where(is_exact, wide, 0).astype(between)
    if between == target:
        return whole, is_exact
    values, inside = _from_integers(whole, target)
    return values, is_exact & inside


def _from_integers(array: NDArray[Any], target: np.dtype[Any]) -> tuple[NDArray[Any], Held]:
    """Integers and truth values as another type, and which of them are the same."""
    if array.dtype.kind not in "iu":
        array = array.astype(np.int16)  # bool, int4, uint4 and smaller
    values = array.astype(target)
    if kind(target) == "f":
        wide = values.astype(np.float64)
        info = np.iinfo(array.dtype)
        inside = (wide >= float(info.min)) & (wide < float(info.max) + 1)
        return values, inside & (np.where(inside, wide, 0).astype(array.dtype) == array)
    narrow = values if target.kind in "iu" else values.astype(np.int16)
    return values, (narrow.astype(array.dtype) == array) & ((narrow < 0) == (array < 0))


def _refuse(array: NDArray[Any], held: Held | np.bool_, why: str) -> None:
    """Raises LostValueError with the first value that is not held."""
    if np.all(held):
        return
    flat = int(np.argmin(np.asarray(held).reshape(-1)))
    place = [int(index) for index in np.unravel_index(flat, array.shape)]
    at = f" at {place}" if place else ""
    raise LostValueError(f"and value {array.reshape(-1)[flat]!s}{at} {why}")
