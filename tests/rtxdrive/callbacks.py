"""Builds a model with our logger and our monitor: `callbacks.py MODEL LOG`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorrt_rtx as trt

from precisionlab.backends.tensorrt.logger import LogKeeper, make_logger
from precisionlab.backends.tensorrt.monitor import make_monitor

MODEL, LOG = map(Path, sys.argv[1:])
keep = LogKeeper(LOG)
logger = make_logger(trt, keep)


def build(progress, cancelled):
    """Whether there is an engine, and what was kept."""
    keep.forget()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(MODEL))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor = make_monitor(trt, progress, cancelled)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(1 if dim < 0 else dim for dim in tensor.shape)
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    try:
        monitor.raise_kept()
    except RuntimeError as error:
        raised = str(error)
    else:
        raised = None
    return {"built": engine is not None, "raised": raised, "errors": keep.errors, "layers": keep.layers}


def broken(title, done, total):
    raise RuntimeError("the pipe is closed")


told: list[tuple[str, int, int]] = []
whole = build(lambda *now: told.append(now), lambda: False)
soon: list[int] = []
cancelled = build(lambda title, done, total: soon.append(done), lambda: len(soon) > 20)
print(
    json.dumps(
        {
            "whole": whole,
            "told": told,
            "cancelled": cancelled,
            "cancelled after": len(soon),
            "broken": build(broken, lambda: False),
            "log": LOG.read_text(),
        }
    )
)
