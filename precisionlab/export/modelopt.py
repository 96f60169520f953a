r"""A plan for NVIDIA's ModelOpt: which nodes its converters leave alone, and the commands that run them.

Int8 layers are made by `modelopt.onnx.quantization`, fp16 and bf16 by AutoCast, one after the other: the first has
exclusions by node for int8 alone, and would give all else one precision. Both match nodes by `re.match`, which is
content with the beginning of a name; so the patterns end with `\Z`, and signs in names are escaped.

They begin with a copy of the model: ModelOpt changes the file that it is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from precisionlab.errors import PlanError
from precisionlab.export.modelopt_rules import left_alone
from precisionlab.export.subject import Export, Subject, command_line
from precisionlab.model import Layer, Model
from precisionlab.plan.assign import around_of, precision_of
from precisionlab.plan.weak import explicit_layer
from precisionlab.precision import Precision

CACHE = "calibration.cache"
_COPY = "import onnx, sys; onnx.save_model(onnx.load_model(sys.argv[1]), sys.argv[2])"
QUANTIZED = ".int8.onnx"
"""How the name of the file ends that ModelOpt's quantisation writes."""
_CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def modelopt_json(subject: Subject) -> Export:
    """A JSON object: `commands` to be run in this order, and the lists that are in them, for use by ModelOpt's API.

    `autocast.nodes_to_exclude` are patterns of the nodes that stay in float32, `quantization.nodes_to_quantize` those
    that become int8, `quantization.nodes_to_exclude` their like that do not. A part that is not needed is null.
    `claimed` has each int8 layer's node, and why ModelOpt leaves it alone all the same, or nothing.
    Raises PlanError where ModelOpt cannot be told the plan: two low float precisions, or nodes without a name.
    """
    model, name = subject.model, subject.model.name
    of = {layer.name: precision_of(layer, subject.plan) for layer in model.layers if layer.fixed is None}
    low = {layer for layer, precision in of.items() if precision.is_quantized}
    quantized = [layer for layer in model.layers if layer.name in low]
    floats = {name: around_of(model.layer[name], subject.plan) if name in low else p for name, p in of.items()}
    explicit = explicit_layer(model, subject.plan)
    if explicit is not None:
        raise PlanError(
            f"the plan has layer {explicit.name!r} in {of[explicit.name]}, and ModelOpt takes a plan's own scales for "
            "int8 alone, by a calibration cache; export it as typed-onnx"
        )
    if summed := [layer for layer, precision in of.items() if precision.is_for_pins]:
        raise PlanError(
            f"the plan has layer {summed[0]!r} in {of[summed[0]]}, and AutoCast puts no Casts around a product; "
            "export it as typed-onnx"
        )
    halves = sorted(set(floats.values()) - {Precision.FP32})
    if len(halves) > 1:
        raise PlanError(
            f"the plan has both {halves[0]} and {halves[1]}, and AutoCast converts to one of them; "
            "export it as typed-onnx"
        )
    # ModelOpt writes the shapes that it infers into the very file that it is given (0.47, `trt_utils.py`).
    last, quantization, autocast = f"{name}.copy.onnx", None, None
    commands = [["python", "-c", _COPY, str(subject.path), last]]
    if quantized:
        others = [layer for layer in model.layers if layer.quantizable and layer.name not in low]
        quantization = {
            "op_types_to_quantize": [kind for kind in _CONTRACTIONS if any(kind == q.op_types[0] for q in quantized)],
            "nodes_to_quantize": _patterns(subject, (layer.nodes[0] for layer in quantized)),
            "nodes_to_exclude": _patterns(subject, (layer.nodes[0] for layer in others)),
            "calibration_cache_path": CACHE,
        }
        commands.append(_quantize(last, f"{name}{QUANTIZED}", quantization))
        last = f"{name}{QUANTIZED}"
    if halves:
        still = [layer for layer in model.layers if layer.held or floats.get(layer.name) is Precision.FP32]
        kept = [node for layer in still for node in layer.nodes]
        autocast = {
            "low_precision_type": str(halves[0]),
            "nodes_to_exclude": _patterns(subject, kept),
            "op_types_to_exclude": [],
        }
        commands.append(_cast(last, f"{name}.mixed.onnx", autocast))
    if not (quantized or halves):
        raise PlanError("the plan keeps the whole model in fp32; there is nothing to convert")
    content = {
        "commands": [command_line(words) for words in commands],
        "autocast": autocast,
        "quantization": quantization,
        "claimed": _claimed(model, quantized),
    }
    beside = {CACHE: _cache(subject)} if quantized else {}
    return Export(json.dumps(content, indent=1, ensure_ascii=False) + "\n", beside, notes=_notes(model, quantized))


def _claimed(model: Model, quantized: Iterable[Layer]) -> dict[str, str]:
    nodes = [layer.nodes[0] for layer in quantized]
    return {**dict.fromkeys(nodes, ""), **left_alone(model, nodes)}


def _quantize(source: str, target: str, how: Mapping[str, object]) -> list[str]:
    words = ["python", "-m", "modelopt.onnx.quantization", f"--onnx_path={source}", f"--output_path={target}"]
    words += ["--quantize_mode=int8", "--calibration_method=max", f"--calibration_cache_path={CACHE}"]
    # Cast to fp16 here would take no heed of the pins; AutoCast does it afterwards.
    words += ["--high_precision_dtype=fp32", "--calibration_eps", "cpu"]
    return words + _options(how, "op_types_to_quantize", "nodes_to_quantize", "nodes_to_exclude")


def _cast(source: str, target: str, how: Mapping[str, object]) -> list[str]:
    words = ["python", "-m", "modelopt.onnx.autocast", f"--onnx_path={source}", f"--output_path={target}"]
    # By default AutoCast keeps what goes beyond 512 as well, whatever that does to the outputs.
    words += [f"--low_precision_type={how['low_precision_type']}", "--keep_io_types", "--data_max=inf"]
    return words + _options(how, "nodes_to_exclude")


def _options(how: Mapping[str, object], *names: str) -> list[str]:
    words: list[str] = []
    for name in names:
        values = how[name]
        if isinstance(values, list) and values:
            words += [f"--{name}", *values]
    return words


def _patterns(subject: Subject, nodes: Iterable[str]) -> list[str]:
    """A pattern for each node that matches its name alone. Raises PlanError for nodes that have none of their own."""
    found = []
    for node in nodes:
        if subject.names.get(node) != 1:
            why = "several nodes have this name" if node in subject.names else "it has no name there, or one twice"
            raise PlanError(
                f"node {node!r} cannot be told to ModelOpt by the name that it has in the model's file ({why}); "
                "give every node a name of its own, and sweep the model again"
            )
        found.append(rf"^{re.escape(node)}\Z")
    return found


def _cache(subject: Subject) -> bytes:
    for tensor in subject.scales:
        if ": " in tensor:
            raise PlanError(f"tensor {tensor!r} has ': ' in its name, where ModelOpt splits the cache; rename it")
    return subject.cache


def _notes(model: Model, quantized: list[Layer]) -> tuple[str, ...]:
    notes = ["op types and nodes that ModelOpt never converts stay as they are, whatever the plan says"]
    if model.bodies:
        notes.append(
            "what ModelOpt makes of the nodes inside If, Loop and Scan is its own; typed-onnx says what becomes of them"
        )
    if quantized:
        notes.append("ModelOpt quantises activations by our scales; those of weights are its own")
    return tuple(notes)
