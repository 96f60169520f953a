"""Rooms of the package that are called like a job, and can be called like it.

`precisionlab.export(...)` is what a user types, and `precisionlab.export` is where formats live: Python gives the
package the module of that name once anything in it is imported. So the module itself can be called, and says whose
signature that is. (Python's data model: a module's `__class__` may be set to a subclass of ModuleType.)
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that stands for a function of another: loaded when it is first called, or asked of."""

    _of: tuple[str, str]

    @property
    def __wrapped__(self) -> Any:
        home, name = self._of
        return getattr(importlib.import_module(home), name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.__wrapped__)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)


def callable_as(module: str, home: str, name: str) -> None:
    """Have a module be callable: it calls the function `name` of the module `home`."""
    found = sys.modules[module]
    found.__dict__["_of"] = (home, name)
    found.__class__ = _Callable
