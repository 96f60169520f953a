"""Files of a folder that somebody else may have filled: no name in it is followed out of it.

A run's folder may come from a stranger, and hold a link where a file of ours is to be written or read. The folder
itself is the user's word, and may be a link; below it each name is opened relative to the folder above it, and must be
a folder or a file of its own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path, PurePath
from typing import IO

LINK = "a link, and nothing in a run's folder is followed out of it; remove it"
PIPE = "a pipe or a device, which may never end; remove it"

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for who is at its other end
_BINARY = getattr(os, "O_BINARY", 0)
_ANCHORED = os.open in os.supports_dir_fd  # not on Windows


class LinkError(OSError):
    """A name in the folder is a link, or no file at all."""

    def __init__(self, path: Path, why: str = LINK) -> None:
        super().__init__(errno.ELOOP, why, str(path))


def open_plain(folder: Path, name: str, flags: int, mode: int = 0o644) -> int:
    """Open a file of the folder, as `os.open` does; `name` may lead through folders in it.

    Raises LinkError where one of the names is a link, or the last one a pipe, a device or a folder, and OSError as
    `os.open` does.
    """
    parts = _parts(name)
    path = folder.joinpath(*parts)
    with _above(folder, parts) as (anchor, last):
        try:
            handle = os.open(last, flags | _NO_FOLLOW | _NO_WAIT | _BINARY, mode, dir_fd=anchor)
        except OSError as error:
            raise LinkError(path) if _is_link(last, anchor) else _named(error, path) from None
    try:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise LinkError(path, PIPE)
    except BaseException:
        os.close(handle)
        raise
    return handle


def open_to_read(folder: Path, name: str) -> IO[bytes]:
    """A file of the folder, to read. Raises LinkError and OSError as `open_plain`."""
    return os.fdopen(open_plain(folder, name, os.O_RDONLY), "rb")


def open_to_append(folder: Path, name: str) -> FileIO:
    """A file of the folder, to write behind its end, without a buffer. Raises LinkError and OSError as `open_plain`."""
    return os.fdopen(open_plain(folder, name, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab", buffering=0)


def make_plain_folder(folder: Path, name: str) -> Path:
    """A folder in the folder, made where it is missing. Raises LinkError where one of the names is a link."""
    place = folder
    for part in _parts(name):
        place = place / part
        try:
            place.mkdir(exist_ok=True)
        except FileExistsError:
            raise LinkError(place, LINK if place.is_symlink() else "a file where a folder must be; remove it") from None
        if place.is_symlink():
            raise LinkError(place)
    return place


def is_there(folder: Path, name: str) -> bool:
    """Whether the folder has such a name, whatever it stands for. Raises PermissionError where nobody may look."""
    try:
        os.lstat(folder / name)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False
    return True


def is_hidden(path: Path) -> bool:
    """Whether this user may not see what a folder holds, so that "no such file" could be wrong."""
    try:
        is_there(path.parent, path.name)
    except PermissionError:
        return True
    return False


@contextmanager
def _above(folder: Path, parts: tuple[str, ...]) -> Iterator[tuple[int | None, str]]:
    """The folder that the last of the names stands in, and that name in it."""
    if not _ANCHORED:
        place = folder
        for part in parts[:-1]:
            place = place / part
            if place.is_symlink():
                raise LinkError(place)
        yield None, str(place / parts[-1])
        return
    anchor = os.open(folder, os.O_RDONLY | _FOLDER)
    try:
        for i, part in enumerate(parts[:-1], 1):
            try:
                inner = os.open(part, os.O_RDONLY | _FOLDER | _NO_FOLLOW, dir_fd=anchor)
            except OSError as error:
                path = folder.joinpath(*parts[:i])
                raise LinkError(path) if _is_link(part, anchor) else _named(error, path) from None
            os.close(anchor)
            anchor = inner
        yield anchor, parts[-1]
    finally:
        os.close(anchor)


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePath(name).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts:
        raise ValueError(f"{name!r} is no name in a folder")
    return parts


def _is_link(name: str, anchor: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=anchor, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the whole path, in the place of a name in a folder."""
    return type(error)(error.errno, error.strerror, str(path))
