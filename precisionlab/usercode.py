"""Python that the user names on the command line: `package.module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
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
    name = f"precisionlab_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
