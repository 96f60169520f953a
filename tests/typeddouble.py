"""A double of strongly typed TensorRT: what it makes of INT8 products with a scale for each channel in a half model.

It stands in the place of the process that TensorRT runs in. A typed model is compiled as TensorRT-RTX 1.7.1 was seen to
compile it: such a product gives its integer sums as half, and a half vector of both scales multiplies them behind it;
with one scale, that is the product's own factor. The engine is run by ONNX's reference evaluator, whose half is half.
What it cannot know: the kernels, and how these round inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from precisionlab.backends.converted import SourceRun
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import Kind
from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.backend import EngineSettings
from precisionlab.backends.tensorrt.jobs import Arrays, BuildJob, Built, EngineLayer, Latency
from precisionlab.backends.tensorrt.network import NetworkLayer
from precisionlab.backends.tensorrt.typed import TypedBackend
from precisionlab.data import Dataset
from precisionlab.precision import Precision
from precisionlab.system.observer import Observer

NAME = "typed-double"


def compiled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each MatMul of int8 operands as the compiler has it: integer sums in half, then the scales."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    quantised = {n.output[0]: n for n in made.graph.node if n.op_type == "DequantizeLinear"}
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            nodes += _saturating(made.graph, node, constants[node.input[1]])
            continue
        pair = [quantised.get(name) for name in node.input[:2]]
        scales = [None if dequantise is None else constants.get(dequantise.input[1]) for dequantise in pair]
        first, second = pair if len(pair) == 2 else (None, None)
        known = [scale for scale in scales if scale is not None]
        if node.op_type != "MatMul" or first is None or second is None or len(known) < 2:
            nodes.append(node)
            continue
        factor = (known[0].astype(np.float32) * known[1].astype(np.float32)).astype(np.float32)
        half = known[1].dtype == np.float16
        factor = factor.astype(np.float16) if half and factor.size > 1 else factor
        made.graph.initializer.append(numpy_helper.from_array(factor, f"{node.name}:factor"))
        nodes += _product(node, first.input[0], second.input[0], half, factor.size > 1)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _saturating(graph: onnx.GraphProto, node: onnx.NodeProto, scale: NDArray[Any]) -> Iterator[onnx.NodeProto]:
    """A QuantizeLinear of which Inf gives 127, as everywhere but in ONNX's evaluator, which makes −128 of it."""
    limits = [f"{node.name}:least", f"{node.name}:most"]
    for name, steps in zip(limits, (-128, 127), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(scale * scale.dtype.type(steps)), name))
    yield helper.make_node("Clip", [node.input[0], *limits], [f"{node.name}:finite"])
    yield helper.make_node("QuantizeLinear", [f"{node.name}:finite", *node.input[1:]], list(node.output))


def _product(node: onnx.NodeProto, left: str, right: str, half: bool, behind: bool) -> Iterator[onnx.NodeProto]:
    """The integer product of two int8 tensors; the factor `behind` what is stored, or within it."""
    name, kind = node.name, TensorProto.FLOAT16 if half else TensorProto.FLOAT
    for side, tensor in (("a", left), ("b", right)):
        yield helper.make_node("Cast", [tensor], [f"{name}:{side}"], to=TensorProto.FLOAT)
    yield helper.make_node("MatMul", [f"{name}:a", f"{name}:b"], [f"{name}:sums"])
    factor = f"{name}:factor"
    if behind:
        yield helper.make_node("Cast", [f"{name}:sums"], [f"{name}:stored"], to=kind)
        yield helper.make_node("Mul", [f"{name}:stored", factor], list(node.output))
    else:
        yield helper.make_node("Mul", [f"{name}:sums", factor], [f"{name}:scaled"])
        yield helper.make_node("Cast", [f"{name}:scaled"], list(node.output), to=kind)


class TypedEngines:
    """Builds and runs engines of typed models."""

    features = Features("11.0.0", False, False, frozenset({Precision.FP16, Precision.INT8}), False, False, True)
    device: str | None = "a double"

    def describe(self, model: Path, typed: bool = False) -> tuple[NetworkLayer, ...]:
        """Nothing can be looked at but the outputs."""
        return ()

    def build(self, job: BuildJob) -> Built:
        """The compiled model is the engine."""
        engine = job.engine / f"{hashlib.sha256(job.content.encode()).hexdigest()[:16]}.engine"
        made = compiled(onnx.load(job.model))
        onnx.save(made, str(engine))
        layers = tuple(EngineLayer(n.name, n.op_type, (n.name,), (), (), None) for n in onnx.load(job.model).graph.node)
        return Built(engine, 0.1, engine.stat().st_size, (), layers, ())

    def run(self, engine: Path, inputs: Arrays, debug: bool = False) -> Arrays:
        """All outputs."""
        model = onnx.load(str(engine))
        with np.errstate(all="ignore"):
            found: list[NDArray[Any]] = ReferenceEvaluator(model).run(None, dict(inputs))  # type: ignore[assignment]
        return dict(zip((value.name for value in model.graph.output), found, strict=True))

    def latency(self, engine: Path, inputs: Arrays) -> tuple[Latency, Mapping[str, float]]:
        """Made up."""
        return Latency(1.0, 1.0, 1.0, 1), {}


@contextmanager
def _open(
    name: str,
    reference: OnnxRuntimeBackend,
    every: Dataset,
    chosen: Dataset,
    options: EngineOptions,
    folder: Path,
    observer: Observer,
) -> Iterator[TypedBackend]:
    engines = folder / "engines"
    engines.mkdir(exist_ok=True)
    beside = SourceRun(reference.model, every, reference.threads)
    yield TypedBackend(reference, TypedEngines(), EngineSettings(engines, observe=0), NAME, beside)


KIND = Kind(NAME, "a double", package="onnx", remedy="", needs_gpu=False, why_not=lambda: "", open=_open)
