"""Plugins: those of TensorRT's own library, and of libraries that are loaded.

A library that registers its plugins when it is opened sets DOUBLE_PLUGINS in the process's environment, to their names
with commas between; one that waits to be asked has `getPluginCreators`, and gives them as the text `double_plugins`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from ._interfaces import ILogger

OWN = frozenset({"RoiAlign", "ScatterElements"})
"""The ONNX operators that 10.x makes plugins of its own library of."""


@dataclass(frozen=True)
class _Creator:
    name: str


class IPluginRegistry:
    """The registry of a process."""

    def __init__(self) -> None:
        self._initialised = False
        self._loaded: list[str] = []

    @property
    def all_creators(self) -> list[_Creator]:
        get = ctypes.CDLL(None).getenv
        get.restype = ctypes.c_char_p
        opened = (get(b"DOUBLE_PLUGINS") or b"").decode().split(",")
        own = sorted(OWN) if self._initialised else []
        return [_Creator(name) for name in (*own, *filter(None, opened), *self._loaded)]

    def load_library(self, plugin_path: str) -> Any | None:
        names = ctypes.c_char_p.in_dll(ctypes.CDLL(plugin_path), "double_plugins").value
        new = (names or b"").decode().split(",")
        if {creator.name for creator in self.all_creators} & set(new):
            return None
        self._loaded += new
        return object()

    def _has(self, operator: str) -> bool:
        return any(creator.name == operator for creator in self.all_creators)


REGISTRY = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return REGISTRY


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    REGISTRY._initialised = True
    return True
