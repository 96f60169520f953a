"""One engine: from the job to the file, and what is known of it.

Runs in TensorRT's own process (see `process.py`): a build may crash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.tensorrt.api import Features, features_of
from precisionlab.backends.tensorrt.buffers import numpy_dtype
from precisionlab.backends.tensorrt.buildlog import layers_of as layers_in_log
from precisionlab.backends.tensorrt.calibrator import Feed, make_calibrator
from precisionlab.backends.tensorrt.configuration import Configuration, check_job, configure
from precisionlab.backends.tensorrt.constraints import apply_pins
from precisionlab.backends.tensorrt.culprit import at_nodes, first_refused, named_nodes
from precisionlab.backends.tensorrt.explicit import quantization_flags
from precisionlab.backends.tensorrt.inspector import layers_of as layers_in_engine
from precisionlab.backends.tensorrt.jobs import BuildJob, Built, EngineLayer, PinOutcome, Profile
from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.backends.tensorrt.matching import match_pins
from precisionlab.backends.tensorrt.metadata import NodeNames
from precisionlab.backends.tensorrt.monitor import make_monitor
from precisionlab.backends.tensorrt.network import NetworkLayer, ParsedNetwork, describe, parse
from precisionlab.backends.tensorrt.outputlog import logger_for
from precisionlab.backends.tensorrt.profile_names import told_apart
from precisionlab.backends.tensorrt.refusal import why_refused
from precisionlab.backends.tensorrt.timings import choices, compared, save_timings
from precisionlab.backends.tensorrt.tuning import make_runtime, set_formats
from precisionlab.backends.tuning import UNTUNED, Tuning
from precisionlab.errors import BuildError, EngineError
from precisionlab.precision import Precision
from precisionlab.system.disk import write_whole_bytes

_NAMED = 4
_DEFAULT_STREAM = 0
Progress = Callable[[str, int, int], None]
"""Called with what the build is at, how many parts of it are done, and how many there are."""


def build(
    trt: Any,
    job: BuildJob,
    keeper: LogKeeper,
    feed: Feed | None = None,
    progress: Progress = lambda title, done, total: None,
) -> Built:
    """Build the job's engine, and write it to `job.engine`.

    `feed` gives samples in GPU memory, where INT8 is enabled without a calibration cache. `keeper` has what TensorRT
    said of this build when it is over.

    Raises BuildError where TensorRT refuses the model, the job, or gives no engine; EngineError where it cannot be used
    or the engine not written; what `feed` raised while TensorRT calibrated.
    """
    started = time.perf_counter()
    keeper.forget()
    features = features_of(trt)
    check_job(job, features)
    calibrator = make_calibrator(trt, job.cache, feed) if any(p.is_quantized for p in job.enabled) else None
    logger = logger_for(trt, keeper)
    builder = make_builder(trt, logger, keeper)
    with parse(trt, logger, builder, job.model, features, keeper, typed=job.typed) as parsed:
        network = parsed.network
        described = describe(network, parsed.names)
        outcomes = apply_pins(trt, network, match_pins(job.pins, described)) if job.pins else ()
        set_formats(trt, network, job.tuning)  # before others become outputs
        mark(trt, network, job.marked, job.marked_as)
        unmarked = mark_debug(network, job.debug, features)
        if job.unfused:
            mark_unfused(network, features)
        own = quantization_flags(described) if features.pins and not job.typed else ()
        configured = configure(trt, builder, network, job, features, calibrator, own)
        config = configured.config
        chosen = _chosen(configured, features)
        # After an error in the data the rest of the build is of no use to anybody.
        monitor = make_monitor(trt, progress, lambda: _has_failed(calibrator))
        if monitor is not None:
            config.progress_monitor = monitor
        serialized = builder.build_serialized_network(network, config)
        for callbacks in (calibrator, monitor):
            if callbacks is not None:
                callbacks.raise_kept()
        if serialized is None:
            taken = time.perf_counter() - started
            raise _refused(builder, parsed, config, job, keeper, described, outcomes, None if features.pins else taken)
        size = write_engine(serialized, job.engine)
        timings: tuple[str, ...] = ()
        tactics = None if chosen is None else compared(chosen, _chosen(configured, features) or {})
        if job.timing_cache is not None:
            timings = save_timings(config, configured.timing_cache, job.timing_cache)
        seconds = time.perf_counter() - started
        said = (*parsed.warnings, *configured.warnings, *keeper.warnings, *keeper.errors, *timings)
        sets = (job.profiles, *job.more_profiles)
        layers, unread = read_layers(trt, logger, keeper, serialized, sets, parsed.names, job.tuning)
    return Built(job.engine, seconds, size, outcomes, layers, (*said, *unread), unmarked, tactics)


def _chosen(configured: Configuration, features: Features) -> dict[str, int] | None:
    """What the build's timing cache chooses, where it can be asked."""
    held = configured.timing_cache
    return None if held is None or not features.editable_timings else choices(held)


