"""The builder: its configuration, INT8 calibration, and the engine that comes of it."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from cuda.bindings import runtime
from gpu.configuring import Config, OptimizationProfile, TimingCache
from numpy.typing import NDArray

from ._choice import RefusedError, check_explicit, check_typed, choose, float_precision
from ._interfaces import (
    BuilderFlag,
    DataType,
    DeviceType,
    IInt8EntropyCalibrator2,
    ILogger,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    TensorFormat,
    _Log,
)
from ._network import INetworkDefinition, Shape
from ._settings import gives_nothing, maybe_crash, maybe_fill_the_disk, settings

HEADER = "TRT-101401-EntropyCalibration2"
MAGIC = b"double of TensorRT 10.16\n"

ITimingCache = TimingCache
IOptimizationProfile = OptimizationProfile


class IHostMemory(bytes):
    """An engine's bytes: a buffer, as the real one is, and nothing that could be written to a file by itself."""

    @property
    def nbytes(self) -> int:
        return len(self)


class IBuilderConfig(Config):
    """TF32 is on, as in TensorRT."""

    avg_timing_iterations = 1

    def __init__(self) -> None:
        super().__init__(flags=[BuilderFlag.TF32])
        self.progress_monitor: Any = None
        self.default_device_type = DeviceType.GPU
        self.DLA_core = -1
        self._level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        """More than the most is the most."""
        self._level = min(level, 5)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self.flags


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self._log = _Log(logger)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        monitor = config.progress_monitor
        flags = [flag.name for flag in config.flags]
        try:
            if monitor is not None:
                monitor.phase_start("Building Engine", None, 3)
            self._log.log("INFO", "Local timing cache in use. Profiling results in this builder pass will be stored.")
            self._step(monitor, 0)
            maybe_crash("build", flags)
            profile = _check_profiles(network, config)
            check_typed(network, config.flags)
            _formats(network)
            explicit = check_explicit(network, config.flags)
            if explicit and config.int8_calibrator is not None:
                self._log.log("WARNING", "Calibrator won't be used in explicit quantization mode.")
            implicit = config.get_flag(BuilderFlag.INT8) and not explicit
            scales = self._ranges(network, config, profile) if implicit else {}
            self._step(monitor, 1)
            held = _held(config)
            kernels = choose(network, config.flags, scales, self._log, held)
            self._step(monitor, 2)
            if monitor is not None:
                monitor.phase_finish("Building Engine")
        except RefusedError as refused:
            self._log.log("ERROR", str(refused))
            return None
        if gives_nothing(flags):
            return None
        maybe_fill_the_disk(flags)
        if config.timing_cache is not None:
            config.timing_cache.timings |= {f"{kernel.layer}" for kernel in kernels}
        return serialized(
            {
                "model": b64encode(network._parts.content).decode(),
                "kernels": [[k.name, k.layer, k.nodes, k.precision.value] for k in kernels],
                "metadata": {k.layer: k.metadata for k in kernels},
                "around": float_precision(config.flags).value,
                "scales": scales,
                "flags": flags,
                "tuning": [config.builder_optimization_level, config.avg_timing_iterations, config.DLA_core],
                "profile": profile,
                "formats": _formats(network),
                "more": [more.shapes for more in config.profiles[1:]],
                "debug": network._parts.debug,
                "unfused": network._parts.unfused,
                "outputs": [tensor.name for tensor in network._parts.outputs],
                "stored": {t.name: t.dtype.name for t in network._parts.outputs},
                "detailed": config.profiling_verbosity is ProfilingVerbosity.DETAILED,
            }
        )

    def _step(self, monitor: Any, step: int) -> None:
        if monitor is not None and not monitor.step_complete("Building Engine", step):
            raise RefusedError("Error Code 0: BuildCanceled (build was canceled by the progress monitor)")

    # INT8 ranges

    def _ranges(
        self, network: INetworkDefinition, config: IBuilderConfig, profile: Mapping[str, tuple[Shape, Shape, Shape]]
    ) -> dict[str, float]:
        """Tensor → scale: of the calibrator's cache where that is taken, else of its samples."""
        calibrator: IInt8EntropyCalibrator2 | None = config.int8_calibrator
        if calibrator is None:
            raise RefusedError("Calibration failure occurred with no scaling factors detected.")
        cache = calibrator.read_calibration_cache()
        lines = bytes(cache or b"").decode().splitlines()
        if lines and lines[0] == settings().get("header", HEADER):
            pairs = (line.rsplit(": ", 1) for line in lines[1:])
            return {name: struct.unpack(">f", bytes.fromhex(digits))[0] for name, digits in pairs}
        found = _Calibration(network, profile).run(calibrator)
        if not found:
            raise RefusedError("Calibration failure occurred with no scaling factors detected.")
        text = [HEADER, *(f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in found.items())]
        content = bytearray("\n".join([*text, ""]).encode())
        calibrator.write_calibration_cache(memoryview(content))
        content[:] = bytes(len(content))  # the memory is gone after the call
        return found


