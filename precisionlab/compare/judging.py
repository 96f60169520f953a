"""What is judged of a model, decided once for a run: its final outputs, by their parts, and tensors within.

A `Judging` is a plain value. It is made before the first evaluation, travels with every one (to other processes and
machines too), and says with which tensors a backend has to come; `judged_errors` then compares them. So every figure of
a run is of the same parts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.errors import OptionError
from precisionlab.model import Model
from precisionlab.model.choices import Chosen, chosen_outputs
from precisionlab.model.kinds import joined_from
from precisionlab.model.pickers import Suppression, Threshold
from precisionlab.model.selections import Picked, picked_rows

_FORM = 2
"""Of what is journalled of errors; counted up whenever the same judging would be read otherwise."""

_RANGE = re.compile(r"(.+):(\d+)-(\d+)")
_SLICE = re.compile(r"(.+)\[((?::, ?)*)(\d+):(\d+)\]")


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
        part = np.concatenate([front[start:stop] for start, stop in self.runs])
        return np.ascontiguousarray(np.moveaxis(part, 0, self.axis))


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
    feature is a row's score, `sorted_by` the one ahead whose largest values are the scores in the order of the rows;
    empty where none is known. `suppression` is how a NonMaxSuppression picks them, where it alone does,
    and `threshold` how a mask does.
    """

    by: str
    axes: tuple[tuple[str, int], ...]
    ahead: tuple[str, ...]
    score: str = ""
    sorted_by: str = ""
    suppression: Suppression | None = None
    threshold: Threshold | None = None

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
    chosen: tuple[Chosen, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how the outputs are judged."""
        rows = tuple(group.note for group in self.rows if not set(self.within).issuperset(dict(group.axes)))
        return rows + tuple(map(_chosen_note, self.chosen))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that a backend comes with."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def within(self) -> tuple[str, ...]:
        """Those that are no final outputs."""
        return tuple(tensor.name for tensor in self.tensors if tensor.role)

    @property
    def named(self) -> tuple[str, ...]:
        """Those within that are judged for a bound that names them, and for nothing else."""
        return tuple(tensor.name for tensor in self.tensors if tensor.role and not tensor.counts)

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
    tensors = [tensor for info in model.outputs for tensor in _with_parts(model, info.name)]
    row_groups, within = picked_rows(model), _within(model)
    for rows in row_groups:
        role = f"ahead of {rows.by[-1]}"
        tensors += [tensor for name in rows.ahead if name in within for tensor in _with_parts(model, name, role)]
    outputs = chosen_outputs(model)
    for choice in dict.fromkeys(choice for one in outputs for choice in one.choices):
        tensors += _with_parts(model, choice.scores, f"ahead of {choice.by}")
    unique = _unique(tensors)
    judging = Judging(unique, tuple(_row_group(model, rows, within) for rows in row_groups), outputs)
    for name in dict.fromkeys(named):
        judging = with_named(judging, model, name)
    return judging


def _chosen_note(chosen: Chosen) -> str:
    by = " and ".join(choice.by for choice in chosen.choices)
    ahead = ", ".join(choice.scores for choice in chosen.choices)
    return f"{chosen.tensor}: entries are chosen by {by}, near-ties are set aside; judged ahead of it too: {ahead}"


def _row_group(model: Model, picked: Picked, within: frozenset[str]) -> RowGroup:
    ahead = tuple(name for name in picked.ahead if name in within)
    by = " and ".join(picked.by)
    how = picked.suppression, picked.threshold
    return RowGroup(by, picked.tensors, ahead, picked.score, picked.sorted_by, *how)


def has_named(model: Model, name: str) -> bool:
    """Whether a tensor of the model is called so, or what a range or a slice is of: its sizes are known later."""
    match = _RANGE.fullmatch(name) or _SLICE.fullmatch(name)
    return any(
        known in model.values or known in model.inner for known in (name, *(match.groups()[:1] if match else ()))
    )


def with_named(judging: Judging, model: Model, name: str) -> Judging:
    """With what a bound names judged as well. Raises OptionError where there is no such thing."""
    by_name = {tensor.name: tensor for tensor in judging.tensors}
    if name in by_name or any(part.name == name for tensor in by_name.values() for part in tensor.parts):
        return judging
    match = _RANGE.fullmatch(name) or _SLICE.fullmatch(name)
    if match and (owner := _named_tensor(judging, model, match[1])) is not None:
        axis = match[2].count(":") if match.re is _SLICE else None
        part = _asked_part(owner, model, name, axis, *map(int, match.groups()[-2:]))
        by_name[owner.name] = replace(owner, parts=(*owner.parts, part))
        return replace(judging, tensors=tuple(by_name.values()))
    if (inner := _named_tensor(judging, model, name)) is not None:
        return replace(judging, tensors=(*by_name.values(), inner))
    raise OptionError(
        f"tolerance of {name!r}: the model has no such output, part of one, or float32 tensor between layers; "
        f"{_offers(judging, model, name)}"
    )


def _named_tensor(judging: Judging, model: Model, name: str) -> Judged | None:
    """What is judged under this name, or the tensor within; None where no layer gives a float tensor of the name."""
    for tensor in judging.tensors:
        if tensor.name == name:
            return tensor
    return Judged(name, role="named by a bound", counts=False) if name in _within(model) else None


def _asked_part(owner: Judged, model: Model, name: str, axis: int | None, start: int, stop: int) -> Part:
    shape = model.tensors[owner.name].shape or ()
    if axis is None:
        axis = owner.parts[0].axis if owner.parts else channel_axis(shape)
    size = shape[axis] if axis is not None and axis < len(shape) else None
    if axis is None or not isinstance(size, int) or not start < stop <= size:
        said = f"has {size} channels" if isinstance(size, int) else "has no channels that can be counted"
        raise OptionError(f"tolerance of {name!r}: {owner.name} {said}; {owner.name}:0-1 is the first of them")
    return Part(name, axis, size, ((start, stop),), counts=False)


def channel_axis(shape: tuple[int | str | None, ...]) -> int | None:
    """The axis of channels: the shorter one behind the batch of (batch, channels, places) or its transpose, else 1."""
    if len(shape) < 2:
        return None
    first, second = shape[1], shape[2] if len(shape) == 3 else None
    return 2 if isinstance(first, int) and isinstance(second, int) and second < first else 1


def _offers(judging: Judging, model: Model, name: str) -> str:
    """What a bound may name, and of the tensors within those whose names are like this one."""
    outputs = [tensor.name for tensor in judging.tensors if not tensor.role]
    parts = [part.name for tensor in judging.tensors for part in tensor.parts if part.counts]
    said = f"its outputs are {', '.join(outputs)}"
    if parts:
        said += f", with the parts {', '.join(parts)}"
    within = _within(model).difference(judging.names)
    alike = (
        get_close_matches(name, sorted(within), n=3)
        or [output for layer in model.layers for output in layer.outputs if output in within][:3]
    )
    if alike:
        said += f"; tensors within have names such as {', '.join(alike)}"
    return f"{said}; a range of channels is written {outputs[0]}:4-84, for 4 to 83"


def _with_parts(model: Model, name: str, role: str = "") -> list[Judged]:
    """A tensor with its parts; or with the tensors that it is joined from, where they are no ranges of it."""
    joined = joined_from(model, name)
    parts = tuple(
        Part(part_name(name, kind.axis, kind.runs), kind.axis, kind.size, kind.runs, kind.sources, kind.is_share)
        for kind in joined.kinds
    )
    within = _within(model) if joined.sources else frozenset()
    sources = [source for names in joined.sources for source in names if source in within]
    return [Judged(name, parts, role), *(Judged(source, role=f"joined in {name}") for source in sources)]


def _within(model: Model) -> frozenset[str]:
    """The float32 tensors that layers give."""
    every = (output for layer in model.layers for output in layer.outputs)
    return frozenset(output for output in every if model.tensors[output].dtype == ir.DataType.FLOAT)


def _unique(tensors: list[Judged]) -> tuple[Judged, ...]:
    """Each name once: as what it is judged for first."""
    by_name: dict[str, Judged] = {}
    for tensor in tensors:
        by_name.setdefault(tensor.name, tensor)
    return tuple(by_name.values())


def part_name(tensor: str, axis: int, runs: tuple[tuple[int, int], ...]) -> str:
    """As numpy writes it: y[:, 4:84], or y[:, 2::3] for every third; of more ranges than three the first and last."""
    steps = {second[0] - first[0] for first, second in pairwise(runs)}
    if len(runs) > 2 and len(steps) == 1 and all(stop - start == 1 for start, stop in runs):
        return f"{tensor}[{':, ' * axis}{runs[0][0]}::{steps.pop()}]"
    ranges = [f"{start}:{stop}" if stop - start > 1 else f"{start}" for start, stop in runs]
    where = ", ".join(ranges if len(ranges) <= 3 else [ranges[0], ranges[1], "…", ranges[-1]])
    return f"{tensor}[{':, ' * axis}{where}]"
