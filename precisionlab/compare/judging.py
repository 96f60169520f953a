"""What is judged of a model, decided once for a run: its final outputs, by their parts, and tensors within.

A `Judging` is a plain value. It is made before the first evaluation, travels with every one (to other processes and
machines too), and says with which tensors a backend has to come; `judged_errors` then compares them. So every figure of
a run is of the same parts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.compare.effects import Effect, PartEffect
from precisionlab.compare.errors import Agreement, ErrorSums, agreement
from precisionlab.compare.gather import output_errors
from precisionlab.compare.output import OutputErrors, PartErrors
from precisionlab.compare.rows import Matched, RowCounts, fold_rows, match_rows
from precisionlab.compare.wide import is_float
from precisionlab.errors import OptionError
from precisionlab.model import Model
from precisionlab.model.kinds import joined_from
from precisionlab.model.selections import Picked, picked_rows

Arrays = Mapping[str, NDArray[Any]]

_FORM = 1
"""Of what is journalled of errors; counted up whenever the same judging would be read otherwise."""

_ALIKE = 0.2
"""Of rows whose values vary by less than this share of their power, the power itself tells how far they may be off."""

_RANGE = re.compile(r"(.+):(\d+)-(\d+)")


@dataclass(frozen=True)
class Part:
    """A part of a tensor: the `runs` [start, stop) of indices along `axis`, which is of `size`.

    `sources` are the tensors that it is made from. `is_share` and `counts` are told with its errors, see `PartErrors`.
    """

    name: str
    axis: int
    size: int
    runs: tuple[tuple[int, int], ...]
    sources: tuple[str, ...] = ()
    is_share: bool = False
    counts: bool = True

    @property
    def source(self) -> str:
        """What it is made from, in short."""
        rest = len(self.sources) - 1
        return "".join(self.sources[:1]) + (f" and {rest} more" if rest > 0 else "")

    def fits(self, tensor: NDArray[Any]) -> bool:
        """Whether the tensor has this part."""
        return tensor.ndim > self.axis and tensor.shape[self.axis] == self.size

    def of(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """The part of a tensor that it fits."""
        front = np.moveaxis(tensor, self.axis, 0)
        found = np.concatenate([front[start:stop] for start, stop in self.runs])
        return np.ascontiguousarray(np.moveaxis(found, 0, self.axis))


@dataclass(frozen=True)
class Judged:
    """A tensor that is judged. `role` and `counts` are told with its errors, see `OutputErrors`."""

    name: str
    parts: tuple[Part, ...] = ()
    role: str = ""
    counts: bool = True


@dataclass(frozen=True)
class RowGroup:
    """Tensors with the same rows, which operators pick by value: each with the axis of its rows.

    `by` are these operators, `ahead` the tensors that they go by and pick from. `score` names the tensor whose largest
    feature is a row's score, empty where none is known.
    """

    by: str
    axes: tuple[tuple[str, int], ...]
    ahead: tuple[str, ...]
    score: str

    @property
    def note(self) -> str:
        """What is done about it."""
        names = ", ".join(name for name, _ in self.axes)
        said = f"{names}: rows come from {self.by} by their values, and are matched with their twins whatever the order"
        return said + (f"; judged ahead of it too: {', '.join(self.ahead)}" if self.ahead else "")


@dataclass(frozen=True)
class Judging:
    """All that is judged of one model: its final outputs in their order, then tensors within."""

    tensors: tuple[Judged, ...]
    rows: tuple[RowGroup, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how the outputs are judged."""
        return tuple(group.note for group in self.rows if not set(self.within).issuperset(dict(group.axes)))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that a backend comes with."""
        return tuple(judged.name for judged in self.tensors)

    @property
    def within(self) -> tuple[str, ...]:
        """Those that are no final outputs."""
        return tuple(judged.name for judged in self.tensors if judged.role)

    @cached_property
    def digest(self) -> str:
        """A hash, for the journal: figures of another judging are other figures."""
        return hashlib.sha256(json.dumps([_FORM, asdict(self)], sort_keys=True).encode()).hexdigest()

    def watched(self, model: Model) -> Model:
        """The model with the tensors within among its outputs, so that a backend shows them."""
        return replace(model, outputs=(*model.outputs, *(model.tensors[name] for name in self.within)))


def judging_of(model: Model, named: Iterable[str] = ()) -> Judging:
    """What the model's graph alone says: its final outputs, each with the parts that it is joined from.

    Outputs whose rows are picked by value are judged by their rows, and what the rows are picked by and from is judged
    too: that is what a precision really harms. `named` are what bounds are about: outputs, their parts, ranges of them
    (`output:4-84`), and tensors within. Raises OptionError for what the model has not.
    """
    tensors = [judged for info in model.outputs for judged in _with_parts(model, info.name)]
    picked, within = picked_rows(model), _within(model)
    for found in picked:
        role = f"ahead of {found.by[-1]}"
        tensors += [judged for name in found.ahead if name in within for judged in _with_parts(model, name, role)]
    unique = _unique(tensors)
    judging = Judging(unique, tuple(_row_group(model, found, within) for found in picked))
    for name in dict.fromkeys(named):
        judging = with_named(judging, model, name)
    return judging


def _row_group(model: Model, picked: Picked, within: frozenset[str]) -> RowGroup:
    ahead = tuple(name for name in picked.ahead if name in within)
    return RowGroup(" and ".join(picked.by), picked.tensors, ahead, picked.score)


def with_named(judging: Judging, model: Model, name: str) -> Judging:
    """With what a bound names judged as well. Raises OptionError where there is no such thing."""
    known = {judged.name: judged for judged in judging.tensors}
    if name in known or any(part.name == name for judged in known.values() for part in judged.parts):
        return judging
    if (found := _RANGE.fullmatch(name)) and (owner := _named_tensor(judging, model, found[1])) is not None:
        part = _asked_part(owner, model, name, int(found[2]), int(found[3]))
        known[owner.name] = replace(owner, parts=(*owner.parts, part))
        return replace(judging, tensors=tuple(known.values()))
    if (inner := _named_tensor(judging, model, name)) is not None:
        return replace(judging, tensors=(*known.values(), inner))
    raise OptionError(
        f"tolerance of {name!r}: the model has no such output, part of one, or float32 tensor between layers; "
        f"{_offers(judging)}"
    )


def _named_tensor(judging: Judging, model: Model, name: str) -> Judged | None:
    """What is judged under this name, or the tensor within; None where no layer gives a float tensor of the name."""
    for judged in judging.tensors:
        if judged.name == name:
            return judged
    return Judged(name, role="named by a bound", counts=False) if name in _within(model) else None


def _asked_part(owner: Judged, model: Model, name: str, start: int, stop: int) -> Part:
    shape = model.tensors[owner.name].shape or ()
    axis = owner.parts[0].axis if owner.parts else channel_axis(shape)
    size = shape[axis] if axis is not None else None
    if axis is None or not isinstance(size, int) or not start < stop <= size:
        said = f"has {size} channels" if isinstance(size, int) else "has no channels that can be counted"
        raise OptionError(f"tolerance of {name!r}: {owner.name} {said}; y:4-84 are the channels 4 to 83 of y")
    return Part(name, axis, size, ((start, stop),), counts=False)


def channel_axis(shape: tuple[int | str | None, ...]) -> int | None:
    """The axis of channels: the shorter one behind the batch of (batch, channels, places) or its transpose, else 1."""
    if len(shape) < 2:
        return None
    first, second = shape[1], shape[2] if len(shape) == 3 else None
    return 2 if isinstance(first, int) and isinstance(second, int) and second < first else 1


def _offers(judging: Judging) -> str:
    """What a bound may name."""
    outputs = [judged.name for judged in judging.tensors if not judged.role]
    parts = [part.name for judged in judging.tensors for part in judged.parts if part.counts]
    said = f"its outputs are {', '.join(outputs)}"
    if parts:
        said += f", with the parts {', '.join(parts)}"
    return said + "; tensors within have the names of layers' outputs, and a range of channels is written y:4-84"


def _with_parts(model: Model, name: str, role: str = "") -> list[Judged]:
    """A tensor with its parts; or with the tensors that it is joined from, where they are no ranges of it."""
    joined = joined_from(model, name)
    parts = tuple(
        Part(part_name(name, kind.axis, kind.runs), kind.axis, kind.size, kind.runs, kind.sources, kind.is_share)
        for kind in joined.kinds
    )
    within = _within(model) if joined.sources else frozenset()
    sources = [source for found in joined.sources for source in found if source in within]
    return [Judged(name, parts, role), *(Judged(source, role=f"joined in {name}") for source in sources)]


def _within(model: Model) -> frozenset[str]:
    """The float32 tensors that layers give."""
    every = (output for layer in model.layers for output in layer.outputs)
    return frozenset(output for output in every if model.tensors[output].dtype == ir.DataType.FLOAT)


def _unique(tensors: list[Judged]) -> tuple[Judged, ...]:
    """Each name once: as what it is judged for first."""
    found: dict[str, Judged] = {}
    for judged in tensors:
        found.setdefault(judged.name, judged)
    return tuple(found.values())


def part_name(tensor: str, axis: int, runs: tuple[tuple[int, int], ...]) -> str:
    """As numpy writes it: y[:, 4:84]."""
    where = ",".join(f"{start}:{stop}" if stop - start > 1 else f"{start}" for start, stop in runs)
    return f"{tensor}[{':, ' * axis}{where}]"


def judged_errors(judging: Judging, reference: Arrays, variant: Arrays) -> dict[str, OutputErrors]:
    """The errors of everything judged of one sample; what either side lacks is left out."""
    pairs = _pairs(judging, reference, variant)
    return {judged.name: _errors(judged, pairs[judged.name]) for judged in judging.tensors if judged.name in pairs}


def judged_differences(judging: Judging, reference: Arrays, output: Arrays) -> dict[str, NDArray[Any]]:
    """Output − reference of each judged float tensor, in its shape and type; NaN throughout where shapes differ.

    Rows that are matched stand in the reference's order, those of several batches behind each other.
    """
    pairs = _pairs(judging, reference, output)
    return {name: _difference(pair) for name, pair in pairs.items() if _has_errors(pair.reference)}


def judged_effects(judging: Judging, reference: Arrays, output: Arrays, error: Arrays) -> dict[str, Effect]:
    """What an output tells of the layer that was toggled; `error` are the whole variant's `judged_differences`."""
    pairs = _pairs(judging, reference, output)
    found = {}
    for judged in judging.tensors:
        if judged.name not in pairs or not _has_errors(pairs[judged.name].reference):
            continue
        pair, whole = pairs[judged.name], error[judged.name]
        errors, difference = _errors(judged, pair), _difference(pair)
        assert errors.errors is not None
        parts = {
            part.name: PartEffect(errors.parts[part.name], _product(part.of(difference), part.of(whole)))
            for part in judged.parts
            if part.name in errors.parts
        }
        found[judged.name] = Effect(errors.errors, _product(difference, whole), parts)
    return found


