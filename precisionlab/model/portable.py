"""What TensorRT has no form of, or reads otherwise than ONNX: told when a model is loaded, not by a failed build.

Sources: onnx-tensorrt's `docs/operators.md` for TensorRT 10.15, its `QuantDequantLinearHelper`, and the answers of
TensorRT-RTX 1.7's parser. Operators of which one of 8.6 to 10.15 has a form are not among those without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import Model
from precisionlab.system.wording import counted

_NO_FORM = frozenset(
    {
        *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("AffineGrid", "CenterCropPad", "Col2Im", "Compress", "DFT", "Det", "ImageDecoder", "MelWeightMatrix"),
        *("MaxRoiPool", "MaxUnpool", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "Unique"),
        *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
        *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
        *("SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"),
        *("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    }
)
_MICROSOFT = ("QLinear", "Dynamic", "QAttention", "MatMulInteger")  # how names of contrib operators without one begin
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SIXTEEN = frozenset({ir.DataType.INT16, ir.DataType.UINT16})
_MOST = 4
_UNSIGNED = (
    "TensorRT has no unsigned quantisation: it reads uint8 as int8 with the same scale, so that half of the range is "
    "gone, or refuses the model; quantise to int8 with zero points 0 (typed-onnx rescales zero points 0 and 128 by "
    "itself)"
)


@dataclass(frozen=True)
class Note:
    """What is to be known of `nodes` on TensorRT; `is_silent` where it takes them, and computes something else."""

    nodes: str
    text: str
    is_silent: bool = False

    def __str__(self) -> str:
        return f"{self.nodes}: {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {"text": str(self), "silent": self.is_silent}


def tensorrt_notes(model: Model) -> tuple[Note, ...]:
    """One for each thing in the model that TensorRT refuses, or reads with another meaning."""
    nodes = list(model.onnx.graph.all_nodes())
    quantizers = [node for node in nodes if is_quantizer(node)]
    types = {node: quantized_type(node, model) for node in quantizers}
    said = [
        (
            [node for node in quantizers if _has_zero_point(node)],
            "TensorRT refuses zero points other than 0; quantise symmetrically",
        ),
        ([node for node in quantizers if types[node] in _SIXTEEN], "TensorRT has no 16-bit quantisation"),
        (
            [node for node in quantizers if types[node] == ir.DataType.INT32],
            "TensorRT refuses constants quantised to int32; leave biases in float (ONNX Runtime: QuantizeBias=False)",
        ),
        (
            [node for node in nodes if node.op_type == "Attention" and "softmax_precision" in node.attributes],
            "TensorRT refuses softmax_precision; typed models leave it out",
        ),
        (
            [node for node in nodes if _has_no_form(node)],
            "TensorRT has no form of these operators, and refuses the model; what is said of accuracy holds for what "
            "replaces them only if that computes the same",
        ),
        (
            [node for node in nodes if node.op_type == "ScatterElements" and _reduces(node)],
            "TensorRT scatters with a reduction by a plugin of 10.x alone, and refuses the model elsewhere",
        ),
    ]
    unsigned = [node for node in quantizers if types[node] == ir.DataType.UINT8]
    silent = (Note(_named(unsigned), _UNSIGNED, is_silent=True),) if unsigned else ()
    return (*silent, *(Note(_named(found), text) for found, text in said if found))


def read_otherwise(model: Model) -> str:
    """What TensorRT takes of the model and reads as something else than ONNX says; empty where that is nothing."""
    found = (note.nodes for note in tensorrt_notes(model) if note.is_silent)
    return "; ".join(
        f"it takes uint8 for int8 of the same scale in {nodes}, and typed models have it rescaled" for nodes in found
    )


def is_quantizer(node: ir.Node) -> bool:
    """Whether it is a QuantizeLinear or DequantizeLinear, ONNX's or ONNX Runtime's: the parser goes by the name."""
    return node.domain in (*ONNX_DOMAINS, "com.microsoft") and node.op_type in QUANTIZERS


def _named(nodes: list[ir.Node]) -> str:
    """`3 nodes, 'a' (Unique) and others`; the operators, each by its first node."""
    first: dict[str, str] = {}
    for node in nodes:
        first.setdefault(node.op_type, str(node.name))
    shown = [f"{name!r} ({kind})" for kind, name in list(first.items())[:_MOST]]
    return f"{counted(len(nodes), 'node')}, {', '.join(shown)}{', …' if len(nodes) > len(shown) else ''}"


def quantized_type(node: ir.Node, model: Model) -> ir.DataType | None:
    """The type of the quantised values, which for a QuantizeLinear without more is uint8; None where not known."""
    if node.op_type == "DequantizeLinear":
        return _type_of(node.inputs[0], model)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return _type_of(node.inputs[2], model)
    given = node.attributes["output_dtype"].as_int() if "output_dtype" in node.attributes else 0
    return ir.DataType(given) if given else ir.DataType.UINT8


def _type_of(value: ir.Value | None, model: Model) -> ir.DataType | None:
    if value is None:
        return None
    known = model.tensors.get(str(value.name))
    return value.dtype if known is None or known.dtype is None else known.dtype


def _has_zero_point(node: ir.Node) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = None if value is None else value.const_value
    return tensor is not None and bool(tensor.numpy().astype("f4").any())


def _has_no_form(node: ir.Node) -> bool:
    if node.domain == "ai.onnx.ml":
        return True
    if node.domain == "com.microsoft":  # the parser goes by the operator's name alone
        return node.op_type in _NO_FORM or node.op_type.startswith(_MICROSOFT)
    if node.op_type == "ScatterND":
        return _reduces(node)
    return node.domain in ONNX_DOMAINS and node.op_type in _NO_FORM


def _reduces(node: ir.Node) -> bool:
    return "reduction" in node.attributes and node.attributes["reduction"].as_string() != "none"
