"""What is known of a model: its tensors and its layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from precisionlab.model.digest import graph_digest, grouping_digest
from precisionlab.model.opset import opset_of
from precisionlab.model.repair import Exactness, Repair
from precisionlab.model.subgraphs import outer_values
from precisionlab.model.tail import Tail
from precisionlab.precision import Precision

DIMS = "precisionlab.dims"
"""Where a value's `meta` has the lengths of its axes as the loaded model says them: int or None, in a tuple."""

_MATRIX_PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, ONNX element type (None: not a tensor, or unknown) and shape.

    A dimension is an int, a str (symbolic), or None (unknown); `shape` is None for unknown rank.
    """

    name: str
    dtype: ir.DataType | None
    shape: tuple[int | str | None, ...] | None

    @property
    def elements(self) -> int | None:
        """How many elements, where every dimension is known."""
        if self.shape is None:
            return None
        count = 1
        for dim in self.shape:
            if not isinstance(dim, int):
                return None
            count *= dim
        return count


class Obstacle(Enum):
    """Of which kind the reason is that a layer cannot be given a precision."""

    QUANTIZED = "it is quantised, as the model says"
    OTHER_TYPE = "it computes in a float type that is none of ours"
    FUNCTION = "it calls a model-local function that could not be inlined"
    OTHER = "anything else"


@dataclass(frozen=True)
class Layer:
    """The unit that a precision is given to: the ONNX nodes that one kernel runs.

    `name` is the name of its first node. `inputs` are the tensors that it takes from the graph's
    inputs or from other layers, `weights` its constants, `outputs` the tensors that leave it.
    `fixed` says why the layer cannot be given a precision (None: it can), `obstacle` of which kind that is, and `held`
    that it computes in floats all the same, which every export must hold at float32. `inside` are the tensors of its
    bodies (If, Loop, Scan) that are looked at, as `Model.inner` calls them.
    `quantizable` is true where int8 arithmetic applies: Conv, ConvTranspose, Gemm, MatMul; `blocked` where it holds a
    weight that can be quantised alone, in blocks (see `blocks.py`).
    `multiply_adds` is None where the shapes are not known; `weight_bytes` counts float32 storage.
    `own` is the half precision that the model itself has the layer in (None: float32, or no float). `is_island` says
    that other layers are float32: then the layer keeps its own precision in every variant, unless a plan pins it.
    `is_double` says that it gives doubles, which the reference has and no variant: in these, fp32 rounds them. Of the
    nodes in its bodies either is true where it `has_own_inside`.
    """

    name: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    fixed: str | None
    quantizable: bool
    multiply_adds: int | None
    weight_bytes: int
    own: Precision | None = None
    is_double: bool = False
    is_island: bool = False
    held: bool = False
    inside: tuple[str, ...] = ()
    has_own_inside: bool = False
    obstacle: Obstacle | None = None
    blocked: bool = False

    def takes(self, precision: Precision) -> bool:
        """Whether a quantized precision is another for it than that of the floats around."""
        return self.blocked if precision.is_weight_only else self.quantizable

    @property
    def watched(self) -> tuple[str, ...]:
        """All that is looked at for NaN and Inf: what is inside, and what leaves the layer."""
        return (*self.inside, *self.outputs)

    @property
    def is_matrix_product(self) -> bool:
        """Whether it is a MatMul or Gemm, with what is fused behind: kernels of these can be told what to add up in."""
        return self.quantizable and not self.is_double and self.op_types[0] in _MATRIX_PRODUCTS

    @property
    def kind(self) -> str:
        """The operators, as `Conv+BatchNormalization+Relu`."""
        return "+".join(self.op_types)


class Scope(Protocol):
    """A graph whose layers can be copied: a model's main graph, or a body inside a node."""

    @property
    def onnx(self) -> ir.Model:
        """The model that it belongs to."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Each value that its nodes can refer to."""
        ...

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers, in topological order."""
        ...

    @property
    def node(self) -> Mapping[str, ir.Node]:
        """Node name → node of this graph."""
        ...

    @property
    def bodies(self) -> Mapping[ir.Graph, Body]:
        """All bodies of the model."""
        ...


@dataclass(frozen=True)
class Body:
    """A graph inside an If, Loop or Scan; `where` says which, as `then_branch of NAME`.

    `layers` cover every node of it, and `tensors` has its values and those of the graphs around it. A layer's name is
    one among those of its own graph.
    """

    onnx: ir.Model
    graph: ir.Graph
    where: str
    tensors: Mapping[str, TensorInfo]
    layers: tuple[Layer, ...]
    bodies: Mapping[ir.Graph, Body] = field(repr=False, compare=False)

    @cached_property
    def node(self) -> Mapping[str, ir.Node]:
        """Node name → node of this graph."""
        return {str(node.name): node for node in self.graph}


@dataclass(frozen=True)
class InnerTensor:
    """A float32 tensor of a body: its value there, the layer that gives it, and the body's `where`.

    `constants` are the initialisers that the layer takes. `own` is the half precision that the file has the layer in,
    and that it keeps until the node around it is pinned; None where it has none.
    """

    value: ir.Value
    node: str
    where: str
    constants: tuple[ir.Value, ...] = ()
    own: Precision | None = None


@dataclass(frozen=True)
class IdleNode:
    """A node of the file's main graph that gives what it takes: its `tensor` has the values of `source`.

    The model is emulated without it. A compiler is given it, and may store its tensor in another type.
    """

    name: str
    operator: str
    tensor: str
    source: str


@dataclass(frozen=True, repr=False)
class Model:
    """One checked model. `onnx` is never changed after loading: rewrites make new graphs.

    `layers` are in topological order and cover every node of the main graph. `tensors` holds each value of the main
    graph at the shapes that the model declares, `bodies` the graphs inside its nodes, and `inner` the float32
    tensors in those, by names that no other tensor has. What the file has in half is float32 in `onnx` and in
    `tensors`; `inputs` and `outputs` have the file's own types. `data_files` hold its external data, absolute:
    constants, and what is computed from them, are read from there whenever they are needed. `prepared` is what is
    handed on in place of the file (None: the file is), with the file's inputs and outputs: where functions were
    inlined, for its names, and where the file has half inside, in float32, as those types would bind a compiler
    whatever is pinned; where the end was cut off, the `tail`, without it. `exported` is the same for other tools,
    with the tail. `folded` counts the bytes of constants that are in memory beside those that were computed from
    them. `gone` are tensors of the file that are not here: each with the one that has its values, None for those
    that are constants. `idle` are the nodes of the file that hand on values of those that are here. `declared` are the
    tensors as the model says them, whatever shapes `tensors` has them at. A repaired model has `copies`: tensors that
    are computed a second time, each with the one of the original that it is like.
    """

    path: Path
    sha256: str
    onnx: ir.Model
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    tensors: Mapping[str, TensorInfo]
    layers: tuple[Layer, ...]
    data_files: frozenset[Path] = frozenset()
    prepared: ir.Model | None = None
    exported: ir.Model | None = None
    tail: Tail | None = None
    is_inlined: bool = False
    folded: int = 0
    gone: Mapping[str, str | None] = field(default_factory=dict)
    idle: tuple[IdleNode, ...] = ()
    bodies: Mapping[ir.Graph, Body] = field(default_factory=dict)
    inner: Mapping[str, InnerTensor] = field(default_factory=dict)
    repairs: tuple[Repair, ...] = ()
    original: Model | None = field(default=None, repr=False, compare=False)
    declared: Mapping[str, TensorInfo] = field(default_factory=dict, repr=False, compare=False)
    copies: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        return f"Model({ascii(self.path.name)[1:-1]}: {len(self.layers)} layers, opset {self.opset})"

    @cached_property
    def layer(self) -> Mapping[str, Layer]:
        """Layer name → layer."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def node(self) -> Mapping[str, ir.Node]:
        """Node name → node of the main graph."""
        return {str(node.name): node for node in self.onnx.graph}

    @cached_property
    def values(self) -> Mapping[str, ir.Value]:
        """Name → value of the main graph: its inputs, and what its nodes give."""
        made = (value for node in self.onnx.graph for value in node.outputs if value.name)
        return {str(value.name): value for value in (*self.onnx.graph.inputs, *made)}

    @cached_property
    def taken(self) -> Mapping[str, frozenset[str]]:
        """Layer name → what it takes from outside, with the values that its subgraphs refer to."""
        return {layer.name: frozenset(self.taken_by(layer)) for layer in self.layers}

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        """Tensor → the index of the last layer that takes it; what no layer takes is not here."""
        return {name: index for index, layer in enumerate(self.layers) for name in self.taken[layer.name]}

    def taken_by(self, layer: Layer) -> set[str]:
        """What a layer of these nodes takes from outside, be it one of the model's own or not."""
        captured = {v for name in layer.nodes for v in outer_values(self.node[name]) if not v.is_initializer()}
        return set(layer.inputs) | {str(v.name) for v in captured}

    def is_needed(self, tensor: str, stop: int) -> bool:
        """Whether a layer from the `stop`th on takes the tensor, or it leaves the model."""
        return tensor in self._delivered or self.last_use.get(tensor, -1) >= stop

    @cached_property
    def _delivered(self) -> frozenset[str]:
        return frozenset(info.name for info in self.outputs)

    @cached_property
    def idle_behind(self) -> Mapping[str, tuple[IdleNode, ...]]:
        """Tensor → the idle nodes that hand its values on, in the file's order."""
        found: dict[str, list[IdleNode]] = defaultdict(list)
        for node in self.idle:
            found[node.source].append(node)
        return {source: tuple(nodes) for source, nodes in found.items()}

    @cached_property
    def halves(self) -> Mapping[str, ir.DataType]:
        """The inputs and outputs that the file has in half, with their type there: they are float32 in `onnx`."""
        halves = {precision.number_format.element for precision in Precision.low() if not precision.is_quantized}
        infos = (*self.inputs, *self.outputs)
        return {info.name: info.dtype for info in infos if info.dtype is not None and info.dtype in halves}

    @cached_property
    def content(self) -> str:
        """What identifies the graph beside the file's hash, however it was made: of a repaired model, that is."""
        return graph_digest(self.onnx, None if self.original is None else self.original.onnx, self.sha256)

    @cached_property
    def grouping(self) -> str:
        """What identifies how its nodes are grouped into layers."""
        return grouping_digest((*layer.nodes, *layer.inside) for layer in self.layers)

    @property
    def is_rounded_by_repairs(self) -> bool:
        """Whether a repair rounds elsewhere, so that its float32 is not the original's to the bit."""
        return any(repair.exactness is Exactness.ROUNDING for repair in self.repairs)

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        return opset_of(self.onnx)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The main graph, and the bodies inside its nodes."""
        return (self, *self.bodies.values())

    @property
    def name(self) -> str:
        """The file's name without its ending; the run's folder is called after it."""
        stem = self.path.stem
        return stem if stem.strip(".") else "model"  # `...onnx` must not lead to the folder above
