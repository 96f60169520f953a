"""Compares what is judged of one sample: errors, what single layers do to them, rows matched with their twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.choices import flips_of, without
from precisionlab.compare.errors import Agreement, ErrorSums, agreement, error_sums
from precisionlab.compare.gather import output_errors
from precisionlab.compare.judging import Judged, Judging, Part, RowGroup
from precisionlab.compare.output import OutputErrors, PartErrors
from precisionlab.compare.passing import passed_rows
from precisionlab.compare.rows import Matched, Matching, RowCounts, Scores, fold_rows, match_rows
from precisionlab.compare.sensitivity import PartSensitivity, Sensitivity
from precisionlab.compare.suppression import Chosen as Rows
from precisionlab.compare.suppression import Detections, chosen_rows
from precisionlab.compare.wide import is_float
from precisionlab.model.choices import Chosen

Arrays = Mapping[str, NDArray[Any]]

_ALIKE = 0.2
"""Of rows whose values vary by less than this share of their power, the power itself tells how far they may be off."""


def judged_errors(judging: Judging, reference: Arrays, variant: Arrays) -> dict[str, OutputErrors]:
    """The errors of everything judged of one sample; what either side lacks is left out."""
    pairs = _pairs(judging, reference, variant)
    return {tensor.name: _errors(tensor, pairs[tensor.name]) for tensor in judging.tensors if tensor.name in pairs}


def errors_within(judging: Judging, measured: Mapping[str, ErrorSums]) -> dict[str, OutputErrors]:
    """What is judged within the model, of tensors that were measured by themselves: as a whole, and none with rows."""
    rows = {name for group in judging.rows for name, _ in group.axes}
    return {
        tensor.name: OutputErrors(measured[tensor.name], Agreement(), role=tensor.role, counts=tensor.counts)
        for tensor in judging.tensors
        if tensor.role and tensor.name in measured and tensor.name not in rows
    }


def judged_differences(judging: Judging, reference: Arrays, output: Arrays) -> dict[str, NDArray[Any]]:
    """Output − reference of each judged float tensor, in its shape and type; NaN throughout where shapes differ.

    Rows that are matched stand in the reference's order, those of several batches behind each other.
    """
    pairs = _pairs(judging, reference, output)
    return {name: _difference(pair) for name, pair in pairs.items() if _has_errors(pair.reference)}


def judged_sensitivities(judging: Judging, reference: Arrays, output: Arrays, error: Arrays) -> dict[str, Sensitivity]:
    """What an output tells of the layer that was toggled; `error` are the whole variant's `judged_differences`."""
    pairs = _pairs(judging, reference, output)
    sensitivities = {}
    for tensor in judging.tensors:
        if tensor.name not in pairs or not _has_errors(pairs[tensor.name].reference):
            continue
        pair, whole = pairs[tensor.name], error[tensor.name]
        (errors, measured), difference = _measured(tensor, pair), _difference(pair)
        assert errors is not None
        parts = {
            part.name: PartSensitivity(measured[part.name], _product(part.of(difference), part.of(whole)))
            for part in tensor.parts
            if part.name in measured
        }
        sensitivities[tensor.name] = Sensitivity(errors, _product(difference, whole), parts)
    return sensitivities


@dataclass(frozen=True)
class _Pair:
    """One tensor's values to be compared; of one with rows, with these matched, and what became of them.

    `strict` is the same with no near-tie set aside, where some are.
    """

    reference: NDArray[Any]
    output: NDArray[Any]
    matched: Matched | None = None
    axis: int = 0
    counts: RowCounts | None = None
    strict: _Pair | None = None


def _pairs(judging: Judging, reference: Arrays, output: Arrays) -> dict[str, _Pair]:
    """All that is judged and that both sides have."""
    here = {tensor.name: tensor for tensor in judging.tensors if tensor.name in reference and tensor.name in output}
    pairs = {name: _Pair(reference[name], output[name]) for name in here}
    moving = {name for group in judging.rows for name, _ in group.axes}
    for group in judging.rows:
        axes = {name: axis for name, axis in group.axes if name in here}
        if not axes:
            continue
        matching = match_rows(
            {name: reference[name] for name in axes},
            {name: output[name] for name in axes},
            axes,
            _scales(axes, here, reference),
            _scores(group, axes, reference, output),
            _choose(group, moving, reference, output),
        )
        if matching is not None:
            pairs.update((name, _row_pair(matching, name, axis)) for name, axis in axes.items())
    for choice in judging.chosen:
        if choice.tensor in here and pairs[choice.tensor].counts is None:
            pairs[choice.tensor] = _chosen_pair(choice, pairs[choice.tensor], reference, output)
    return pairs


