"""Samples that run together, as one batch of a model whose batch is dynamic.

Of short inputs a pass is mostly what it takes to start kernels, and eight samples in one batch take little longer than
one. Kernels may add up in another order then, so that last bits differ from those of samples by themselves: it is done
where it is asked for. What stands for each sample is its share along the first axis; that this is so of every tensor
is looked at on samples of the user's own, beside runs of each by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.device import Device
from precisionlab.data import Sample
from precisionlab.errors import ModelError, OptionError
from precisionlab.model import Model
from precisionlab.model.flow import is_control
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow, Key, Segment, cut, segments

_CLOSE = 1e-3
"""How far a sample's values in a batch may be from those by itself, of the tensor's largest: 60 dB. Last bits that grow
on their way stay far below that, and what a sample takes over from its neighbours (a batch's own mean, a scale that is
found for all of it) is above."""


_MIXING = frozenset({"Compress", "DynamicQuantizeLinear", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators that look at the values of all samples of a batch together, as graphs inside of others do: two samples may
not show it."""


@dataclass(frozen=True)
class Batching:
    """How many samples run together, and which tensors, the model's inputs among them, have a share for each."""

    size: int = 1
    shared: frozenset[str] = frozenset()

    def groups(self, samples: Iterable[Sample]) -> Iterator[list[Sample]]:
        """The samples in their order, as many together as may be.

        Those of one group stand in the same window of `size` samples, have the same shapes and types, and the same
        values of the inputs that have no batch. So where a group ends hangs on the samples' places alone.
        """
        rest = iter(samples)
        while window := list(islice(rest, self.size)):
            group: list[Sample] = []
            for sample in window:
                if group and not self._is_alike(group[0], sample):
                    yield group
                    group = []
                group.append(sample)
            yield group

    def _is_alike(self, a: Sample, b: Sample) -> bool:
        return a.inputs.keys() == b.inputs.keys() and all(
            a.inputs[name].shape == b.inputs[name].shape
            and a.inputs[name].dtype == b.inputs[name].dtype
            and (name not in self.shared or a.inputs[name].tobytes() == b.inputs[name].tobytes())
            for name in a.inputs
        )

    def inputs_of(self, group: Sequence[Sample]) -> dict[str, NDArray[Any]]:
        """What the model is fed for a group."""
        if len(group) == 1:
            return dict(group[0].inputs)
        first = group[0].inputs
        return {
            name: array if name in self.shared else np.concatenate([sample.inputs[name] for sample in group])
            for name, array in first.items()
        }

    def share_of(self, state: Mapping[Key, Any], index: int, count: int) -> Mapping[Key, Any]:
        """What is one sample's of the values of `count` together, without a copy."""
        if count == 1:
            return state
        return {key: value if key[1] in self.shared else _share(value, index, count) for key, value in state.items()}


ONE = Batching()
"""Every sample by itself."""


def batching_of(model: Model, size: int, samples: Iterable[Sample], device: Device, budget: int) -> Batching:
    """What `size` samples together need, once it is seen on two of them that each has its share of every tensor.

    Raises OptionError where the batch of an input is fixed, samples have no neighbours of their shapes, or what a
    sample gives is another thing beside others.
    """
    if size == 1:
        return ONE
    shared = _without_batch(model, size)
    pair = _pair(Batching(size, shared), samples)
    if pair is None:
        raise OptionError(
            f"--batch {size}: no two samples beside each other have the same shapes, so that none can run together; "
            "leave --batch, or give samples of one shape, or sorted by it"
        )
    return Batching(size, shared | _shared_tensors(model, shared, size, pair, device, budget))


