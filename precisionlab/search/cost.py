"""What a precision plan costs on a device: an estimate for comparing the plans of one model.

A roofline for each layer (Williams, Waterman, Patterson: Roofline: an insightful visual performance model
for multicore architectures, CACM 52(4), 2009): the longer of the time that its arithmetic takes at the
device's peak, and the time that its bytes take at the peak of the memory. Where neighbours disagree on the
precision of a tensor, the conversion between them costs time too.

NOT in it: kernel launches, what stays in a cache between two layers, how well a kernel fills the device (so
no kernel reaches the peaks), clocks and heat, fusions that the compiler finds beyond the layers of the model,
and a conversion that it fuses into the kernel before or after. A network of small layers therefore takes many
times longer than the sum: it is no prediction of latency. It says which of two plans moves and computes less.

What is assumed:

1. A float32 tensor of the model is stored in the precision of the layer that gives it. An int8 layer stores
   int8 where an int8 layer takes the tensor as an operand, and else what the plan has `around`. The
   model's inputs and outputs keep their own types. A tensor of any other type keeps it in every plan.
2. A float layer takes all that it takes in its own precision. An int8 layer takes the two operands of its
   Conv, Gemm or MatMul as int8, and the rest (bias, what stands in fused nodes, the residual) as `around`.
3. Where a tensor is wanted in a precision that it is not stored in, ONE conversion reads it and writes it
   anew, for all that want it in that precision; they read what was written.
4. Gather and Slice read no more of their data than they give. Shape and Size read nothing. Identity and
   reshapes move nothing: the result is the same memory under another shape.
5. An If costs its larger branch, a Loop or Scan all its turns; every node in them reads and writes memory.
6. Layers of other operators than Conv, ConvTranspose, Gemm and MatMul are bound by memory alone.
7. A layer whose shapes or types are not known counts nothing, and is named in `PlanCost.unknown`. A model with
   dynamic shapes has none such once a sample says the shapes (`OnnxRuntimeBackend.model`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import onnx_ir as ir

from precisionlab.errors import OptionError
from precisionlab.model import Layer, Model, TensorInfo
from precisionlab.model.flow import ONNX_DOMAINS, is_control, is_shape_input, outer_values, subgraphs
from precisionlab.model.layers import turns_of
from precisionlab.model.lift import OWN
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.rewrite.flow import around_of, precision_under
from precisionlab.search.devices import Device

Bound = Literal["compute", "memory", "measured"]
Figures = Literal["estimated", "measured", "partly measured"]

_BYTES: Mapping[Precision, int] = {precision: precision.number_format.itemsize for precision in Precision}
_NOTHING: Mapping[tuple[str, Precision], float] = MappingProxyType({})

# ONNX operator specification: operators whose first input is read only as far as it is given (an embedding
# table of 30,000 rows is not read for 8 tokens), not at all, or handed on as it is.
_READS_WHAT_IT_GIVES = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
_READS_NOTHING = frozenset({"Shape", "Size"})
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class LayerCost:
    """One layer under a plan. `bytes` are those that it reads and writes, without conversions before and after.

    `bound` says where `seconds` comes from: arithmetic, memory, or measured on the target. `multiply_adds` and
    `bytes` are None where they are not known, which can only be where it was measured.
    """

    layer: str
    precision: Precision
    multiply_adds: int | None
    bytes: int | None
    seconds: float
    bound: Bound


@dataclass(frozen=True)
class Reformat:
    """The conversion of a tensor from the precision that it is stored in to one that is wanted.

    `bytes` are those read and written; `seconds` is always an estimate.
    """

    tensor: str
    stored: Precision
    wanted: Precision
    bytes: int
    seconds: float


@dataclass(frozen=True)
class PlanCost:
    """What a plan costs, layer by layer in the model's order, and conversion by conversion.

    `unknown` are the layers that count nothing because their shapes or types are not known. `device` is the
    device's name. `figures` is "measured" only where no part of `seconds` is an estimate and no layer is
    unknown, and "estimated" where no layer was measured.
    """

    layers: tuple[LayerCost, ...]
    reformats: tuple[Reformat, ...]
    unknown: tuple[str, ...]
    device: str
    figures: Figures

    @property
    def seconds(self) -> float:
        """The sum over layers and conversions, in seconds; for comparing plans of one model on one device."""
        return math.fsum([*(cost.seconds for cost in self.layers), *(cost.seconds for cost in self.reformats)])

    @property
    def measured(self) -> int:
        """How many layers have a measured time."""
        return sum(cost.bound == "measured" for cost in self.layers)


@dataclass(frozen=True)
class _Traffic:
    """What a layer takes and gives, as far as it does not depend on the plan.

    `operands` are the float tensors that int8 quantises, `others` the rest of the float tensors, `always` those
    taken as float32 whatever the layer's precision. The elements count constants too; they and `fixed_bytes`
    (all that keeps its type) are what moves. `known` is false where a shape or type is missing.
    """

    layer: Layer
    operands: tuple[str, ...]
    others: tuple[str, ...]
    always: tuple[str, ...]
    outputs: tuple[str, ...]
    operand_elements: int
    other_elements: int
    output_elements: tuple[int, ...]
    fixed_bytes: int
    known: bool


class CostModel:
    """Costs the plans of one model on one device; what does not depend on the plan is worked out once.

    Each layer's and each conversion's cost is kept when it was asked for once, so that plans that differ by a
    few pins take one linear pass of look-ups each.
    """

    def __init__(
        self, model: Model, device: Device, measured: Mapping[tuple[str, Precision], float] = _NOTHING
    ) -> None:
        """`measured` has seconds by (layer name, precision), measured on the target; they replace estimates.

        Raises OptionError where it names a layer that the model does not have, or holds no time.
        """
        for (name, precision), seconds in measured.items():
            if name not in model.layer:
                raise OptionError(f"a time was measured for layer {name!r}, which the model does not have")
            if not (math.isfinite(seconds) and seconds >= 0):
                raise OptionError(f"the time measured for layer {name!r} in {precision} is {seconds}, not seconds")
        self.device = device
        self._measured = measured
        self._traffic = tuple(_traffic(model, layer) for layer in model.layers)
        self._inputs, self._finals = _floats(model.inputs), _floats(model.outputs)
        self._elements = {name: info.elements for name, info in model.tensors.items()}
        self._layer_costs: list[dict[tuple[Precision, ...], LayerCost | None]] = [{} for _ in self._traffic]
        self._reformats: dict[tuple[str, Precision, Precision], Reformat | None] = {}

    def of(self, plan: PrecisionPlan) -> PlanCost:
        """The cost of a plan.

        Raises OptionError where the plan uses a precision that the device does not compute in.
        """
        precisions = self._precisions(plan)
        borders = [
            around_of(traffic.layer, plan) if p.is_quantized else p
            for traffic, p in zip(self._traffic, precisions, strict=True)
        ]
        wanted = self._wanted(precisions, borders)
        reformats: list[Reformat] = []
        for name, given in self._inputs.items():
            reformats += self._conversions(name, given, wanted)
        layers: list[LayerCost] = []
        unknown: list[str] = []
        for index, (traffic, precision, border) in enumerate(zip(self._traffic, precisions, borders, strict=True)):
            # A float layer's border is its own precision; an int8 layer keeps int8 where another can take it.
            stored = tuple(precision if precision in wanted.get(name, ()) else border for name in traffic.outputs)
            cost = self._layer(index, precision, border, stored)
            if cost is None:
                unknown.append(traffic.layer.name)
            else:
                layers.append(cost)
            for name, kept in zip(traffic.outputs, stored, strict=True):
                reformats += self._conversions(name, kept, wanted)
        figures = _figures(layers, reformats, unknown)
        return PlanCost(tuple(layers), tuple(reformats), tuple(unknown), self.device.name, figures)

    def seconds(self, plan: PrecisionPlan) -> float:
        """The sum alone, in seconds. Raises OptionError as `of`."""
        return self.of(plan).seconds

    def _precisions(self, plan: PrecisionPlan) -> list[Precision]:
        """The precision of each layer: as `precision_of`, which looks through all pins for each layer."""
        pinned = plan.pinned()
        found = [precision_under(t.layer, plan, pinned.get(t.layer.name)) for t in self._traffic]
        if missing := sorted(p for p in set(found) if self.device.peak(p) is None):
            names = ", ".join(self.device.compute)
            raise OptionError(f"{self.device.title} does not compute in {missing[0]}; it has {names}")
        return found

    def _wanted(self, precisions: Iterable[Precision], borders: Iterable[Precision]) -> dict[str, set[Precision]]:
        """Tensor → the precisions that what takes it wants it in."""
        wanted: dict[str, set[Precision]] = {}
        for traffic, precision, border in zip(self._traffic, precisions, borders, strict=True):
            for name in traffic.operands:
                wanted.setdefault(name, set()).add(precision)
            for name in traffic.others:
                wanted.setdefault(name, set()).add(border)
            for name in traffic.always:
                wanted.setdefault(name, set()).add(Precision.FP32)
        for name, given in self._finals.items():
            wanted.setdefault(name, set()).add(given)
        return wanted

    def _layer(
        self, index: int, precision: Precision, border: Precision, stored: tuple[Precision, ...]
    ) -> LayerCost | None:
        """The layer's cost with its outputs stored so; None where it is not known."""
        known, key = self._layer_costs[index], (precision, border, *stored)
        if key not in known:
            known[key] = self._layer_anew(self._traffic[index], precision, border, stored)
        return known[key]

    def _layer_anew(
        self, traffic: _Traffic, precision: Precision, border: Precision, stored: tuple[Precision, ...]
    ) -> LayerCost | None:
        layer = traffic.layer
        moved = (
            traffic.operand_elements * _BYTES[precision]
            + traffic.other_elements * _BYTES[border]
            + sum(count * _BYTES[kept] for count, kept in zip(traffic.output_elements, stored, strict=True))
            + traffic.fixed_bytes
        )
        measured = self._measured.get((layer.name, precision))
        if measured is not None:
            size = moved if traffic.known else None
            return LayerCost(layer.name, precision, layer.multiply_adds, size, measured, "measured")
        if not traffic.known or layer.multiply_adds is None:
            return None
        peak = self.device.peak(precision)
        assert peak is not None, "looked for before any layer is costed"
        memory = moved / self.device.bandwidth
        compute = 2 * layer.multiply_adds / peak
        bound: Bound = "compute" if compute > memory else "memory"
        return LayerCost(layer.name, precision, layer.multiply_adds, moved, max(compute, memory), bound)

    def _conversions(self, tensor: str, stored: Precision, wanted: Mapping[str, set[Precision]]) -> list[Reformat]:
        """One conversion for each precision that the tensor is wanted in and not stored in."""
        others = wanted.get(tensor, set()) - {stored}
        if not others:
            return []
        found = (self._reformat(tensor, stored, precision) for precision in sorted(others))
        return [reformat for reformat in found if reformat is not None]

    def _reformat(self, tensor: str, stored: Precision, wanted: Precision) -> Reformat | None:
        key = (tensor, stored, wanted)
        if key not in self._reformats:
            elements = self._elements.get(tensor)
            if elements is None:
                self._reformats[key] = None
            else:
                moved = elements * (_BYTES[stored] + _BYTES[wanted])
                self._reformats[key] = Reformat(*key, moved, moved / self.device.bandwidth)
        return self._reformats[key]


