"""Loads, checks, hashes and names a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import InvariantError
from onnx_ir.passes import common as passes

from precisionlab.errors import ModelError
from precisionlab.model.bodies import bodies_of, with_inside, with_islands
from precisionlab.model.edges import give_edges
from precisionlab.model.flow import is_sized
from precisionlab.model.fold import fold_constants
from precisionlab.model.functions import inline_functions
from precisionlab.model.graph import DIMS, Model, TensorInfo
from precisionlab.model.idle import drop_idle
from precisionlab.model.inference import inferred, tensor_info, tensors_of, values_of
from precisionlab.model.layers import layers_of, multiply_adds
from precisionlab.model.lift import OWN, lift
from precisionlab.model.light import big_as_inputs
from precisionlab.model.measurable import check_measurable
from precisionlab.model.names import new_name
from precisionlab.model.owned import own_weights
from precisionlab.model.repair import Repair
from precisionlab.model.strangers import cut_strangers, has_strangers
from precisionlab.model.tail import Tail, graft
from precisionlab.model.validate import check_sound
from precisionlab.system.plainfiles import is_hidden
from precisionlab.system.quoting import CPP_ERRORS, cause
from precisionlab.system.reading import UnreadableError, file_size

_LARGEST = (1 << 31) - 1  # bytes of one protobuf message

# What onnx-ir raises for a graph that is not one; PassError is a RuntimeError.
_OF_GRAPHS = (onnx.shape_inference.InferenceError, InvariantError, *CPP_ERRORS)


def load_model(path: Path) -> Model:
    """Load an ONNX file, with external data beside it, and check it.

    Model-local functions are inlined, constants become initialisers, what depends on them alone is computed, dead
    nodes go (TensorRT drops both alike), unnamed nodes are named as TensorRT's parser names them, and types and shapes
    are inferred.

    Raises ModelError where the file is not a valid ONNX model.
    """
    data_files, is_known = _checked_files(path)
    with read_as_graph(path):
        model = ir.load(path)
        _map_data(model)
    simple = _simplified(model, path, is_known)
    if not any(True for _ in model.graph):
        raise ModelError(f"{path}: no node leads to an output; there is nothing to compare")
    check_measurable(model, path)
    with read_as_graph(path):
        typed = inferred(model)
        idle = drop_idle(model, typed)
        declared = tensors_of(typed)
        known = _known(model, typed)
        prepared, exported = _handed_on(model, typed, declared, simple)
    tail = simple.tail
    return Model(
        path=path,
        sha256=hash_of([path, *data_files]),
        onnx=model,
        inputs=tuple(declared[str(v.name)] for v in model.graph.inputs),
        outputs=tuple(declared[str(v.name)] for v in model.graph.outputs),
        data_files=frozenset(data_files),
        prepared=prepared,
        exported=exported,
        tail=tail,
        is_inlined=simple.inlined > 0,
        folded=simple.folded,
        gone=dict.fromkeys(simple.tensors - declared.keys())
        | {node.tensor: node.source for node in idle}
        | dict.fromkeys(tail.tensors if tail else ()),
        idle=idle,
        **_layered(model, known),
    )


def with_graph(
    original: Model, graph: ir.Model, repairs: tuple[Repair, ...], copies: Mapping[str, str] | None = None
) -> Model:
    """The model with these repairs, which have made `graph` of its own; engines and tools are given that graph.

    `copies` are tensors that it computes a second time, each with the one of the original that it is like. Raises
    ModelError where types and shapes cannot be inferred of it.
    """
    copies = copies or {}
    with read_as_graph(original.path):
        name_nodes(graph.graph)
        declared = _as_declared(original, graph, copies)
        known = _known(graph, inferred(graph)) if declared is None else {graph.graph: declared}
    exported = graph
    if original.tail is not None:
        exported = graph.clone()
        graft(exported, original.tail)
    there = {name for tensors in known.values() for name in tensors}
    gone = {name: source if source in there else None for name, source in original.gone.items()}
    return replace(
        original,
        onnx=graph,
        prepared=graph,
        exported=exported,
        gone=gone | dict.fromkeys(original.tensors.keys() - there),
        idle=(),
        repairs=repairs,
        original=original,
        copies=copies,
        **_layered(graph, known),
    )


def _as_declared(original: Model, graph: ir.Model, copies: Mapping[str, str]) -> dict[str, TensorInfo] | None:
    """The tensors of a repaired graph, where each is one of the original's or like one; None where they are inferred.

    What keeps its name in a repair keeps its type and shape: to infer them takes as long as all else that is made of a
    small model.
    """
    if original.bodies:
        return None
    found = {}
    for value in values_of(graph.graph):
        name = str(value.name)
        info = tensor_info(value) if value.is_initializer() else original.declared.get(copies.get(name, name))
        if value.name and info is None:
            return None
        if value.name and info is not None:
            found[name] = _lifted(replace(info, name=name))
    return found


def _known(model: ir.Model, typed: ir.Model) -> dict[ir.Graph, dict[str, TensorInfo]]:
    """The tensors of each graph, with what is half there in float32."""
    return {
        graph: {name: _lifted(info) for name, info in tensors_of(typed, copied).items()}
        for graph, copied in zip(model.graphs(), typed.graphs(), strict=True)
    }


def _layered(model: ir.Model, known: Mapping[ir.Graph, dict[str, TensorInfo]]) -> dict[str, Any]:
    """A graph's tensors and layers, and those of the bodies inside: the fields of a Model."""
    tensors = known[model.graph]
    _note_ranks(model.graph, tensors)
    functions = frozenset((f.domain, f.name) for f in model.functions.values())
    bodies = bodies_of(model, known, functions)
    layers = with_islands(layers_of(model.graph, tensors, functions, bodies), bodies)
    layers, inner = with_inside(layers, model.graph, tensors, bodies)
    return {"tensors": tensors, "declared": tensors, "layers": layers, "bodies": bodies, "inner": inner}


