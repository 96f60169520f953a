"""A folder or a file that one process at a time writes: whoever comes second is told who was first.

The lock is the system's, on a small file: it ends with the process, however that dies. So no lock is ever stale.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from precisionlab.errors import OptionError
from precisionlab.system.disk import make_folder, remove_drafts, told
from precisionlab.system.plainfiles import open_plain, open_to_read

LOCK_FILE = ".lock"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_LONGEST_SIGNATURE = 1 << 12  # bytes
_OWN_ADVICE = "choose another folder with --out"


@contextmanager
def held_folder(folder: Path, warn: Callable[[str], None], advice: str = _OWN_ADVICE) -> Iterator[None]:
    """Hold a folder, which is made where it is missing, to write in it.

    What a killed process has left half written is removed. At the end, folders made here that have stayed empty go
    again. Raises OptionError at once where another process holds it, or it cannot be written. `warn` is told where the
    file system has no locks.
    """
    with told(folder, advice):
        made = make_folder(folder)
    try:
        with _held(folder, folder / LOCK_FILE, warn, advice):
            remove_drafts(folder)
            yield
    finally:
        with suppress(OSError):  # something lies there now
            for path in made:
                path.rmdir()


@contextmanager
def held_file(path: Path, warn: Callable[[str], None], advice: str) -> Iterator[None]:
    """Hold a file that is to be written, in a folder that is there; as `held_folder` otherwise."""
    with _held(path, path.with_name(f".{path.name[:50]}{LOCK_FILE}"), warn, advice):
        remove_drafts(path.parent, path)
        yield


@contextmanager
def _held(place: Path, lock: Path, warn: Callable[[str], None], advice: str) -> Iterator[None]:
    with told(place, advice):
        handle = _taken(place, lock, warn, advice)
    try:
        yield
    finally:
        if handle is not None:
            # While it is still held, so that nobody's lock is removed but ours; Windows removes no open file.
            with suppress(OSError):
                lock.unlink()
            os.close(handle)
            if sys.platform == "win32":
                with suppress(OSError):
                    lock.unlink()


def _taken(place: Path, lock: Path, warn: Callable[[str], None], advice: str) -> int | None:
    """An open file that is locked; None where the file system has no locks."""
    while True:
        handle = _opened(lock)
        try:
            if os.fstat(handle).st_nlink > 1:  # what is signed there would stand in another file too
                lock.unlink()
                os.close(handle)
                continue
            try:
                _lock(handle)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warn(f"{place}: no lock can be had there ({error.strerror}); start nothing else that writes there")
                os.close(handle)
                with suppress(OSError):
                    lock.unlink()
                return None
            if _is_still(handle, lock):
                _sign(handle)
                return handle
        except BlockingIOError:
            who = _holder(lock)
            os.close(handle)
            raise OptionError(f"{place}: in use by {who}; wait until that has ended, or {advice}") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder has removed it between our opening and our locking


def _opened(lock: Path) -> int:
    """The lock's file, open. That of another user can often only be read, which is enough to lock it."""
    try:
        return open_plain(lock.parent, lock.name, os.O_RDWR | os.O_CREAT)
    except PermissionError as error:
        try:
            return open_plain(lock.parent, lock.name, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            raise error from None


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 30, os.SEEK_SET)  # far behind what is written: a locked byte cannot be read
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
        finally:
            os.lseek(handle, 0, os.SEEK_SET)

    def _is_still(handle: int, lock: Path) -> bool:
        return True
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_still(handle: int, lock: Path) -> bool:
        """Whether the name still stands for the file that we have locked."""
        try:
            return os.path.samestat(os.fstat(handle), lock.lstat())
        except FileNotFoundError:
            return False


def _sign(handle: int) -> None:
    """Write who holds it; a disk too full for that is met where the work is written."""
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())


def _holder(lock: Path) -> str:
    """Who has signed; a moment is given to one that has locked and not yet signed."""
    for _ in range(10):
        with suppress(OSError, ValueError, KeyError, TypeError):
            with open_to_read(lock.parent, lock.name) as stream:
                facts = json.loads(stream.read(_LONGEST_SIGNATURE))
            return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
        time.sleep(0.02)
    return "another process"