def _refused(
    builder: Any,
    parsed: ParsedNetwork,
    config: Any,
    job: BuildJob,
    keeper: LogKeeper,
    layers: Sequence[NetworkLayer],
    outcomes: Sequence[PinOutcome],
    taken: float | None,
) -> BuildError:
    """Why there is no engine, and at which node; where none is named, and builds are quick (`taken`), it is found."""
    errors, network, operators = keeper.errors, parsed.network, parsed.names.operators
    why = why_refused(errors, keeper.warnings, outcomes, job.obey)

    def refusal() -> Sequence[str] | None:
        keeper.forget()
        return keeper.errors if builder.build_serialized_network(network, config) is None else None

    nodes = named_nodes(errors, layers, operators)
    # An option that cannot be had is refused with any node, so that the first would be blamed.
    if not nodes and taken is not None and not job.tuning.options:
        found = first_refused(network, layers, refusal, errors, taken)
        nodes = () if found is None or found not in operators else (found,)
    asked = f" (asked for with {job.tuning.options})" if job.tuning.options else ""
    return BuildError(f"{job.label or job.model}: TensorRT gives no engine{asked}{at_nodes(nodes, operators)}: {why}")


def network_layers(trt: Any, model: Path, keeper: LogKeeper, typed: bool) -> tuple[NetworkLayer, ...]:
    """The network, strongly `typed` or not, that the parser makes of an ONNX file. Raises BuildError."""
    keeper.forget()
    logger = logger_for(trt, keeper)
    builder = make_builder(trt, logger, keeper)
    with parse(trt, logger, builder, model, features_of(trt), keeper, typed=typed) as parsed:
        return describe(parsed.network, parsed.names)


def make_builder(trt: Any, logger: Any, keeper: LogKeeper) -> Any:
    """TensorRT's builder. Raises EngineError where it cannot start: then the GPU or its driver is missing."""
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the bindings' words for a null pointer
        said = "; ".join(keeper.errors[-2:]) or str(error)
        raise EngineError(
            f"TensorRT {trt.__version__} cannot start ({said}); "
            "is there an NVIDIA GPU, with a driver new enough for it?"
        ) from None


def mark(trt: Any, network: Any, names: Iterable[str], held: Mapping[str, Precision]) -> None:
    """Make these tensors outputs of the network, so that they can be looked at. Raises BuildError for unknown ones.

    A tensor of the network is float32 until the build, whatever its layer will run in: as an output it would be stored
    in that, unrounded. So those in `held` get their half precision: only outputs can be given a type, and so they are
    marked first (NvInfer.h, `ITensor::setType`, 8.6 to 10.16). In a strongly typed network, types are its own.
    """
    for tensor in _tensors(network, names):
        if not tensor.is_network_output:
            network.mark_output(tensor)
            if tensor.name in held:
                _store_in(trt, tensor, held[tensor.name])


def _store_in(trt: Any, tensor: Any, precision: Precision) -> None:
    """Have an output stored in a half precision, where it has no other type than a network's float."""
    if tensor.dtype == trt.DataType.FLOAT:
        tensor.dtype = getattr(trt.DataType, precision.number_format.tensorrt)


def mark_debug(network: Any, names: Sequence[str], features: Features) -> tuple[str, ...]:
    """Let these tensors be looked at by a debug listener; they become no outputs, and are not held in memory.

    The answer has those that TensorRT does not mark. Raises BuildError for unknown ones, where TensorRT has no debug
    tensors (before 10.0), and where it marks none of them.
    """
    if names and not features.debug_tensors:
        raise BuildError(f"TensorRT {features.version} has no debug tensors; 10.0 and later do")
    unmarked = tuple(tensor.name for tensor in _tensors(network, names) if not network.mark_debug(tensor))
    if names and len(unmarked) == len(set(names)):
        raise BuildError(f"TensorRT marks no debug tensor of {', '.join(map(repr, unmarked[:_NAMED]))}")
    return unmarked


def mark_unfused(network: Any, features: Features) -> None:
    """Let all tensors be looked at that no fusion takes, without keeping one from being fused.

    Raises BuildError where TensorRT has no such thing (before 10.12), or says no.
    """
    if not features.unfused_tensors:
        raise BuildError(f"TensorRT {features.version} cannot show its unfused tensors; 10.12 and later can")
    if not network.mark_unfused_tensors_as_debug_tensors():
        raise BuildError("TensorRT does not mark its unfused tensors")


