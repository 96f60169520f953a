"""The two kinds of fault that a part of a model can show: a precision's, as it is emulated, or a second model's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.base import Detail, Evaluation
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.second import SecondRun
from precisionlab.calibration.cache import write_cache
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.judging import judging_of
from precisionlab.data import Dataset, open_dataset
from precisionlab.evaluate.prepare import Prepared
from precisionlab.model import TensorInfo, load_model
from precisionlab.model.other import OtherModel, as_written, load_other
from precisionlab.model.save import save_model
from precisionlab.model.twins import Twins, twins_of
from precisionlab.plan.arithmetic import Arithmetic
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.part import Opening, Region, part_of
from precisionlab.rewrite.plans import plan_for
from precisionlab.system.disk import write_whole_bytes
from precisionlab.system.observer import Observer

FIRST, SECOND, CACHE, INPUTS = "model.onnx", "other.onnx", "calibration.cache", "inputs"
_CACHE_VERSION = "8.6.1"
Outputs = Mapping[str, NDArray[Any]]


class Fault(Protocol):
    """What is wrong, and how it is measured: of the whole model, and of a part that was written to a folder."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def compare(self, samples: Dataset) -> Comparison:
        """The whole model against its reference on these samples: inherited, and introduced by each layer."""
        ...

    def can_open(self, tensor: str) -> bool:
        """Whether the part may begin at this tensor."""
        ...

    def write(self, region: Region, infos: Mapping[str, TensorInfo], folder: Path) -> tuple[str, ...]:
        """Write the part's models to the folder; `infos` has the types and shapes of its ends. Returns the names."""
        ...

    def measure(self, region: Region, folder: Path) -> tuple[float, list[tuple[Outputs, Outputs]]]:
        """Read the part back: the worst SQNR of its outputs over the samples there, and true and low of each."""
        ...


@dataclass(frozen=True)
class EmulatedFault:
    """A precision without pins, as it is emulated; `around` is that of the float layers around quantized ones."""

    ready: Prepared
    precision: Precision
    table: CalibrationTable | None
    arithmetic: Arithmetic
    observer: Observer
    around: Precision = Precision.FP32

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.precision}, emulated"

    def compare(self, samples: Dataset) -> Comparison:
        """See `Fault`."""
        self.observer.stage(f"{self.name}: the whole model", len(samples))
        plan = plan_for(self.ready.local.model, self.precision, self.table, around=self.around)
        return self.ready.local.compare(
            plan, self.table, samples, self.observer.advance, metric=None, introduced=True, arithmetic=self.arithmetic
        )

    def can_open(self, tensor: str) -> bool:
        """Any tensor will do."""
        return True

    def write(self, region: Region, infos: Mapping[str, TensorInfo], folder: Path) -> tuple[str, ...]:
        """See `Fault`."""
        model = self.ready.local.model
        _save(model.onnx, [Opening((n,), infos[n]) for n in region.inputs], [infos[n] for n in region.outputs],
              folder / FIRST, model.data_files)  # fmt: skip
        if self.table is None or not self.precision.number_format.is_implicit:
            return (FIRST,)  # what is quantised by nodes alone has no cache
        inside = {*region.inputs, *(output for name in region.layers for output in model.layer[name].outputs)}
        scales = {name: scale for name, scale in self.table.scales.items() if name in inside}
        write_whole_bytes(folder / CACHE, write_cache(scales, _CACHE_VERSION))
        return FIRST, CACHE

    def measure(self, region: Region, folder: Path) -> tuple[float, list[tuple[Outputs, Outputs]]]:
        """See `Fault`."""
        part = load_model(folder / FIRST)
        samples = open_dataset(folder / INPUTS, part, None, 0)
        backend = OnnxRuntimeBackend(part, next(iter(samples)), self.ready.local.threads)
        plan: PrecisionPlan = plan_for(backend.model, self.precision, self.table, around=self.around)
        judging = judging_of(backend.model)
        asked = Evaluation(plan, self.table, Detail.NONFINITE, True, judging, self.arithmetic)
        found, sums = [], dict[str, ErrorSums]()
        for result in backend.results(asked, samples):
            assert result.values is not None
            found.append(result.values)
            _add(sums, {name: errors.errors for name, errors in result.outputs.items()})
        return worst_of(sums, region.outputs), found


