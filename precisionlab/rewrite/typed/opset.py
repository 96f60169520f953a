"""The ONNX opset that a plan's types and Q/DQ need, and the conversion to it."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common as passes

from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.model.light import big_as_inputs, restore_big
from precisionlab.model.opset import opset_of
from precisionlab.model.subgraphs import subgraphs
from precisionlab.precision import Precision
from precisionlab.rewrite.typed.assignment import Assignment, refusals
from precisionlab.rewrite.typed.beside import Beside
from precisionlab.rewrite.typed.restored import restore
from precisionlab.rewrite.typed.signature import FLOAT
from precisionlab.rewrite.typed.summed import LEAST_OPSET
from precisionlab.system.quoting import CPP_ERRORS, cause

_PER_CHANNEL = 13  # QuantizeLinear and DequantizeLinear take an axis
_HALF_SCALES = 19  # … and scales in float16 and bfloat16
# Conv, pooling and others take bfloat16 from 22 on; nothing that a plan needs came later, and older parsers stop soon.
_NEWEST = 22
# What the converter replaces by a node with neither its name nor its output's.
_REPLACED = {"Upsample": "Resize"}


def least_opset(assignment: Assignment, current: int) -> int:
    """The oldest opset, not below `current`, that has the conversions and the Q/DQ that the assignment needs."""
    needed = current
    found = map(Precision.of_element, set(assignment.dtypes.values()))
    needed = max([needed, *(precision.number_format.opset for precision in found if precision is not None)])
    if assignment.quantized:
        needed = max(needed, _PER_CHANNEL, *(p.number_format.opset for p in assignment.quantized.values()))
    if assignment.summed:
        needed = max(needed, LEAST_OPSET)
    if any(assignment.dtypes[name] != FLOAT for name in assignment.quantized):
        needed = max(needed, _HALF_SCALES)
    return needed


def at_opset(model: Model, assignment: Assignment, beside: Beside | None) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of the model at the opset that the assignment is best served by, and what to say of it.

    Where it cannot be converted to that, or what is converted gives something else, the next best is tried, or the
    model's own where that will do. Raises ModelError, the first reason, where none is left.
    """
    current, faults = opset_of(model.onnx), list[ModelError]()
    for opset in best_opsets(assignment, model, least_opset(assignment, current)):
        told = tuple(map(str, faults))
        if opset == current:
            return model.onnx.clone(), told
        try:
            found = convert(model, opset)
            fault = None if beside is None else beside.fault(found)
            if fault is None:
                return found, (*told, f"converted from opset {current} to {opset}")
            raise ModelError(f"{_not_converted(model, opset)}: {fault}")
        except ModelError as error:
            faults.append(error)
    raise faults[0]


def best_opsets(assignment: Assignment, model: Model, least: int) -> list[int]:
    """Opsets from `least` on, those at which the fewest nodes are refused their type first; the oldest of its like."""
    oldest: dict[int, int] = {}
    for opset in range(least, max(least, _NEWEST) + 1):
        oldest.setdefault(refusals(assignment, model.onnx.graph, opset, model), opset)
    return [opset for _, opset in sorted(oldest.items())]


def _not_converted(model: Model, target: int) -> str:
    return f"{model.path}: opset {opset_of(model.onnx)} cannot be converted to {target}, which the plan needs"


def convert(model: Model, target: int) -> ir.Model:
    """The model at a newer opset, every node of it under its own name, each tensor that it keeps too.

    Weights are left where they are: the converter sees their types and shapes. Raises ModelError where ONNX's
    converter cannot do it.
    """
    graph = model.onnx
    where = _not_converted(model, target)
    if graph.functions:
        raise ModelError(f"{where}: the model has local functions; inline them (onnx.inliner) or export it anew")
    light, big = big_as_inputs(graph)
    given = ir.to_proto(light)
    try:
        proto = onnx.version_converter.convert_version(given, target)
    except (onnx.version_converter.ConvertError, *CPP_ERRORS) as error:
        advice = f"export the model anew at opset {target}"
        raise ModelError(f"{where}; {advice}; {cause('the ONNX converter', error)}") from None
    found = ir.from_proto(proto)
    restore_big(found, big)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(found)
    for old, new in zip(
        (*graph.graph.inputs, *graph.graph.outputs), (*found.graph.inputs, *found.graph.outputs), strict=True
    ):
        new.type, new.shape = old.type, old.shape  # the converter infers shapes, and says more than the model does
    _name_replaced(graph.graph, found.graph, where)
    restore(graph, found, opset_of(graph), target)
    found.ir_version = max(
        graph.ir_version, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", target)])
    )
    found.producer_name, found.producer_version = graph.producer_name, graph.producer_version
    found.domain, found.model_version, found.doc_string = graph.domain, graph.model_version, graph.doc_string
    found.metadata_props.update(graph.metadata_props)
    return found


def _name_replaced(old: ir.Graph, new: ir.Graph, where: str) -> None:
    """Give what the converter made for a node the node's name back, and its output's; those inside of nodes too."""
    there = {node.name for node in new}
    known = {node.name for node in old}
    for op_type, successor in _REPLACED.items():
        lost = [node for node in old if node.op_type == op_type and node.name not in there]
        made = [node for node in new if node.op_type == successor and node.name not in known]
        if len(lost) != len(made):
            continue  # told below, by name
        for node, replacement in zip(lost, made, strict=True):  # the converter keeps the order
            replacement.name = node.name
            if not replacement.outputs[0].is_graph_output():
                replacement.outputs[0].name = node.outputs[0].name
    converted = {node.name: node for node in new}
    missing = known - converted.keys()
    if missing:
        raise ModelError(f"{where}: the converter loses node {min(map(str, missing))}; export the model anew")
    for node in old:
        for (_, body), (_, made_of) in zip(subgraphs(node), subgraphs(converted[node.name]), strict=True):
            _name_replaced(body, made_of, where)
