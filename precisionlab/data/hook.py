"""A Python function that yields samples: `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from precisionlab.data.batches import (
    RowName,
    batch_name,
    batch_of,
    joined,
    joined_label,
    left_out,
    no_batch,
    row_inputs,
    rows_of,
    split_label,
)
from precisionlab.data.conform import fit
from precisionlab.data.sample import Arrays, Entry, Remark, Sample
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo
from precisionlab.system.usercode import import_named, is_object

LOADER = "load_data"
"""The function of a file that is named alone, as Polygraphy calls it in a `--data-loader-script`."""

MOST_SAMPLES = 1_000_000
"""Beyond this a hook is taken for one that never ends."""

_OURS = str(Path(__file__).parent.parent)


@dataclass(frozen=True)
class Hook:
    """The source that a user's function is. It is called anew for each pass, and gives dicts, or (dict, label)."""

    spec: str
    function: Callable[[], Iterable[Any]]
    inputs: tuple[TensorInfo, ...]

    names = None
    repeatable = False
    remarks = ()

    @property
    def origin(self) -> str:
        """Where the samples come from: the function, as it was named."""
        return self.spec

    def name_of(self, index: int) -> str:
        """The sample's name, such as `function[0]`."""
        return f"{LOADER if self.spec.endswith('.py') else self.spec.rpartition(':')[2]}[{index}]"

    def entries(self) -> Generator[Entry, None, None]:
        """All samples of one pass, in the order that the function gives them in."""
        if self._batch is not None:
            yield from self._batches(self._batch)
            return
        for index, item in self._items():
            yield Entry(self.name_of(index), partial(self._sample, item, index))

    def _items(self) -> Generator[tuple[int, Any], None, None]:
        """What the function gives, one after the other, counted."""
        with _told(self.spec):
            result = self.function()
        if isinstance(result, Mapping | str) or not isinstance(result, Iterable):
            raise DataError(
                f"{self.spec}: gives a {type(result).__name__}; it must yield, or return a list of, "
                "dicts from input name to array, one for each sample"
            )
        with _told(f"{self.spec}: sample 0"):
            items = iter(result)
        for index in range(MOST_SAMPLES):
            with _told(f"{self.spec}: sample {index}"):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield index, item
        raise DataError(f"{self.spec}: has not ended after {MOST_SAMPLES:,} samples; a hook must end")

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """Covers names, arrays and labels, in order."""
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0{digests[name]}\0{labels.get(name, '')}\n".encode())
        return digest.hexdigest()

    def all_names(self) -> tuple[str, ...]:
        """The names of all samples: by a pass, unless they are what the function returns, and that has a length."""
        with _told(self.spec):
            result = self.function() if self._batch is None else None
            if isinstance(result, Sized) and not isinstance(result, Mapping):
                return tuple(map(self.name_of, range(len(result))))
        return tuple(entry.name for entry in self.entries())

    @cached_property
    def _batch(self) -> int | None:
        return batch_of(self.inputs)

    def _batches(self, batch: int) -> Generator[Entry, None, None]:
        """Entries of a model with a fixed batch: what has just as many rows, and batches put together of others."""
        pending: list[_Row] = []
        ready: tuple[_Row, ...] = ()  # held back, as only the end tells whether rows are left
        for index, item in self._items():
            for row in self._rows(item, index, batch):
                if row.is_whole:
                    filled: tuple[_Row, ...] = (row,)
                elif len(pending) < batch - 1:
                    pending.append(row)
                    continue
                else:
                    filled, pending = (*pending, row), []
                if ready:
                    yield _entry(ready)
                ready = filled
        if not ready and pending:
            raise no_batch(len(pending), batch, self.spec)
        if ready:
            yield _entry(ready, (left_out(len(pending), batch),) if pending else ())

    def _rows(self, item: Any, index: int, batch: int) -> list[_Row]:
        """What the function has given, as one batch or as rows of one; copied, as more is asked for before it is read.

        What is wrong with it is raised when it is read.
        """
        name = RowName(self.name_of(index))
        try:
            arrays, label = self._copied(item, index)
        except DataError as error:
            return [_Row(name, partial(_raise, error), is_whole=True)]
        count = rows_of({key: array.shape for key, array in arrays.items()}, self.inputs)
        if count is None or count in (0, batch):
            return [_Row(name, partial(self._fitted, name, arrays, label, self.inputs), is_whole=True)]
        if count == 1:
            return [_Row(name, partial(self._fitted, name, arrays, label, self._row_inputs))]
        labels = split_label(label, count)
        rows = ({key: array[row : row + 1] for key, array in arrays.items()} for row in range(count))
        names = [RowName(name.holder, row) for row in range(count)]
        return [
            _Row(named, partial(self._fitted, named, row, text, self._row_inputs))
            for named, row, text in zip(names, rows, labels, strict=True)
        ]

    @cached_property
    def _row_inputs(self) -> tuple[TensorInfo, ...]:
        return row_inputs(self.inputs)

    def _fitted(self, name: RowName, arrays: Arrays, label: str | None, inputs: Sequence[TensorInfo]) -> Sample:
        fitted, remarks = fit(arrays, inputs, None, f"{self.spec}: {name}")
        return Sample(str(name), fitted, label, remarks)

    def _sample(self, item: Any, index: int) -> Sample:
        arrays, label = self._copied(item, index)
        fitted, remarks = fit(arrays, self.inputs, None, f"{self.spec}: sample {index}")
        return Sample(self.name_of(index), fitted, label, remarks)

    def _copied(self, item: Any, index: int) -> tuple[Arrays, str | None]:
        """The arrays and the label of what the function has given. Raises DataError where it is neither."""
        where = f"{self.spec}: sample {index}"
        arrays, label = self._parted(item)
        if not isinstance(arrays, Mapping):
            raise DataError(
                f"{where} is a {type(item).__name__}; it must be a dict from input name to array, or (dict, label), or "
                "an array for each input in the model's order, with or without a label behind"
            )
        with _told(where):
            # A copy: loaders fill the same buffer again, while earlier samples still run beside this one.
            copies = {str(key): _array(value) for key, value in arrays.items()}
            text = None if label is None else str(label.tolist() if hasattr(label, "tolist") else label)
        return copies, text

    def _parted(self, item: Any) -> tuple[Any, Any]:
        """What the function gives as inputs by name, and its label: arrays alone are those of the inputs, in order."""
        if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Mapping):
            return item[0], item[1]
        names = [info.name for info in self.inputs]
        if _is_array(item) and len(names) == 1:
            return {names[0]: item}, None
        if isinstance(item, tuple | list) and len(item) in (len(names), len(names) + 1):
            arrays = dict(zip(names, item, strict=False))
            if all(map(_is_array, arrays.values())):
                return arrays, item[len(names)] if len(item) > len(names) else None
        return item, None


