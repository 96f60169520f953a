"""Batches of a fixed size, put together of rows: single samples, or those that lie stacked in one array."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from precisionlab.data.conform import match_names, shape_text
from precisionlab.data.sample import Remark, Sample
from precisionlab.errors import DataError
from precisionlab.model import TensorInfo


class RowName(NamedTuple):
    """What a row is called: by what holds it, and its place there where it is not alone."""

    holder: str
    place: int | None = None

    def __str__(self) -> str:
        return self.holder if self.place is None else f"{self.holder}[{self.place}]"


def batch_of(inputs: Sequence[TensorInfo]) -> int | None:
    """The batch that the model is made for: the first axis that all inputs have, where it is fixed."""
    first = {info.shape[0] if info.shape else None for info in inputs}
    found = first.pop() if len(first) == 1 else None
    return found if isinstance(found, int) and found > 0 else None


def row_inputs(inputs: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """The inputs of a model with a fixed batch, as one row has them."""
    return tuple(replace(info, shape=(1, *(info.shape or ())[1:])) for info in inputs)


def rows_of(shapes: Mapping[str, Sequence[int]], inputs: Sequence[TensorInfo]) -> int | None:
    """How many rows arrays of these shapes hold, for a model with a fixed batch; a row may lack its batch axis.

    None where that cannot be told: names or ranks are not the model's, or first axes differ.
    """
    try:
        keys = match_names(shapes, inputs, "")
    except DataError:
        return None
    counts = set()
    for info in inputs:
        shape, rank = tuple(shapes[keys[info.name]]), len(info.shape or ())
        if len(shape) not in (rank, rank - 1):
            return None
        counts.add(1 if len(shape) < rank else shape[0])
    return counts.pop() if len(counts) == 1 else None


def batch_name(first: RowName, last: RowName) -> str:
    """`calib.npy[0:4]` for rows of one array, else the first and the last: `s000.npy…s003.npy`."""
    if first == last:
        return str(first)
    if first.place is not None and last.place is not None and first.holder == last.holder:
        return f"{first.holder}[{first.place}:{last.place + 1}]"
    return f"{first}…{last}"


def joined(name: str, rows: Sequence[Sample], label: str | None) -> Sample:
    """The batch of these rows. Raises DataError where their shapes differ."""
    inputs = {}
    for key, first in rows[0].inputs.items():
        for row in rows:
            if row.inputs[key].shape != first.shape:
                raise DataError(
                    f"{name}: input {key!r} has shape {shape_text(first.shape)} in {rows[0].name} and "
                    f"{shape_text(row.inputs[key].shape)} in {row.name}, which make no batch; pad them to one shape"
                )
        inputs[key] = np.concatenate([row.inputs[key] for row in rows])
    return Sample(name, inputs, label, tuple(dict.fromkeys(remark for row in rows for remark in row.remarks)))


def joined_label(labels: Sequence[str | None]) -> str | None:
    """The label of a batch: a JSON list of its rows' labels; None where a row has none."""
    return None if None in labels else json.dumps([_plain(str(label)) for label in labels], ensure_ascii=False)


def split_label(label: str | None, rows: int) -> Sequence[str | None]:
    """The labels of rows, of a JSON list with one for each; none where there is no such list."""
    found = None if label is None else _plain(label)
    if not isinstance(found, list) or len(found) != rows:
        return [None] * rows
    return [each if isinstance(each, str) else json.dumps(each) for each in found]


def left_out(rows: int, batch: int) -> Remark:
    """What is said of rows that do not fill a batch."""
    return Remark(None, f"{rows} {'row' if rows == 1 else 'rows'} at the end left out: no batch of {batch}")


def no_batch(rows: int, batch: int, where: str) -> DataError:
    """The error where there are too few rows for even one batch."""
    return DataError(
        f"{where}: too few samples: {rows} of the {batch} rows that the model's inputs, with a first axis fixed to "
        f"{batch}, take at once"
    )


def _plain(label: str) -> Any:
    """A class index, or a list of them, as such; anything else as the text that it is."""
    try:
        found = json.loads(label)
    except (ValueError, RecursionError):
        return label
    return found if isinstance(found, (int, float, list)) else label
