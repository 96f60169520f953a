"""Plain values of a journal or a file made into dataclasses again, each of the kind that its field says.

A digest tells what is damaged, not what is false: anybody can write a line whose digest fits. So each value is looked
at before anything computes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_Reader = Callable[[Any], Any]

Count = Annotated[int, "count"]
"""From 0 on."""

Amount = Annotated[float, "amount"]
"""At least 0, or NaN."""

_WHOLE = 1 << 63


def of_plain(cls: Callable[..., T], values: Any) -> T:
    """A dataclass from the plain values of all its fields, by name or in order. Raises ValueError for others.

    Fields are int (of 64 bits), `Count`, float, `Amount`, bool, str, each of them or None, tuples of one kind and
    mappings from names, and dataclasses: by their own `from_list` where they have one.
    """
    readers = _readers(cls)
    if isinstance(values, list | tuple) and len(values) == len(readers):
        values = dict(zip(readers, values, strict=True))
    if not isinstance(values, Mapping) or values.keys() != readers.keys():
        raise ValueError(f"not the values of {cls.__name__}")
    return cls(**{name: read(values[name]) for name, read in readers.items()})


def of_kind(kind: Any, value: Any) -> Any:
    """A plain value as one of these kinds. Raises ValueError where it is none."""
    return _reader(kind)(value)


@cache
def _readers(cls: Any) -> dict[str, _Reader]:
    hints = get_type_hints(cls, include_extras=True)
    return {found.name: _reader(hints[found.name]) for found in fields(cls)}


@cache
def _reader(kind: Any) -> _Reader:
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union) and NoneType in inner and len(inner) == 2:
        own = _reader(next(one for one in inner if one is not NoneType))
        return lambda value: None if value is None else own(value)
    if origin is tuple and inner[1:] == (Ellipsis,):
        each = _reader(inner[0])
        return lambda value: tuple(map(each, _listed(value)))
    if origin is Mapping and inner[0] is str:
        of = _reader(inner[1])
        return lambda value: {_text(name): of(found) for name, found in _mapped(value).items()}
    if hasattr(kind, "from_list"):
        return lambda value: kind.from_list(_listed(value))
    if is_dataclass(kind):
        made: Callable[..., Any] = kind  # type: ignore[assignment]  # a class, not one of its values
        return partial(of_plain, made)
    raise TypeError(f"{kind} is no kind of plain value")


def _whole(value: Any) -> int:
    if type(value) is not int or not -_WHOLE <= value < _WHOLE:
        raise ValueError("not a whole number")
    return value


def _count(value: Any) -> int:
    if _whole(value) < 0:
        raise ValueError("not a count")
    return int(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise ValueError("not a number")
    return value if isinstance(value, float) else _whole(value)


def _amount(value: Any) -> Any:
    if _number(value) < 0:
        raise ValueError("below 0")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    value.encode()  # a lone surrogate cannot be written again
    return value


def _listed(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("not a list")
    return value


def _mapped(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("not a mapping")
    return value


_SIMPLE: dict[Any, _Reader] = {
    **{int: _whole, Count: _count, float: _number, Amount: _amount, bool: _flag, str: _text},
}
