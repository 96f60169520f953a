"""A folder of samples: which files it holds, and how each becomes one sample or many."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from precisionlab.data.arrays import ARRAY_SUFFIXES, Stack, open_stack, read_npy, read_npz, rows_in
from precisionlab.data.batches import (
    RowName,
    batch_name,
    batch_of,
    joined,
    joined_label,
    left_out,
    no_batch,
    row_inputs,
)
from precisionlab.data.conform import fit
from precisionlab.data.images import read_image
from precisionlab.data.kept import KeptSamples
from precisionlab.data.listing import find_listing, read_labels, read_listing
from precisionlab.data.manifest import MANIFEST, InputSpec, Manifest, check_manifest, inside, read_manifest
from precisionlab.data.picture import IMAGE_SUFFIXES
from precisionlab.data.sample import Arrays, Entry, Remark, Sample
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo
from precisionlab.system.plainfiles import is_hidden

SUFFIXES = ARRAY_SUFFIXES | IMAGE_SUFFIXES


@dataclass(frozen=True)
class SampleFile:
    """A file with one sample, or with so many `rows` of samples. `listed` says where a listing names it."""

    name: str
    path: Path
    rows: int | None = None
    listed: str | None = None

    @property
    def is_stack(self) -> bool:
        """Whether it holds several rows that are no sample together."""
        return self.rows is not None and self.rows > 1

    def row(self, index: int) -> RowName:
        """What a row of it is called."""
        return RowName(self.name, index if self.is_stack else None)


Part = tuple[SampleFile, int]
"""A file, and the row in it."""


@dataclass(frozen=True)
class Folder:
    """The source that a data folder is.

    `samples` are the rows that each sample is made of, by its name; `left` is how many rows at the end fill no batch.
    `about` names the files that say how samples are read: manifest, labels, listing.
    """

    path: Path
    manifest: Manifest
    inputs: tuple[TensorInfo, ...]
    samples: Mapping[str, tuple[Part, ...]]
    left: int
    labels: Mapping[str, str]
    about: tuple[str, ...]
    kept: KeptSamples = field(default_factory=KeptSamples, compare=False, repr=False)

    repeatable = True

    @property
    def origin(self) -> str:
        """Where the samples come from: the folder."""
        return str(self.path)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all samples."""
        return tuple(self.samples)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What is said of rows that fill no batch."""
        return (left_out(self.left, batch_of(self.inputs) or 1),) if self.left else ()

    def files_of(self, name: str) -> tuple[SampleFile, ...]:
        """The files that hold a sample, each once."""
        return tuple(dict.fromkeys(file for file, _ in self.samples[name]))

    def entries(self) -> Generator[Entry, None, None]:
        """All samples, each read when it is asked for."""
        with closing(_Stacks(self._row_inputs)) as stacks:
            for name, parts in self.samples.items():
                yield Entry(name, partial(self.kept.of, name, partial(self._sample, name, parts, stacks)))

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """Covers manifest, labels, listing and the samples' files, by name and content."""
        files = [(name, self.path / name) for name in self.about]
        files += [(name, file.path) for name in names for file in self.files_of(name)]
        known: dict[Path, str] = {}  # a stack is hashed once, not for each of its samples
        found = hashlib.sha256()
        for name, path in files:
            if path not in known:
                known[path] = _hash(path)
            found.update(f"{name}\0{known[path]}\n".encode())
        return found.hexdigest()

    @cached_property
    def _row_inputs(self) -> tuple[TensorInfo, ...]:
        return row_inputs(self.inputs)

    def _sample(self, name: str, parts: Sequence[Part], stacks: _Stacks) -> Sample:
        rows = [self._read(file, row, stacks) for file, row in parts]
        return rows[0] if len(rows) == 1 else joined(name, rows, self.labels.get(name))

    def _read(self, file: SampleFile, row: int, stacks: _Stacks) -> Sample:
        name = str(file.row(row))
        inputs = self.inputs if file.rows is None else self._row_inputs
        if file.is_stack:
            where, arrays, remarks = f"{file.path}[{row}]", stacks.row(file.path, row), tuple[Remark, ...]()
        else:
            if file.listed is not None and not file.path.is_file():
                hint = "; write / between folders" if "\\" in file.name else ""
                raise DataError(f"{file.listed}: {file.name!r} is no file in {self.path}{hint}")
            where, (arrays, remarks) = str(file.path), self._arrays(file.path, inputs)
        fitted, done = fit(arrays, inputs, self.manifest.inputs, where)
        return Sample(name, fitted, self.labels.get(name), (*remarks, *done))

    def _arrays(self, file: Path, inputs: Sequence[TensorInfo]) -> tuple[Arrays, tuple[Remark, ...]]:
        suffix = file.suffix.lower()
        if suffix == ".npz":
            return read_npz(file, inputs), ()
        if len(inputs) != 1:
            raise DataError(
                f"{file}: the model has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); "
                "give each sample as .npz with an array for each"
            )
        (info,) = inputs
        if suffix == ".npy":
            return {info.name: read_npy(file, info)}, ()
        pixels, remarks = read_image(file, info, self.manifest.inputs.get(info.name, InputSpec()))
        return {info.name: pixels}, remarks


