"""A folder of samples: which files it holds, and how each becomes one sample or many."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from precisionlab.data.arrays import ARRAY_SUFFIXES, Stack, open_stack, read_npy, read_npz, stacked_rows
from precisionlab.data.fit import fit
from precisionlab.data.images import read_image
from precisionlab.data.listing import find_listing, read_labels, read_listing
from precisionlab.data.manifest import MANIFEST, InputSpec, Manifest, check_manifest, inside, read_manifest
from precisionlab.data.picture import IMAGE_SUFFIXES
from precisionlab.data.sample import Arrays, Entry, Remark, Sample
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo

SUFFIXES = ARRAY_SUFFIXES | IMAGE_SUFFIXES


@dataclass(frozen=True)
class SampleFile:
    """A file with one sample, or with `rows` of them. `listed` says where a listing names it."""

    name: str
    path: Path
    rows: int | None = None
    listed: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of its samples: `a.npy`, or `a.npy[0]`, `a.npy[1]`, …"""
        return [self.name] if self.rows is None else [f"{self.name}[{row}]" for row in range(self.rows)]


@dataclass(frozen=True)
class Folder:
    """The source that a data folder is.

    `about` names the files that say how samples are read: manifest, labels, listing.
    """

    path: Path
    manifest: Manifest
    inputs: tuple[TensorInfo, ...]
    files: tuple[SampleFile, ...]
    labels: Mapping[str, str]
    about: tuple[str, ...]

    repeatable = True

    @property
    def origin(self) -> str:
        return str(self.path)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for file in self.files for name in file.names)

    @cached_property
    def file_of(self) -> Mapping[str, SampleFile]:
        """Sample name → the file that holds it."""
        return {name: file for file in self.files for name in file.names}

    def entries(self) -> Generator[Entry, None, None]:
        for file in self.files:
            if file.rows is None:
                yield Entry(file.name, partial(self._read, file))
                continue
            with closing(open_stack(file.path, self.inputs)) as stack:
                for row, name in enumerate(file.names):
                    yield Entry(name, partial(self._read_row, file, stack, row, name))

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """Covers manifest, labels, listing and the samples' files, by name and content."""
        files = [(name, self.path / name) for name in self.about]
        files += [(name, self.file_of[name].path) for name in names]
        known: dict[Path, str] = {}  # a stack is hashed once, not for each of its samples
        found = hashlib.sha256()
        for name, path in files:
            if path not in known:
                known[path] = _hash(path)
            found.update(f"{name}\0{known[path]}\n".encode())
        return found.hexdigest()

    def _read(self, file: SampleFile) -> Sample:
        if file.listed is not None and not file.path.is_file():
            hint = "; write / between folders" if "\\" in file.name else ""
            raise DataError(f"{file.listed}: {file.name!r} is no file in {self.path}{hint}")
        arrays, remarks = self._arrays(file.path)
        return self._sample(file.name, arrays, str(file.path), remarks)

    def _read_row(self, file: SampleFile, stack: Stack, row: int, name: str) -> Sample:
        return self._sample(name, stack.row(row), f"{file.path}[{row}]")

    def _sample(self, name: str, arrays: Arrays, where: str, remarks: tuple[Remark, ...] = ()) -> Sample:
        fitted, done = fit(arrays, self.inputs, self.manifest.inputs, where)
        return Sample(name, fitted, self.labels.get(name), (*remarks, *done))

    def _arrays(self, file: Path) -> tuple[Arrays, tuple[Remark, ...]]:
        suffix = file.suffix.lower()
        if suffix == ".npz":
            return read_npz(file, self.inputs), ()
        if len(self.inputs) != 1:
            raise DataError(
                f"{file}: the model has {len(self.inputs)} inputs ({', '.join(i.name for i in self.inputs)}); "
                "give each sample as .npz with an array for each"
            )
        (info,) = self.inputs
        if suffix == ".npy":
            return {info.name: read_npy(file, info)}, ()
        pixels, remarks = read_image(file, info, self.manifest.inputs.get(info.name, InputSpec()))
        return {info.name: pixels}, remarks


def open_folder(path: Path, model: Model) -> Folder:
    """Look through a data folder, reading no sample.

    Raises DataError where there is none, or the manifest, the labels or the listing cannot be used.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - pathlib's raises where the name is too long
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
    return Folder(path, manifest, model.inputs, tuple(files), labels, about)


def _listed(listing: Path, folder: Path, inputs: Sequence[TensorInfo]) -> tuple[list[SampleFile], dict[str, str]]:
    files, labels = [], {}
    for line in read_listing(listing, folder):
        if Path(line.path).suffix.lower() not in SUFFIXES:
            raise DataError(f"{line.where}: {line.path!r} is neither .npz, .npy nor an image")
        file = _with_rows(SampleFile(line.path, folder / line.path, listed=line.where), inputs)
        if line.label is not None and file.rows is not None:
            raise DataError(
                f"{line.where}: {line.path!r} holds {file.rows} samples, which one label does not tell; "
                f'give labels.file in {MANIFEST}, with "{file.names[0]}" and so on as samples'
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
    is_array = file.path.suffix.lower() in ARRAY_SUFFIXES
    return replace(file, rows=stacked_rows(file.path, inputs)) if is_array else file


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