@dataclass(frozen=True)
class _Pair:
    """One tensor's values to be compared; of one with rows, with these matched, and what became of them."""

    reference: NDArray[Any]
    output: NDArray[Any]
    matched: Matched | None = None
    axis: int = 0
    counts: RowCounts | None = None


def _pairs(judging: Judging, reference: Arrays, output: Arrays) -> dict[str, _Pair]:
    """All that is judged and that both sides have."""
    here = {judged.name: judged for judged in judging.tensors if judged.name in reference and judged.name in output}
    found = {name: _Pair(reference[name], output[name]) for name in here}
    for group in judging.rows:
        axes = {name: axis for name, axis in group.axes if name in here}
        if not axes:
            continue
        matching = match_rows(
            {name: reference[name] for name in axes},
            {name: output[name] for name in axes},
            axes,
            _scales(axes, here, reference),
            group.score if group.score in axes else None,
        )
        if matching is not None:
            matched, counts = matching
            for name, axis in axes.items():
                found[name] = _Pair(matched[name].reference, matched[name].output, matched[name], axis, counts)
    return found


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
            chosen = values[:, :, line == label]
            scale[line == label] = np.sqrt(_variance(chosen) * chosen.shape[2])
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
    whole = output_errors(pair.reference, pair.output)
    parts = _parts_of(judged, pair.reference, pair.output, whole.errors)
    if pair.matched is not None:
        extra = pair.matched.extra
        if whole.errors is not None and extra.size:
            alone = output_errors(np.zeros_like(extra, dtype=pair.reference.dtype), extra).errors
            more = _parts_of(judged, np.zeros_like(extra, dtype=pair.reference.dtype), extra, alone)
            whole = replace(whole, errors=None if alone is None else whole.errors + alone)
            parts = {name: part + more[name] if name in more else part for name, part in parts.items()}
        whole = replace(whole, top1=_row_agreement(pair, pair.matched))
    return replace(whole, parts=parts, role=judged.role, counts=judged.counts, rows=pair.counts)


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
    found = agreement(true, low)
    counts = pair.counts or RowCounts()
    alone = counts.lost + counts.new
    each = found.total // twins.size if twins.size else 1
    return Agreement(found.agree, found.total + alone * each)


def _difference(pair: _Pair) -> NDArray[Any]:
    true, value = pair.reference, pair.output
    if true.shape != value.shape:
        return np.full(true.shape, np.nan, true.dtype)
    with np.errstate(invalid="ignore"):
        return np.asarray(value - true)


def _has_errors(array: Any) -> bool:
    return isinstance(array, np.ndarray) and is_float(array)


def _product(first: NDArray[Any], second: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.einsum("i,i->", first.reshape(-1), second.reshape(-1), dtype=np.float64))
