"""How the double is to misbehave: a JSON file, whose path stands in the environment as TENSORRT_DOUBLE.

`refuse`: nodes that no kernel keeps to a pin of. `swallow`: nodes whose pin a fusion swallows. `marking_changes`:
nodes that run in float32 in an engine in which tensors are marked. `drifts`: the same, but for those that an editable
timing cache holds to their kernels. `dla_cores`: how many there are. `widens`: what gives a marked tensor that was
left FLOAT runs in float32. `spreads`: with INT8, a layer that has scales on both sides is told to take and give it,
though it is computed as a float. `takes_back`: a float32 product that stands alone between layers in half runs in
half, pinned or not, as TensorRT-RTX compiles it. `tactics`: node → the name of the kernel that runs it. `metadata`:
how layers tell their node, as the parser of "8.6", "10.1" or (by default) 10.16 does. `header`: the first line of the
calibration caches that are taken. `crash`: {"at": "build" | "run", "signal": "SIGSEGV" | "SIGKILL" | …} ends the
process. `full_disk`: from a build on, nothing can be written any more. `no_debug`: tensors that are marked as no
debug tensors. `unfused`: an engine's own tensors are shown by the names of the network, but for those that it
"renames"; those that it has "channel_major" are stored so. Without it none is shown; "refused": they cannot be
marked. `gives_nothing`: a build fails without a word. The last three may have `flags`: the builder's flags with which
they happen.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def settings() -> Mapping[str, Any]:
    """The settings as they stand now; empty without a file."""
    path = os.environ.get("TENSORRT_DOUBLE")
    found: dict[str, Any] = {} if path is None else json.loads(Path(path).read_text("utf-8"))
    return found


def maybe_crash(at: str, flags: Collection[str]) -> None:
    """End the process here, if that is asked."""
    crash = settings().get("crash", {})
    if crash.get("at") != at or not set(crash.get("flags", ())) <= set(flags):
        return
    if crash["signal"] == "SIGSEGV":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.Signals[crash["signal"]])


def gives_nothing(flags: Collection[str]) -> bool:
    """Whether a build is to fail without a word."""
    silent = settings().get("gives_nothing")
    return silent is not None and set(silent.get("flags", ())) <= set(flags)


def maybe_fill_the_disk(flags: Collection[str]) -> None:
    """Let every write of this process fail from here on, if that is asked: the disk tells of it when it is synced."""
    full = settings().get("full_disk")
    if full is None or not set(full.get("flags", ())) <= set(flags):
        return

    def fsync(fd: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = fsync
