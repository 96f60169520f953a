"""Python that the user names on the command line: `package.module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def import_named(spec: str) -> Any:
    """What the module or the file calls by that name. Raises whatever importing raises."""
    module, _, name = spec.rpartition(":")
    found = _import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    return getattr(found, name)


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
