"""The samples that a run rests on: opened, checked, and read one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from precisionlab.data.folder import Folder, open_folder
from precisionlab.data.hook import is_hook, open_hook
from precisionlab.data.inspect import Collector, Look
from precisionlab.data.manifest import Manifest
from precisionlab.data.noise import Noise, noise
from precisionlab.data.sample import Entry, Sample, Skipped, Source, digest
from precisionlab.data.saved import is_raw, is_saved, open_raw, open_saved
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo


@dataclass(frozen=True)
class Dataset:
    """The samples that a run rests on. Every iteration is one pass, and holds one sample at a time.

    `chosen` are the names of the samples (None: all those of a hook, whose number only a pass can tell).
    What `checked` has found: `digests`, sample name → hash of its inputs; `skipped`; `look`.
    """

    model_inputs: tuple[TensorInfo, ...]
    model_outputs: tuple[TensorInfo, ...]
    manifest: Manifest
    source: Source
    seed: int
    labels: Mapping[str, str] = field(default_factory=dict, repr=False)
    chosen: tuple[str, ...] | None = field(default=None, repr=False)
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    skipped: tuple[Skipped, ...] = ()
    look: Look | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        """Read one sample after the other. Raises DataError with the file's name, or the hook's and the index."""
        for entry in self._entries():
            sample = entry.read()
            known = None if self.source.repeatable else self.digests.get(entry.name)
            if known is not None and known != digest(sample.inputs):
                raise DataError(
                    f"{self.origin}: {entry.name} is not what it was on the first pass; "
                    "the hook must give the same samples each time: seed its random numbers"
                )
            yield sample

    def checked(self, *, skip_bad: bool = False, progress: Callable[[int], None] = lambda done: None) -> Dataset:
        """Read each sample once, so that a bad one is known before the work; look at them, and hash them.

        `progress` is told how many have been read. A bad sample raises DataError; with `skip_bad` it is
        left out of the dataset that is returned, and stands in its `skipped`. With no good one, DataError.
        """
        collector = Collector(self.model_inputs)
        digests: dict[str, str] = {}
        labels = dict(self.labels)
        skipped = []
        for count, entry in enumerate(self._entries(), 1):
            try:
                sample = entry.read()
            except DataError as error:
                if not skip_bad:
                    raise
                skipped.append(Skipped(entry.name, str(error)))
            else:
                digests[entry.name] = digest(sample.inputs)
                if sample.label is not None:
                    labels[entry.name] = sample.label
                collector.add(sample, digests[entry.name])
            progress(count)
        if not digests and skipped:
            raise DataError(f"{self.origin}: all {len(skipped)} samples are bad; the first: {skipped[0].reason}")
        if not digests:
            raise DataError(f"{self.origin}: gives no sample")
        everything = (*self.skipped, *skipped)
        look = collector.look(everything, self.source.remarks)
        return replace(self, chosen=tuple(digests), digests=digests, labels=labels, skipped=everything, look=look)

    def only(self, names: Container[str]) -> Dataset:
        """The same dataset with no more than these samples, in their order; others are not read."""
        known = self._known
        return replace(known, chosen=tuple(name for name in self.names if name in names), look=None)

    @property
    def size(self) -> int | None:
        """How many samples there are; None for a hook that has not been checked."""
        return None if self.chosen is None else len(self.chosen)

    @property
    def names(self) -> tuple[str, ...]:
        """The samples' names, in order: paths relative to the folder, or `function[0]`, … for a hook."""
        return (self if self.chosen is not None else self._known).chosen or ()

    @cached_property
    def sha256(self) -> str:
        """Covers manifest, labels, listing and samples, by name and content; for a hook its arrays and labels."""
        known = self._known
        return known.source.sha256(known.names, known.digests, known.labels)

    @property
    def origin(self) -> str:
        """The folder, or the hook as the user wrote it, or `random inputs`."""
        return self.source.origin

    @property
    def folder(self) -> Path | None:
        """The data folder, where the data is one."""
        return self.source.path if isinstance(self.source, Folder) else None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of each sample, where the data is a folder."""
        source = self.source
        return tuple(f.path for n in self.names for f in source.files_of(n)) if isinstance(source, Folder) else ()

    @property
    def random_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of random inputs."""
        return self.source.shapes if isinstance(self.source, Noise) else {}

    @property
    def is_random(self) -> bool:
        """Whether the inputs are noise, which finds the wrong layers."""
        return isinstance(self.source, Noise)

    @property
    def is_labelled(self) -> bool:
        """Whether every sample has a label; of a hook this is known once it has been checked."""
        return all(name in self._known.labels for name in self.names)

    @cached_property
    def _known(self) -> Dataset:
        """This dataset with what only a pass can tell of a hook; the pass is taken here if it has not been yet."""
        return self if self.source.repeatable or self.digests else self.checked()

    def _entries(self) -> Iterator[Entry]:
        """The chosen entries of one pass. Raises DataError where a hook gives fewer than before."""
        if self.chosen is None:
            yield from self.source.entries()
            return
        left = set(self.chosen)
        with closing(self.source.entries()) as entries:
            while left and (entry := next(entries, None)):
                if entry.name in left:
                    left.remove(entry.name)
                    yield entry
        if left:
            gone = next(name for name in self.chosen if name in left)
            raise DataError(
                f"{self.origin}: ends before {gone}, which it gave on the first pass; it must give the same each time"
            )


def open_dataset(data: str | Path, model: Model, limit: int | None, seed: int) -> Dataset:
    """The samples of a folder, of a hook (`package.module:function`), or of what other tools have saved.

    These are Polygraphy's saved inputs (`.json`, or a folder of nothing else) and trtexec's raw files
    (`loadInputs=NAME:FILE`). With a limit, so many chosen by the seed.

    Reads no sample yet (a hook with a limit is passed through once, to be counted): `checked` does. Raises
    DataError where there is no sample, or the manifest, the labels, the listing or the hook cannot be used.
    """
    if is_raw(str(data)):
        raw = open_raw(str(data), model)
        return Dataset(model.inputs, model.outputs, Manifest(), raw, seed, chosen=_choose(raw.names, limit, seed))
    if is_hook(str(data)) and not os.path.isdir(data):  # noqa: PTH112 - pathlib's raises where the name is too long
        hook = open_hook(str(data), model)
        # Only to choose among them must they be counted beforehand.
        names = None if limit is None else hook.all_names()
        return Dataset(model.inputs, model.outputs, Manifest(), hook, seed, chosen=_choose(names, limit, seed))
    if is_saved(Path(data)):
        saved = open_saved(Path(data), model)
        return Dataset(model.inputs, model.outputs, Manifest(), saved, seed, chosen=_choose(saved.names, limit, seed))
    folder = open_folder(Path(data), model)
    chosen = _choose(folder.names, limit, seed)
    return Dataset(model.inputs, model.outputs, folder.manifest, folder, seed, folder.labels, chosen)


def random_dataset(model: Model, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Dataset:
    """Standard normal inputs (0 or 1 for integers), for want of data.

    `shapes` gives the shape of inputs with dynamic dimensions. Raises DataError where one is missing.
    """
    source = noise(model, shapes, seed)
    return Dataset(model.inputs, model.outputs, Manifest(name="random"), source, seed, chosen=source.names)


def _choose(names: tuple[str, ...] | None, limit: int | None, seed: int) -> tuple[str, ...] | None:
    if names is None or limit is None or limit >= len(names):
        return names
    chosen = np.random.default_rng(seed).choice(len(names), limit, replace=False)
    return tuple(names[index] for index in sorted(chosen))
