"""A double of TensorRT 10.14, for machines that have neither TensorRT nor a GPU: the names, and the manners.

Put `tests/double` and `tests` on `sys.path`, and `import tensorrt` gives this. It parses ONNX files to the network that
the real parser makes of them, decides what each layer runs in by flags, pins, output types and INT8 ranges, writes an
engine that holds the model and these decisions, and runs it in ONNX Runtime on an emulation. `_settings.py` says how it
can be told to misbehave as the real one may.

What it cannot know: which kernels a real TensorRT has, what it fuses (here: what precisionlab takes for fused), how it
times and chooses kernels, how its kernels round inside, how its entropy calibration finds a range (here: the largest
value), and what its messages are to the letter.
"""

from ._builder import Builder, IBuilderConfig, IHostMemory, IOptimizationProfile, ITimingCache
from ._engine import EngineInspector, ICudaEngine, IExecutionContext, Runtime
from ._interfaces import (
    BuilderFlag,
    DataType,
    DeviceType,
    IDebugListener,
    IInt8EntropyCalibrator2,
    ILogger,
    IOutputAllocator,
    IProfiler,
    IProgressMonitor,
    LayerInformationFormat,
    LayerType,
    Logger,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)
from ._network import ILayer, INetworkDefinition, ITensor
from ._parser import OnnxParser, ParserError
from ._plugins import IPluginRegistry, get_plugin_registry, init_libnvinfer_plugins

__version__ = "10.14.1.48.post1"

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "DeviceType",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IDebugListener",
    "IExecutionContext",
    "IHostMemory",
    "IInt8EntropyCalibrator2",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IOutputAllocator",
    "IPluginRegistry",
    "IProfiler",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "LayerType",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "get_plugin_registry",
    "init_libnvinfer_plugins",
]
