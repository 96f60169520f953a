"""Enumerations, and the interfaces that users subclass."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Sequence
from typing import Any

from gpu.stub import DataType, TensorFormat, TensorIOMode, TensorLocation

__all__ = ["DataType", "TensorFormat", "TensorIOMode", "TensorLocation"]


class BuilderFlag(enum.Enum):
    FP16 = enum.auto()
    INT8 = enum.auto()
    FP8 = enum.auto()
    BF16 = enum.auto()
    TF32 = enum.auto()
    STRICT_NANS = enum.auto()
    EDITABLE_TIMING_CACHE = enum.auto()
    GPU_FALLBACK = enum.auto()
    VERSION_COMPATIBLE = enum.auto()
    WEIGHT_STREAMING = enum.auto()
    REFIT = enum.auto()
    OBEY_PRECISION_CONSTRAINTS = enum.auto()
    PREFER_PRECISION_CONSTRAINTS = enum.auto()


class DeviceType(enum.Enum):
    GPU = enum.auto()
    DLA = enum.auto()


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = enum.auto()


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = enum.auto()
    DETAILED = enum.auto()
    NONE = enum.auto()


class LayerInformationFormat(enum.Enum):
    ONELINE = enum.auto()
    JSON = enum.auto()


class LayerType(enum.Enum):
    CONVOLUTION = enum.auto()
    CAST = enum.auto()
    ACTIVATION = enum.auto()
    POOLING = enum.auto()
    SCALE = enum.auto()
    SOFTMAX = enum.auto()
    CONCATENATION = enum.auto()
    ELEMENTWISE = enum.auto()
    UNARY = enum.auto()
    SHUFFLE = enum.auto()
    REDUCE = enum.auto()
    GATHER = enum.auto()
    MATRIX_MULTIPLY = enum.auto()
    CONSTANT = enum.auto()
    IDENTITY = enum.auto()
    SHAPE = enum.auto()
    PLUGIN_V3 = enum.auto()
    QUANTIZE = enum.auto()
    DEQUANTIZE = enum.auto()
    CONDITION = enum.auto()
    CONDITIONAL_INPUT = enum.auto()
    CONDITIONAL_OUTPUT = enum.auto()


class _Checked(type):
    """Makes sure, as pybind11 does, that a subclass has called its base's `__init__`."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        made = super().__call__(*args, **keywords)
        if not hasattr(made, "_base_is_made"):
            raise TypeError(f"{cls.__mro__[1].__name__}.__init__() must be called when overriding __init__")
        return made


class _Interface(metaclass=_Checked):
    def __init__(self) -> None:
        self._base_is_made = True


class ILogger(_Interface):
    class Severity(enum.Enum):
        INTERNAL_ERROR = enum.auto()
        ERROR = enum.auto()
        WARNING = enum.auto()
        INFO = enum.auto()
        VERBOSE = enum.auto()

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    """TensorRT's own: it prints from its severity on, in C++ for the real one, which calls no Python."""

    def __init__(self, min_severity: ILogger.Severity = ILogger.Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        if severity.value <= self.min_severity.value:
            letter = "F" if severity is ILogger.Severity.INTERNAL_ERROR else severity.name[0]
            os.write(1, f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [TRT] [{letter}] {msg}\n".encode())


class IProgressMonitor(_Interface):
    pass


class IProfiler(_Interface):
    pass


class IOutputAllocator(_Interface):
    pass


class IDebugListener(_Interface):
    pass


class IInt8EntropyCalibrator2(_Interface):
    def get_batch_size(self) -> int:
        raise NotImplementedError

    def get_batch(self, names: Sequence[str]) -> Sequence[int] | None:
        raise NotImplementedError

    def read_calibration_cache(self) -> bytes | None:
        raise NotImplementedError

    def write_calibration_cache(self, cache: memoryview) -> None:
        raise NotImplementedError


class _Log:
    """A user's logger, called with the severity's name. What it raises goes nowhere: the caller is C++."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def log(self, severity: str, text: str) -> None:
        try:
            self._logger.log(ILogger.Severity[severity], text)
        except Exception:
            return
