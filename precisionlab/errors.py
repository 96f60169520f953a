"""The errors that a user can cause and fix. The command line prints them as one sentence and exits with 2."""

from __future__ import annotations

import errno
import re

_NO_ROOM = re.compile(
    "failed to map segment|[Cc]annot allocate memory|can't start new thread|error return without exception set"
)
"""Of the system's loader, of Python where a thread finds no room, and of C code that had none for its error."""


class PrecisionLabError(Exception):
    """Base of every error that says what is wrong, where, and what to do."""


class ModelError(PrecisionLabError):
    """The ONNX model cannot be read, is not valid, or cannot run."""


class DataError(PrecisionLabError):
    """The data folder, its manifest or a sample cannot be used."""


class PlanError(PrecisionLabError):
    """A precision plan cannot be read or does not belong to the model."""


class OptionError(PrecisionLabError):
    """An option has a value that cannot be used."""


class EngineError(PrecisionLabError):
    """TensorRT or its GPU cannot be used, or an engine cannot be loaded or run."""


class BuildError(EngineError):
    """TensorRT refuses to build an engine. That says nothing of its accuracy."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that a library or a thread has no room in memory."""
    while error is not None:
        if isinstance(error, MemoryError) or _NO_ROOM.search(str(error)):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False