def _held(config: IBuilderConfig) -> frozenset[str]:
    """The layers whose kernels an editable timing cache holds to what they were."""
    is_editable = config.get_flag(BuilderFlag.EDITABLE_TIMING_CACHE) and config.timing_cache is not None
    return frozenset(config.timing_cache.timings) if is_editable else frozenset()


class _Calibration:
    """Runs the network on a calibrator's samples; the largest value of each tensor makes its range."""

    def __init__(self, network: INetworkDefinition, profile: Mapping[str, tuple[Shape, Shape, Shape]]) -> None:
        import onnxruntime

        self._inputs = network._parts.inputs
        self._shapes = {t.name: profile[t.name][1] if t.name in profile else t.shape for t in self._inputs}
        model = onnx.load_model_from_string(network._parts.content)
        known = {value.name for value in model.graph.output}
        shown = [name for node in model.graph.node for name in node.output if name not in known]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        self._largest: dict[str, float] = {}

    def run(self, calibrator: IInt8EntropyCalibrator2) -> dict[str, float]:
        while (sample := self._next(calibrator)) is not None:
            names = [value.name for value in self._session.get_outputs()]
            values = dict(zip(names, self._session.run(names, sample), strict=True)) | sample
            for name, value in values.items():
                if value.dtype == np.float32 and value.size:
                    self._largest[name] = max(self._largest.get(name, 0.0), float(np.abs(value).max()))
        return {name: largest / 127 for name, largest in self._largest.items() if largest > 0}

    def _next(self, calibrator: IInt8EntropyCalibrator2) -> dict[str, NDArray[Any]] | None:
        names = [tensor.name for tensor in self._inputs]
        try:
            addresses = calibrator.get_batch(names)
        except Exception:
            return None  # an exception looks like the end of the data
        if not addresses:
            return None
        sample = {}
        for name, address in zip(names, addresses, strict=True):
            sample[name] = np.empty(self._shapes[name], np.float32)
            kind = runtime._gpu.cudaMemcpyKind.cudaMemcpyDeviceToHost
            target = sample[name].__array_interface__["data"][0]
            (code,) = runtime._gpu.cudaMemcpy(target, address, sample[name].nbytes, kind)
            if code != 0:
                raise RefusedError("Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
        return sample


def serialized(description: Mapping[str, Any]) -> IHostMemory:
    return IHostMemory(MAGIC + zlib.compress(json.dumps(description).encode(), 1))


def _formats(network: INetworkDefinition) -> dict[str, str]:
    """How inputs and outputs are stored. Raises RefusedError for what float32 cannot be."""
    found = {}
    for tensor in (*network._parts.inputs, *network._parts.outputs):
        (form,) = (form for form in TensorFormat if tensor.allowed_formats == 1 << int(form))
        if form is TensorFormat.HWC8 and tensor.dtype is DataType.FLOAT:
            raise RefusedError(f"Error Code 3: API Usage Error ({tensor.name}: has dataType Float unsupported)")
        found[tensor.name] = form.name
    return found


def _check_profiles(network: INetworkDefinition, config: IBuilderConfig) -> dict[str, tuple[Shape, Shape, Shape]]:
    """The shapes of each dynamic input. Raises RefusedError where some are missing, or are of another rank."""
    needed = [tensor for tensor in network._parts.inputs if min(tensor.shape, default=0) < 0]
    if needed and not config.profiles:
        raise RefusedError("Network has dynamic or shape inputs, but no optimization profile has been defined.")
    for tensor in needed:
        for profile in config.profiles:
            if any(len(shape) != len(tensor.shape) for shape in profile.shapes.get(tensor.name, [()])):
                raise RefusedError(
                    f"Error Code 4: Shape Error ({tensor.name}: the profile's dimensions are not the network's)"
                )
    shapes: dict[str, tuple[Shape, Shape, Shape]] = config.profiles[0].shapes if config.profiles else {}
    return {tensor.name: shapes[tensor.name] for tensor in needed}
