"""Files that somebody else wrote: read whole or refused, never from what has no end, and JSON that says one thing."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precisionlab.system.plainfiles import LinkError, open_to_read

LARGEST_JSON = 1 << 28
"""256 MiB: a thousand times the largest `run.json` that has been seen."""

_DEEPEST = 100  # nested lists and objects; what Python itself bears depends on where it is called from


class UnreadableError(Exception):
    """Why a file cannot be read, to stand behind its name and a colon."""


def file_size(path: Path) -> int:
    """The bytes of a regular file. Raises UnreadableError for anything else: a pipe or a device may never end."""
    try:
        found = path.stat()
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL byte
        raise UnreadableError(f"no usable path: {error}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UnreadableError("cannot be read: Is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableError("a pipe or a device, which may never end; copy what it holds into a file, and give that")
    return found.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content. Raises UnreadableError where it has more bytes than that, or cannot be read."""
    size = file_size(path)
    if size <= most:
        try:
            with path.open("rb") as stream:
                content = stream.read(most + 1)  # whatever its size: another program may be writing it
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from None
        if len(content) <= most:
            return content
    raise UnreadableError(f"larger than {most >> 20} MiB")


def read_inside(folder: Path, name: str, most: int) -> bytes:
    """The content of a file of a folder that somebody else may have filled; no link in it is followed.

    Raises UnreadableError where it is a link, has more bytes than that, or cannot be read.
    """
    if name in ("", "..") or (folder / name).is_dir():
        raise UnreadableError("cannot be read: Is a directory")
    try:
        with open_to_read(folder, name) as stream:
            content = stream.read(most + 1) if os.fstat(stream.fileno()).st_size <= most else None
    except LinkError as error:
        raise UnreadableError(str(error.strerror)) from None
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from None
    if content is None or len(content) > most:
        raise UnreadableError(f"larger than {most >> 20} MiB")
    return content


def read_text(path: Path, most: int) -> str:
    """A file's text; a byte order mark, as editors on Windows write it, is left out. Raises UnreadableError."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"cannot be read: byte {error.start} is not UTF-8") from None


def parse_json(content: str | bytes) -> Any:
    """Strict JSON; a byte order mark, as editors on Windows write it, is left out.

    Raises ValueError, also for a key that stands twice, for NaN and infinities, and for nesting without end.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_depth(found)
    return found


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:60]!r} stands there twice")
    return found


def _constant(token: str) -> float:
    raise ValueError(f"{token} is no JSON")


def _float(token: str) -> float:
    number = float(token)
    if math.isinf(number):
        raise ValueError(f"{token[:60]} is too large for a number")
    return number


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")
