"""Refuses models of which no figure can be had: random numbers, inputs that no sample can hold, nothing to lower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from precisionlab.errors import ModelError
from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import Model, Obstacle
from precisionlab.model.recurrent import is_recurrent, recurrence_of
from precisionlab.system.wording import counted

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QAttention"}
)
_REASONS = 3
_MOST_AXES = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
# What NumPy has no type of its own for cannot be given to ONNX Runtime from Python.
_FED = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.BOOL,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.STRING,
    }
)


def check_measurable(model: ir.Model, path: Path) -> None:
    """Raises ModelError where the model takes what no sample holds, or gives other values each time that it runs.

    And where a recurrent node says what ONNX does not define.
    """
    for value in model.graph.inputs:
        _check_input(value, path)
    for node in _nodes(model):
        if node.domain in ONNX_DOMAINS:
            _check_node(node, path)


def check_lowerable(model: Model) -> None:
    """Raises ModelError where no layer can be given a precision: that nothing gets worse then means nothing."""
    if any(layer.fixed is None for layer in model.layers):
        return
    reasons = Counter(str(layer.fixed) for layer in model.layers).most_common()
    told = "; ".join(f"{count} × {reason}" for reason, count in reasons[:_REASONS])
    obstacles = {layer.obstacle for layer in model.layers}
    if Obstacle.QUANTIZED in obstacles:
        advice = "sweep the model before it was quantised"
    elif Obstacle.OTHER_TYPE in obstacles:
        advice = "sweep the float32 model that it was made from"
    elif Obstacle.FUNCTION in obstacles:
        advice = "its functions take graphs, which cannot be inlined; export it without functions"
    else:
        advice = "there is nothing to sweep"
    of = "its only layer cannot" if len(model.layers) == 1 else f"none of its {counted(len(model.layers), 'layer')} can"
    raise ModelError(f"{model.path}: {of} be given a precision ({told}); {advice}")


def quantized_already(model: Model) -> str | None:
    """What is to be said of a model that holds its own scales; None where it has none."""
    own = sum(node.op_type in _QUANTIZED or node.op_type.startswith("QLinear") for node in _nodes(model.onnx))
    if not own:
        return None
    return (
        f"{model.path.name} is quantised already in part ({counted(own, 'node')} with scales of their own): "
        "what these say stays as it is, and only the other layers are given a precision"
    )


def own_types(model: Model) -> str:
    """What is to be said of a model that has layers in half or double of its own; nothing where it has none."""
    own = Counter(layer.own for layer in model.layers if layer.own is not None)
    doubles = sum(layer.is_double for layer in model.layers)
    double = (
        f"{model.path.name} has {counted(doubles, 'layer')} in double. The reference computes them in double; TensorRT "
        "has none, so that every variant rounds them to float32 at least."
    )
    if not own:
        return double if doubles else ""
    kinds = {kind.number_format.dtype.lower(): count for kind, count in sorted(own.items())}
    found = " and ".join(f"{counted(count, 'layer')} in {name}" for name, count in kinds.items())
    keeps = "keep it whatever is swept, until a plan pins them"
    if not any(layer.is_island for layer in model.layers):
        keeps = "have it in the place of float32: another float format that is swept replaces it"
    return (
        f"{model.path.name} has {found} of its own. The reference is the float32 reading of the same weights, "
        f"which rounds nothing; these layers {keeps}." + (f" {double}" if doubles else "")
    )


def _check_input(value: ir.Value, path: Path) -> None:
    if isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
        what = "a sequence" if isinstance(value.type, ir.SequenceType) else "an optional"
        raise ModelError(
            f"{path}: input {value.name!r} is {what}, and samples hold tensors only; "
            "make the tensors in it inputs of the model"
        )
    if value.dtype is not None and value.dtype not in _FED:
        raise ModelError(
            f"{path}: input {value.name!r} is {value.dtype.name.lower()}, which ONNX Runtime cannot be given from "
            "Python; make it float32, with a Cast behind it"
        )
    if value.shape is not None and len(value.shape) > _MOST_AXES:
        raise ModelError(
            f"{path}: input {value.name!r} has {len(value.shape)} axes, and NumPy's arrays have {_MOST_AXES} at most; "
            "make it one of fewer, with a Reshape behind it"
        )


def _check_node(node: ir.Node, path: Path) -> None:
    name = node.name or next((v.name for v in node.outputs if v.name), "")
    where = f"{path}: node {name!r} ({node.op_type})"
    if is_recurrent(node):
        recurrence_of(node, where)
    if node.op_type in _RANDOM:
        raise ModelError(
            f"{where} draws random numbers, and an error cannot be told from another draw; "
            "make what it gives an input of the model, and save it in the samples"
        )
    if node.op_type == "Dropout" and not _is_false(node.inputs[2] if len(node.inputs) > 2 else None):
        raise ModelError(
            f"{where} drops values at random, or may: its training_mode is not constantly false; "
            "export the model in evaluation mode"
        )
    training = node.attributes.get("training_mode")
    if node.op_type == "BatchNormalization" and training is not None and training.as_int():
        # It does so even to weights, which all sessions share, and to samples.
        raise ModelError(
            f"{where} is in training mode, where ONNX Runtime writes running statistics over its inputs; "
            "export the model in evaluation mode"
        )


def _is_false(value: ir.Value | None) -> bool:
    """Whether an input is left out, or a constant that is false."""
    if value is None:
        return True
    tensor = value.const_value
    return value.is_initializer() and tensor is not None and not np.any(tensor.numpy())


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, in subgraphs and functions too."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()
