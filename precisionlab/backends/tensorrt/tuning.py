"""A user's options on an engine's build, refused where TensorRT has them not, and handed to it.

Asked for by what a module has, never by its version. The sentences name the option of the command line.
"""

from __future__ import annotations

from typing import Any

from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tuning import AUTOMATIC, Tuning
from precisionlab.errors import BuildError, EngineError, OptionError


def check_tuning(trt: Any, tuning: Tuning, features: Features, logger: Any) -> None:
    """Whether this TensorRT, on this machine, can do what is asked. Raises OptionError that names the option."""
    flags, config = trt.BuilderFlag, trt.IBuilderConfig
    streams = hasattr(flags, "WEIGHT_STREAMING") and hasattr(trt.ICudaEngine, "weight_streaming_budget_v2")
    has = {
        "--optimization-level": hasattr(config, "builder_optimization_level"),
        "--avg-timing": hasattr(config, "avg_timing_iterations"),
        "--dla": hasattr(flags, "GPU_FALLBACK"),
        "--weight-streaming": streams,
        "--version-compatible": hasattr(flags, "VERSION_COMPATIBLE"),
        "--refit": hasattr(flags, "REFIT"),
    }
    for option, is_there in has.items():
        asked = getattr(tuning, option.removeprefix("--").replace("-", "_"))
        if asked is not None and asked is not False and not is_there:
            raise OptionError(f"{option}: TensorRT {features.version} has no such thing; leave it out")
    for name, form in tuning.formats:
        known = trt.TensorFormat.__members__
        if form not in known:
            raise OptionError(
                f"--io-format {name}:{form.lower()}: TensorRT {features.version} has no such format; it has "
                f"{', '.join(known).lower()}"
            )
    if tuning.dla is not None:
        _check_dla(trt, tuning.dla, features, logger)


def check_weakly_typed(tuning: Tuning, features: Features) -> None:
    """Whether weakly typed networks can be built so. Raises OptionError that names the option."""
    if tuning.weight_streaming is not None:
        # trtexec of 10.x: "--allowWeightStreaming … Must be specified with --stronglyTyped."
        raise OptionError(
            f"--weight-streaming: TensorRT {features.version} streams the weights of strongly typed networks alone; "
            "leave it out, or add --typed"
        )


def _check_dla(trt: Any, core: int, features: Features, logger: Any) -> None:
    try:
        count = int(trt.Runtime(logger).num_DLA_cores)
    except (TypeError, RuntimeError):  # the bindings' words for a null pointer: without a GPU there is no DLA either
        count = 0
    if core >= count:
        have = f"has the cores 0 to {count - 1}" if count > 1 else "has core 0 alone" if count else "has no DLA"
        raise OptionError(f"--dla {core}: this machine {have}, as TensorRT {features.version} says; leave it out")


def tune(trt: Any, config: Any, tuning: Tuning) -> tuple[str, ...]:
    """Hand the options to a build's configuration; what it took otherwise than asked."""
    told = []
    if tuning.optimization_level is not None:
        config.builder_optimization_level = tuning.optimization_level
        if config.builder_optimization_level != tuning.optimization_level:
            told.append(
                f"--optimization-level {tuning.optimization_level}: TensorRT takes {config.builder_optimization_level}"
            )
    if tuning.avg_timing is not None:
        config.avg_timing_iterations = tuning.avg_timing
    if tuning.dla is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = tuning.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if tuning.weight_streaming is not None:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if tuning.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if tuning.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    return tuple(told)


def set_formats(trt: Any, network: Any, tuning: Tuning) -> None:
    """Have inputs and outputs stored as asked. Raises BuildError for what the network has not."""
    if not tuning.formats:
        return
    ends = [network.get_input(index) for index in range(network.num_inputs)]
    ends += [network.get_output(index) for index in range(network.num_outputs)]
    for name, form in tuning.formats:
        found = [tensor for tensor in ends if tensor.name == name]
        if not found:
            raise BuildError(f"--io-format {name}: the network has no such input or output")
        for tensor in found:
            tensor.allowed_formats = 1 << int(trt.TensorFormat.__members__[form])


def make_runtime(trt: Any, logger: Any, tuning: Tuning) -> Any:
    """A runtime for an engine that was built with these options.

    A version-compatible engine brings its own lean runtime, code for the host, which only runs where that is allowed:
    it is for engines alone that this program has built.
    """
    runtime = trt.Runtime(logger)
    if tuning.version_compatible:
        runtime.engine_host_code_allowed = True
    if tuning.dla is not None:
        runtime.DLA_core = tuning.dla
    return runtime


def stream_weights(engine: Any, tuning: Tuning, name: str) -> None:
    """Set how much of an engine's weights lies on the GPU; before any context is made. Raises EngineError."""
    if tuning.weight_streaming is None:
        return
    budget = tuning.weight_streaming
    if budget == AUTOMATIC:
        budget = engine.get_weight_streaming_automatic_budget()
    # At most as much as there is to stream: with all of it on the GPU, nothing is.
    budget = min(budget, int(engine.streamable_weights_size))
    engine.weight_streaming_budget_v2 = budget
    if engine.weight_streaming_budget_v2 != budget:
        raise EngineError(f"{name}: TensorRT does not stream its weights with {budget} bytes of them on the GPU")