def _is_array(value: Any) -> bool:
    """Whether it is an array: NumPy's, or a tensor of torch and its like."""
    return hasattr(value, "__array__") and hasattr(value, "shape") and hasattr(value, "dtype")


def _array(value: Any) -> np.ndarray[Any, Any]:
    """A copy as NumPy has it; of a tensor of torch that is on a GPU, or is learned, too."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
    return np.array(value)


class _Row(NamedTuple):
    """A row of a batch, or a batch by itself, and how it is read."""

    name: RowName
    read: Callable[[], Sample]
    is_whole: bool = False


def _entry(rows: Sequence[_Row], remarks: Sequence[Remark] = ()) -> Entry:
    """The sample that rows make."""
    name = batch_name(rows[0].name, rows[-1].name)

    def read() -> Sample:
        samples = [row.read() for row in rows]
        whole = samples[0] if len(samples) == 1 else joined(name, samples, joined_label([row.label for row in samples]))
        return replace(whole, remarks=(*whole.remarks, *remarks))

    return Entry(name, read)


def _raise(error: DataError) -> Sample:
    raise error


def is_hook(spec: str) -> bool:
    """Whether this is written as a hook, and not as a folder."""
    module, _, function = spec.rpartition(":")
    return spec.endswith(".py") or (bool(module) and function.isidentifier())


def open_hook(spec: str, model: Model) -> Hook:
    """Import the user's function; it is not called yet. Only ever for what stands on the command line.

    Raises DataError where it cannot be imported or called.
    """
    with _told(spec):
        function = import_named(f"{spec}:{LOADER}" if spec.endswith(".py") else spec)
        if is_object(spec):
            function = _called(function)
    if not callable(function):
        raise DataError(f"{spec}: is no function, but a {type(function).__name__}")
    return Hook(spec, function, model.inputs)


def _called(given: Any) -> Any:
    """A function that gives the samples of an object: of a function itself, else what the object holds, in its order.

    A map-style data set of torch has a length and no end.
    """
    if isinstance(given, Iterable):
        return lambda: given
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return lambda: (given[index] for index in range(len(given)))
    return given


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What goes wrong in the user's code is told as a DataError that names the line."""
    try:
        yield
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [f for f in frames if Path(f.filename).is_file() and not f.filename.startswith(_OURS)]
        place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
        raise DataError(f"{where}: {what}{place}") from error
