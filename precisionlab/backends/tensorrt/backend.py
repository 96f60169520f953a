"""Variants as real engines: their final outputs and their layers' outputs, measured against ONNX Runtime's float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

from precisionlab.backends.base import Collector, Detail, Evaluation, Progress, SensitivityRequest, broken_tensors
from precisionlab.backends.engine import EngineBackend
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.buffers import widened
from precisionlab.backends.tensorrt.jobs import NOTHING, Arrays, BuildJob, Built, EngineTimes, Latency, LayerPin, Watch
from precisionlab.backends.tensorrt.latency import times_of_layers
from precisionlab.backends.tensorrt.looking import DEBUG, UNFUSED, UNSEEN, Looking, Seen, View
from precisionlab.backends.tensorrt.network import NetworkLayer
from precisionlab.backends.tensorrt.observation import eligible
from precisionlab.backends.tensorrt.pin_report import PinReport, ran_in, reports_of
from precisionlab.backends.tensorrt.pins import enabled_in, pins_of
from precisionlab.backends.tensorrt.settings import EngineSettings
from precisionlab.backends.tensorrt.strays import int8_beyond
from precisionlab.backends.tensorrt.tactics import LayerSum, sums_of
from precisionlab.calibration.cache import write_cache
from precisionlab.calibration.table import CalibrationTable, network_scales
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import ErrorTable
from precisionlab.compare.gather import Gathering, SampleResult
from precisionlab.compare.judged import errors_within, judged_errors
from precisionlab.compare.judging import Judging, judging_of
from precisionlab.compare.sensitivity import Toggled
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Sample
from precisionlab.errors import BuildError
from precisionlab.model.prepared import content_of, file_for
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.plan.assign import stored_in
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.plan.weak import check_weak
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import row_formats

_LOOKED_AT = 4
"""On so many samples an engine with marked tensors is held against the one without."""


class Engines(Protocol):
    """What builds engines and runs them: a process of its own, where TensorRT may crash without harm."""

    features: Features
    device: str | None
    """The GPU's name; None where there is none, and engines are only compiled."""

    def describe(self, model: Path, typed: bool = False) -> tuple[NetworkLayer, ...]:
        """The network that the parser makes of an ONNX file; strongly `typed`, where that is a choice.

        Raises BuildError where it refuses it.
        """
        ...

    def build(self, job: BuildJob) -> Built:
        """Build an engine, or take it from the store. Raises BuildError where TensorRT refuses."""
        ...

    def run(self, engine: Path, inputs: Arrays, watch: Watch = NOTHING) -> Arrays:
        """All outputs of an engine, marked tensors among them, for one sample, and what is watched.

        Raises EngineError.
        """
        ...

    def latency(self, engine: Path, inputs: Arrays) -> tuple[Latency, Mapping[str, float]]:
        """The time of one run, and of each of the engine's layers in it, in milliseconds."""
        ...


_NOTHING = View()
_TACTICS = {True: "held by an editable timing cache", False: "may be chosen anew"}
"""How kernels are chosen in one engine after the other."""


@dataclass(frozen=True)
class Inside:
    """What one engine was found to be: see `pin_report.py` for pins, `got` has each layer's real data types.

    `sums` has how each layer that is a Conv, ConvTranspose, Gemm or MatMul adds up. `strays` are the layers that run in
    INT8 though the plan has them in float, and `held` says whether TensorRT was asked to keep those in float. `missed`
    are the layers that run in floats though the plan quantises them, `unfused` those whose weight, which the plan
    quantises alone, is dequantised ahead of the kernel that takes it.
    """

    built: Built
    pins: tuple[PinReport, ...]
    got: Mapping[str, tuple[str, ...]]
    sums: Mapping[str, LayerSum] = field(default_factory=dict)
    strays: tuple[str, ...] = ()
    held: bool = False
    missed: tuple[str, ...] = ()
    unfused: tuple[str, ...] = ()

    @property
    def overridden(self) -> tuple[PinReport, ...]:
        """The pins that the engine does not keep to."""
        return tuple(pin for pin in self.pins if pin.verdict == "overridden")


