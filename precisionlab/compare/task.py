"""Task metrics: what the user of the model would notice."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from precisionlab.errors import DataError, OptionError
from precisionlab.system.usercode import import_named

Outputs = Mapping[str, NDArray[Any]]


class TaskMetric(Protocol):
    """Takes the outputs of one sample after the other, keeps what it needs, and gives one figure."""

    name: str
    higher_is_better: bool

    def update(self, outputs: Outputs, label: str) -> None:
        """Take one sample: the model's outputs by name, with their batch dimension, and its label."""
        ...

    def compute(self) -> float:
        """The figure over all samples so far."""
        ...


class Accuracy:
    """Top-1 accuracy: the share of rows whose largest value is at the label's index.

    The label of a sample is one class index, or a JSON list of one for each row of its batch. A row
    with NaN counts as wrong.
    """

    name = "accuracy"
    higher_is_better = True

    def __init__(self, output: str) -> None:
        self._output = output
        self._right = 0
        self._rows = 0

    def update(self, outputs: Outputs, label: str) -> None:
        """Count the rows whose largest score is the label's class. Raises DataError for a label that is none."""
        scores = outputs[self._output]
        scores = scores.reshape(-1, scores.shape[-1])
        try:
            wanted = np.asarray(json.loads(label)).reshape(-1)  # of a batch a list, of lists where rows have several
        except (ValueError, TypeError, RecursionError):
            wanted = np.empty(0)
        if wanted.dtype.kind != "i":
            raise DataError(f"label {label!r} is not a class index, which the metric accuracy needs")
        if wanted.shape != (len(scores),):
            raise DataError(f"label {label!r}: {wanted.size} class indices for {len(scores)} rows of {self._output}")
        self._right += int(np.count_nonzero((scores.argmax(-1) == wanted) & ~np.isnan(scores).any(-1)))
        self._rows += len(scores)

    def compute(self) -> float:
        """The share of rows that are right; NaN where there was none."""
        return self._right / self._rows if self._rows else float("nan")


class MeanOf:
    """The mean of a user's function (outputs, label) → number over the samples."""

    higher_is_better = True

    def __init__(self, function: Callable[[Outputs, str], float]) -> None:
        self.name = function.__name__
        self._function = function
        self._values: list[float] = []

    def update(self, outputs: Outputs, label: str) -> None:
        """Take the function's value for one sample."""
        self._values.append(float(self._function(outputs, label)))

    def compute(self) -> float:
        """The mean; NaN where there was no sample."""
        return float(np.mean(self._values)) if self._values else float("nan")


def load_metric(spec: str) -> Callable[[], TaskMetric]:
    """A user's own metric, given as `package.module:name` or `path/to/file.py:name`.

    The name is a class with `update(outputs, label)` and `compute()`, or a function
    `(outputs, label) -> float`, whose mean over the samples is taken. Only ever called with what the
    user wrote on the command line: a data folder cannot name code.

    Raises OptionError where it cannot be imported or is neither.
    """
    module_name, _, attribute = spec.rpartition(":")
    if not module_name or not attribute:
        raise OptionError(f"metric {spec!r}: write package.module:name or path/to/file.py:name")
    try:
        found = import_named(spec)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise OptionError(f"metric {spec!r} cannot be loaded: {error}") from None
    if isinstance(found, type) and _is_metric(found):
        return cast(Callable[[], TaskMetric], found)
    if _is_metric(found):  # an object, as it is now: each variant has a copy
        return lambda: cast(TaskMetric, copy.deepcopy(found))
    if callable(found) and not isinstance(found, type):
        return lambda: MeanOf(found)
    raise OptionError(f"metric {spec!r} must be a class with update() and compute(), or a function")


def _is_metric(found: Any) -> bool:
    return hasattr(found, "update") and hasattr(found, "compute")
