"""From a model and a plan to a strongly typed model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Model
from precisionlab.model.graph import TensorInfo
from precisionlab.model.inference import infer_tensors
from precisionlab.model.opset import opset_of
from precisionlab.plan.arithmetic import Constants
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.rewrite.typed.alone import HoldAlone
from precisionlab.rewrite.typed.assignment import allowed, body_types, planned
from precisionlab.rewrite.typed.attention import attention_notes
from precisionlab.rewrite.typed.beside import Beside
from precisionlab.rewrite.typed.checks import check_typed
from precisionlab.rewrite.typed.constants import Written, clamping_notes
from precisionlab.rewrite.typed.expand import ExpandHardSwish
from precisionlab.rewrite.typed.half_scales import with_half_scales
from precisionlab.rewrite.typed.opset import at_opset
from precisionlab.rewrite.typed.signed_model import with_signed
from precisionlab.rewrite.typed.softmax_precision import without_softmax_precision
from precisionlab.rewrite.typed.summed import PlainGemm
from precisionlab.rewrite.typed.types import TypesPass


@dataclass(frozen=True)
class TypedModel:
    """A strongly typed model, how many Casts were put into it, and what a user should know of it.

    Constants are converted when they are read or saved; `sources` are the files of external data that they are read
    from then. `notes` say where the opset was converted, and which layers are not in the type that the plan gives
    them, with the reason. `written` are the constants in half.
    """

    onnx: ir.Model
    casts: int
    notes: tuple[str, ...]
    sources: frozenset[Path]
    written: tuple[Written, ...]

    @cached_property
    def clamped(self) -> tuple[str, ...]:
        """Which constants were clamped, as they are in the emulation, in one note or none; reads them all."""
        return clamping_notes(self.written)


def typed_model(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    constants: Constants = Constants.CLAMPED,
    beside: Beside | None = None,
) -> TypedModel:
    """The model with the plan's precisions as the types of its tensors, and Q/DQ where layers run in int8.

    Node names, and the names of the tensors that stay, are the original's; inputs and outputs keep name and type.
    `table` has the ranges of what int8 layers take; None where there are none. `constants` says what becomes of those
    that half cannot hold: a strongly typed engine computes with what the file holds. A model at another opset, or with
    int8 in the place of uint8, is held against the model by `beside`; None: there are no samples. A plan of float32
    alone gives the original. Raises PlanError where the plan cannot be carried out, ModelError where the model does
    not allow it.
    """
    assignment = planned(model, plan, table)
    graph, notes = at_opset(model, assignment, beside)
    graph, signed = with_signed(graph, model.path, beside)
    notes = (*notes, *signed, *without_softmax_precision(graph))
    changed = bool(signed) or opset_of(graph) != opset_of(model.onnx)
    tensors = infer_tensors(graph) if changed else model.tensors
    assignment = allowed(assignment, graph.graph, opset_of(graph), model, tensors)
    notes = (*notes, *attention_notes(graph, assignment.dtypes, tensors))
    expansion = ExpandHardSwish(assignment)
    expansion(graph)
    plain = PlainGemm(assignment)
    plain(graph)
    added = {
        **dict.fromkeys(expansion.added, ir.DataType.BFLOAT16),
        **{name: assignment.dtypes[gemm] for name, gemm in plain.added.items()},
    }
    tensors = {**tensors, **{name: TensorInfo(name, ir.DataType.FLOAT, None) for name in (*added, *plain.tensors)}}
    assignment = replace(assignment, dtypes={**assignment.dtypes, **added})
    assignment = with_half_scales(assignment, graph, tensors, constants, beside)
    bodies, inner_notes = body_types(model, graph.graph, assignment, opset_of(graph))
    typing = TypesPass(assignment, tensors, table, model.node, model.halves, bodies, constants)
    typing(graph)
    HoldAlone(assignment.summed)(graph)
    check_typed(model, graph)
    notes = (*notes, *assignment.notes, *inner_notes)
    return TypedModel(graph, len(typing.casts) + len(typing.widened), notes, model.data_files, tuple(typing.clamped))