def _chosen_pair(chosen: Chosen, pair: _Pair, reference: Arrays, output: Arrays) -> _Pair:
    """The pair without places where another entry was chosen by noise."""
    flips = flips_of(chosen, reference, output)
    if flips is None:
        return pair
    near, differ = np.count_nonzero(flips.near), np.count_nonzero(flips.flipped & ~flips.near)
    counts = RowCounts(samples=1, choices=len(flips.near), near=int(near), differ=int(differ))
    strict = replace(pair, counts=replace(counts, near=0, differ=int(near + differ)))
    true, low = (without(array, chosen.axes, flips.near) for array in (pair.reference, pair.output))
    if true is None or low is None:
        return pair
    return _Pair(true, low, counts=counts, strict=strict) if near else strict


def _row_pair(matching: Matching, name: str, axis: int) -> _Pair:
    one = matching.tensors[name]
    strict = None if matching.strict is None else _row_pair(matching.strict, name, axis)
    return _Pair(one.reference, one.output, one, axis, matching.counts, strict)


def _choose(
    group: RowGroup, moving: set[str], reference: Arrays, output: Arrays
) -> Callable[[tuple[int, int]], Rows | None] | None:
    """What tells rows by what they are, where all that it takes is at hand on either side, in one order and shape."""
    how, line = group.suppression, group.threshold
    sources = [how.boxes, how.scores] if how else [line.values] if line else []
    if not sources or not moving.isdisjoint(sources):
        return None
    if any(name not in side for name in sources for side in (reference, output)):
        return None
    if any(reference[name].shape != output[name].shape for name in sources):
        return None
    if how is not None:
        first, second = (Detections(how, side[how.boxes], side[how.scores]) for side in (reference, output))
        return partial(chosen_rows, first, second)
    assert line is not None
    return partial(passed_rows, line, reference[line.values], output[line.values])


def _scores(group: RowGroup, axes: Mapping[str, int], reference: Arrays, output: Arrays) -> Scores | None:
    """The score of each row on either side, float64 (batches, rows); None where nothing tells it."""
    sides = (reference, output)
    name, axis = next(iter(axes.items()))
    rows = [fold_rows(side[name], axis).shape[:2] for side in sides]
    if all(group.sorted_by in side for side in sides):
        largest = [-np.sort(-np.atleast_2d(side[group.sorted_by].astype(np.float64))) for side in sides]
        if all(len(a) == batches and a.shape[1] >= n for a, (batches, n) in zip(largest, rows, strict=True)):
            return largest[0][:, : rows[0][1]], largest[1][:, : rows[1][1]]
    if group.score not in axes:
        return None
    first, second = (fold_rows(side[group.score], axes[group.score]).astype(np.float64) for side in sides)
    return (first.max(2), second.max(2)) if first.shape[2] and second.shape[2] else None


def _scales(axes: Mapping[str, int], judged: Mapping[str, Judged], reference: Arrays) -> dict[str, NDArray[np.float64]]:
    """By what the features of a row are divided, so that each part of each float tensor weighs the same.

    A part's features by how far they lie from their mean over the rows, times √(its features · all parts): then two
    rows taken at random are 2 apart, squared. Of rows that are nearly alike by a share of the values themselves.
    """
    scales, parts = {}, 0
    for name, axis in axes.items():
        array = reference[name]
        if not _has_errors(array):
            continue
        labels = np.zeros(array.shape, np.int64)
        for label, part in enumerate(judged[name].parts, 1):
            if part.fits(array) and part.axis not in (0, axis):
                front = np.moveaxis(labels, part.axis, 0)
                for start, stop in part.runs:
                    front[start:stop] = label
        values, features = (fold_rows(one, axis) for one in (array.astype(np.float64), labels))
        line = features[0, 0] if features.size else np.zeros(features.shape[2], np.int64)
        scale = np.ones(line.size)
        for label in np.unique(line):
            range_of_kind = values[:, :, line == label]
            scale[line == label] = np.sqrt(_variance(range_of_kind) * range_of_kind.shape[2])
            parts += 1
        scales[name] = scale
    return {name: scale * np.sqrt(parts) for name, scale in scales.items()}


