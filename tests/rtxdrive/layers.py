"""Builds each model with TensorRT-RTX, as it is and with all marked that can be: `layers.py MODEL…`.

Every dynamic dimension is 2. Prints for each model what its builder logs of the layers (`plain`, `observed`), the
tensors that were marked, and the names of all.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import tensorrt_rtx as trt

from precisionlab.backends.tensorrt.network import describe
from precisionlab.backends.tensorrt.observation import eligible


class Messages(trt.ILogger):  # type: ignore[misc]
    """Keeps every message."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        self.texts.append(text)


def built(path: str) -> dict[str, Any]:
    """One model, built twice."""
    logger = Messages()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(path), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        shape = [2 if dim < 0 else dim for dim in network.get_input(i).shape]
        profile.set_shape(network.get_input(i).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, logger.texts[-5:]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    tensors = {tensor.name: tensor for layer in layers for tensor in map(layer.get_output, range(layer.num_outputs))}
    marked = eligible(describe(network))
    for name in marked:
        network.mark_output(tensors[name])
    assert builder.build_serialized_network(network, config) is not None, logger.texts[-5:]
    plain, observed = (text for text in logger.texts if text.startswith("Layers:"))
    return {"plain": plain, "observed": observed, "marked": marked, "tensors": list(tensors)}


print(json.dumps([built(path) for path in sys.argv[1:]]))
