"""A Python function that yields samples: `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from precisionlab.data.fit import fit
from precisionlab.data.sample import Entry, Sample
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo
from precisionlab.usercode import import_named

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

    @property
    def origin(self) -> str:
        return self.spec

    def name_of(self, index: int) -> str:
        """The sample's name: `function[0]`, `function[1]`, …"""
        return f"{self.spec.rpartition(':')[2]}[{index}]"

    def entries(self) -> Generator[Entry, None, None]:
        with _told(self.spec):
            given = self.function()
        if isinstance(given, Mapping | str) or not isinstance(given, Iterable):
            raise DataError(
                f"{self.spec}: gives a {type(given).__name__}; it must yield, or return a list of, "
                "dicts from input name to array, one for each sample"
            )
        with _told(f"{self.spec}: sample 0"):
            items = iter(given)
        for index in range(MOST_SAMPLES):
            with _told(f"{self.spec}: sample {index}"):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield Entry(self.name_of(index), partial(self._sample, item, index))
        raise DataError(f"{self.spec}: has not ended after {MOST_SAMPLES:,} samples; a hook must end")

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """Covers names, arrays and labels, in order."""
        found = hashlib.sha256()
        for name in names:
            found.update(f"{name}\0{digests[name]}\0{labels.get(name, '')}\n".encode())
        return found.hexdigest()

    def count(self) -> int:
        """How many samples there are: by a pass, unless the function returns something with a length."""
        with _told(self.spec):
            given = self.function()
            if isinstance(given, Sized) and not isinstance(given, Mapping):
                return len(given)
        return sum(1 for _ in self.entries())

    def _sample(self, item: Any, index: int) -> Sample:
        where = f"{self.spec}: sample {index}"
        arrays, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(arrays, Mapping):
            raise DataError(
                f"{where} is a {type(item).__name__}; it must be a dict from input name to array, or (dict, label)"
            )
        with _told(where):
            # A copy: loaders fill the same buffer again, while earlier samples still run beside this one.
            copies = {str(key): np.array(value) for key, value in arrays.items()}
            text = None if label is None else str(label.tolist() if hasattr(label, "tolist") else label)
        fitted, remarks = fit(copies, self.inputs, None, where)
        return Sample(self.name_of(index), fitted, text, remarks)


def is_hook(spec: str) -> bool:
    """Whether this is written as a hook, and not as a folder."""
    module, _, function = spec.rpartition(":")
    return bool(module) and function.isidentifier()


def open_hook(spec: str, model: Model) -> Hook:
    """Import the user's function; it is not called yet. Only ever for what stands on the command line.

    Raises DataError where it cannot be imported or called.
    """
    with _told(spec):
        found = import_named(spec)
    if not callable(found):
        raise DataError(f"{spec}: is no function, but a {type(found).__name__}")
    return Hook(spec, found, model.inputs)


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
