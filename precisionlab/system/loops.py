"""Compiled loops: numba, with its cache where one can be written."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from numba import njit


def compiled(fastmath: Set[str] = frozenset()) -> Callable[[Callable[..., Any]], Any]:
    """Compile a loop that holds no lock of Python's, with IEEE's division.

    What is compiled is kept beside the package or in the user's cache, and where neither can be written (numba raises
    RuntimeError then) it is compiled anew in each process. Never in a run's folder: what numba reads back is code.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            return njit(**options)(function)

    return decorate