def _variance(values: NDArray[np.float64]) -> float:
    """Of features over the rows, at least a fifth of their mean square; 1 where all are zero. (batches, rows, n)."""
    finite = values.reshape(-1, values.shape[2])
    finite = finite[np.isfinite(finite).all(1)]
    if not finite.size or not finite.any():
        return 1.0
    return max(float(finite.var(0).mean()), _ALIKE * float((finite**2).mean()))


def _errors(judged: Judged, pair: _Pair) -> OutputErrors:
    errors, parts = _measured(judged, pair)
    strict = None if pair.strict is None else _errors(judged, pair.strict)
    return OutputErrors(errors, _agreement(judged, pair), parts, judged.role, judged.counts, pair.counts, strict)


def _measured(judged: Judged, pair: _Pair) -> tuple[ErrorSums | None, dict[str, PartErrors]]:
    """The errors of a tensor as a whole, None where it has none, and of its parts."""
    errors = error_sums(pair.reference, pair.output) if _has_errors(pair.reference) else None
    parts = _parts_of(judged, pair.reference, pair.output, errors)
    if pair.matched is not None and errors is not None and pair.matched.extra.size:
        extra = pair.matched.extra
        nothing = np.zeros_like(extra, dtype=pair.reference.dtype)
        alone = error_sums(nothing, extra) if is_float(nothing) else None
        more = _parts_of(judged, nothing, extra, alone)
        errors = None if alone is None else errors + alone
        parts = {name: part + more[name] if name in more else part for name, part in parts.items()}
    return errors, parts


def _agreement(judged: Judged, pair: _Pair) -> Agreement:
    """The same largest values; the largest of what lies within is no class, and no bound is about it."""
    if (judged.role and judged.counts) or not isinstance(pair.reference, np.ndarray):
        return Agreement()
    return agreement(pair.reference, pair.output) if pair.matched is None else _row_agreement(pair, pair.matched)


def _parts_of(
    judged: Judged, reference: NDArray[Any], output: NDArray[Any], errors: ErrorSums | None
) -> dict[str, PartErrors]:
    if errors is None or reference.shape != output.shape:
        return {}
    if not all(part.fits(reference) for part in judged.parts):
        # Of another size than the samples that told the parts: it counts as a whole.
        return {f"{judged.name}, in other sizes": PartErrors(errors)}
    return {part.name: _part_errors(part, reference, output) for part in judged.parts}


def _part_errors(part: Part, reference: NDArray[Any], variant: NDArray[Any]) -> PartErrors:
    errors = output_errors(part.of(reference), part.of(variant)).errors
    assert errors is not None
    return PartErrors(errors, part.is_share, part.counts, part.source)


def _row_agreement(pair: _Pair, matched: Matched) -> Agreement:
    """How many values of the rows with a twin agree; those of rows without one do not."""
    twins = np.flatnonzero(matched.twins)
    true, low = (np.take(array, twins, pair.axis) for array in (pair.reference, pair.output))
    if true.dtype.kind == "f" and true.ndim != 3:  # the rows themselves are no classes
        return Agreement()
    agreeing = agreement(true, low)
    counts = pair.counts or RowCounts()
    alone = counts.lost + counts.new
    each = agreeing.total // twins.size if twins.size else 1
    return Agreement(agreeing.agree, agreeing.total + alone * each)


def _difference(pair: _Pair) -> NDArray[Any]:
    true, value = pair.reference, pair.output
    if true.shape != value.shape:
        return np.full(true.shape, np.nan, true.dtype)
    with np.errstate(invalid="ignore"):
        difference = np.asarray(value - true)
    is_number = np.isfinite(true)  # where the reference is none there is nothing to differ from
    return difference if is_number.all() else np.where(is_number, difference, difference.dtype.type(0))


def _has_errors(array: Any) -> bool:
    return isinstance(array, np.ndarray) and is_float(array)


def _product(first: NDArray[Any], second: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.einsum("i,i->", first.reshape(-1), second.reshape(-1), dtype=np.float64))
