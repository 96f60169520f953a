"""int4 weights dequantised in half, where all that takes them computes in half: else TensorRT keeps the two apart.

With float32 scales a Cast stands between the DequantizeLinear and its product, and TensorRT-RTX 1.7.1 dequantises
the weights by a kernel of its own; with scales in half it is one kernel. Scales lose digits by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import TensorInfo
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.typed.assignment import Assignment, short
from precisionlab.rewrite.typed.beside import Beside, in_words
from precisionlab.rewrite.typed.constants import held
from precisionlab.rewrite.typed.signature import FLOAT, is_float
from precisionlab.system.wording import counted

_LEAST = Precision.FP16.number_format.sqnr_db


def with_half_scales(
    assignment: Assignment,
    model: ir.Model,
    tensors: Mapping[str, TensorInfo],
    constants: Constants,
    beside: Beside | None,
) -> Assignment:
    """The assignment with such nodes in the type of what takes them, and a note of what that changes.

    Where the outputs agree with the model's to less than an FP16 variant is held to, they stay in float32, with a note.
    """
    found = {
        str(node.name): dtype
        for node in model.graph
        if _is_int4(node) and (dtype := _taken_in(node, assignment, tensors)) is not None
    }
    if not found:
        return assignment
    what = f"{counted(len(found), 'DequantizeLinear')} of int4 weights"
    kinds = " and ".join(sorted(map(short, set(found.values()))))
    told = "this was not tried on samples"
    if beside is not None:
        decibels = beside.agreement(_rounded(model, found, constants))
        told = f"the outputs agree with the model's {in_words(decibels)}"
        if decibels < _LEAST:
            note = f"{what}: scales stay in fp32, as in {kinds} {told} alone"
            return replace(assignment, notes=(*assignment.notes, note))
    have = "has" if len(found) == 1 else "have"
    said = f"{what} {have} scales in {kinds}, so that they fuse with their products; {told}"
    for node in model.graph:
        if str(node.name) in found:
            node.attributes.pop("output_dtype", None)  # as the scale, then
    return replace(assignment, dtypes={**assignment.dtypes, **found}, notes=(*assignment.notes, said))


def _is_int4(node: ir.Node) -> bool:
    """Whether it dequantises an int4 constant, by constant scales."""
    if node.op_type != "DequantizeLinear" or node.domain not in ONNX_DOMAINS:
        return False
    weight, scale = node.inputs[0], node.inputs[1]
    is_constant = weight is not None and weight.const_value is not None and weight.const_value.dtype == ir.DataType.INT4
    return is_constant and scale is not None and scale.const_value is not None


def _taken_in(node: ir.Node, assignment: Assignment, tensors: Mapping[str, TensorInfo]) -> ir.DataType | None:
    """The one half type that all which takes the weight computes in; None where there is none."""
    given = node.outputs[0]
    takers = [use.node for use in given.uses()]
    types = {assignment.dtypes.get(str(taker.name), FLOAT) for taker in takers if taker.graph is node.graph}
    elsewhere = given.is_graph_output() or any(taker.graph is not node.graph for taker in takers)
    if len(types) != 1 or elsewhere or not is_float(node.inputs[1], tensors):
        return None
    dtype = types.pop()
    return None if dtype == FLOAT else dtype


def _rounded(model: ir.Model, found: Mapping[str, ir.DataType], constants: Constants) -> ir.Model:
    """The model in float32, with these nodes' scales as the types hold them."""
    copy = model.clone()
    for index, node in enumerate(node for node in copy.graph if str(node.name) in found):
        scale = node.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        array = held(scale.const_value.numpy(), found[str(node.name)], constants).astype(np.float32)
        name = f"{scale.name}_rounded_{index}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        value.type = ir.TensorType(FLOAT)
        copy.graph.register_initializer(value)
        node.replace_input_with(1, value)
    return copy
