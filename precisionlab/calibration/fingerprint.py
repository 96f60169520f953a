"""The fingerprint beside a calibration cache: what the scales were made from, and the ranges in full.

A cache holds nothing but names and scales, so nobody can tell which model, data or method it came from.
`<cache>.json` says so, and is at the same time the calibration table as JSON: it reads back to the table bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from precisionlab.calibration.cache import CacheError, read_limited
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.precision import Precision
from precisionlab.system.reading import parse_json

FINGERPRINT_SCHEMA = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Fingerprint:
    """What a cache was made from. `ranges` are those of all tensors, in the order of the cache.

    `cache_sha256` is that of the cache's bytes. `model` and `data` are paths as the user gave them, for people to
    read; the hashes are what counts. `data` is None where the samples were random; `skipped` of them could not be
    read and take no part. `tensorrt` is the version that the cache's header was written for.
    """

    cache_sha256: str
    model: str
    model_sha256: str
    data: str | None
    data_sha256: str
    samples: int
    method: str
    tensorrt: str
    versions: Mapping[str, str]
    ranges: Mapping[str, Range]
    skipped: int = 0

    @classmethod
    def of(
        cls,
        cache: bytes,
        table: CalibrationTable,
        *,
        model_path: str,
        model_sha256: str,
        data: Mapping[str, Any],
        method: str,
        tensorrt: str,
        versions: Mapping[str, str],
    ) -> Fingerprint:
        """The fingerprint of a cache's bytes and the table that they were made from.

        `data` has the keys `folder` and `sha256`, and may have `skipped`.
        """
        return cls(
            cache_sha256=hashlib.sha256(cache).hexdigest(),
            model=model_path,
            model_sha256=model_sha256,
            data=data["folder"],
            data_sha256=data["sha256"],
            samples=table.samples,
            method=method,
            tensorrt=tensorrt,
            versions=versions,
            ranges=table.ranges,
            skipped=data.get("skipped", 0),
        )

    @property
    def table(self) -> CalibrationTable:
        """The calibration table."""
        return CalibrationTable(self.ranges, self.samples)

    def facts(self) -> dict[str, Any]:
        """All but the ranges, as the JSON has it."""
        return {
            "schema": FINGERPRINT_SCHEMA,
            "cache": {"sha256": self.cache_sha256, "tensorrt": self.tensorrt},
            "model": {"path": self.model, "sha256": self.model_sha256},
            "data": {
                "folder": self.data,
                "sha256": self.data_sha256,
                "samples": self.samples,
                "skipped": self.skipped,
            },
            "method": self.method,
            "versions": dict(self.versions),
        }

    def to_json(self) -> str:
        """The content of `<cache>.json`. Raises CacheError for a range that is not finite."""
        for name, found in self.ranges.items():
            if not (math.isfinite(found.amax) and math.isfinite(found.largest)):
                raise CacheError(f"tensor {name!r} has the range {found.amax}, which JSON cannot hold; leave it out")
        ranges = {name: _range_facts(found) for name, found in self.ranges.items()}
        # ASCII: a path or a name that is not UTF-8 then survives as well, as \udcff.
        return json.dumps({**self.facts(), "ranges": ranges}, indent=1, allow_nan=False) + "\n"


def fingerprint_path(cache: Path) -> Path:
    """The file that belongs to a cache: `model.cache` → `model.cache.json`."""
    return cache.with_name(cache.name + ".json")


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint from a file. Raises CacheError as `fingerprint_from_json` does."""
    return fingerprint_from_json(read_limited(path), str(path))


def fingerprint_from_json(text: str | bytes, where: str) -> Fingerprint:
    """Read a fingerprint; unknown keys are left alone. Raises CacheError that names the key at fault."""
    try:
        data = parse_json(text)
    except ValueError as error:
        raise CacheError(f"{where}: not JSON: {error}; delete it, or calibrate again") from None
    top = _Keys(data, where, "")
    schema = top.get("schema", int)
    if schema != FINGERPRINT_SCHEMA:
        raise CacheError(f"{where}: schema is {schema}, this version reads {FINGERPRINT_SCHEMA}; calibrate again")
    cache, model, samples = top.inner("cache"), top.inner("model"), top.inner("data")
    versions, ranges = top.inner("versions"), top.inner("ranges")
    return Fingerprint(
        cache_sha256=cache.get("sha256", str),
        model=model.get("path", str),
        model_sha256=model.get("sha256", str),
        data=samples.get("folder", str, optional=True),
        data_sha256=samples.get("sha256", str),
        samples=samples.count("samples"),
        skipped=samples.count("skipped"),
        method=top.get("method", str),
        tensorrt=cache.get("tensorrt", str),
        versions={name: versions.get(name, str) for name in versions.names},
        ranges={name: _range_from(ranges.inner(name)) for name in ranges.names},
    )


def _range_facts(found: Range) -> dict[str, Any]:
    return {
        "amax": found.amax,
        "scale": found.scale(_CACHED),
        "largest": found.largest,
        "count": found.count,
        "clipped": found.clipped,
        "nonfinite": found.nonfinite,
        "method": found.method,
    }


_CACHED = Precision.INT8.number_format
"""What a calibration cache has ranges of."""


def _range_from(facts: _Keys) -> Range:
    found = Range(
        amax=facts.magnitude("amax"),
        method=facts.get("method", str),
        largest=facts.magnitude("largest"),
        count=facts.count("count"),
        clipped=facts.count("clipped"),
        nonfinite=facts.count("nonfinite"),
    )
    # The scale stands there for other programs; amax is the truth, and two that differ were edited by hand.
    if not math.isclose(facts.magnitude("scale"), found.scale(_CACHED), rel_tol=1e-6):
        raise facts.error("scale", "is not amax / 127")
    return found


class _Keys:
    """A JSON object whose values are checked as they are taken."""

    def __init__(self, data: Any, where: str, path: str) -> None:
        self._where, self._path = where, path
        if not isinstance(data, dict):
            raise CacheError(f"{where}: {path or 'a fingerprint'} must be a JSON object, this is {_kind(data)}")
        self._data = data

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._data)

    def inner(self, key: str) -> _Keys:
        return _Keys(self.get(key, dict), self._where, self._name(key))

    def get(self, key: str, kind: type[T], optional: bool = False) -> T:
        value = self._data.get(key)
        # bool is an int in Python, and none in JSON.
        if (not isinstance(value, kind) or isinstance(value, bool)) and not (optional and value is None):
            wanted = {int: "a whole number", str: "a string", dict: "an object"}.get(kind, kind.__name__)
            raise self.error(key, f"must be {wanted}, this is {_kind(value)}" if key in self._data else "is missing")
        return value  # type: ignore[return-value]

    def count(self, key: str) -> int:
        value = self.get(key, int)
        if value < 0:
            raise self.error(key, f"must not be negative, this is {value}")
        return value

    def magnitude(self, key: str) -> float:
        value = self._data.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        try:
            if number and 0 <= (size := float(value)) < math.inf:  # type: ignore[arg-type]
                return size
        except OverflowError:  # a whole number with hundreds of digits
            pass
        raise self.error(key, "must be a finite number, not negative" if key in self._data else "is missing")

    def error(self, key: str, text: str) -> CacheError:
        return CacheError(f"{self._where}: {self._name(key)} {text}; delete the file, or calibrate again")

    def _name(self, key: str) -> str:
        return f"{self._path}[{key!r}]" if self._path else key


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