class TensorRTBackend(EngineBackend):
    """Builds each plan as an engine of a weakly typed TensorRT, and runs it beside the float32 reference."""

    name = "tensorrt"
    figures = "measured"
    sees_every_layer = False
    threads = 1

    def __init__(self, reference: OnnxRuntimeBackend, engines: Engines, settings: EngineSettings) -> None:
        self.model = reference.model
        self.notes: list[str] = []
        """What was seen on the way and belongs into the report: engines that looking has changed, and the like."""
        self._reference = reference
        self._engines = engines
        self._settings = settings
        self._built: dict[tuple[PrecisionPlan, str, View], Built] = {}
        self._network: tuple[NetworkLayer, ...] = ()

    @property
    def precisions(self) -> frozenset[Precision]:
        """The low precisions that its kernels may have."""
        return self._engines.features.precisions

    @property
    def can_be_typed(self) -> bool:
        """Whether this TensorRT has strongly typed networks."""
        return self._engines.features.strongly_typed or not self._engines.features.pins

    @property
    def identity(self) -> dict[str, str]:
        """What measured figures depend on: with another of these none is taken over from an earlier run."""
        return {
            "backend": self.name,
            "tensorrt": self._engines.features.version,
            "device": self.device,
            "tactics": _TACTICS[self._engines.features.editable_timings],
            "network": "strongly typed" if self.is_typed else "weakly typed",
            "nans": "kept" if self._engines.features.strict_nans else "may be folded",
            **self._settings.facts,
        }

    @property
    def device(self) -> str:
        """The GPU that engines run on, or are compiled for."""
        return self._engines.device or str(self._settings.compute)

    @property
    def can_run(self) -> bool:
        """Whether there is a GPU to run engines on."""
        return self._engines.device is not None

    def collector(self, tensors: Sequence[str]) -> Collector:
        """The reference's: ranges are of float32 values, whatever runs the variant."""
        return self._reference.collector(tensors)

    def toggled(self, request: SensitivityRequest, samples: Iterable[Sample]) -> Iterator[Toggled]:
        """Raises BuildError: each toggled layer would be an engine of its own."""
        raise BuildError("an engine's layers cannot be toggled one by one; the emulation ranks them")

    def results(self, evaluation: Evaluation, samples: Iterable[Sample]) -> Iterator[SampleResult]:
        """The final outputs of engine and reference; nothing of the layers."""
        engine = self.built(evaluation.plan, evaluation.table).engine
        names = [info.name for info in self.model.outputs]
        reference_of = self._reference.reference(names)
        for sample in samples:
            reference, variant = reference_of(sample), self._outputs(engine, sample)
            errors = judged_errors(evaluation.judging, reference, variant)
            values = (reference, {name: variant[name] for name in names}) if evaluation.values else None
            yield SampleResult(ErrorTable(0), errors, values, sample.label)

    def compare(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        introduced: bool,
        judging: Judging | None = None,
        arithmetic: Arithmetic = TENSORRT,
    ) -> Comparison:
        """As of every backend; but no engine can run a layer on the reference's inputs: nothing is `introduced`.

        The final outputs are those of the engine as it will be used. The layers' outputs come from further engines in
        which they were marked, in groups; whether that changed the final outputs is noted. An engine has its own
        arithmetic, whatever is asked for.
        """
        started = time.perf_counter()
        found = self.judge(plan, table, samples, progress, metric=metric, known=None, judging=judging)
        seen = self._inherited(plan, table, samples)
        inherited = dict(seen.errors)
        broken = broken_tensors(self.model, plan, inherited, inherited)
        within = errors_within(judging or judging_of(self.model), inherited)
        outputs = {**found.outputs, **within}
        seconds = time.perf_counter() - started
        return replace(found, outputs=outputs, inherited=inherited, broken=broken, seen=seen.each, seconds=seconds)

    def judge(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        known: Comparison | None,
        judging: Judging | None = None,
        arithmetic: Arithmetic = TENSORRT,
    ) -> Comparison:
        """The final outputs alone, from one engine."""
        started = time.perf_counter()
        gathering = Gathering(0, metric)
        judged = judging or judging_of(self.model)
        for result in self.results(Evaluation(plan, table, Detail.NONFINITE, metric is not None, judged), samples):
            progress(gathering.add(result))
        found = gathering.comparison({}, {}, (), time.perf_counter() - started)
        if not judged.named:
            return found
        # Bounds on tensors within are kept by marking these alone, in an engine beside.
        within = errors_within(judged, self._inherited(plan, table, samples, judged.named).errors)
        return replace(found, outputs={**found.outputs, **within}, seconds=time.perf_counter() - started)

    def built(self, plan: PrecisionPlan, table: CalibrationTable | None, view: View = _NOTHING) -> Built:
        """The engine of a plan; built once. Raises BuildError where TensorRT refuses it."""
        key = (plan, "" if table is None else table.digest, view)
        if key not in self._built:
            job = self.job(plan, table)
            if view.how == UNFUSED:
                job = replace(job, unfused=True)
            elif view.how == DEBUG:
                job = replace(job, debug=view.tensors)
            elif view.tensors:
                job = replace(job, marked=view.tensors, marked_as=self._marked_as(plan, view.tensors))
            self._built[key] = self._engines.build(job)
        return self._built[key]

    def _marked_as(self, plan: PrecisionPlan, tensors: Collection[str]) -> dict[str, Precision]:
        """The half precisions that the plan has these tensors in; none where the network has types of its own."""
        if self.is_typed:
            return {}
        held = {name: layer for layer in self.model.layers for name in layer.outputs}
        stored = {name: stored_in(held[name], plan) for name in tensors if name in held}
        return {name: precision for name, precision in stored.items() if precision.is_low_float}

    def job(self, plan: PrecisionPlan, table: CalibrationTable | None) -> BuildJob:
        """What is asked of TensorRT for a plan. Raises PlanError where it cannot be told that."""
        check_weak(self.model, plan)
        settings = self._settings
        cache = None
        if table is not None and not settings.calibrate:
            cache = write_cache(network_scales(table, self.model.gone), self._engines.features.version)
        return BuildJob(
            model=self._file,
            engine=settings.folder,
            content=content_of(self.model),
            enabled=enabled_in(self.model, plan),
            pins=pins_of(self.model, plan, self._settings.hold_float),
            obey=settings.obey,
            cache=cache,
            profiles=settings.profiles,
            more_profiles=settings.more_profiles,
            workspace=settings.workspace,
            timing_cache=self._timings,
            strict_nans=self._engines.features.strict_nans,
            plugins=settings.digests,
            tuning=settings.tuning,
        )

    @property
    def _timings(self) -> Path | None:
        """Where the timings of kernels are kept, so that later engines choose as the first one did; None: nowhere.

        By an editable timing cache they do (its own file: its content may be another), by another nearly always.
        """
        features = self._engines.features
        if features.compiles_ahead:
            return None
        return self._settings.folder / ("tactics.cache" if features.editable_timings else "timing.cache")

    @cached_property
    def _file(self) -> Path:
        """The file that TensorRT parses."""
        return file_for(self.model, self._settings.folder)

    def inside(self, plan: PrecisionPlan, table: CalibrationTable | None) -> Inside:
        """What the engine of a plan really is: what became of each pin, and the types that each layer runs in."""
        built = self.built(plan, table)
        reports = reports_of(self.own_pins(plan), built.outcomes, built.layers)
        strays = int8_beyond(self.model, plan, built.layers)
        return replace(self._inside(built, reports), strays=strays, held=self._settings.hold_float)

    def _inside(self, built: Built, reports: tuple[PinReport, ...]) -> Inside:
        return Inside(built, reports, ran_in(self.model.layers, built.layers), sums_of(self.model, built.layers))

    def own_pins(self, plan: PrecisionPlan) -> list[LayerPin]:
        """What the plan pins, without the layers that are only held beside these: those are no business of a report."""
        return [pin for pin in pins_of(self.model, plan) if pin.layer in plan.pinned()]

    def kernels(self, precision: Precision) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """The ONNX nodes that each kernel of an engine in this precision runs, by profile. Raises BuildError."""
        built = self.built(PrecisionPlan(self.model.sha256, precision), None)
        return tuple(tuple(layer.nodes for layer in layers if layer.nodes) for layers in built.by_profile)

    def times(self, plan: PrecisionPlan, table: CalibrationTable | None, sample: Sample) -> EngineTimes:
        """How long the engine takes for one sample, and what in it."""
        built = self.built(plan, table)
        latency, kernels = self._engines.latency(built.engine, sample.inputs)
        return EngineTimes(latency, times_of_layers(kernels, built.layers, self.model.layers).times, kernels)

    # The layers' outputs

    def _inherited(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        only: Collection[str] | None = None,
    ) -> Seen:
        """The errors of what the layers give, or `only` of these tensors, as far as they can be looked at."""
        if not self._settings.observe:
            return UNSEEN
        if not self._network:
            self._network = self._engines.describe(self._file)
        # Fusion boundaries alone: inside of a layer there is nothing to compare with, as nothing is rounded there.
        borders = {name for layer in self.model.layers for name in layer.outputs if only is None or name in only}
        wanted = borders.intersection(eligible(self._network))
        plain = self.built(plan, table).engine
        looking = Looking(
            self.model,
            self._engines,
            build=lambda view: self.built(plan, table, view),
            reference=self._reference.reference,
            formats=lambda names: row_formats(self.model, plan, names),
            plain=[(sample, self._outputs(plain, sample)) for sample in islice(samples, _LOOKED_AT)],
            budget=self._settings.observe,
        )
        seen = looking.look(wanted, samples)
        self.notes += [f"{plan.default}, {note}" for note in (*seen.notes, *seen.told)]
        return seen

    def _outputs(self, engine: Path, sample: Sample) -> Arrays:
        """What the engine gives; half and bfloat16 as float32, which holds all their values."""
        return {name: widened(value) for name, value in self._engines.run(engine, sample.inputs).items()}
