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
   Conv, Gemm or MatMul as int8, and the rest (bias, what stands in fused nodes, the residual) as `around`. An
   int4 layer takes its weight as int4, without the scales, and all else as `around`; its arithmetic is in fp16.
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
from precisionlab.model import Model, TensorInfo
from precisionlab.model.lift import OWN
from precisionlab.plan.assign import around_of, precision_under
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.devices import DevicePeaks
from precisionlab.search.traffic import _Traffic, _traffic

Bound = Literal["compute", "memory", "measured"]
Figures = Literal["estimated", "measured", "partly measured"]

_BYTES: Mapping[Precision, float] = {precision: precision.number_format.itemsize for precision in Precision}
_NOTHING: Mapping[tuple[str, Precision], float] = MappingProxyType({})


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


class CostModel:
    """Costs the plans of one model on one device; what does not depend on the plan is worked out once.

    Each layer's and each conversion's cost is kept when it was asked for once, so that plans that differ by a
    few pins take one linear pass of look-ups each.
    """

    def __init__(
        self, model: Model, device: DevicePeaks, measured: Mapping[tuple[str, Precision], float] = _NOTHING
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
            around_of(traffic.layer, plan) if p.is_quantized else p.stored_as
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
            own = precision.stored_as
            stored = tuple(own if own in wanted.get(name, ()) else border for name in traffic.outputs)
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
                wanted.setdefault(name, set()).add(border if precision.is_weight_only else precision.stored_as)
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
        weights = traffic.weight_elements
        taken = border if precision.is_weight_only else precision
        moved = math.ceil(
            weights * _BYTES[precision]
            + (traffic.operand_elements - weights) * _BYTES[taken]
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
                moved = math.ceil(elements * (_BYTES[stored] + _BYTES[wanted]))
                self._reformats[key] = Reformat(*key, moved, moved / self.device.bandwidth)
        return self._reformats[key]


def plan_cost(
    model: Model, plan: PrecisionPlan, device: DevicePeaks, measured: Mapping[tuple[str, Precision], float] = _NOTHING
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
