"""Which tensors of a network to look at, and whether looking changed the engine.

A tensor that is marked as an output is no longer fused away, so that other kernels are chosen, and the memory of all
that is marked is held to the end. So: only tensors that can be marked at all; those first that leave a layer of the
plan, where TensorRT's fusions end anyway; in groups, one engine each, that are runs of neighbours; and each engine's
final outputs are held against those of the engine that nobody looked at.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.tensorrt.jobs import Arrays
from precisionlab.backends.tensorrt.matching import FLOATS
from precisionlab.compare.errors import ErrorSums
from precisionlab.model import Model

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.network import NetworkLayer

_BYTES = 4  # as much as an element takes at most: network tensors are float32, or less
# Nothing to see there; and a DequantizeLinear that is looked at is no longer folded into what takes it, so that
# the INT8 kernel goes.
_LEFT_ALONE = frozenset({"CONSTANT", "SHAPE", "QUANTIZE", "DEQUANTIZE", "DYNAMIC_QUANTIZE"})
# What is computed within a loop, a conditional or a fused attention is no tensor of the network's own.
_ENTRIES = frozenset({"RECURRENCE", "ITERATOR", "TRIP_LIMIT", "CONDITION", "CONDITIONAL_INPUT", "ATTENTION_INPUT"})
_EXITS = frozenset({"LOOP_OUTPUT", "CONDITIONAL_OUTPUT", "ATTENTION_OUTPUT"})


def eligible(layers: Sequence[NetworkLayer]) -> tuple[str, ...]:
    """The tensors of a network that can be marked as outputs, in the network's order.

    Float tensors on the device that depend on the network's inputs, are no outputs already, and stand outside of
    loops, conditionals and quantisation.
    """
    given = {tensor.name for layer in layers for tensor in layer.outputs}
    inputs = {tensor.name for layer in layers for tensor in layer.inputs} - given
    entered = {tensor.name for layer in layers if layer.kind in _ENTRIES for tensor in layer.outputs}
    seen = _reached(layers, inputs, frozenset()) - _reached(layers, entered, _EXITS)
    names = (
        tensor.name
        for layer in layers
        if layer.kind not in _LEFT_ALONE
        for tensor in layer.outputs
        if tensor.name in seen and tensor.dtype in FLOATS and tensor.is_execution and not tensor.is_network_output
    )
    return tuple(dict.fromkeys(names))


def groups(model: Model, names: Collection[str], budget: int) -> tuple[tuple[str, ...], ...]:
    """The eligible tensors among `names` that the model has, cut into groups to be marked together.

    The parser's own tensors are left out: the model has nothing to compare them with, and the engine calls them
    otherwise than the network did.

    Those that leave a layer of the plan come first, then those inside of layers, which no layer-by-layer comparison
    needs. Each group is a run of neighbours in topological order whose float32 values take no more than `budget` bytes
    together, at the shapes of `model`. Tensors of unknown size count as the largest that is known, or as the whole
    budget where none is; one that is larger than the budget is a group of its own.
    """
    wanted = set(names)
    borders = [name for layer in model.layers for name in layer.outputs if name in wanted]
    left = wanted.difference(borders)
    inner = [str(value.name) for node in model.onnx.graph for value in node.outputs if value.name in left]
    sizes = {name: info.elements for name in (*borders, *inner) if (info := model.tensors[name]).elements is not None}
    unknown = _BYTES * max(sizes.values()) if sizes else budget
    needs = {name: _BYTES * sizes[name] if name in sizes else unknown for name in (*borders, *inner)}
    return (*_runs(borders, needs, budget), *_runs(inner, needs, budget))


@dataclass(frozen=True)
class ObservationCheck:
    """Whether an engine that is looked at still gives what it gave before.

    `changed` are the final outputs that are not the same bit for bit. `sqnr` is the signal-to-noise ratio of the
    observed engine's outputs against the unobserved one's, in dB, of the output `worst` where it is lowest: +inf
    where all are the same (and where zeros have changed their sign, no more), NaN where an output has got a NaN or
    another shape. `nonfinite` is how many values are NaN or Inf in one and not, or another, in the other.
    """

    changed: tuple[str, ...]
    worst: str | None
    sqnr: float
    nonfinite: int

    @property
    def warning(self) -> str | None:
        """What to tell the user; None where looking changed nothing."""
        if not self.changed:
            return None
        return (
            f"looking at its layers changed the engine: its output {self.worst!r} is not that of the engine nobody "
            f"looked at ({self._size()}), so that the errors of the layers may be those of other kernels"
        )

    def _size(self) -> str:
        if math.isnan(self.sqnr):
            size = "a NaN, or another shape"
        elif self.sqnr == math.inf:
            size = "" if self.nonfinite else "signs of zeros, or another type"
        else:
            size = f"{self.sqnr:.1f} dB" if math.isfinite(self.sqnr) else "−∞ dB"
        strange = f"{self.nonfinite} values that are NaN or Inf in only one of them" if self.nonfinite else ""
        return ", ".join(filter(None, (size, strange)))


def differs(unobserved: Arrays, observed: Arrays) -> ObservationCheck:
    """Hold the final outputs of an observed engine against those of the unobserved one, for the same inputs.

    Both have arrays of any numeric dtype by output name; `observed` may have more, which are not looked at.
    """
    missing = [name for name in unobserved if name not in observed]
    if missing:
        raise ValueError(f"the observed engine gave no output {missing[0]!r}")
    pairs = {name: (np.asarray(value), np.asarray(observed[name])) for name, value in unobserved.items()}
    changed = {name: _sums(*pair) for name, pair in pairs.items() if not _same(*pair)}
    if not changed:
        return ObservationCheck((), None, math.inf, 0)
    worst = min(changed, key=lambda name: -math.inf if math.isnan(changed[name].sqnr) else changed[name].sqnr)
    nonfinite = sum(sums.nonfinite for sums in changed.values())
    return ObservationCheck(tuple(changed), worst, changed[worst].sqnr, nonfinite)


def _reached(layers: Sequence[NetworkLayer], start: Iterable[str], stops: frozenset[str]) -> set[str]:
    """`start` and every tensor that is computed from these, but for what layers of the kinds `stops` give."""
    takers: dict[str, list[NetworkLayer]] = {}
    for layer in layers:  # in no order: a loop's parts may stand anywhere
        for tensor in layer.inputs:
            takers.setdefault(tensor.name, []).append(layer)
    found = set(start)
    left = list(found)
    while left:
        for layer in takers.get(left.pop(), ()):
            if layer.kind not in stops:
                new = {tensor.name for tensor in layer.outputs} - found
                found |= new
                left += new
    return found


def _runs(names: Sequence[str], needs: Mapping[str, int], budget: int) -> Iterator[tuple[str, ...]]:
    run: list[str] = []
    used = 0
    for name in names:
        if run and used + needs[name] > budget:
            yield tuple(run)
            run, used = [], 0
        run.append(name)
        used += needs[name]
    if run:
        yield tuple(run)


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _sums(a: NDArray[Any], b: NDArray[Any]) -> ErrorSums:
    """The error of b against a, in float64."""
    if a.shape != b.shape:
        return ErrorSums(elements=1, err2=math.nan)
    before, after = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(before)
    error = after[finite] - before[finite]
    return ErrorSums(
        elements=int(np.count_nonzero(finite)),
        ref2=float(np.sum(before[finite] ** 2)),
        err2=float(np.sum(error**2)),
        new_nonfinite=int(np.count_nonzero(~np.isfinite(after[finite]))),
        ref_mismatch=int(np.count_nonzero(before[~finite] != after[~finite]) - _both_nan(before, after)),
    )


def _both_nan(a: NDArray[np.float64], b: NDArray[np.float64]) -> int:
    return int(np.count_nonzero(np.isnan(a) & np.isnan(b)))