def _checked_files(path: Path) -> tuple[tuple[Path, ...], bool]:
    """The file's external data, and whether ONNX Runtime knows all operators. Raises ModelError for a broken file."""
    data_files, is_known = sound_files(path)
    if is_known:
        check_onnx(str(path), path)
    return data_files, is_known


def sound_files(path: Path) -> tuple[tuple[Path, ...], bool]:
    """The same without ONNX's own checker."""
    proto = _read(path)
    return check_sound(proto, path), not has_strangers(proto)


@dataclass(frozen=True)
class _Simplified:
    """What became of a model's graph before it is looked at.

    `inlined` calls of functions went into it, `tail` was cut off its end, `tensors` were given in it before constants
    were folded, and `folded` bytes of those stay in memory.
    """

    inlined: int
    tail: Tail | None
    tensors: Set[str]
    folded: int


def _simplified(model: ir.Model, path: Path, is_known: bool) -> _Simplified:
    """Have the model's graph hold what is computed of it, and nothing else."""
    with read_as_graph(path):
        inlined = inline_functions(model)
        read_inner_data(model)
        passes.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, 4)  # before 4 every initialiser had to be an input as well
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        own_weights(model)
        passes.RemoveUnusedNodesPass()(model)
        for graph in model.graphs():
            name_nodes(graph)
        tail = None if is_known else cut_strangers(model, path)
        if tail is not None:
            check_onnx(ir.to_proto(big_as_inputs(model)[0]), path)
        before = {str(v.name) for node in model.graph for v in node.outputs}
        folded = fold_constants(model)
    return _Simplified(inlined, tail, before, folded)


def _handed_on(
    model: ir.Model, typed: ir.Model, declared: Mapping[str, TensorInfo], simple: _Simplified
) -> tuple[ir.Model | None, ir.Model | None]:
    """Lift what is half of the model's own to float32.

    Returns what engines are built of, and what other tools are given, in the place of the model's file; None where that
    is the file itself.
    """
    prepared = model.clone() if simple.inlined else None
    if lift(model, typed):
        prepared = model.clone()
        give_edges(prepared.graph, {n: i.dtype for n, i in declared.items() if i.dtype is not None and i.dtype in OWN})
    exported = prepared
    if simple.tail is not None:
        prepared = prepared or model.clone()
        if exported is not None:
            exported = exported.clone()
            graft(exported, simple.tail)
    return prepared, exported


