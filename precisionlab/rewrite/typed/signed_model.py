"""A model that quantises to uint8 by itself, in the better of two forms in int8, with what that changes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from precisionlab.errors import ModelError
from precisionlab.precision import Precision
from precisionlab.rewrite.typed.beside import Beside, in_words
from precisionlab.rewrite.typed.signed import NotSignedError, Signed, is_unsigned, make_signed
from precisionlab.system.wording import counted

_LEAST = Precision.INT8.number_format.sqnr_db


def with_signed(graph: ir.Model, path: Path, beside: Beside | None) -> tuple[ir.Model, tuple[str, ...]]:
    """The graph with int8 in the place of uint8, and what to say of it; the graph itself where it has none.

    Steps are wider, for the same range, unless the samples agree better with the same steps for half of it. Raises
    ModelError where int8 cannot stand in its place, or the outputs agree to less than an int8 variant is held to.
    """
    if not any(map(is_unsigned, graph.graph.all_nodes())):
        return graph, ()
    try:
        wide, changed = _signed(graph, wider=True)
        if beside is None:
            return wide, (f"{_of(changed)}{_WIDER if changed.activations else ''}; this was not tried on samples",)
        if not changed.activations:
            decibels, taken, how = beside.agreement(wide), wide, ""
        else:
            narrow, _ = _signed(graph, wider=False)
            in_wide, in_narrow = beside.agreement(wide), beside.agreement(narrow)
            is_wide = in_wide >= in_narrow
            decibels, taken = (in_wide, wide) if is_wide else (in_narrow, narrow)
            other = f"with the same steps: {in_words(in_narrow)}" if is_wide else f"with wider: {in_words(in_wide)}"
            how = f"{_WIDER if is_wide else _SAME} ({other})"
    except NotSignedError as reason:
        raise ModelError(
            f"{path}: {reason}, and TensorRT has no unsigned quantisation; quantise to int8 with zero points 0"
        ) from None
    if decibels < _LEAST:
        raise ModelError(
            f"{path}: it quantises to uint8, which TensorRT has not, and in int8 its outputs agree with its own "
            f"{in_words(decibels)} alone; quantise the float model to int8 with zero points 0"
        )
    return taken, (f"{_of(changed)}{how}; the outputs agree with the model's {in_words(decibels)}",)


_WIDER = ", with steps 255/127 as large for the same range"
_SAME = ", with the same steps, as no sample has much above half of the range"


def _signed(graph: ir.Model, wider: bool) -> tuple[ir.Model, Signed]:
    copy = graph.clone()
    return copy, make_signed(copy, wider)


def _of(changed: Signed) -> str:
    return f"{counted(changed.nodes, 'node')} that quantise to uint8, which TensorRT reads as int8, do so to int8"
