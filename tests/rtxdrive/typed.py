"""Gives strongly typed models to TensorRT-RTX: `typed.py build|parse MODEL… [--target=SM89]`.

Every dynamic dimension is 2. `weights` says whether the engine holds four weights of 1.2345678 in a row as float32, and
eight of them as half.

Prints for each model the interface of its network (name and type of inputs and of outputs), the errors, and what the
builder logs of the engine's layers (parsing alone: nothing). `accumulation` is what the engine's GEMMs say of their
sums, each as a number: 0 where it is left to the kernel, 2 where a product in half adds up in float32. `factors` are
the float32 numbers that they multiply what they give by.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from typing import Any

import numpy as np
import tensorrt_rtx as trt

from precisionlab.backends.tensorrt.logger import LogKeeper, make_logger

WEIGHT = np.float32(1.2345678)
MODELS = [given for given in sys.argv[2:] if not given.startswith("--")]
TARGETS = [given.removeprefix("--target=") for given in sys.argv[2:] if given.startswith("--")]
keep = LogKeeper()
logger = make_logger(trt, keep)
builder = trt.Builder(logger)


def given(path: str, build: bool) -> dict[str, Any]:
    """What comes of one model."""
    keep.forget()
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        return {"errors": [parser.get_error(i).desc() for i in range(parser.num_errors)]}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    interface = [[[tensor.name, tensor.dtype.name] for tensor in tensors] for tensors in (inputs, outputs)]
    if not build:
        return {"interface": interface, "errors": []}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for target in TARGETS:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        shape = [2 if dim < 0 else dim for dim in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    errors = [] if built is not None else [str(error) for error in keep.errors] or ["no engine"]
    engine = b"" if built is None else bytes(built)
    accumulation = [int(kind) for kind in re.findall(rb"accumulation_type=(\d+)", engine)]
    gemms = re.findall(rb"fully_connected=\{[^\n]*? alpha=([0-9A-F]{8})", engine)
    factors = [struct.unpack(">f", bytes.fromhex(digits.decode()))[0] for digits in gemms]
    rows = np.full(4, WEIGHT, np.float32), np.full(8, WEIGHT, np.float16)
    return {
        "interface": interface,
        "errors": errors,
        "layers": str(keep.layers),
        "accumulation": accumulation,
        "factors": factors,
        "weights": [row.tobytes() in engine for row in rows],
    }


print(json.dumps([given(path, sys.argv[1] == "build") for path in MODELS]))
