"""Files on disk: written whole or not at all, alone or together; what goes wrong with that is one sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from precisionlab.errors import OptionError
from precisionlab.plainfiles import LinkError, make_plain_folder

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_PART = ".part"
_LEFT = re.compile(r"\..*\.[a-z0-9_]{8}\.part", re.DOTALL)
_LONGEST = 50  # letters of a file's name in that of its draft: four bytes each leave room for the rest


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, also after a crash."""
    # A path may hold bytes that are not UTF-8, as lone surrogates: \udcff is how JSON writes them.
    write_whole_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_whole_bytes(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that it is there whole or not at all, also after a crash."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=draft_prefix(path), suffix=_PART)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def drafted(
    folder: Path, last: str | None = None, gone: Collection[str] = (), *, of: Path | None = None
) -> Iterator[Path]:
    """A folder for drafts, which all take their places in `folder` when the context ends; none where it raises.

    So a disk that fills up leaves what was there before. The files `gone` are removed then, and so is `last`, which
    comes back at the very end: where a kill falls between two files, what says that they belong together is missing.
    `of` is the file that is held, where the folder is not: see `remove_drafts`.
    """
    prefix = ".draft." if of is None else draft_prefix(of)
    draft = Path(tempfile.mkdtemp(dir=folder, prefix=prefix, suffix=_PART))
    try:
        yield draft
        files = sorted(path.relative_to(draft) for path in draft.rglob("*") if not path.is_dir())
        files.sort(key=lambda path: str(path) == last)
        above = {file.parent for file in files} - {Path()}
        places = {folder, *(make_plain_folder(folder, str(name)) for name in above)}
        for name in (last, *gone):
            if name is not None:
                (folder / name).unlink(missing_ok=True)
        for file in files:
            (draft / file).replace(folder / file)
        for place in places:
            sync_folder(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_prefix(path: Path) -> str:
    """How the name of a file's draft begins, which lies beside it until it is whole."""
    return f".{path.name[:_LONGEST]}."


def remove_drafts(folder: Path, of: Path | None = None) -> None:
    """Remove the drafts that a killed process has left in a folder; with `of`, those of this one file.

    Only for who holds the folder or the file: another process' drafts look the same.
    """
    with suppress(OSError):  # a folder that can only be read has none of ours
        for path in list(folder.iterdir()):
            if _LEFT.fullmatch(path.name) and (of is None or path.name[:-13] == draft_prefix(of)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


@contextmanager
def told(place: Path | str, advice: str) -> Iterator[None]:
    """What goes wrong with writing at `place`, as an OptionError with what to do: to make room, or the `advice`."""
    try:
        yield
    except OSError as error:
        raise OptionError(why_not_written(place, error, advice)) from None


def why_not_written(place: Path | str, error: OSError, advice: str) -> str:
    """The sentence that says why nothing could be written at `place`."""
    why = error.strerror or str(error)
    if isinstance(error, LinkError):
        return f"{error.filename}: {why}"
    if is_full(error):
        return f"{place}: cannot be written, the disk is full ({why}); make room and give the same command again"
    return f"{place}: cannot be written ({why}); {advice}"


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, has no room left."""
    return error.errno in _FULL


def make_folder(folder: Path) -> list[Path]:
    """Make a folder with those above it; the answer has those that were not there, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk, as `fsync` has a file's content."""
    if os.name == "posix":  # Windows cannot open a folder, and needs no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
