"""Prints all that a TensorRT module has, as JSON; runs in a process of its own.

    PYTHONPATH=<bindings' folder> python surface.py tensorrt_bindings

{"": {name: thing}, class: {name: thing}, …}: the module's own names stand under "", those of a nested class under
`ILogger.Severity`. A thing is `{"kind": "class" | "method" | "property" | "value", …}`. What a method takes and gives,
and what type a property has, stands in the first lines of the documentation that pybind11 writes.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

PREFIX = re.compile(r"[a-z_]+\.tensorrt(?:_rtx)?\.|nvinfer1::|typing\.|typing_extensions\.|collections\.abc\.")


def split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket and no string."""
    parts, depth, quote, part = [], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{<":
            depth += 1
        elif letter in ")]}>":
            depth -= 1
        if letter == "," and depth == 0 and not quote:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts


def signatures(name: str, documentation: str | None) -> list[dict[str, Any]]:
    """The overloads of a method: the parameters after self (name, whether it has a default), and the result's type."""
    found = []
    for line in (documentation or "").splitlines():
        match = re.fullmatch(rf"(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)", line.strip())
        if match:
            taken = [part for part in split(match[1]) if not part.startswith("self:")]
            parameters = [(part.split(":")[0].split("=")[0].strip(), "=" in part) for part in taken]
            found.append({"parameters": parameters, "result": plain(match[2])})
    return found


def plain(text: str) -> str:
    """A type without the names of modules."""
    return PREFIX.sub("", text.strip()).replace("::", ".")


def describe(owner: type | None, name: str, value: Any, raw: Any) -> dict[str, Any]:
    if isinstance(value, type):
        return {"kind": "class"}
    if isinstance(raw, property):
        match = re.search(r"-> (.+)", (raw.fget.__doc__ if raw.fget else "") or "")
        return {"kind": "property", "type": plain(match[1]) if match else None, "settable": raw.fset is not None}
    if callable(value):
        return {"kind": "method", "signatures": signatures(name, value.__doc__)}
    return {"kind": "value", "type": type(value).__qualname__}


def members(owner: type) -> dict[str, dict[str, Any]]:
    """What a class has, with what it inherits from TensorRT's own classes; `__init__` and no other special method."""
    found = {}
    for base in reversed(owner.__mro__):
        if base.__module__.startswith("tensorrt"):
            for name, raw in vars(base).items():
                if not name.startswith("_") or name == "__init__":
                    found[name] = describe(owner, name, getattr(owner, name), raw)
    if "__members__" in vars(owner):  # pybind11's enumerations
        found["__members__"] = {"kind": "value", "type": "dict"}
        found.setdefault("name", {"kind": "property", "type": "str", "settable": False})
    return found


def surface(module: Any) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {"": {"__version__": {"kind": "value", "type": "str"}}}
    for name in dir(module):
        value = getattr(module, name)
        if name.startswith("_") or (isinstance(value, type(sys))):
            continue
        found[""][name] = describe(None, name, value, value)
        if isinstance(value, type):
            found[name] = members(value)
            for inner, nested in list(vars(value).items()):
                if isinstance(nested, type) and not inner.startswith("_"):
                    found[f"{name}.{inner}"] = members(nested)
    return found


print(json.dumps(surface(importlib.import_module(sys.argv[1]))))
