"""What every job begins with: the model, its samples in two parts, and the backend that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlab.backends import emulation, shared_out
from precisionlab.backends.base import Backend
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import KINDS
from precisionlab.compare.judging import Judging, judging_of
from precisionlab.compare.scales import Axes, channel_axes, powers_of, with_groups
from precisionlab.compare.task import TaskMetric
from precisionlab.compare.tolerance import Tolerance
from precisionlab.data import Dataset, open_dataset, random_dataset
from precisionlab.errors import OptionError
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.journal import Journal
from precisionlab.evaluate.samples import checked, split
from precisionlab.evaluate.task_metric import metric_of
from precisionlab.model import Model
from precisionlab.system.executors import Executor
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import parse_share
from precisionlab.system.plain import of_kind
from precisionlab.system.wording import counted

if TYPE_CHECKING:
    from precisionlab.backends.engine import EngineBackend


_LOOKED_AT = 32
"""On about so many samples the scales of outputs are told."""


@dataclass(frozen=True)
class Source:
    """Where the samples come from, and which of them are held out. `data` None: random inputs of these `shapes`."""

    data: str | Path | None
    shapes: Mapping[str, tuple[int, ...]]
    samples: int | None
    seed: int
    holdout: float
    skip_bad: bool


@dataclass(frozen=True)
class Prepared:
    """Samples that were looked at, and the emulation at their shapes. `held_out` is None where they are too few.

    `local` is the emulation in this process, `backend` the same with its work shared out where that was asked for.
    """

    dataset: Dataset
    chosen: Dataset
    held_out: Dataset | None
    metric: Callable[[], TaskMetric] | None
    local: OnnxRuntimeBackend
    backend: Backend

    def of(self, model: Model, threads: int | None, executor: Executor | None = None) -> Prepared:
        """The same samples for the same model with other layers, or with repairs.

        Other layers are known to this process alone; only those that patterns make can be shared out.
        """
        own = self.local
        where = own.memory, own.runs_on.name
        local = emulation(model, self.dataset, threads, *where, shaped=own.model, batch=own.batching.size)
        return replace(self, local=local, backend=shared_out(local, self.dataset, executor))

    def engines(
        self, backend: str, options: EngineOptions, folder: Path, observer: Observer
    ) -> AbstractContextManager[EngineBackend]:
        """The backend of this name on this model and these samples, for as long as the context lasts; see `Opener`."""
        opener = KINDS[backend].open
        assert opener is not None, "asked of backends with engines alone"
        return opener(backend, self.local, self.dataset, self.chosen, options, folder, observer)

    def judging(self, *tolerances: Tolerance) -> Judging:
        """What is judged: the final outputs by their parts, and what these bounds name.

        Raises OptionError for a bound of something that the model has not.
        """
        named = [bound.output for tolerance in tolerances for bound in tolerance if bound.output is not None]
        return judging_of(self.local.model, named)

    def with_groups(self, judging: Judging, journal: Journal, observer: Observer) -> Judging:
        """With outputs in groups of channels where the reference's values on these samples differ in scale by much.

        Told once, from at most so many samples that choose, evenly spaced, and journalled: every figure of the run is
        of the same parts.
        """
        axes = channel_axes(self.local.model, judging)
        if not axes:
            return judging
        step = max(1, len(self.chosen) // _LOOKED_AT)
        looked_at = self.chosen.only(frozenset(self.chosen.names[::step]))
        key = {"groups": axes, "on": list(looked_at.names), "judged": judging.digest}
        powers = _powers(journal.known(key), axes)
        if powers is None:
            observer.stage("scales of the outputs", len(looked_at))
            powers = powers_of(axes, self.local.references(list(axes), looked_at))
            journal.record(key, powers)
        return with_groups(judging, axes, powers)

    def evaluator(
        self, journal: Journal, observer: Observer, judging: Judging, backend: Backend | None = None
    ) -> Evaluator:
        """Evaluates plans on these samples, in emulation or by another backend."""
        return Evaluator(backend or self.backend, self.chosen, self.held_out, self.metric, journal, observer, judging)


def prepare(
    model: Model,
    source: Source,
    metric: str | None,
    threads: int | None,
    executor: Executor | None,
    observer: Observer,
    memory: int | None = None,
    device: str = "cpu",
    batch: int = 1,
) -> Prepared:
    """Open and check the samples, part them, and make the emulation ready, in so many bytes of memory, on a device.

    `batch` is how many samples run together.

    Raises DataError for bad samples or missing labels, OptionError for options that do not fit them, ModelError
    where the model does not run.
    """
    dataset = checked(_dataset(model, source), source.skip_bad, observer)
    if source.data is not None and source.samples is not None and len(dataset) < source.samples:
        observer.note(f"{counted(source.samples, 'sample')} were asked for, and {len(dataset)} are there: all are used")
    chosen, held_out = split(dataset, source.holdout, observer)
    made = metric_of(metric, dataset)
    local = emulation(model, dataset, threads, memory, device, batch=batch)
    return Prepared(dataset, chosen, held_out, made, local, shared_out(local, dataset, executor))


def _powers(known: Any, axes: Axes) -> dict[str, list[float]] | None:
    """The powers that an earlier run has noted; None where it has none, or what is noted is nothing of ours."""
    try:
        found = of_kind(Mapping[str, tuple[float, ...]], known)
    except ValueError:
        return None
    return {name: list(own) for name, own in found.items()} if found.keys() == axes.keys() else None


def parse_holdout(holdout: str | float) -> float:
    """The share of samples to hold out. Raises OptionError for none below 1."""
    share = parse_share(holdout, "holdout")
    if share is None or share >= 1:  # such as 100%
        raise OptionError(f"holdout {holdout!r}: write a share below 1, such as 0.25; 0 holds nothing out")
    return share


def _dataset(model: Model, source: Source) -> Dataset:
    if source.data is None:
        return random_dataset(model, source.shapes, source.seed)
    if source.shapes:
        raise OptionError("shapes are for random inputs; with a data folder the samples say the shapes")
    return open_dataset(source.data, model, source.samples, source.seed)
