"""Files on disk: written whole or not at all, alone or together; what goes wrong with that is one sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from precisionlab.errors import OptionError
from precisionlab.system.plainfiles import LinkError, is_there, make_plain_folder

_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_PART = ".part"
_LEFT = re.compile(r"\..*\.[a-z0-9_]{8}\.part", re.DOTALL)
TEMPORARY_ADVICE = "set TMPDIR to a folder that can be"
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
    folder: Path,
    last: str | None = None,
    gone: Collection[str] = (),
    *,
    of: Path | None = None,
    together: ExitStack | None = None,
) -> Iterator[Path]:
    """A folder for drafts, which all take their places in `folder` when the context ends; none where it raises.

    So a disk that fills up leaves what was there before. The files `gone` are removed then, and so is `last`, which
    comes back at the very end: where a kill falls between two files, what says that they belong together is missing.
    `of` is the file that is held, where the folder is not: see `remove_drafts`. Drafts of several folders that are
    given one stack, which is left last, take their places all or none.
    """
    prefix = ".draft." if of is None else draft_prefix(of)
    with ExitStack() if together is None else nullcontext(together) as ends:
        draft = Path(tempfile.mkdtemp(dir=folder, prefix=prefix, suffix=_PART))
        exchange = ends.enter_context(_Exchange(folder, draft, together is None))
        yield draft
        exchange.make(last, gone)


class _Exchange:
    """Drafts take the places of a folder's files, which are kept until the context ends, and come back if it raises."""

    def __init__(self, folder: Path, draft: Path, is_alone: bool) -> None:
        self._is_alone = is_alone
        self._folder, self._draft, self._aside = folder, draft, draft / ".before"
        self._steps: list[tuple[str, bool]] = []  # a name, and whether it stands for a new file, not for one kept aside
        self._made: list[Path] = []
        self._last: str | None = None

    def __enter__(self) -> _Exchange:
        return self

    def make(self, last: str | None, gone: Collection[str]) -> None:
        """Put the drafts in their places, `last` in the end."""
        self._last = last
        files = sorted(str(path.relative_to(self._draft)) for path in self._draft.rglob("*") if not path.is_dir())
        files.sort(key=lambda name: name == last)
        above = sorted({str(Path(name).parent) for name in files} - {"."})
        self._made = [self._folder / name for name in above if not is_there(self._folder, name)]
        places = [self._folder, *(make_plain_folder(self._folder, name) for name in above)]
        self._aside.mkdir()
        for name in (last, *gone):
            if name is not None and self._keep(name):
                (self._folder / name).unlink(missing_ok=True)
        for name in files:
            self._keep(name)
            (self._draft / name).replace(self._folder / name)
            self._steps.append((name, True))
        for place in places:
            sync_folder(place)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            try:
                self._undo()
            except OSError:
                self._show()
        shutil.rmtree(self._draft, ignore_errors=True)

    def _keep(self, name: str) -> bool:
        """Keep what has this name, if anything has; a folder stays where it is, and is in the way."""
        place, kept = self._folder / name, self._aside / name
        if is_there(self._aside, name) or not is_there(self._folder, name):
            return False
        if place.is_symlink() or not place.is_dir():
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(place, kept, follow_symlinks=False)  # so that the name is never without its file
            except (OSError, NotImplementedError):
                place.replace(kept)
            self._steps.append((name, False))
        return True

    def _show(self) -> None:
        """Show that not all could be put back: `last` is missing, as after a kill.

        But where all files of the one folder are new, and only their being on disk is uncertain, they stay.
        """
        if self._last is not None and not self._is_alone:
            with suppress(OSError):
                (self._folder / self._last).unlink()

    def _undo(self) -> None:
        if self._last is not None and (self._last, True) in self._steps:
            # Not there while old files and new ones lie side by side. Where even that fails, all of them are new.
            (self._folder / self._last).replace(self._draft / self._last)
        for name, is_new in reversed(self._steps):
            if not is_new:
                (self._aside / name).replace(self._folder / name)
            elif name != self._last and not is_there(self._aside, name):
                (self._folder / name).unlink()
        for place in reversed(self._made):
            place.rmdir()


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


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files that nobody keeps, gone in the end. Raises OptionError where there is no place for one."""
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:
        place = "the folder for temporary files"
    with ExitStack() as opened:
        with told(place, TEMPORARY_ADVICE):
            folder = opened.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        yield Path(folder)


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
    """Make a folder with those above it; the answer has those that were not there, the innermost first.

    Raises OSError where that fails, and then leaves none behind.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        for path in missing:
            with suppress(OSError):  # not made, or something lies there now
                path.rmdir()
        raise
    return missing


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk, as `fsync` has a file's content."""
    if os.name == "posix":  # Windows cannot open a folder, and needs no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
