"""The errors that a user can cause and mend. The command line prints them as one sentence and exits with 2."""

from __future__ import annotations


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