@dataclass(frozen=True)
class SecondFault:
    """A second model beside the first."""

    ready: Prepared
    other: OtherModel
    twins: Twins
    budget: int
    observer: Observer

    @property
    def name(self) -> str:
        """What it is called."""
        return self.other.path.name

    def compare(self, samples: Dataset) -> Comparison:
        """See `Fault`."""
        local = self.ready.local
        run = SecondRun(local.model, self.other, self.twins, judging_of(local.model), local.threads)
        self.observer.stage(f"{self.name} beside the whole first", len(samples))
        return run.compare(samples, None, self.budget, lambda number, of: None, self.observer.advance)

    def can_open(self, tensor: str) -> bool:
        """Only where both have it."""
        return tensor in self.twins.tensors

    def write(self, region: Region, infos: Mapping[str, TensorInfo], folder: Path) -> tuple[str, ...]:
        """See `Fault`."""
        model = self.ready.local.model
        _save(model.onnx, [Opening((n,), infos[n]) for n in region.inputs], [infos[n] for n in region.outputs],
              folder / FIRST, model.data_files)  # fmt: skip
        graph = as_written(self.other.path)
        openings = [self._opening(infos[name]) for name in region.inputs if self._is_there(name)]
        outputs = [self._theirs(infos[name]) for name in region.outputs]
        _save(graph, openings, outputs, folder / SECOND, self.other.data_files)
        return FIRST, SECOND

    def match(self, region: Region) -> dict[str, str]:
        """Ours → theirs, of the part's ends whose names differ."""
        ends = (*region.inputs, *region.outputs)
        pairs = {name: self.twins.tensors[name].read for name in ends if name in self.twins.tensors}
        return {ours: theirs for ours, theirs in pairs.items() if ours != theirs}

    def measure(self, region: Region, folder: Path) -> tuple[float, list[tuple[Outputs, Outputs]]]:
        """See `Fault`."""
        first, second = load_model(folder / FIRST), load_other(folder / SECOND)
        twins = twins_of(first, second, self.match(region))
        samples = open_dataset(folder / INPUTS, first, None, 0)
        local = OnnxRuntimeBackend(first, next(iter(samples)), self.ready.local.threads)
        run = SecondRun(local.model, second, twins, judging_of(local.model), local.threads)
        found: list[tuple[Outputs, Outputs]] = []
        compared = run.compare(
            samples, None, self.budget, lambda number, of: None, lambda done: None, lambda a, b: found.append((a, b))
        )
        sums = {name: errors.errors for name, errors in compared.outputs.items() if errors.errors is not None}
        return worst_of(sums, region.outputs), found

    def _is_there(self, name: str) -> bool:
        return any(name_ in self.other.values for name_ in self._values(name))

    def _values(self, name: str) -> tuple[str, ...]:
        twin = self.twins.tensors[name]
        return twin.taken or (twin.theirs,)

    def _opening(self, info: TensorInfo) -> Opening:
        return Opening(self._values(info.name), self._theirs(info))

    def _theirs(self, info: TensorInfo) -> TensorInfo:
        """The twin, with the type that the second file has it in, and the first's shape."""
        name = self.twins.tensors[info.name].read
        return replace(info, name=name, dtype=self.other.types.get(name) or info.dtype)


def worst_of(sums: Mapping[str, ErrorSums | None], names: Collection[str]) -> float:
    """The lowest SQNR of these; a NaN is the lowest of all, and there being none is +inf."""
    found = [errors.sqnr for name in names if (errors := sums.get(name)) is not None]
    return math.nan if any(math.isnan(value) for value in found) else min(found, default=math.inf)


def _add(sums: dict[str, ErrorSums], found: Mapping[str, ErrorSums | None]) -> None:
    for name, errors in found.items():
        if errors is not None:
            sums[name] = sums[name] + errors if name in sums else errors


def _save(
    graph: ir.Model, openings: Sequence[Opening], outputs: Sequence[TensorInfo], path: Path, sources: Iterable[Path]
) -> None:
    save_model(part_of(graph, openings, outputs), path, frozenset(sources))
