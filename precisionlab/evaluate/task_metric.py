"""The task metric of a run: the labels' own, or the user's."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from precisionlab.compare.task import Accuracy, Outputs, TaskMetric, load_metric
from precisionlab.data import Dataset
from precisionlab.errors import DataError, OptionError, PrecisionLabError
from precisionlab.system.usercode import import_named, is_object


def metric_of(spec: str | None, dataset: Dataset) -> Callable[[], TaskMetric] | None:
    """Makes the metric that the user or the folder's manifest names; None where neither does.

    Raises DataError where a sample has no label, OptionError where the user's metric cannot be loaded.
    """
    manifest = dataset.manifest
    if spec is None and manifest.metric is None:
        return None
    if not dataset.is_labelled:
        if dataset.is_random:
            raise DataError("no data folder: random inputs have no labels, which the metric needs")
        missing = next(name for name in dataset.names if name not in dataset.labels)
        raise DataError(f"{dataset.origin}: sample {missing} has no label, which the metric needs")
    if spec is not None:
        halves = {info.name for info in dataset.model_outputs if info.dtype == ir.DataType.FLOAT16}
        return _users_own(spec, halves)
    outputs = [info.name for info in dataset.model_outputs]
    return partial(Accuracy, manifest.output or outputs[0])


def check_metric(spec: str) -> None:
    """Raises OptionError where the user's metric cannot be loaded."""
    with _told(spec):
        load_metric(spec)


@contextmanager
def _told(spec: str) -> Iterator[None]:
    """What goes wrong in the user's own code, as an OptionError that names the line."""
    try:
        yield
    except PrecisionLabError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise OptionError(f"metric {spec!r}: {what} ({frame.filename}, line {frame.lineno})") from error


def _users_own(spec: str, halves: Collection[str]) -> Callable[[], TaskMetric]:
    """The user's metric; what goes wrong inside it is told as an OptionError that names the line.

    It is given float16 in these outputs, as the model's file does.
    """

    class Told:
        def __init__(self) -> None:
            with _told(spec):
                self._metric = made()
                self.name = str(getattr(self._metric, "name", spec.rpartition(":")[2]))
                self.higher_is_better = bool(getattr(self._metric, "higher_is_better", True))

        def update(self, outputs: Outputs, label: str) -> None:
            with _told(spec):
                self._metric.update({**outputs, **_in_half(outputs, halves)}, label)

        def compute(self) -> float:
            with _told(spec):
                return float(self._metric.compute())

    with _told(spec):
        made = load_metric(spec)
    return Told


def _in_half(outputs: Outputs, names: Collection[str]) -> Outputs:
    with np.errstate(over="ignore"):
        return {name: outputs[name].astype(np.float16) for name in names if name in outputs}


def source_of(metric: str) -> str:
    """The hash of the file that holds the user's metric: its figures are void once it was edited."""
    if is_object(metric):
        return _source_of_object(import_named(metric))
    module = metric.rpartition(":")[0]
    path = module if module.endswith(".py") else getattr(importlib.import_module(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _source_of_object(found: Any) -> str:
    """The hash of a class's or a function's own source; for what has state, or none, a word that never comes again."""
    if isinstance(found, type) or inspect.isfunction(found):
        with suppress(OSError, TypeError):
            return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()
    return uuid.uuid4().hex
