"""A second model that is held beside the first: as its own file says it, whoever wrote that.

Nothing is folded, fused or left out of it. What it holds in float16 or bfloat16 is computed in float32 and rounded
after each node, as its types say: kernels in half are others on each processor (`precisionlab.model.widened`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from precisionlab.model.functions import inline_functions
from precisionlab.model.graph import TensorInfo
from precisionlab.model.inference import inferred, tensors_of
from precisionlab.model.lift import OWN
from precisionlab.model.light import big_as_inputs
from precisionlab.model.load import check_onnx, hash_of, name_nodes, read_as_graph, read_inner_data, sound_files
from precisionlab.model.owned import own_weights
from precisionlab.model.portable import QUANTIZERS
from precisionlab.model.strangers import cut_strangers
from precisionlab.model.widened import has_half, round_halves

_INTEGERS = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "MatMulNBits", "DynamicQuantize")


@dataclass(frozen=True)
class OtherModel:
    """The second model. `onnx` computes in float32 what the file has in half; `inputs` and `outputs` are the file's.

    `tensors` are those of the main graph as the file has them: no type for what is no tensor, or unknown.
    """

    path: Path
    sha256: str
    onnx: ir.Model
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    tensors: Mapping[str, TensorInfo]
    data_files: frozenset[Path]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @cached_property
    def types(self) -> Mapping[str, ir.DataType | None]:
        """The element types of these tensors."""
        return {name: info.dtype for name, info in self.tensors.items()}

    @cached_property
    def made(self) -> tuple[str, ...]:
        """The tensors that its nodes give, in their order, as the file has them."""
        return tuple(name for name in self.types if name in self.values and self.values[name].producer() is not None)

    @cached_property
    def values(self) -> Mapping[str, ir.Value]:
        """Name → value of the main graph: its inputs, and what its nodes give."""
        made = (value for node in self.onnx.graph for value in node.outputs if value.name)
        return {str(value.name): value for value in (*self.onnx.graph.inputs, *made)}

    @property
    def is_quantized(self) -> bool:
        """Whether any node of it quantises, or computes in integers of a few bits."""
        return any(
            node.op_type in QUANTIZERS or node.op_type.startswith(_INTEGERS)
            for graph in self.onnx.graphs()
            for node in graph
        )

    @property
    def halves(self) -> tuple[str, ...]:
        """The tensors of the main graph that the file has in half."""
        return tuple(name for name, kind in self.types.items() if kind in OWN)

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor holds floats that can be compared."""
        return self.types.get(tensor) in (ir.DataType.FLOAT, ir.DataType.DOUBLE, *OWN)


def load_other(path: Path) -> OtherModel:
    """Load a second model: ONNX, also with operators of ONNX Runtime's own, which then runs them.

    Raises ModelError where the file is not a valid ONNX model, or a cut end of it leaves nothing.
    """
    model, data_files = _written(path)
    with read_as_graph(path):
        typed = inferred(model)
        known = [tensors_of(typed, graph) for graph in typed.graphs()]
    if any(info.dtype is None for info in known[0].values()):
        asked = _asked(model)
        known[0] = {n: i if i.dtype is not None else replace(i, dtype=asked.get(n)) for n, i in known[0].items()}
    if has_half(model):
        round_halves(model, [{name: info.dtype for name, info in infos.items()} for infos in known])
    return OtherModel(
        path=path,
        sha256=hash_of([path, *data_files]),
        onnx=model,
        inputs=tuple(known[0][str(v.name)] for v in model.graph.inputs),
        outputs=tuple(known[0][str(v.name)] for v in model.graph.outputs),
        tensors=known[0],
        data_files=frozenset(data_files),
    )


def as_written(path: Path) -> ir.Model:
    """The file's graph with functions inlined and nodes sorted and named, its types as they are. Raises ModelError."""
    return _written(path)[0]


def _written(path: Path) -> tuple[ir.Model, tuple[Path, ...]]:
    data_files, is_known = sound_files(path)
    with read_as_graph(path):
        model = ir.load(path)
        model.graph.sort()  # converters leave their Casts at the end; ONNX Runtime sorts, too
        passes.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, 4)  # before 4 every initialiser had to be an input as well
        if is_known:
            check_onnx(ir.to_proto(big_as_inputs(model)[0]), path)
        inline_functions(model)
        read_inner_data(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        own_weights(model)
        passes.RemoveUnusedNodesPass()(model)
        for graph in model.graphs():
            name_nodes(graph)
        if not is_known:
            cut_strangers(model, path)
    return model, data_files


def _asked(model: ir.Model) -> dict[str, ir.DataType]:
    """The types of tensors that ONNX's inference does not follow, as ONNX Runtime has them; none if it cannot load it.

    It stops at operators that are not ONNX's own, and ONNX Runtime goes on.
    """
    import onnxruntime as ort

    from precisionlab.model.expression import RAISED

    light, _ = big_as_inputs(model)
    given = set(light.graph.outputs)
    for node in light.graph:
        for value in node.outputs:
            if value.name and value not in given:
                light.graph.outputs.append(value)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        proto = ir.to_proto(light)
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except RAISED:
        return {}
    return {info.name: kind for info in session.get_outputs() if (kind := _kind(info.type)) is not None}


def _kind(text: str) -> ir.DataType | None:
    """The element type that ONNX Runtime writes as `tensor(float16)`; None for what is no tensor of a known type."""
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    return ir.DataType[name] if text.startswith("tensor(") and name in ir.DataType.__members__ else None
