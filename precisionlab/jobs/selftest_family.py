"""Rules of the emulation that one small model shows, and how an engine of it is asked for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from precisionlab.backends.base import Detail, Evaluation
from precisionlab.backends.engine import EngineBackend
from precisionlab.calibration.blocks import Blocks
from precisionlab.calibration.methods import MAX
from precisionlab.calibration.table import CalibrationTable, Range, block_table
from precisionlab.compare.judging import judging_of
from precisionlab.data import Dataset, Sample, open_dataset
from precisionlab.model import Model, load_model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision

Array = NDArray[Any]
Judge = Callable[[Array], tuple[bool, str]]

PLACES = 32
"""Input channels, each of which is shown at a place of its own: what comes out there is its weight, or its value."""


def at_places(values: Array) -> Array:
    """Channel n holds its value at place n, and 0 elsewhere: `(1, 32, 4, 8)`."""
    shown = np.zeros((PLACES, PLACES), np.float32)
    shown[np.arange(len(values)), np.arange(len(values))] = values
    return shown.reshape(1, PLACES, 4, 8)


def of_places(found: Array) -> Array:
    """What each channel has at each place: `(32, 32)`."""
    return found.reshape(PLACES, PLACES)


def listed(values: Array) -> str:
    """The first of the values, in words."""
    return ", ".join(f"{value:g}" for value in np.asarray(values).ravel()[:7])


@dataclass(frozen=True)
class Assumption:
    """One rule: which output tells of it, and how; the judge says whether it holds, and what was measured."""

    name: str
    output: str
    judge: Judge


@dataclass(frozen=True)
class Family:
    """The rules that one model tells of, every layer of which is pinned to `precision`; None: it has Q/DQ of its own.

    `graph` is the model in ONNX's text, `constants` its initialisers. `inputs` are what the rules are tried on,
    `opened_with` what stands in their place where an engine is opened: samples are finite. `ranges` are the largest |x|
    of the tensors at quantized layers, `around` and `block` are the plan's.
    """

    title: str
    precision: Precision | None
    graph: str
    constants: Mapping[str, Array]
    inputs: Mapping[str, Array]
    rules: tuple[Assumption, ...]
    opened_with: Mapping[str, Array] = field(default_factory=dict)
    ranges: Mapping[str, float] = field(default_factory=dict)
    around: Precision = Precision.FP32
    block: int | None = None

    def made(self, folder: Path) -> tuple[Model, Dataset]:
        """The model in a file, and a sample of finite values that it can be opened with."""
        proto = onnx.parser.parse_model(self.graph)
        tensors = (onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in self.constants.items())
        proto.graph.initializer.extend(tensors)
        name = self.title.lower().replace(" ", "_").replace("/", "")
        onnx.save_model(proto, folder / f"{name}.onnx")
        data = folder / name
        data.mkdir()
        np.savez(data / "0.npz", **{**self.inputs, **self.opened_with})  # type: ignore[arg-type]
        model = load_model(folder / f"{name}.onnx")
        return model, open_dataset(data, model, None, 0).checked(skip_bad=False, progress=lambda done: None)

    @property
    def table(self) -> CalibrationTable | None:
        """The ranges, or how blocks have their scales; None without quantized layers."""
        if self.precision is None or not self.precision.is_quantized:
            return None
        if self.block is not None:
            return block_table(Blocks(self.block, MAX), self.precision)
        return CalibrationTable({name: Range(amax) for name, amax in self.ranges.items()}, 1, self.precision)

    @property
    def is_typed(self) -> bool:
        """Whether strongly typed engines alone have the precision, by Q/DQ nodes."""
        found = self.precision
        return found is not None and found.is_quantized and not found.number_format.is_implicit

    def plan(self, model: Model) -> PrecisionPlan:
        """FP32, with each layer pinned: so no faster kernel in another precision answers in its place."""
        plan = PrecisionPlan(model.sha256, Precision.FP32, around=self.around, block=self.block)
        if self.precision is None:
            return plan
        free = (layer for layer in model.layers if layer.fixed is None)
        return plan.with_pins(Pin(layer.name, layer.nodes, self.precision, "self-test") for layer in free)

    def measured(self, backend: EngineBackend) -> Iterator[tuple[str, bool, str]]:
        """Each rule's name, whether it is as assumed, and what was seen; of one engine, opened for the family's model.

        Raises EngineError where the engine cannot be built or run.
        """
        model = backend.model
        evaluation = Evaluation(self.plan(model), self.table, Detail.NONFINITE, True, judging_of(model))
        (result,) = backend.results(evaluation, [Sample("rules", dict(self.inputs))])
        assert result.values is not None
        _, values = result.values
        for rule in self.rules:
            holds, seen = rule.judge(np.asarray(values[rule.output], np.float32))
            yield rule.name, holds, seen
