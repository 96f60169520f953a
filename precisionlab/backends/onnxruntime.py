"""The emulation: every precision by fake quantization (rounding gates) in float32 graphs, on any machine's CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from precisionlab.backends.base import Backend, Detail, Evaluation, SensitivityRequest
from precisionlab.backends.batching import ONE, Batching
from precisionlab.backends.branches import Turns, branch_sensitivities
from precisionlab.backends.collecting import Collector, Counting
from precisionlab.backends.device import CPU, Device
from precisionlab.backends.kept import KeptOutputs
from precisionlab.backends.memory import UNLIMITED, share_of
from precisionlab.backends.ranking import SensitivityParts, pays
from precisionlab.backends.runner import Runner, State, side_by_side
from precisionlab.backends.sensitivity import Reference, SensitivityStages, judged_outputs
from precisionlab.backends.session import UNPACKED, Session, as_float32
from precisionlab.backends.stretch_turns import StretchTurns
from precisionlab.backends.switched import (
    Switchable,
    SwitchedSessions,
    has_room_for_sessions,
    parts_of,
    pinned_to_float32,
)
from precisionlab.backends.switched_turns import SwitchedTurns
from precisionlab.backends.toggling import Toggling, can_be_toggled, low_of
from precisionlab.backends.walk import border_bytes
from precisionlab.backends.watching import Watch, Watching, constant_outputs
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.gather import SampleResult
from precisionlab.compare.judging import Judging
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.model.load import at_shapes
from precisionlab.plan.arithmetic import Arithmetic
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.copiers import CopierOf, copier_of
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.observe import Flow, Segment, cut, shape_probes, shapes_beside
from precisionlab.rewrite.switched import base_of
from precisionlab.rewrite.toggle import stage_ends, stage_need

DEFAULT_BUDGET = UNLIMITED.segment
"""Bytes of activations that one segment may show for one sample, where memory does not ask for less."""

_AT_ONCE = 64
"""Samples whose reference is computed in one go, where the parts of a model take turns for it."""


class OnnxRuntimeBackend(Backend):
    """Emulates any plan in ONNX Runtime, and compares it with the float32 reference beside it.

    Each sample runs on one thread and samples run side by side: that is faster than several threads
    for each, and gives the same bits whatever their number.
    """

    name = "onnxruntime"
    figures = "emulated"

    def __init__(
        self,
        model: Model,
        first: Sample,
        threads: int | None = None,
        budget: int | None = None,
        memory: int | None = None,
        device: Device = CPU,
        shaped: Model | None = None,
    ) -> None:
        """`first` is a sample that says the shapes, `device` where graphs run.

        `shaped` is what the model is a repaired one of, or has other layers than, at the shapes of that sample.

        `budget` is how much a segment may show for a sample, by default what `memory`, the bytes that this process may
        take, leaves for that.

        Raises ModelError where the model does not run, OptionError where the memory is too little for it.
        """
        self.threads = threads or os.cpu_count() or 1
        self.memory = memory
        self.runs_on = device
        # A GPU has its own memory; what it has to hold is one sample at a time, and of that a segment.
        self.share = UNLIMITED if memory is None or device is not CPU else share_of(memory, model)
        self.budget = self.share.segment if budget is None else budget
        self.model = at_shapes(model, self._shapes(model, first, shaped))
        self._kept = self._kept_together = KeptOutputs(memory)
        self._references: dict[str, Callable[[Iterable[Sample]], Iterator[dict[str, NDArray[Any]]]]] = {}
        self._lock = Lock()
        self._switched: tuple[Any, SwitchedSessions] | None = None
        self._switchable = Switchable(self.model, device)
        self._ranking: Toggling | SensitivityParts | None = None
        self.batching = ONE
        self._original: OnnxRuntimeBackend | None = None
        if model.original is not None and model.is_rounded_by_repairs:
            self._original = OnnxRuntimeBackend(model.original, first, threads, budget, memory, device, shaped)

    def run_together(self, batching: Batching) -> None:
        """Have evaluations and histograms run samples together from now on."""
        self.batching, self._kept_together = batching, KeptOutputs(self.memory)

    @property
    def title(self) -> str:
        """What a report says that the emulation ran on, and how."""
        together = f", up to {self.batching.size} samples in one batch" if self.batching.size > 1 else ""
        return self.runs_on.title + together

    @property
    def cuts(self) -> dict[str, list[int]]:
        """Behind which layers the graphs end, by the number of flows shown: what the last bits may depend on."""
        found = {}
        for shown in (1, 2, 3):
            parts = cut(self.model, shown, self.budget, self.share.weights, self.share.nodes)
            found[str(shown)] = list(accumulate(len(part) for part in parts))
        return found

    def _shapes(self, model: Model, first: Sample, shaped: Model | None) -> dict[str, tuple[int, ...]]:
        shapes = {name: array.shape for name, array in first.inputs.items()}
        known = None if shaped is None else shapes_beside(model, shaped)
        if known is not None:
            return {**shapes, **known}
        state = dict(first.inputs)
        # Of values nothing is shown, and their size is not known yet: only weights and nodes can be a reason to part.
        for probe in shape_probes(model, cut(model, 0, self.budget, self.share.weights, self.share.nodes)):
            session = Session(probe.graph, self.threads, entries=UNPACKED)
            values = session.run({feed: state[name] for feed, name in probe.feeds.items()})
            shapes.update((name, tuple(values[output].tolist())) for output, name in probe.shapes.items())
            state.update((name, values[output]) for output, name in probe.fetches.items())
            session.close()
        return shapes

    def collector(self, tensors: Sequence[str]) -> Collector:
        """Takes the histograms of |x| of these float32 tensors from reference passes."""
        return Collector(self.model, tensors, self.threads, self.budget, self.share, self.runs_on, self.batching)

    def results(self, evaluation: Evaluation, samples: Iterable[Sample]) -> Iterator[SampleResult]:
        """Reference and variant, and where it is asked for each layer alone, in one graph."""
        return self.watch(evaluation)(samples)

    def reference(self, names: Collection[str]) -> Callable[[Sample], dict[str, NDArray[Any]]]:
        """The function that gives the reference's values of these final or layer outputs, for one sample."""
        values = self._values(names, LayerCopier)
        original = self.original_outputs(names)
        return lambda sample: next(values([sample])) | original(sample)

    def _reference_of(self, judging: Judging) -> Callable[[Sample], dict[str, NDArray[Any]]]:
        """The reference's values of all that is judged, for one sample; its sessions are made when one is asked for."""
        return lambda sample: next(self._references_of(judging)([sample]))

    def _references_of(self, judging: Judging) -> Callable[[Iterable[Sample]], Iterator[dict[str, NDArray[Any]]]]:
        """The same for samples that run together."""
        with self._lock:
            if judging.digest not in self._references:
                names, model = frozenset(judging.names), judging.watched(self.model)
                self._references[judging.digest] = self._values(names, LayerCopier, model)
            return self._references[judging.digest]

    def kept_reference(self, judging: Judging) -> Callable[[Sample], dict[str, NDArray[Any]]]:
        """The function that gives what is judged of the reference, for one sample: as it is kept, or computed."""
        names = frozenset(judged_outputs(judging.watched(self.model)))
        computed = self._reference_of(judging)
        return lambda sample: self._kept.of(sample, names, computed)

    def original_outputs(self, names: Collection[str]) -> Callable[[Sample], dict[str, NDArray[Any]]]:
        """The function that gives those of these final outputs that are another model's: see `Backend.model`.

        A repaired model is held to the original's float32. Where its own is that to the bit, there are none.
        """
        final = {info.name for info in self.model.outputs}
        if self._original is None or not final.intersection(names):
            return lambda sample: {}
        return self._original.reference(final.intersection(names))

    def references(
        self, names: Collection[str], samples: Iterable[Sample], copier: CopierOf = LayerCopier
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """The same for many samples, in their order; `copier` makes the reference's layers."""
        return self._values(names, copier)(samples)

    def _values(
        self, names: Collection[str], copier: CopierOf, model: Model | None = None
    ) -> Callable[[Iterable[Sample]], Iterator[dict[str, NDArray[Any]]]]:
        runner = self._reference_runner(model or self.model, copier)
        constants = constant_outputs(self.model)

        def picking(sample: Sample) -> _Picking:
            given = {**constants, **{name: as_float32(array) for name, array in sample.inputs.items()}}
            return _Picking(self.runs_on, names, {name: given[name] for name in names if name in given})

        return lambda samples: runner.each(samples, picking, 1)

    def _reference_runner(self, model: Model, copier: CopierOf) -> Runner:
        plan, flows = PrecisionPlan(self.model.sha256, Precision.FP32), (Flow.REFERENCE,)
        how = self.budget, self.share, self.runs_on, copier, None, self.batching
        return Runner(model, plan, None, flows, flows, *how)

    def look(self, samples: Iterable[Sample], observer: Callable[[str, NDArray[Any]], None]) -> None:
        """Show the reference's inputs and every float32 tensor that a layer gives, by its name, sample by sample."""
        runner = self._reference_runner(self.model, LayerCopier)

        def shown(tensors: Iterable[tuple[str, Any]]) -> None:
            for name, value in tensors:
                observer(name, self.runs_on.host(value))

        def visit(sample: Sample) -> Counting:
            for name, array in sample.inputs.items():
                observer(name, as_float32(array))
            return Counting(shown)

        for _ in runner.each(samples, visit, 1):
            pass

    def watch(self, evaluation: Evaluation) -> Callable[[Iterable[Sample]], Iterator[SampleResult]]:
        """The function that gives `results` for samples; its sessions live as long as it does."""
        flows = evaluation.flows
        model = evaluation.judging.watched(self.model)
        self._ranking = None
        switched = self._switched_for(model, evaluation)
        # Where parts of the model take turns, all samples go through each: one by one the reference would cost more.
        beside = evaluation.is_beside_reference or (self.share.is_parted and switched is None)
        if beside:
            flows = tuple(dict.fromkeys((Flow.REFERENCE, *flows)))
        plan, table = evaluation.plan, evaluation.table
        shown, copier = evaluation.flows, copier_of(evaluation.arithmetic)
        share, ready = (self.share, None) if switched is None else (switched.share, switched.of(plan))
        how = self.budget, share, self.runs_on, copier, ready, self.batching
        runner = Runner(model, plan, table, flows, shown, *how)
        what = Watching(self.model, evaluation, self.runs_on)
        original, kept = self.original_outputs(what.judged), self._kept_together

        def watch(sample: Sample) -> Watch:
            if beside:
                return Watch(what, sample, original(sample), kept)
            known = kept.of(sample, what.computed, self._reference_of(evaluation.judging))
            return Watch(what, sample, known | original(sample), None)

        if beside or not (self.share.is_parted or self.batching.size > 1):
            return lambda samples: runner.each(samples, watch, self.threads)
        keeping = partial(self._with_references, evaluation.judging, what.computed)
        return lambda samples: runner.each(keeping(samples), watch, self.threads)

    def _with_references(self, judging: Judging, names: frozenset[str], samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples, once the reference's values are kept of those that run together, or go part by part."""
        rest, kept = iter(samples), self._kept_together
        count = _AT_ONCE if self.share.is_parted else self.batching.size
        while some := list(islice(rest, count)):
            if not all(kept.has(sample, names) for sample in some):
                for sample, values in zip(some, self._references_of(judging)(some), strict=True):
                    kept.keep(sample, values)
            yield from some

    def _switched_for(self, model: Model, evaluation: Evaluation) -> SwitchedSessions | None:
        """The sessions that plans with other pins share; None where the plan has to have its own."""
        plan, arithmetic = evaluation.plan, evaluation.arithmetic
        pinned = pinned_to_float32(plan)
        is_one = evaluation.detail is Detail.NONFINITE and pinned and self._can_share(model)
        if not is_one or not self._switchable.is_shared(base_of(plan), pinned, arithmetic):
            self._switched = None  # no more than one thing at a time takes memory
            return None
        return self._sessions_for(model, plan, evaluation.table, evaluation.judging, arithmetic)

    def _can_share(self, model: Model) -> bool:
        """Whether there is room for sessions that stay."""
        if self.share.is_parted and self.batching.size > 1:
            return False  # a batch's reference is another one than that of all samples, part by part
        return has_room_for_sessions(model, self.budget, self.share, self.runs_on)

    def _sessions_for(
        self,
        model: Model,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        judging: Judging,
        arithmetic: Arithmetic,
    ) -> SwitchedSessions:
        """The sessions for all plans that differ from this one in pins to float32; made for the first."""
        key = (base_of(plan), None if table is None else table.digest, judging.digest, arithmetic)
        with self._lock:
            if self._switched is None or self._switched[0] != key:
                self._switched = None
                made = SwitchedSessions(model, plan, table, arithmetic, self.budget, self.share, self.runs_on)
                self._switched = key, made
            return self._switched[1]

    def can_toggle(self, request: SensitivityRequest) -> bool:
        """Whether layers are toggled in sessions that live on: whatever is asked for together, they are made once."""
        model = request.judging.watched(self.model)
        return not self.share.is_parted and self._is_toggled_by_plans(request) and self._toggled_at_once(model) > 0

    def _is_toggled_by_plans(self, request: SensitivityRequest) -> bool:
        """Whether the sessions that plans share can toggle its layers."""
        model, low = request.judging.watched(self.model), low_of(request)
        layers = frozenset(request.layers) | pinned_to_float32(low)
        is_shared = self._can_share(model) and self._switchable.is_shared(base_of(low), layers, request.arithmetic)
        return is_shared and can_be_toggled(model, request)

    def _toggled_at_once(self, model: Model) -> int:
        """How many samples there is room for that layers are toggled on."""
        parts = parts_of(model, self.budget, self.share, self.runs_on)
        return self.share.samples // 2 // max(1, border_bytes(model, parts))

    def _sessions_toggling(self, request: SensitivityRequest) -> SwitchedSessions:
        """The sessions that a search's plans share, where they toggle its layers."""
        model = request.judging.watched(self.model)
        return self._sessions_for(model, low_of(request), request.table, request.judging, request.arithmetic)

    def toggled(self, request: SensitivityRequest, samples: Iterable[Sample]) -> Iterator[Toggled]:
        """Each layer toggled in a branch that goes on from the others' values, so that only what follows is run."""
        every = list(samples)
        if self.share.is_parted:
            yield from branch_sensitivities(self._turns_for(request), request, every, self.threads)
            return
        layers, reference = frozenset(request.layers), self.kept_reference(request.judging)
        if (ranking := self._ranking_for(request, reference)) is not None:
            yield from ranking.of(every, layers, self.threads)
            return
        need, where = stage_need(self.model, layers, stage_ends(self.model, layers, len(every), self.budget))
        threads = self.share.side_by_side(self.model, self.threads, need, where)
        is_single = self.runs_on is not CPU and not request.arithmetic.is_float32  # as in `Runner.each`
        threads = 1 if is_single else self.runs_on.threads(threads, need)
        at_once = threads if len(every) == 1 else 1  # a single sample has its toggled layers side by side
        threads = max(1, min(threads, len(every)))
        stages = SensitivityStages(self.model, request, len(every), self.budget, self.runs_on, reference)
        for toggled_of in stages.each():
            yield from side_by_side(partial(toggled_of, threads=at_once), every, threads, self.runs_on)

    def _turns_for(self, request: SensitivityRequest) -> Turns:
        """The parts of the model that take turns: in the sessions that plans share, where that can be."""
        if self._is_toggled_by_plans(request):
            return SwitchedTurns(self._sessions_toggling(request), request)
        self._switched = None  # no more than one thing at a time takes memory
        return StretchTurns(self.model, request, self.budget, self.share)

    def _ranking_for(self, request: SensitivityRequest, reference: Reference) -> Toggling | SensitivityParts | None:
        """The sessions that the rounds of a ranking share; they stay until a plan is evaluated."""
        if self._ranking is None or not self._ranking.is_for(request):
            self._ranking = None  # no more than one at a time takes memory
            if self.can_toggle(request):
                sessions = self._sessions_toggling(request)
                self._ranking = Toggling(sessions, request, self._toggled_at_once(sessions.model))
                return self._ranking
            self._switched = None
            if pays(self.model, request, self.budget, self.share, self.runs_on):
                how = self.budget, self.share, self.runs_on
                self._ranking = SensitivityParts(self.model, request, *how, reference)
        return self._ranking


class _Picking:
    """Keeps the reference's values of some tensors."""

    def __init__(self, device: Device, names: Collection[str], found: dict[str, NDArray[Any]]) -> None:
        self._device = device
        self._names = names
        self._found = found

    def observer(self, segment: Segment, state: State) -> None:
        self._found.update(
            (name, self._device.host(state[Flow.REFERENCE, name]))
            for name in self._names
            if (Flow.REFERENCE, name) in state
        )

    def result(self) -> dict[str, NDArray[Any]]:
        return self._found