def plan_cost(
    model: Model, plan: PrecisionPlan, device: Device, measured: Mapping[tuple[str, Precision], float] = _NOTHING
) -> PlanCost:
    """The cost of one plan; for many plans of a model, `CostModel` does the common part once.

    `measured` has seconds by (layer name, precision), measured on the target; they replace estimates. Raises
    OptionError where it does not fit the model, or the plan uses a precision that the device does not have.
    """
    return CostModel(model, device, measured).of(plan)


def _figures(layers: Sequence[LayerCost], reformats: Sequence[Reformat], unknown: Sequence[str]) -> Figures:
    if not any(cost.bound == "measured" for cost in layers):
        return "estimated"
    # A view takes no time, estimated or measured.
    guessed = any(cost.seconds for cost in layers if cost.bound != "measured")
    return "partly measured" if guessed or reformats or unknown else "measured"


def _floats(infos: Iterable[TensorInfo]) -> dict[str, Precision]:
    """Those of a model's inputs or outputs that are floats, and the precision that they always have."""
    kinds = {ir.DataType.FLOAT: Precision.FP32, **OWN}
    return {info.name: kinds[info.dtype] for info in infos if info.dtype in kinds}


def _traffic(model: Model, layer: Layer) -> _Traffic:
    """Sort what the layer takes by the precision that it takes it in, and count what moves."""
    nodes = [model.node[name] for name in layer.nodes]
    inside = {value for node in nodes for value in node.outputs}
    own = _given(model.tensors, layer.outputs)
    view = len(nodes) == 1 and _is(nodes[0], _VIEWS)
    # Name → elements read; a residual that is the operand as well is read for each.
    operands: dict[str, int] = {}
    others: dict[str, int] = {}
    always: dict[str, int] = {}
    typed: dict[str, int] = {}
    activations: set[str] = set()
    known = own is not None
    for node in nodes:
        values = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
        # What subgraphs refer to has no index.
        values += [(-1, value) for value in outer_values(node)]
        for index, value in values:
            if value in inside or not value.name or (_is(node, _READS_NOTHING) and index == 0):
                continue
            name = str(value.name)
            if not value.is_initializer():
                activations.add(name)
            info = model.tensors.get(name)
            size = None if info is None else _element_bytes(info)
            elements = None if info is None else info.elements
            if info is None or size is None or elements is None:
                known, elements = False, 0
            if index == 0 and _is(node, _READS_WHAT_IT_GIVES) and own is not None:
                elements = min(elements, own)
            if view:
                elements = 0
            if info is None or info.dtype != ir.DataType.FLOAT:
                typed[name] = math.ceil(elements * (size or 0))
            elif is_shape_input(node, index):
                always[name] = elements
            elif layer.quantizable and node is nodes[0] and index < 2:
                operands[name] = elements
            else:
                others[name] = elements
    in_bodies = [_moved_inside(model, node, model.tensors) for node in nodes]
    known = known and None not in in_bodies
    fixed = sum(typed.values()) + sum(always.values()) * _BYTES[Precision.FP32]
    outputs = []
    for name in layer.outputs:
        info = model.tensors.get(name)
        if info is not None and info.dtype == ir.DataType.FLOAT:
            outputs.append((name, 0 if view else info.elements or 0))
        elif info is not None and not view:
            fixed += math.ceil((info.elements or 0) * (_element_bytes(info) or 0))
    return _Traffic(
        layer=layer,
        operands=tuple(name for name in operands if name in activations),
        others=tuple(name for name in others if name in activations),
        always=tuple(name for name in always if name in activations),
        outputs=tuple(name for name, _ in outputs),
        operand_elements=sum(operands.values()),
        other_elements=sum(others.values()) + sum(count or 0 for count in in_bodies),
        output_elements=tuple(elements for _, elements in outputs),
        fixed_bytes=fixed,
        known=known,
    )