def _without_batch(model: Model, size: int) -> frozenset[str]:
    """The inputs whose first dimension is fixed, or that have none. Raises OptionError where none has a batch."""
    mixing = (node for node in model.onnx.graph if is_control(node) or node.op_type in _MIXING)
    if (node := next(mixing, None)) is not None:
        raise OptionError(
            f"--batch {size}: node {node.name} ({node.op_type}) does with all samples of a batch what their values "
            "together say; leave --batch"
        )
    dims = {str(v.name): list(v.shape) for v in model.onnx.graph.inputs if v.shape is not None}
    fixed = frozenset(name for name, own in dims.items() if not own or isinstance(own[0], int))
    if len(fixed) == len(model.onnx.graph.inputs):
        sizes = ", ".join(f"{name} at {dims[name][0]}" for name in sorted(fixed) if dims[name])
        raise OptionError(
            f"--batch {size}: {model.path} has no dynamic batch (the first dimension is fixed: {sizes or 'none'}); "
            "leave --batch, or export the model with one"
        )
    return fixed


def _pair(batching: Batching, samples: Iterable[Sample]) -> list[Sample] | None:
    return next((group[:2] for group in batching.groups(samples) if len(group) > 1), None)


def _shared_tensors(
    model: Model, shared: frozenset[str], size: int, pair: list[Sample], device: Device, budget: int
) -> frozenset[str]:
    """The tensors that are the same for both samples and for them together. Raises OptionError as `batching_of`."""
    plan, flows = PrecisionPlan(model.sha256, Precision.FP32), (Flow.REFERENCE,)
    parts = cut(model, 1, budget)
    fed = [dict(sample.inputs) for sample in pair] + [Batching(size, shared).inputs_of(pair)]
    states: list[dict[Key, Any]] = [{(Flow.REFERENCE, name): a for name, a in inputs.items()} for inputs in fed]
    found: set[str] = set()
    stop = 0
    for part, segment in zip(parts, segments(model, plan, None, parts, flows, flows), strict=True):
        stop += len(part)
        session = device.session(segment.graph)
        try:
            for state in states:
                values = session.run({feed: state[key] for feed, key in segment.feeds.items()})
                state.update((segment.fetches[name], value) for name, value in values.items())
        except ModelError as error:
            raise OptionError(f"--batch {size}: two samples together do not run ({error}); leave --batch") from None
        finally:
            session.close()
        found.update(_same_for_all(model, segment, states, device, size))
        for state in states:
            for key in [key for key in state if not model.is_needed(key[1], stop)]:
                del state[key]
    return frozenset(found)


def _same_for_all(
    model: Model, segment: Segment, states: Sequence[Mapping[Key, Any]], device: Device, size: int
) -> Iterator[str]:
    """What a segment shows that has no share for each sample. `states` are two samples' values, and those of both."""
    final = {info.name for info in model.outputs}
    for key in segment.fetches.values():
        if key[1] not in final and key[1] not in segment.observed:
            continue
        first, second, both = (device.host(state[key]) for state in states)
        if _are_close(both, first) and _are_close(both, second):
            yield key[1]
            continue
        halves = np.array_split(both, 2) if both.ndim else [both, both]
        if not (_are_close(halves[0], first) and _are_close(halves[1], second)):
            shapes = " and ".join(str(list(array.shape)) for array in (first, both))
            raise OptionError(
                f"--batch {size}: {key[1]} of two samples together is not what they give by themselves (shapes {shapes}"
                "): a sample's place is not the first axis, or samples of a batch are mixed; leave --batch"
            )


def _are_close(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether they have one shape, and one's values are the other's but for last bits."""
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.count_nonzero(a != b) <= _CLOSE * a.size)
    finite = np.isfinite(b)
    most = np.abs(b[finite]).max(initial=0.0)
    return bool(np.array_equal(finite, np.isfinite(a)) and np.all(np.abs(a[finite] - b[finite]) <= _CLOSE * most))


def _share(value: Any, index: int, count: int) -> Any:
    """One of `count` equal parts along the first axis; the value itself where it has none."""
    shape = getattr(value, "shape", ())
    if not shape or shape[0] % count:
        return value
    each = shape[0] // count
    return value[index * each : (index + 1) * each]
