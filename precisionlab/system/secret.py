"""A number that only this user's own runs know: what they have sealed with it, no stranger's folder can bring along."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path

from precisionlab.system.disk import make_folder, write_whole_bytes
from precisionlab.system.reading import UnreadableError, read_inside

_NAME = "secret"
_BYTES = 32


def sealed(content: bytes) -> str:
    """The seal of a content, in hexadecimal: HMAC-SHA-256 (RFC 2104) under the user's secret."""
    return hmac.new(_secret(), content, hashlib.sha256).hexdigest()


def is_sealed(content: bytes, seal: object) -> bool:
    """Whether the seal is of this content, and by this user."""
    return isinstance(seal, str) and hmac.compare_digest(sealed(content).encode(), seal.encode("utf-8", "replace"))


@cache
def _secret() -> bytes:
    """The user's secret, made at its first use; where it cannot be kept, one for this process alone."""
    folder = _folder()
    if folder is not None:
        with suppress(UnreadableError):
            found = read_inside(folder, _NAME, _BYTES)
            if len(found) == _BYTES:
                return found
    made = secrets.token_bytes(_BYTES)
    if folder is not None:
        with suppress(OSError):
            make_folder(folder)
            write_whole_bytes(folder / _NAME, made, 0o600)
    return made


def _folder() -> Path | None:
    """Where programs keep what they know of themselves (XDG Base Directory Specification); None without a home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state") / "precisionlab"
    except RuntimeError:
        return None
