"""What must hold of every typed model, whatever the plan: ONNX's checker and type inference, and the interface."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.shape_inference
import onnx_ir as ir

from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.model.inference import can_follow_values
from precisionlab.model.light import big_as_inputs
from precisionlab.system.quoting import CPP_ERRORS, cause


def check_typed(model: Model, typed: ir.Model) -> None:
    """Raises ModelError where the typed model is not valid, its types disagree, or its interface is another.

    Type inference is strict, and looks into shapes that are computed; where the original does not pass it either
    (operators that onnx does not know), the checker alone counts.
    """
    before, after = _interface(model.onnx, model.halves), _interface(typed, {})
    if before != after:
        raise ModelError(f"{model.path}: the typed model's interface is {after}, not {before}; please report this")
    proto = _light(typed)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        told = cause("the ONNX checker", error)
        raise ModelError(f"{model.path}: the typed model is not valid; please report this; {told}") from None
    follow = can_follow_values(info.shape for info in model.tensors.values() if info.shape is not None)
    fault = _inference_fault(proto, follow)
    if fault is not None and _inference_fault(_light(model.onnx), follow) is None:
        raise ModelError(f"{model.path}: the typed model's types disagree; please report this; {fault}")


def _light(model: ir.Model) -> onnx.ModelProto:
    return ir.to_proto(big_as_inputs(model)[0])


def _inference_fault(proto: onnx.ModelProto, follow: bool) -> str | None:
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=follow)
    except (onnx.shape_inference.InferenceError, *CPP_ERRORS) as error:
        return cause("the ONNX shape inference", error)
    return None


def _interface(model: ir.Model, halves: Mapping[str, ir.DataType]) -> tuple[tuple[tuple[str, str, str], ...], ...]:
    """Name, type and shape of each input, and of each output; of these with their type where they are given one."""
    graph = model.graph
    types = {name: ir.TensorType(dtype) for name, dtype in halves.items()}
    return tuple(
        tuple((str(v.name), str(types.get(str(v.name), v.type)), str(v.shape)) for v in values)
        for values in (graph.inputs, graph.outputs)
    )
