"""The TensorRT that is installed: its module, and what it can do."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from precisionlab.errors import EngineError
from precisionlab.precision import Precision

TENSORRT = "tensorrt"
RTX = "tensorrt_rtx"
_INSTALL = {
    TENSORRT: 'install it with `pip install "precisionlab[tensorrt-cu13]"` (`precisionlab doctor` says which CUDA the '
    "driver can do; [tensorrt-cu12] is the other), or on a Jetson take JetPack's own",
    RTX: 'install it with `pip install --no-build-isolation "precisionlab[rtx]"`',
}


@dataclass(frozen=True)
class Features:
    """What a TensorRT module can do, found by looking at what it has.

    `pins`: precisions are builder flags, and layers are pinned (8.6 to 10.x); without, types stand in the ONNX graph.
    `calibrators`: it calibrates INT8 by itself and takes a calibration cache. `precisions`: the low ones that kernels
    may have.
    `strongly_typed`: a network can be told that its types are those of the model (10.x; later ones are so anyhow).
    `debug_tensors`: tensors can be looked at without becoming outputs. `implicit_batch`: networks must be told that
    their batch is explicit (8.6). `strict_nans`: it can be kept from folding 0·x, x − x and x / x, which would hide a
    NaN (10.6 on). `unfused_tensors`: it can show those that no fusion took, and keeps none from being fused (10.12 on).
    `editable_timings`: kernels are chosen by what a timing cache has (10.8 on). `compiles_ahead`: for GPUs that are
    not here; it then times no kernels (RTX).
    """

    version: str
    pins: bool
    calibrators: bool
    precisions: frozenset[Precision]
    debug_tensors: bool
    implicit_batch: bool
    strict_nans: bool = False
    unfused_tensors: bool = False
    editable_timings: bool = False
    compiles_ahead: bool = False
    strongly_typed: bool = False


def check_installed(name: str) -> None:
    """Raises EngineError where the module is not installed. Loads nothing."""
    if importlib.util.find_spec(name) is None:
        raise EngineError(f"the Python package {name} is not installed; {_INSTALL[name]}")


def load_tensorrt(name: str = TENSORRT) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`. Raises EngineError where it cannot be loaded."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # the libraries' own package opens them, and lets an OSError out
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise EngineError(f"the Python package {name} is not installed; {_INSTALL[name]}") from None
        raise EngineError(
            f"the Python package {name} is installed, but cannot be loaded ({_first_line(error)}); "
            "`precisionlab doctor` names the command that mends it"
        ) from None


def _by_flag(precision: Precision) -> bool:
    """Whether a builder flag is all that kernels need to have it, and ranges: no Q/DQ nodes."""
    return precision.is_low_float or precision.number_format.is_implicit


def features_of(trt: Any) -> Features:
    """What this TensorRT module can do."""
    flags = trt.BuilderFlag
    return Features(
        version=str(trt.__version__),
        pins=hasattr(flags, "OBEY_PRECISION_CONSTRAINTS"),
        calibrators=hasattr(trt, "IInt8EntropyCalibrator2") and hasattr(flags, "INT8"),
        precisions=frozenset(p for p in Precision if _by_flag(p) and hasattr(flags, p.name)),
        debug_tensors=hasattr(trt.INetworkDefinition, "mark_debug"),
        # In 8.6 a network is of implicit batch unless it is told otherwise; 10.x has kept the flag, and ignores it.
        implicit_batch=hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"),
        strict_nans=hasattr(flags, "STRICT_NANS"),
        editable_timings=hasattr(flags, "EDITABLE_TIMING_CACHE"),
        compiles_ahead=hasattr(trt, "ComputeCapability"),
        unfused_tensors=hasattr(trt.INetworkDefinition, "mark_unfused_tensors_as_debug_tensors"),
        strongly_typed=hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
