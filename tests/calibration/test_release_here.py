"""A cache is for the TensorRT that is asked for, else for the installed one, else for the last that reads any."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from precisionlab.calibration.cache import CacheError
from precisionlab.calibration.release_here import ASSUMED, cache_release, installed_release


def installed(package: str, version: str, folder: Path) -> None:
    """A package that provides the module `tensorrt`, as pip leaves it."""
    (folder / "tensorrt.py").write_text("raise ImportError('not to be loaded')")
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("package", "version", "taken"),
    [
        ("tensorrt", "8.6.2", "8.6.2"),
        ("tensorrt-cu12", "10.14.1.48.post1", "10.14.1.48.post1"),
        ("tensorrt", "11.2.0", ASSUMED),  # it reads none
        ("other", "10.3.0", ASSUMED),
    ],
)
def test_the_installed_one_is_taken_where_it_reads_caches(
    package: str, version: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(package, version, tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert cache_release(None) == taken
    assert cache_release("10.9.0") == "10.9.0"


def test_without_tensorrt_it_is_the_last_that_reads_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert installed_release() is None
    assert cache_release(None) == ASSUMED


def test_one_that_reads_no_cache_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(CacheError, match="reads no calibration cache"):
        cache_release("11.0.0")
