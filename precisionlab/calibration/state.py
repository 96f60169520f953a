"""Histograms on disk: what a killed calibration goes on from, and what shards are merged from."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precisionlab.calibration.histogram import BINS, Histogram
from precisionlab.errors import DataError

STATE_FILE = "histograms.npz"


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
        np.savez_compressed(
            stream,
            allow_pickle=False,
            meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
            bins=np.array([h.bins for h in found], np.int64).reshape(len(names), BINS),
            counts=np.array([(h.exponent, h.zeros, h.nonfinite) for h in found], np.int64).reshape(len(names), 3),
            amax=np.array([h.amax for h in found], np.float64),
        )
        return stream.getvalue()


def read_state(path: Path) -> CalibrationState:
    """Read what `to_bytes` gave. Raises DataError where the file is something else, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(archive["meta"].tobytes())
            bins, counts, amax = archive["bins"], archive["counts"], archive["amax"]
        names = meta["tensors"]
        if bins.shape != (len(names), BINS) or counts.shape != (len(names), 3) or amax.shape != (len(names),):
            raise ValueError("the arrays do not fit together")
        if bins.dtype != np.int64 or (bins < 0).any():
            raise ValueError("the bins are no counts")
        histograms = {
            str(name): Histogram(bins[i], int(counts[i, 0]), float(amax[i]), int(counts[i, 1]), int(counts[i, 2]))
            for i, name in enumerate(names)
        }
        return CalibrationState(dict(meta["context"]), tuple(map(str, meta["samples"])), histograms)
    except Exception as error:  # zipfile, zlib, tokenize, …: numpy lets through a dozen kinds
        raise DataError(f"{path}: not the histograms of a calibration, or damaged: {error}") from None
