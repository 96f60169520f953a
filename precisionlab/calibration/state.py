"""Histograms on disk: what a killed calibration goes on from, and what shards are merged from."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precisionlab.calibration.histogram import BINS, Histogram
from precisionlab.errors import DataError
from precisionlab.system.npyfile import DAMAGED, OddFileError, read_member, why_damaged
from precisionlab.system.plainfiles import open_to_read
from precisionlab.system.reading import parse_json

STATE_FILE = "histograms.npz"

_MOST_META = 1 << 26  # bytes of names of samples and tensors
_MOST_TENSORS = 1 << 16  # 2 GiB of bins
_MOST_SHARDS = 1 << 16
_MOST_VALUES = 2.0**60  # counted in one histogram; sums of a few stay whole in int64
_EXPONENTS = range(-100, 129)


@dataclass(frozen=True)
class CalibrationState:
    """Histograms, the samples that they count by name, and the context that both belong to."""

    context: Mapping[str, Any]
    samples: tuple[str, ...]
    histograms: Mapping[str, Histogram]

    def to_bytes(self) -> bytes:
        """The content of the `.npz` file; no pickle in it."""
        names = list(self.histograms)
        found = self.histograms.values()
        meta = {"context": dict(self.context), "samples": list(self.samples), "tensors": names}
        stream = io.BytesIO()
        np.savez_compressed(  # numbers alone, so no pickle; before 2.1 NumPy takes `allow_pickle` for one more array
            stream,
            meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
            bins=np.array([h.bins for h in found], np.int64).reshape(len(names), BINS),
            counts=np.array([(h.exponent, h.zeros, h.nonfinite) for h in found], np.int64).reshape(len(names), 3),
            amax=np.array([h.amax for h in found], np.float64),
        )
        return stream.getvalue()


def read_state(path: Path) -> CalibrationState:
    """Read what `to_bytes` gave. Raises DataError where the file is something else, or damaged."""
    try:
        with open_to_read(path.parent, path.name) as stream, zipfile.ZipFile(stream) as archive:
            meta = _meta(read_member(archive, "meta", _MOST_META).tobytes())
            if not isinstance(meta, dict) or not {"context", "samples", "tensors"} <= meta.keys():
                raise OddFileError("it does not say what it counts")
            context, samples, names = meta["context"], meta["samples"], meta["tensors"]
            _check_meta(context, samples, names)
            # What it may take follows from the names, whatever it says that it needs.
            bins = read_member(archive, "bins", len(names) * BINS * 8)
            counts, amax = (read_member(archive, name, len(names) * 3 * 8) for name in ("counts", "amax"))
        if bins.shape != (len(names), BINS) or counts.shape != (len(names), 3) or amax.shape != (len(names),):
            raise OddFileError("the arrays do not fit together")
        if bins.dtype != np.int64 or counts.dtype != np.int64 or amax.dtype != np.float64:
            raise OddFileError("the arrays are of other types")
        found = (
            Histogram(bins[i], int(counts[i, 0]), float(amax[i]), int(counts[i, 1]), int(counts[i, 2]))
            for i in range(len(names))
        )
        return CalibrationState(context, tuple(samples), {n: _checked(h) for n, h in zip(names, found, strict=True)})
    except DAMAGED as error:
        told = f"{path}: not the histograms of a calibration, or damaged; calibrate again; {why_damaged(error)}"
        raise DataError(told) from None


def _meta(content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise OddFileError(f"what it says of itself is not JSON: {error}") from None


def _check_meta(context: Any, samples: Any, names: Any) -> None:
    if not isinstance(context, dict):
        raise OddFileError("its context is no object")
    for found in (samples, names):
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise OddFileError("its samples and tensors are no lists of names")
        if len(set(found)) < len(found):
            raise OddFileError("a name stands in it twice")
    if len(names) > _MOST_TENSORS:
        raise OddFileError(f"it has {len(names):,} tensors")
    shard = context.get("shard")
    if shard is not None and not (
        isinstance(shard, list)
        and len(shard) == 2
        and all(type(number) is int for number in shard)
        and 1 <= shard[0] <= shard[1] <= _MOST_SHARDS
    ):
        raise OddFileError("its shard is no pair I, N")


def _checked(found: Histogram) -> Histogram:
    """The same histogram. Raises OddFileError where none that was counted can be like it."""
    if (found.bins < 0).any() or min(found.zeros, found.nonfinite) < 0:
        raise OddFileError("the bins are no counts")
    total = float(found.bins.sum(dtype=np.float64))
    if max(total, found.zeros, found.nonfinite) > _MOST_VALUES or found.zeros > total:
        raise OddFileError("the counts make no sense")
    if found.exponent not in _EXPONENTS or not 0 <= found.amax < math.ldexp(1.0, found.exponent):
        raise OddFileError("the largest values do not fit the bins")
    return found