def at_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The same model with tensors and multiply-adds at these shapes of inputs and layer outputs.

    The layers stay as they were grouped: what a plan pins must not depend on the data.
    """
    tensors = dict(model.tensors)
    for layer in model.layers:
        for name in filter(None, layer.outputs):  # an output that is left out has no name
            if (shape := shapes.get(name)) is not None:
                tensors[name] = replace(tensors[name], shape=shape)
        # Nothing is observed inside a fused layer; its Conv or MatMul has the shape of the layer's output.
        anchor = str(model.node[layer.nodes[0]].outputs[0].name)
        if layer.quantizable and anchor not in layer.outputs and (shape := shapes.get(layer.outputs[0])) is not None:
            tensors[anchor] = replace(tensors[anchor], shape=shape)
    for info in model.inputs:
        if info.name in shapes:
            tensors[info.name] = replace(tensors[info.name], shape=shapes[info.name])
    layers = tuple(
        replace(layer, multiply_adds=multiply_adds(model.node[layer.nodes[0]], tensors, model.bodies))
        for layer in model.layers
    )
    return replace(model, tensors=tensors, layers=layers)


def name_nodes(graph: ir.Graph) -> None:
    """Name unnamed nodes `node_of_<first output>` and make names unique, as TensorRT's parser does."""
    used: set[str] = set()
    for node in graph:
        base = node.name or f"node_of_{next((v.name for v in node.outputs if v.name), '')}"
        node.name = new_name(base, used)


def _lifted(info: TensorInfo) -> TensorInfo:
    return replace(info, dtype=ir.DataType.FLOAT) if info.dtype in OWN else info


def _note_ranks(graph: ir.Graph, tensors: Mapping[str, TensorInfo]) -> None:
    """Give values their inferred rank: in a segment of its own, a layer is then optimised as in the whole graph.

    What lengths are known beside it stands in their `meta`, which copies have too and no file.
    """
    for node in reversed(graph):  # what a length is for stands behind it
        for value in node.outputs:
            shape = tensors[value.name].shape if value.name else None
            if value.shape is None and shape is not None:
                value.shape = ir.Shape(shape if is_sized(value) else [None] * len(shape))
            if shape is not None:
                value.meta[DIMS] = tuple(dim if isinstance(dim, int) else None for dim in shape)


def _read(path: Path) -> onnx.ModelProto:
    if os.path.isdir(path):  # noqa: PTH112 - pathlib's raises where the name is too long
        raise ModelError(f"{path}: a folder, not an ONNX file")
    if not os.path.lexists(path):
        raise ModelError(f"{path}: {'cannot be read: Permission denied' if is_hidden(path) else 'no such file'}")
    try:
        size = file_size(path)
        if size == 0:
            raise ModelError(f"{path}: the file is empty")
        if size > _LARGEST:
            raise ModelError(f"{path}: {size:,} bytes, and ONNX ends at 2 GiB; save its weights as external data")
        proto = onnx.load_model(path, format="protobuf", load_external_data=False)
    except UnreadableError as error:
        raise ModelError(f"{path}: {error}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (DecodeError, ValueError):
        raise ModelError(f"{path}: not an ONNX model, or cut short (protobuf cannot parse it)") from None
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path}: not an ONNX model: it holds no graph with nodes and outputs")
    return proto


def check_onnx(model: str | onnx.ModelProto, path: Path) -> None:
    """Raises ModelError where ONNX's checker refuses a file, or what stands in one."""
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, *CPP_ERRORS) as error:
        advice = "fix what it names, or export the model again"
        raise ModelError(f"{path}: not a valid ONNX model; {advice}; {cause('the ONNX checker', error)}") from None


@contextmanager
def read_as_graph(path: Path) -> Iterator[None]:
    """What onnx-ir raises for a graph that it cannot hold, or cannot go through, is told as a ModelError."""
    try:
        yield
    except _OF_GRAPHS as error:
        first: BaseException = error
        while first.__cause__ is not None:  # it wraps them, with the whole graph in the message
            first = first.__cause__
        what = "its nodes and tensors make no graph that can be followed; export the model again"
        raise ModelError(f"{path}: cannot be read as a graph: {what}; {cause('onnx-ir', first)}") from None


def _map_data(model: ir.Model) -> None:
    """Map all external data, of which nothing is read yet.

    Threads that first look at the same would get in each other's way (onnx-ir: "The array should be loaded only once").
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value.numpy()


def read_inner_data(model: ir.Model) -> None:
    """Bring external data of subgraphs into memory: ONNX Runtime is given copies of them without the file's place."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if graph is not model.graph and isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)


def hash_of(files: list[Path]) -> str:
    """SHA-256 over the files' bytes, in this order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
