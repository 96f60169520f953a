"""Python that the user names, `package.module:name` or `path/to/file.py:name`, or hands over as an object.

An object has a name while the call lasts that it was given to: all that is written and said of it says that name. It
means nothing in another process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

OBJECT = "python-object"
"""What stands in the place of an object's module: no module can be called so."""

_given: dict[str, Any] = {}


def import_named(spec: str) -> Any:
    """What the module or the file calls by that name, or the object. Raises whatever importing raises."""
    module, _, name = spec.rpartition(":")
    if module == OBJECT:
        if spec not in _given:
            raise ImportError(
                f"{name} was an object of a Python session, and is not known here; give it again, or as a file or an "
                "importable function (with processes and dask too)"
            )
        return _given[spec]
    found = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    return getattr(found, name)


def is_object(spec: str) -> bool:
    """Whether this is the name of an object."""
    return spec.startswith(f"{OBJECT}:")


@contextmanager
def named(value: Any) -> Iterator[str]:
    """A name for an object, by which `import_named` finds it while the context lasts."""
    kind = getattr(value, "__name__", type(value).__name__)
    base = f"{OBJECT}:{kind if str(kind).isidentifier() else 'given'}"
    spec, number = base, 1
    while spec in _given:
        number += 1
        spec = f"{base}_{number}"
    _given[spec] = value
    try:
        yield spec
    finally:
        del _given[spec]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImportError(f"{path}: no such Python file")
    module = ModuleType(f"precisionlab_user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    # Compiled from the source each time: Python's bytecode cache takes a file that was edited within the
    # same second, and has kept its size, for the old one.
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module