def _tensors(network: Any, names: Iterable[str]) -> list[Any]:
    """The network's tensors of these names, in their order. Raises BuildError where one is not there."""
    wanted = dict.fromkeys(names)
    if not wanted:
        return []
    tensors = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            tensor = layer.get_output(output)
            if tensor is not None and tensor.name in wanted:
                tensors[tensor.name] = tensor
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise BuildError(f"no layer of the network gives the tensor {missing[0]!r}, which was to be looked at")
    return [tensors[name] for name in wanted]


def write_engine(serialized: Any, path: Path) -> int:
    """Write an engine whole or not at all; its size in bytes. Raises EngineError where the disk does not take it."""
    content: Any = memoryview(serialized)  # an engine may be gigabytes: not another copy of it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole_bytes(path, content)
    except OSError as error:
        raise EngineError(
            f"{path}: the engine cannot be written ({error.strerror}); make room, or choose another folder"
        ) from None
    return int(content.nbytes)


def read_layers(
    trt: Any,
    logger: Any,
    keeper: LogKeeper,
    serialized: Any,
    sets: Sequence[Mapping[str, Profile]],
    names: NodeNames,
    tuning: Tuning = UNTUNED,
) -> tuple[tuple[EngineLayer, ...], tuple[str, ...]]:
    """The layers of an engine just built, those of each of its profiles, and warnings where they cannot be had.

    From the builder's log where it lists them (TensorRT-RTX; that needs no GPU), else from the engine's inspector.
    `sets` are its profiles, `names` those of the file that it was built of.
    """
    told: tuple[str, ...] = ()
    if keeper.layers is not None:
        try:
            return told_apart(layers_in_log(keeper.layers, names), len(sets)), ()
        except EngineError as error:
            told = (str(error),)
    try:
        runtime = make_runtime(trt, logger, tuning)
        engine = runtime.deserialize_cuda_engine(serialized)
    except (TypeError, RuntimeError) as error:
        return (), (*told, f"the engine's layers are not known: it cannot be loaded ({error})")
    if engine is None:
        why = keeper.errors[-1] if keeper.errors else "TensorRT does not say why"
        return (), (*told, f"the engine's layers are not known: it cannot be loaded ({why})")
    texts, unread = _inspected(trt, engine, sets)
    del engine, runtime  # in this order: none may outlive the one that made it
    try:
        each = [told_apart(layers_in_engine(text, names), len(sets)) for text in texts]
    except EngineError as error:
        return (), (*told, *unread, f"the engine's layers are not known: {error}")
    return tuple(layer for index, found in enumerate(each) for layer in found if layer.profile == index), (
        *told,
        *unread,
    )


def _inspected(trt: Any, engine: Any, sets: Sequence[Mapping[str, Profile]]) -> tuple[list[str], tuple[str, ...]]:
    """What the inspector says of the whole engine, once at the usual shapes of each profile, and what it cannot say.

    Of a dynamic tensor it tells nothing without a context that is in its profile, at known shapes.
    """
    told: dict[str, None] = {}
    texts = []
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context() if sets[0] else None
    for index, profiles in enumerate(sets):
        shapes: list[NDArray[Any]] = []
        if context is not None and index and not context.set_optimization_profile_async(index, _DEFAULT_STREAM):
            told[f"TensorRT does not change to profile {index}: the types of its dynamic tensors are not known"] = None
        elif context is not None:
            shapes = _at_usual_shapes(engine, context, profiles)
            inspector.execution_context = context
        elif profiles:
            told["the GPU has no room to run the engine: the types of dynamic tensors are not known"] = None
        texts.append(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        del shapes
    del inspector, context  # in this order
    return texts, tuple(told)


def _at_usual_shapes(engine: Any, context: Any, profiles: Mapping[str, Profile]) -> list[NDArray[Any]]:
    """Give a context the profile's OPT shapes; what is returned holds those that are values while it lives."""
    held = []
    for name, shapes in profiles.items():
        if engine.is_shape_inference_io(name):
            values = np.array(shapes.opt, numpy_dtype(engine.get_tensor_dtype(name).name, name))
            context.set_tensor_address(name, values.ctypes.data)
            held.append(values)
        else:
            context.set_input_shape(name, shapes.opt)
    return held


def _has_failed(calibrator: Any | None) -> bool:
    if calibrator is None:
        return False
    try:
        calibrator.raise_kept()
    except BaseException:
        return True
    return False
