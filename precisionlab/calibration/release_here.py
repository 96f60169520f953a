"""For which TensorRT a calibration cache is written where nobody says: the one on this machine, where it reads any."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from precisionlab.calibration.cache import CacheError, version_digits

ASSUMED = "10.16.1"
"""The version that a cache is for where none is asked for, and none is installed: the last that reads caches."""
_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-bindings")


def cache_release(asked: str | None) -> str:
    """The TensorRT version that a cache is for: the one asked for, else the installed one, else `ASSUMED`.

    Raises CacheError for one that reads no calibration caches, where it was asked for.
    """
    if asked is None:
        return default_release()
    version_digits(asked)
    return asked


def default_release() -> str:
    """The version that a cache is for where none is asked for."""
    return installed_release() or ASSUMED


def installed_release() -> str | None:
    """The version of the TensorRT in this environment, None where there is none that reads caches. Loads nothing."""
    if importlib.util.find_spec("tensorrt") is None:
        return None
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
            version_digits(version)
        except (importlib.metadata.PackageNotFoundError, CacheError):
            continue
        return version
    return None
