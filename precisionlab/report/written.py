"""Digests of what a run has written, in its run.json: what was changed since is told by name.

No signature: who changes a file can write its digest anew. A figure that matters is measured again by `verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from precisionlab.system.plainfiles import is_there
from precisionlab.system.reading import LARGEST_JSON, UnreadableError, read_inside

WRITTEN = "written"
RUN_FILE = "run.json"

_DIGITS = 16  # of SHA-256, in hexadecimal


def with_digests(run: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """What run.json holds, with the digests of files of the folder, and its own."""
    files = {name: _digest(read_inside(folder, name, LARGEST_JSON)) for name in names}
    facts = {**run, WRITTEN: {"files": files}}
    facts[WRITTEN] = {"files": files, "sha256": _digest_of(facts)}
    return facts


def altered(run: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """The files that are not as they were written; none for runs of older versions, which have no digests."""
    written = run.get(WRITTEN)
    if written is None:
        return ()
    files = written.get("files") if isinstance(written, Mapping) else None
    if not isinstance(files, Mapping) or written.get("sha256") != _digest_of({**run, WRITTEN: {"files": files}}):
        return (RUN_FILE,)
    return tuple(str(name) for name, digest in files.items() if _digest_in(folder, str(name)) != digest)


def _digest_in(folder: Path, name: str) -> str | None:
    try:
        return _digest(read_inside(folder, name, LARGEST_JSON)) if is_there(folder, name) else None
    except (UnreadableError, ValueError):
        return None


def _digest_of(facts: Mapping[str, Any]) -> str:
    return _digest(json.dumps(facts, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