def _moved_inside(model: Model, node: ir.Node, tensors: Mapping[str, TensorInfo]) -> int | None:
    """How many float32 elements the layers of the node's bodies read and write.

    Those of the larger branch, or of all turns of a loop. Of unknown size a tensor counts nothing; None where the
    number of turns is not known.
    """
    counts = [0]
    for _, graph in subgraphs(node) if is_control(node) else ():
        body, moved = model.bodies[graph], 0
        for layer in body.layers:
            inner = [_moved_inside(model, body.node[name], body.tensors) for name in layer.nodes]
            if None in inner:
                return None
            infos = [body.tensors.get(name) for name in (*layer.inputs, *layer.weights, *layer.outputs)]
            sizes = (info.elements or 0 for info in infos if info is not None and info.dtype == ir.DataType.FLOAT)
            is_view = all(_is(body.node[name], _VIEWS) for name in layer.nodes)
            moved += (0 if is_view else sum(sizes)) + sum(count for count in inner if count is not None)
        counts.append(moved)
    turns = turns_of(node, tensors) if max(counts) else 1
    return None if turns is None else max(counts) * turns


def _given(tensors: Mapping[str, TensorInfo], outputs: Iterable[str]) -> int | None:
    """How many elements these tensors have together; None where a shape or type is not known."""
    total = 0
    for name in outputs:
        info = tensors.get(name)
        if info is None or info.elements is None or _element_bytes(info) is None:
            return None
        total += info.elements
    return total


def _element_bytes(info: TensorInfo) -> float | None:
    """Bytes of one element as the model has it; None for what is no tensor of numbers."""
    if info.dtype is None or info.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return None
    return info.dtype.bitwidth / 8


def _is(node: ir.Node, operators: frozenset[str]) -> bool:
    return node.domain in ONNX_DOMAINS and node.op_type in operators
