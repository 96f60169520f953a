"""Attention in float32, which TensorRT-RTX has hardly any kernel for."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import TensorInfo
from precisionlab.system.wording import counted


def attention_notes(
    model: ir.Model, dtypes: Mapping[str, ir.DataType], tensors: Mapping[str, TensorInfo]
) -> tuple[str, ...]:
    """What is to be said of the main graph's Attention nodes in float32, in one note or none.

    `dtypes` are the types that nodes compute in, `tensors` what is known of tensors. TensorRT-RTX 1.7.1 fuses Attention
    in half and bfloat16 (heads of 12 to 256 were tried), and takes it apart in float32 only where it has rank 3, fixed
    shapes and no mask (`findings/tensorrt_rtx_attention_float32.sh`).
    """
    found = [
        str(node.name)
        for node in model.graph
        if node.op_type == "Attention"
        and node.domain in ONNX_DOMAINS
        and dtypes.get(str(node.name), ir.DataType.FLOAT) == ir.DataType.FLOAT
        and not _is_taken_apart(node, tensors)
    ]
    if not found:
        return ()
    return (
        f"{counted(len(found), 'Attention node')} in float32, {found[0]}{', …' if len(found) > 1 else ''}: "
        "TensorRT-RTX 1.7.1 refuses most of these, and has kernels in half and bfloat16: pin it to bf16 "
        "(--ladder bf16,fp32), or with int8 use --around fp16",
    )


def _is_taken_apart(node: ir.Node, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether it is one that the compiler makes products and a softmax of, in float32 too."""

    def says(name: str) -> int:
        return node.attributes[name].as_int() if name in node.attributes else 0

    infos = [tensors.get(str(value.name)) for value in node.inputs if value is not None]
    shapes = [info.shape if info is not None else None for info in infos]
    plain = len(infos) == 3 and not says("is_causal") and says("q_num_heads") == says("kv_num_heads")
    return plain and all(s is not None and len(s) == 3 and all(isinstance(dim, int) for dim in s) for s in shapes)
