"""What tests of repairs share: a graph's values node by node, and a model as the search for repairs sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from models import load, proto
from numpy.typing import NDArray

from precisionlab.backends.session import AS_WRITTEN, Session
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.histogram import Histogram, histogram_of
from precisionlab.model import Model
from precisionlab.model.repair import Repair
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import Sight, found_repairs

Array = NDArray[Any]
Inputs = Mapping[str, Array]
HALF = Precision.FP16.number_format


def run(graph: ir.Model, inputs: Inputs) -> dict[str, Array]:
    """The outputs, each node computed by itself."""
    session = Session(graph.clone(), 1, level=AS_WRITTEN)
    try:
        return {name: np.array(value) for name, value in session.run(inputs).items()}
    finally:
        session.close()


def every_value(model: Model, inputs: Inputs) -> dict[str, Array]:
    """All float32 tensors that the main graph computes."""
    shown = model.onnx.clone()
    shown.graph.outputs.clear()
    for value in [value for node in shown.graph for value in node.outputs]:
        if str(value.name) in _floats(model):
            value.type = ir.TensorType(ir.DataType.FLOAT)
            shown.graph.outputs.append(value)
    return run(shown, inputs)


def _floats(model: Model) -> frozenset[str]:
    return frozenset(name for name, tensor in model.tensors.items() if tensor.dtype == ir.DataType.FLOAT)


def sight_of(model: Model, samples: Sequence[Inputs]) -> Sight:
    """As a search sees the model: what leaves half, or is not finite in it for another's sake, is broken."""
    histograms: dict[str, Histogram] = {}
    for inputs in samples:
        for name, array in {**inputs, **every_value(model, inputs)}.items():
            found = histogram_of(np.asarray(array, np.float32))
            histograms[name] = histograms[name].merge(found) if name in histograms else found
    broken = frozenset(
        layer.name
        for layer in model.layers
        if any(histograms[name].amax > HALF.largest for name in layer.outputs if name in histograms)
    )
    return Sight(model, {name: CoarseHistogram.of(one) for name, one in histograms.items()}, broken, HALF)


def found(model: Model, *samples: Inputs) -> tuple[Repair, ...]:
    """The repairs that could help the model on these samples."""
    return found_repairs(sight_of(model, samples))


def made(folder: Path, body: str, constants: Mapping[str, Any], *, opset: int = 17) -> Model:
    """A model by way of a file, from ONNX's text."""
    return load(proto(body, {name: np.asarray(value) for name, value in constants.items()}, opset=opset), folder)


def halved(model: Model) -> ir.Model:
    """Each float32 tensor rounded to float16 and back; constants that it cannot hold are the nearest that it does."""
    copy = model.onnx.clone()
    inner = copy.graph
    for value in list(inner.initializers.values()):
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            numbers = value.const_value.numpy()
            near = np.clip(numbers, -65504, 65504).astype(np.float16).astype(np.float32)
            near = np.where((near == 0) & (numbers != 0), np.copysign(np.float32(2**-24), numbers), near)
            value.const_value = ir.tensor(near.astype(np.float32), name=value.name)
    for value in [*inner.inputs, *(value for node in list(inner) for value in node.outputs)]:
        if str(value.name) in _floats(model):
            _round(inner, value)
    return copy


def _round(graph: ir.Graph, value: ir.Value) -> None:
    uses = [(use.node, use.idx) for use in value.uses()]
    half = ir.Node("", "Cast", [value], [ir.AttrInt64("to", 10)], num_outputs=1)
    back = ir.Node("", "Cast", [half.outputs[0]], [ir.AttrInt64("to", 1)], num_outputs=1)
    half.outputs[0].name, back.outputs[0].name = f"{value.name}!half", f"{value.name}!back"
    back.outputs[0].type, back.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    after = value.producer()
    if after is None:
        graph.insert_before(graph[0], [half, back])
    else:
        graph.insert_after(after, [half, back])
    for node, index in uses:
        node.replace_input_with(index, back.outputs[0])
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = back.outputs[0]
        back.outputs[0].name, value.name = value.name, f"{value.name}!full"
