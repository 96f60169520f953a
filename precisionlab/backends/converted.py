"""Whether a model at another opset gives what the original gives: both run in float32, side by side.

ONNX's converter changes what some operators mean and says nothing (see `rewrite/typed/restored.py` for those known).
Kernels of two opsets may differ in the last bits; those of another meaning differ in the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from precisionlab.backends.beside import OtherFailsError, side_by_side
from precisionlab.backends.session import Session, as_float32
from precisionlab.data import Dataset, Sample
from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.model.opset import opset_of

_LEAST = 80.0
"""dB of SQNR that an output must agree to: far from what other kernels' last bits do (AveragePool-11 and -19: 140), and
no precision of ours is held to so much."""
_FLIPPED = 1e-3
"""The share of an output's integers or truth values that last bits may flip: the index of the largest, near a tie."""
_SAMPLES = 16


class SourceRun:
    """The model on at most 16 samples, evenly spaced, beside which others are run; see `Beside`."""

    def __init__(self, model: Model, dataset: Dataset, threads: int) -> None:
        step = max(1, -(-len(dataset) // _SAMPLES))
        self._samples = dataset.only(frozenset(dataset.names[::step]))
        self._model = model
        self._threads = threads
        self._faults: dict[int, str | None] = {}

    def fault(self, converted: ir.Model) -> str | None:
        """In which way the model at another opset gives something else; found out once for each opset."""
        opset = opset_of(converted)
        if opset not in self._faults:
            self._faults[opset] = _fault(self._model, converted, self._samples, self._threads)
        return self._faults[opset]

    def agreement(self, changed: ir.Model) -> float:
        """SQNR in dB of the worst output over all samples, −inf where shapes differ. Raises ModelError."""
        powers: dict[str, np.ndarray] = {}
        for both in side_by_side(self._model.onnx, changed, self._samples, self._threads):
            for name, wanted in both.wanted.items():
                powers[name] = powers.get(name, np.zeros(2)) + _powers(wanted, both.given[name])
        return min((_decibels(*sums) for sums in powers.values()), default=math.inf)


def _powers(wanted: Any, given: Any) -> tuple[float, float]:
    """The sums of squares of an output and of its error, where both are finite; lists and what is left out: none."""
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind not in "fVbiu":
        return 0.0, 0.0
    if not isinstance(given, np.ndarray) or wanted.shape != given.shape:
        return 0.0, math.inf
    true, low = (as_float32(array).astype(np.float64) for array in (wanted, given))
    finite = np.isfinite(true)
    if not np.array_equal(finite, np.isfinite(low)):
        return 0.0, math.inf
    true, low = (np.where(finite, array, 0.0) for array in (true, low))
    return float(np.square(true).sum()), float(np.square(low - true).sum())


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def _fault(model: Model, converted: ir.Model, samples: Dataset, threads: int) -> str | None:
    """In which way the converted model gives something else, with what to do; None where it does not."""
    advice = f"export the model anew at opset {opset_of(converted)}"
    try:
        for both in side_by_side(model.onnx, converted, samples, threads):
            for name, wanted in both.wanted.items():
                if (told := difference(wanted, both.given[name])) is not None:
                    where = _first(model, converted, both.sample, threads)
                    return f"in float32, output {name} of sample {both.sample.name} {told}{where}; {advice}"
    except OtherFailsError as error:
        what = "it cannot be run, to see that it gives the same"
        if error.sample is not None:
            what = f"on sample {error.sample.name} it fails"
        return f"{what}; {advice}; {error}"
    return None


def difference(wanted: Any, given: Any) -> str | None:
    """How far one output is off beside the original's, as the end of a sentence; None where it is the same.

    Floats are the same to 80 dB of SQNR where both are finite, with NaN and Inf in the same places; of others one in a
    thousand may differ.
    """
    if isinstance(wanted, list) and isinstance(given, list):
        if len(wanted) != len(given):
            return f"has {len(given)} tensors, not {len(wanted)}"
        return next((told for pair in zip(wanted, given, strict=True) if (told := difference(*pair))), None)
    if wanted is None or given is None:
        return None if wanted is given else "is there in one of them alone"
    true, low = np.asarray(wanted), np.asarray(given)
    if true.shape != low.shape or true.dtype.kind != low.dtype.kind:
        return f"is {low.dtype.name}{list(low.shape)}, not {true.dtype.name}{list(true.shape)}"
    if true.dtype.kind not in "fV":
        differing = int(np.count_nonzero(true != low))
        return f"differs in {differing} of {true.size} values" if differing > _FLIPPED * true.size else None
    signal, noise = _powers(true, low)
    if math.isinf(noise):
        return "has NaN or Inf in other places"
    decibels = _decibels(signal, noise)
    if decibels >= _LEAST:
        return None
    return f"agrees with the original's to {decibels:.1f} dB alone" if signal else "is not 0"


def _first(model: Model, converted: ir.Model, sample: Sample, threads: int) -> str:
    """The first node whose float32 output differs on the sample, as the end of a sentence; nothing if none is found."""
    there = {str(v.name) for node in converted.graph for v in node.outputs}
    names = [
        str(v.name)
        for node in model.onnx.graph
        for v in node.outputs
        if v.name in there and (info := model.tensors.get(str(v.name))) is not None and info.dtype == ir.DataType.FLOAT
    ]
    try:
        wanted, given = (_shown(graph, names, sample, threads) for graph in (model.onnx, converted))
    except ModelError:
        return ""
    for node in model.onnx.graph:
        for value in node.outputs:
            name = str(value.name)
            if name in wanted and difference(wanted[name], given[name]) is not None:
                return f", first behind node {node.name} ({node.op_type})"
    return ""


def _shown(graph: ir.Model, names: list[str], sample: Sample, threads: int) -> Mapping[str, Any]:
    """The values of these tensors of the main graph."""
    shown = graph.clone()
    values = {str(v.name): v for node in shown.graph for v in node.outputs}
    shown.graph.outputs.clear()
    for name in names:
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        shown.graph.outputs.append(values[name])
    session = Session(shown, threads)
    try:
        return session.run(sample.inputs)
    finally:
        session.close()
