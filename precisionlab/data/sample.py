"""One sample, and what a source of samples is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class Remark(NamedTuple):
    """What was done to a sample that a user should know, to stand behind a count of samples and a colon.

    `input` is None where it is about all of them.
    """

    input: str | None
    text: str


@dataclass(frozen=True)
class Sample:
    """One run of the model: its inputs by name, with the batch dimension, its label, and how it came to be."""

    name: str
    inputs: Arrays
    label: str | None = None
    remarks: tuple[Remark, ...] = ()


class Skipped(NamedTuple):
    """A bad sample that was left out, and what is wrong with it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """A sample that can be read. `read` raises DataError; it is called before the next entry is asked for, or not."""

    name: str
    read: Callable[[], Sample]


class Source(Protocol):
    """Where samples come from: a folder, a Python hook, a random generator."""

    @property
    def origin(self) -> str:
        """What the user calls it."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The samples' names, each once, in order; None where only a pass can tell."""

    @property
    def repeatable(self) -> bool:
        """Whether a second pass gives the same samples by construction; otherwise each is checked."""

    @property
    def remarks(self) -> Sequence[Remark]:
        """What a user should know of all of it."""

    def entries(self) -> Generator[Entry, None, None]:
        """One pass over all samples, in order. None is read before it is asked for."""

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """The hash of the samples of these names; `digests` are those of their inputs, where a pass has made them."""


def digest(inputs: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes of a sample's inputs."""
    found = hashlib.sha256()
    for name in sorted(inputs):
        array = inputs[name]
        found.update(f"{name}\0{array.dtype.str}\0{array.dtype.name}\0{array.shape}\0".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
