"""Two graphs side by side: both run in float32, on every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from precisionlab.backends.session import AS_OPTIMIZED, Session
from precisionlab.data import Dataset, Sample
from precisionlab.errors import ModelError


class OtherFailsError(ModelError):
    """The other graph cannot be loaded (`sample` is None), or not be run on this sample."""

    def __init__(self, error: ModelError, sample: Sample | None) -> None:
        super().__init__(str(error))
        self.sample = sample


@dataclass(frozen=True)
class Both:
    """What the original gives for a sample, and what the other graph does, by the original's outputs."""

    sample: Sample
    wanted: Mapping[str, Any]
    given: Mapping[str, Any]


def side_by_side(
    original: ir.Model,
    other: ir.Model,
    samples: Dataset,
    threads: int,
    level: ort.GraphOptimizationLevel = AS_OPTIMIZED,
    fed: Callable[[Sample], Mapping[str, Any]] | None = None,
) -> Iterator[Both]:
    """Run both on each sample, at the session's `level`; `fed` gives what the other takes, by default the same.

    Raises ModelError where the original cannot be run, OtherFailsError (a ModelError too) where the other cannot.
    """
    with ThreadPoolExecutor(1) as pool, ExitStack() as opened:
        coming = pool.submit(other_session, other, threads, level)
        one = opened.enter_context(closing(Session(original.clone(), threads, level=level)))
        two = opened.enter_context(closing(coming.result()))
        for sample in samples:
            wanted = one.run(sample.inputs)
            yield Both(sample, wanted, given_by(two, sample, sample.inputs if fed is None else fed(sample)))


def other_session(graph: ir.Model, threads: int, level: ort.GraphOptimizationLevel) -> Session:
    """A session of the other graph. Raises OtherFailsError."""
    try:
        return Session(graph.clone(), threads, level=level)
    except ModelError as error:
        raise OtherFailsError(error, None) from None


def given_by(session: Session, sample: Sample, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    """What it gives for a sample of these inputs. Raises OtherFailsError."""
    try:
        return session.run(feeds)
    except ModelError as error:
        raise OtherFailsError(error, sample) from None
