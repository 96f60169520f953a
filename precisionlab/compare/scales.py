"""Groups of channels of very different scale, told by the reference's values: parts of an output that no Concat joins.

A convolution may give distances in pixels beside confidences of 0 to 1; whatever makes them, a person would write each
as a slice. So a group is a range of channels, or the same ones of every few (x, y and confidence of each keypoint).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.judging import Judged, Judging, Part, part_name
from precisionlab.model import Model
from precisionlab.model.kinds import is_share, runs_of

LARGEST = 256
"""Channels of an output that is looked at so; more are features, and no list of kinds."""

_APART = 16.0
"""How many times louder one group has to be than the next: it hides 24 dB of it then."""

_FEWEST = 1 / 16
"""The share of channels that a quiet group needs at least: a class that never occurs is no kind of its own."""

_PERIOD = 16
_RUNS = 2
"""Into how many ranges a group may fall; scattered channels are weak ones of one kind."""


Axes = Mapping[str, int]
"""The outputs that are looked at so, each with the axis of its channels."""


def channel_axes(model: Model, judging: Judging) -> dict[str, int]:
    """The outputs that may hold groups of channels: of one part so far, with a known number of channels and places.

    A vector of logits has no places beside its channels, and is one part; shares of 0 to 1 are of one scale. Of
    (batch, channels, places) and its transpose the shorter axis is the channels', of a map the first or, where that is
    as long as the second, the last, of more axes the last; of rows that are picked by value the one behind.
    """
    rows = {name: axis for group in judging.rows for name, axis in group.axes}
    found = {}
    for value in model.onnx.graph.outputs:
        name = str(value.name)
        judged = next((judged for judged in judging.tensors if judged.name == name), None)
        shape = value.shape
        if judged is None or any(part.counts for part in judged.parts) or shape is None or is_share(model, name):
            continue
        dims = [dim if isinstance(dim, int) else None for dim in shape]
        axis = rows[name] + 1 if name in rows else _channel_axis(dims)
        if axis is not None and axis < len(dims) and 2 <= (dims[axis] or 0) <= LARGEST:
            found[name] = axis
    return found


def _channel_axis(dims: list[int | None]) -> int | None:
    if len(dims) < 3:
        return None
    if len(dims) > 4:
        return len(dims) - 1
    if len(dims) == 4:
        return 3 if dims[1] == dims[2] else 1
    first, second = dims[1], dims[2]
    return 1 if second is None or (first is not None and first < second) else 2


def powers_of(axes: Axes, references: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, list[float]]:
    """The mean square of each channel of these outputs over all samples of the reference; NaN where there is none."""
    sums = {name: np.zeros((2, 0)) for name in axes}
    for reference in references:
        for name, axis in axes.items():
            channels = np.moveaxis(reference[name].astype(np.float64), axis, 0)
            channels = channels.reshape(len(channels), -1)
            if not sums[name].size:
                sums[name] = np.zeros((2, len(channels)))
            sums[name] += [np.sum(channels**2, 1), np.full(len(channels), channels.shape[1])]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: (found[0] / found[1]).tolist() for name, found in sums.items()}


def with_groups(judging: Judging, axes: Axes, powers: Mapping[str, list[float]]) -> Judging:
    """The judging with each of these outputs in groups of channels, where its scales differ by that much."""
    return replace(
        judging,
        tensors=tuple(
            _grouped(judged, axes[judged.name], np.array(powers[judged.name])) if judged.name in axes else judged
            for judged in judging.tensors
        ),
    )


def _grouped(judged: Judged, axis: int, powers: NDArray[np.float64]) -> Judged:
    parts = [Part(part_name(judged.name, axis, runs), axis, powers.size, runs) for runs in groups_by_scale(powers)]
    names = {part.name for part in parts}
    return replace(judged, parts=(*parts, *(part for part in judged.parts if part.name not in names)))


def groups_by_scale(powers: NDArray[np.float64]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The groups of channels as runs [start, stop) of indices, the loudest first; none where all are of one scale.

    `powers`, float64 (channels,), are the mean squares of the reference. A channel of zeros or without a finite power
    says nothing of scale, and belongs to the group in front of it.
    """
    labels = _labels(powers)
    count = int(labels.max(initial=0)) + 1
    runs = tuple(runs_of(labels == label) for label in range(count))
    if count < 2 or not (_is_periodic(labels) or all(len(own) <= _RUNS for own in runs)):
        return ()
    return runs


def _labels(powers: NDArray[np.float64]) -> NDArray[np.int64]:
    """The group of each channel, 0 for the loudest."""
    labels = np.zeros(powers.size, np.int64)
    known = np.flatnonzero(np.isfinite(powers) & (powers > 0))
    if known.size < 2:
        return labels
    loudness = np.log2(powers[known]) / 2
    order = np.argsort(-loudness, kind="stable")
    steps = -np.diff(loudness[order]) >= math.log2(_APART)
    rank = np.zeros(known.size, np.int64)
    rank[order] = np.concatenate([[0], np.cumsum(steps)])
    while few := [label for label in range(1, int(rank.max()) + 1) if _is_few(rank, label, powers.size)]:
        rank[rank >= few[-1]] -= 1  # to the next louder one
    labels[known] = rank
    for channel in np.setdiff1d(np.arange(powers.size), known):
        labels[channel] = labels[channel - 1] if channel else labels[known[0]]
    return labels


def _is_few(rank: NDArray[np.int64], label: int, channels: int) -> bool:
    return bool(np.count_nonzero(rank == label) < _FEWEST * channels)


def _is_periodic(labels: NDArray[np.int64]) -> bool:
    return any(
        labels.size % period == 0 and (labels.reshape(-1, period) == labels[:period]).all()
        for period in range(2, min(_PERIOD, labels.size // 2) + 1)
    )