class _Stacks:
    """The stack that is being read; another takes its place."""

    def __init__(self, inputs: Sequence[TensorInfo]) -> None:
        self._inputs = inputs
        self._opened: tuple[Path, Stack] | None = None

    def row(self, path: Path, row: int) -> Arrays:
        if self._opened is None or self._opened[0] != path:
            self.close()
            self._opened = path, open_stack(path, self._inputs)
        return self._opened[1].row(row)

    def close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
        self._opened = None


def open_folder(path: Path, model: Model) -> Folder:
    """Look through a data folder, reading no sample.

    Raises DataError where there is none, or the manifest, the labels or the listing cannot be used.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - pathlib's raises where the name is too long
        if is_hidden(path):
            raise DataError(f"{path}: cannot be read: Permission denied")
        raise DataError(f"{path}: no such folder (a Python hook is written package.module:function)")
    manifest = read_manifest(path)
    check_manifest(manifest, model, path)
    labels = read_labels(path, manifest)
    listing = find_listing(path, manifest)
    named = [MANIFEST, manifest.labels_file, None if listing is None else _name_in(listing, path)]
    about = tuple(dict.fromkeys(name for name in named if name and (path / name).is_file()))
    if listing is not None:
        files, listed = _listed(listing, path, model.inputs)
        if labels and listed:
            raise DataError(f"{listing}: has labels, and so has {manifest.labels_file}; keep one of them")
        labels = labels or listed
    else:
        files = _found(path, set(about), model.inputs)
    samples, left = _samples(files, batch_of(model.inputs))
    if not samples:
        raise no_batch(left, batch_of(model.inputs) or 1, str(path))
    labels.update(_labels_of_batches(samples, labels))
    return Folder(path, manifest, model.inputs, samples, left, labels, about)


def _samples(files: Iterable[SampleFile], batch: int | None) -> tuple[dict[str, tuple[Part, ...]], int]:
    """Name → the rows of each sample, in order: files as they are, and batches of rows; and how many rows are left."""
    samples: dict[str, tuple[Part, ...]] = {}
    pending: list[Part] = []
    for file in files:
        if file.rows is None:
            samples[file.name] = ((file, 0),)
            continue
        for row in range(file.rows):
            pending.append((file, row))
            if len(pending) == batch:
                (first, start), (last, end) = pending[0], pending[-1]
                samples[batch_name(first.row(start), last.row(end))] = tuple(pending)
                pending = []
    return samples, len(pending)


def _labels_of_batches(samples: Mapping[str, tuple[Part, ...]], labels: Mapping[str, str]) -> dict[str, str]:
    """What rows are labelled, said of their batches; a batch may have a label of its own."""
    found = {}
    for name, parts in samples.items():
        if len(parts) > 1 and name not in labels:
            label = joined_label([labels.get(str(file.row(row))) for file, row in parts])
            if label is not None:
                found[name] = label
    return found


def _listed(listing: Path, folder: Path, inputs: Sequence[TensorInfo]) -> tuple[list[SampleFile], dict[str, str]]:
    files, labels = [], {}
    for line in read_listing(listing, folder):
        if Path(line.path).suffix.lower() not in SUFFIXES:
            raise DataError(f"{line.where}: {line.path!r} is neither .npz, .npy nor an image")
        file = _with_rows(SampleFile(line.path, folder / line.path, listed=line.where), inputs)
        if line.label is not None and file.is_stack:
            raise DataError(
                f"{line.where}: {line.path!r} holds {file.rows} samples, which one label does not tell; "
                f'give labels.file in {MANIFEST}, with "{file.row(0)}" and so on as samples'
            )
        if line.label is not None:
            labels[file.name] = line.label
        files.append(file)
    return files, labels


def _found(folder: Path, ignored: Set[str], inputs: Sequence[TensorInfo]) -> list[SampleFile]:
    names = sorted(set(_walk(folder)) - ignored)
    if not names:
        raise DataError(f"{folder}: no sample in it; put .npz, .npy or image files there, one for each sample")
    return [_with_rows(SampleFile(name, folder / name), inputs) for name in names]


def _walk(folder: Path) -> Iterator[str]:
    """The relative paths of all files that may be samples; what is hidden is passed over.

    Raises DataError for a link out of the folder. A link to a folder inside is not followed: what it
    leads to is found in its own place.
    """

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        samples = [n for n in files if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
        for path in (Path(parent, name) for name in (*folders, *samples)):
            if path.is_symlink():
                inside(folder, str(path.relative_to(folder)), str(folder))
        for path in (Path(parent, name) for name in samples):
            if path.is_file():
                yield path.relative_to(folder).as_posix()
            elif path.exists():
                raise DataError(f"{path}: a pipe or a device, not a file; remove it from the data folder")


def _with_rows(file: SampleFile, inputs: Sequence[TensorInfo]) -> SampleFile:
    """The file with its number of rows; None where it is one sample as it is, whatever that is."""
    if (batch := batch_of(inputs)) is None:
        return file
    is_array = file.path.suffix.lower() in ARRAY_SUFFIXES
    rows = rows_in(file.path, row_inputs(inputs)) if is_array else 1
    return file if rows == batch else replace(file, rows=rows)


def _name_in(path: Path, folder: Path) -> str:
    return path.resolve().relative_to(folder.resolve()).as_posix()


def _hash(path: Path) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return found.hexdigest()
