"""Variants as strongly typed engines (by choice in TensorRT 10; 11, TensorRT-RTX): plans stand in a model's types."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.tensorrt.backend import Engines, Inside, TensorRTBackend
from precisionlab.backends.tensorrt.jobs import BuildJob, LayerPin
from precisionlab.backends.tensorrt.matching import FLOATS
from precisionlab.backends.tensorrt.missed import not_fused, not_quantized
from precisionlab.backends.tensorrt.network import NetworkLayer
from precisionlab.backends.tensorrt.pin_report import PinReport, reports_of
from precisionlab.backends.tensorrt.settings import EngineSettings
from precisionlab.calibration.table import CalibrationTable
from precisionlab.errors import BuildError, ModelError
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.sums import adds_up
from precisionlab.rewrite.typed.beside import Beside
from precisionlab.system.plainfiles import make_plain_folder
from precisionlab.system.wording import counted

_WEAK = frozenset({"constraints", "float_layers", "int8_ranges"})
_WRITTEN = 2
"""How typed models are written; with another number no engine of an earlier version is taken. 1: without `split`."""


class TypedBackend(TensorRTBackend):
    """Builds each plan as a typed ONNX model of its own, which TensorRT takes as it is."""

    is_typed = True

    def __init__(
        self,
        reference: OnnxRuntimeBackend,
        engines: Engines,
        settings: EngineSettings,
        name: str,
        beside: Beside,
    ) -> None:
        super().__init__(reference, engines, settings)
        self.name = name
        self._beside = beside
        self._typed: set[Path] = set()

    @property
    def identity(self) -> dict[str, str]:
        """As of every backend, without the settings that a network with types of its own has no use for."""
        return {name: value for name, value in super().identity.items() if name not in _WEAK}

    def job(self, plan: PrecisionPlan, table: CalibrationTable | None) -> BuildJob:
        """What is asked of TensorRT for a plan; writes the typed model. Raises BuildError where there can be none."""
        from precisionlab.rewrite.typed import save_typed, typed_model

        settings = self._settings
        # How nodes are grouped decides where Casts and Q/DQ stand: the same plan on other layers is another model.
        layers = [layer.nodes for layer in self.model.layers]
        ranges = None if table is None else table.digest
        text = json.dumps([plan.to_dict(), ranges, self.model.sha256, layers, _WRITTEN], sort_keys=True)
        content = hashlib.sha256(text.encode()).hexdigest()
        path = make_plain_folder(settings.folder, "typed").resolve() / f"{content[:16]}.onnx"
        # One that an earlier run has left may be a stranger's, and another model than its name says.
        if path not in self._typed:
            try:
                typed = typed_model(self.model, plan, table, beside=self._beside)
            except ModelError as error:
                raise BuildError(str(error)) from None
            self.notes += [note for note in typed.notes if note not in self.notes]
            save_typed(typed, path)
            self._typed.add(path)
        return BuildJob(
            model=path,
            engine=settings.folder,
            content=content,
            profiles=settings.profiles,
            more_profiles=settings.more_profiles,
            workspace=settings.workspace,
            compute=settings.compute,
            strict_nans=self._engines.features.strict_nans,
            timing_cache=self._timings,
            plugins=settings.digests,
            tuning=settings.tuning,
            typed=self._engines.features.pins,  # elsewhere there is no choice
            label=f"{self.model.name} ({plan.default}, {counted(len(plan.pins), 'pin')})",
        )

    def inside(self, plan: PrecisionPlan, table: CalibrationTable | None) -> Inside:
        """What the engine of a plan really is.

        A kernel may convert inside itself, so that what it takes and gives does not settle a pin. But a strongly typed
        network is compiled as it is typed, but for what `rewrite.typed.alone` keeps from it: where the kernel is known
        to run the pinned nodes, the network's own types do.
        """
        built = self.built(plan, table)
        pins = self.own_pins(plan)
        job = self.job(plan, table)
        reports = tuple(map(_typed_advice, reports_of(pins, (), built.layers, self.model.node)))
        if not built.is_read:
            return self._inside(built, reports)
        missed = not_quantized(self.model, plan, built.layers)
        network = self._engines.describe(job.model, job.typed)
        settled = (_settled(report, pin, network) for report, pin in zip(reports, pins, strict=True))
        unfused = not_fused(self.model, plan, built.layers)
        return replace(self._inside(built, tuple(map(self._as_summed, settled))), missed=missed, unfused=unfused)

    def _as_summed(self, report: PinReport) -> PinReport:
        """The report, which does not say of a kernel of several products in half what it adds up in: no log tells.

        TensorRT-RTX 1.7.1 runs an attention with Casts around one of its two products by the same kernel as without.
        """
        others = (self.model.node[name] for name in report.fused_with if name in self.model.node)
        hidden = any(map(adds_up, others)) and Precision.FP32.value not in report.got
        if not (report.asked.is_for_pins and report.verdict == "honoured" and hidden):
            return report
        advice = "its kernel runs other products too, and does not tell what it adds up in: go by the measured error"
        return replace(report, verdict="unknown", advice=advice)


def _typed_advice(report: PinReport) -> PinReport:
    """The report of an overridden pin with what helps where types stand in the network: no border is left to widen."""
    if report.verdict != "overridden":
        return report
    lower = " and ".join(name for name in report.got if name != report.asked.value)
    other = "pin the layer before or behind it as well, so that something else computes in float32 beside it"
    bf16 = report.asked is Precision.FP32 and Precision.FP16.value in report.got
    advice = f"it was compiled in {lower}, as half stands on both of its sides: "
    return replace(report, advice=advice + ("pin it to bf16 (--ladder bf16,fp32), or " if bf16 else "") + other)


def _settled(report: PinReport, pin: LayerPin, network: Sequence[NetworkLayer]) -> PinReport:
    """The report with the network's types in the place of what the kernel does not tell."""
    if report.verdict != "unknown":
        return report
    nodes = set(pin.nodes)
    types = {t.dtype for layer in network if layer.node in nodes for t in layer.outputs if t.dtype in FLOATS}
    if types and types <= {pin.precision.stored_as.value, Precision.FP32.value}:
        return replace(report, verdict="honoured", got=(pin.precision.stored_as.value,), advice="")
    return report
