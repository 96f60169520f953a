"""A build's configuration: precision flags, limits, profiles, the calibrator, and the timings kept between builds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.jobs import BuildJob
from precisionlab.backends.tensorrt.profiles import add_profiles
from precisionlab.backends.tensorrt.timings import load_timings
from precisionlab.backends.tensorrt.tuning import tune
from precisionlab.errors import BuildError
from precisionlab.precision import Precision

NO_TYPED = "has no strongly typed networks, which TensorRT 10.0 and later have: leave --typed"
_STRONGLY_TYPED = (
    "this TensorRT takes the types from the ONNX graph alone (strongly typed); flags and pins are of 8.6 to 10.16"
)


@dataclass(frozen=True)
class Configuration:
    """TensorRT's configuration of one build.

    `timing_cache` is held for as long as the configuration, which only refers to it. `warnings` are ours, on a timing
    cache that could not be used.
    """

    config: Any
    timing_cache: Any | None
    warnings: tuple[str, ...]


def configure(
    trt: Any,
    builder: Any,
    network: Any,
    job: BuildJob,
    features: Features,
    calibrator: Any | None,
    own_flags: Collection[str] = (),
) -> Configuration:
    """What the builder is to keep to. `own_flags` are those for the network's own Q/DQ layers, where weakly typed.

    Raises BuildError where this TensorRT cannot do what the job asks, ValueError for INT8 without a calibrator.
    """
    check_job(job, features)
    check_explicit(job, own_flags)
    int8 = any(precision.is_quantized for precision in job.enabled)
    if int8 and calibrator is None:
        raise ValueError("INT8 needs a calibration cache or samples")
    config = builder.create_builder_config()
    # TF32 is on by default, and cuts float32's mantissa to 10 bits: "FP32" would be nearly FP16.
    config.clear_flag(trt.BuilderFlag.TF32)
    if job.strict_nans:
        config.set_flag(trt.BuilderFlag.STRICT_NANS)
    for precision in sorted(job.enabled):
        config.set_flag(getattr(trt.BuilderFlag, precision.name))
    for name in own_flags:
        # A version without the flag has no layers of the type either, or needs none for them (INT4 before 10.3).
        if hasattr(trt.BuilderFlag, name):
            config.set_flag(getattr(trt.BuilderFlag, name))
    if job.pins:
        flags = trt.BuilderFlag
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS if job.obey else flags.PREFER_PRECISION_CONSTRAINTS)
    if int8:
        config.int8_calibrator = calibrator
    # The inspector tells a layer's types only of an engine that was built with this.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.compute is not None:
        _compile_for(trt, config, job.compute)
    add_profiles(trt, builder, network, config, (job.profiles, *job.more_profiles), int8)
    told = tune(trt, config, job.tuning)
    if job.timing_cache is None:
        return Configuration(config, None, told)
    if features.editable_timings:
        config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    timing_cache, warnings = load_timings(config, job.timing_cache)
    return Configuration(config, timing_cache, (*told, *warnings))


def _compile_for(trt: Any, config: Any, capability: str) -> None:
    """Let TensorRT-RTX compile for a GPU that need not be here. Raises BuildError for one that it does not know."""
    members = trt.ComputeCapability.__members__ if hasattr(trt, "ComputeCapability") else {}
    known = [name for name in members if name.startswith("SM")]
    if capability not in known:
        raise BuildError(
            f"TensorRT {trt.__version__} does not compile for {capability.lower()}; "
            + (f"it does for {', '.join(known).lower()}" if known else "it builds for the GPU that is here alone")
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(members[capability], 0)


def check_job(job: BuildJob, features: Features) -> None:
    """Whether a TensorRT with these features can do what is asked. Raises BuildError that says which one can."""
    if (job.enabled or job.pins) and not features.pins:
        asked = ", ".join(sorted(p.value for p in job.enabled)) or "pinned layers"
        raise BuildError(f"TensorRT {features.version} cannot be asked for {asked}: {_STRONGLY_TYPED}")
    if job.typed and not features.strongly_typed:
        raise BuildError(f"TensorRT {features.version} {NO_TYPED}")
    if job.typed and (job.enabled or job.pins or job.marked_as):
        raise ValueError("a strongly typed network takes no precision flags, and its layers and outputs no types")
    if job.strict_nans and not features.strict_nans:
        raise BuildError(f"TensorRT {features.version} cannot be asked to keep every NaN; 10.6 and later can")
    if Precision.FP32 in job.enabled:
        raise ValueError("fp32 is not a low precision: kernels may always have it")
    for precision in sorted(job.enabled | {pin.precision for pin in job.pins}):
        if precision.is_low and precision not in features.precisions:
            have = precision.number_format.builders
            raise BuildError(f"TensorRT {features.version} has no {precision}" + (f"; {have} have it" if have else ""))
    if any(precision.is_quantized for precision in job.enabled) and not features.calibrators:
        raise BuildError(f"TensorRT {features.version} has no INT8 calibrators: {_STRONGLY_TYPED}")


def check_explicit(job: BuildJob, own_flags: Collection[str]) -> None:
    """Raises BuildError where int8 ranges are to go beside the network's own, which TensorRT would take alone."""
    if own_flags and any(precision.is_quantized for precision in job.enabled):
        raise BuildError(
            f"{job.model}: the network has Q/DQ layers of its own, and TensorRT takes no other int8 ranges beside "
            "them; leave int8 to these, or quantise the whole model by such nodes (export --format typed-onnx)"
        )
