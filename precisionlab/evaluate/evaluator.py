"""Evaluations of plans on the two parts of the data, each journalled so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from precisionlab.backends.base import Backend, SensitivityRequest
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import Judging
from precisionlab.compare.sensitivity import Sensitivities, from_plain, merged, to_plain
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Dataset
from precisionlab.evaluate.journal import Journal
from precisionlab.model import Model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.rewrite.observe import Flow, observed_rows
from precisionlab.system.deadline import BudgetExhausted
from precisionlab.system.observer import Observer

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluator:
    """Evaluates plans of one model: on the samples that choose the pins, and on those held out.

    `held_out` is None where the samples are too few to hold any out. `judging` says what is judged,
    `arithmetic` how emulated variants compute.
    """

    backend: Backend
    chosen: Dataset
    held_out: Dataset | None
    metric: Callable[[], TaskMetric] | None
    journal: Journal
    observer: Observer
    judging: Judging
    arithmetic: Arithmetic = TENSORRT
    _done: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The model at the shapes of the data."""
        return self.backend.model

    def compare(
        self, title: str, plan: PrecisionPlan, table: CalibrationTable | None, *, introduced: bool = False
    ) -> Comparison:
        """Compare the variant in full, on the samples that choose."""
        work = partial(self.backend.compare, metric=self.metric, introduced=introduced)
        return self._compared(title, plan, table, self.chosen, {"introduced": introduced}, work)

    def judge(
        self, title: str, plan: PrecisionPlan, table: CalibrationTable | None, known: Comparison | None
    ) -> Comparison:
        """Compare the final outputs alone, and look for new NaN and Inf, on the samples that choose.

        `known` has what the reference holds of its own; None for engines, whose layers are not looked at then.
        """
        work = partial(self.backend.judge, metric=self.metric, known=known)
        return self._compared(title, plan, table, self.chosen, {"judge": True}, work)

    def hold_to(self, title: str, plan: PrecisionPlan, table: CalibrationTable | None) -> Comparison | None:
        """Compare the variant in full, on the samples held out."""
        if self.held_out is None:
            return None
        work = partial(self.backend.compare, metric=self.metric, introduced=False)
        return self._compared(f"{title}, held-out samples", plan, table, self.held_out, {"introduced": False}, work)

    def hold_outputs_to(self, title: str, plan: PrecisionPlan, table: CalibrationTable | None) -> Comparison | None:
        """Compare an engine's final outputs alone, on the samples held out."""
        if self.held_out is None:
            return None
        work = partial(self.backend.judge, metric=self.metric, known=None)
        return self._compared(f"{title}, held-out samples", plan, table, self.held_out, {"judge": True}, work)

    def steadiness(self, measured: Callable[[Dataset], Comparison], samples: Dataset) -> Comparison:
        """How far the reference's own answer moves with the last bits, on these samples."""

        def work() -> Any:
            self.observer.stage("float32 with its last bits moved", len(samples))
            return measured(samples).to_dict()

        key = {"steadiness": 1, "on": _digest(samples), "judged": self.judging.digest}
        return self.journalled(
            "float32 with its last bits moved", key, work, Comparison.from_dict, self._fitting(samples, ())
        )

    def sensitivities(self, title: str, request: SensitivityRequest, samples: Dataset) -> Sensitivities:
        """How sensitive all that is judged of these samples is to each layer.

        Where the observer raises BudgetExhausted, of the layers that have been measured by then.
        """
        parts: list[Sensitivities] = []

        def work() -> Any:
            self.observer.stage(title, len(request.layers), "layer")
            seen: set[str] = set()
            for part in self.backend.sensitivities(request, samples):
                parts.append(part)
                seen.update(part)
                self.observer.advance(len(seen))
            return to_plain(merged(parts))

        try:
            key, fits = self.toggling_key(request, samples), partial(self._fits_layers, request.layers)
            return self.journalled(title, key, work, from_plain, fits)
        except BudgetExhausted:
            return _whole(parts, len(samples))

    def toggling_key(self, request: SensitivityRequest, samples: Dataset) -> dict[str, Any]:
        """What the journal knows a request by, on these samples."""
        named = frozenset(request.layers)  # whatever their order, they are the same ones
        toggled = [layer.name for layer in self.model.layers if layer.name in named]
        return {
            "toggled": hashlib.sha256(json.dumps(toggled).encode()).hexdigest(),
            "plan": _key(request.plan, request.table),
            "other": _key(request.other, request.table),
            "on": _digest(samples),
            "judged": self.judging.digest,
            **self._under,
        }

    def _compared(
        self,
        title: str,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Dataset,
        kind: Mapping[str, bool],
        work: Callable[..., Comparison],
    ) -> Comparison:
        key = {**_key(plan, table), **kind, "on": _digest(samples), "by": self.backend.name}
        key |= {"judged": self.judging.digest, **self._under}

        def worked() -> Any:
            self.observer.stage(title, len(samples))
            advance = self.observer.advance
            found = work(plan, table, samples, advance, judging=self.judging, arithmetic=self.arithmetic)
            return found.to_dict()

        # An engine shows as many of its layers' outputs as it can; the emulation shows all.
        layers = observed_rows(self.model, plan, (Flow.VARIANT,)) if self.backend.sees_every_layer else {}
        fits = self._fitting(samples, [name for _, name in layers])
        return self.journalled(title, key, worked, Comparison.from_dict, fits)

    @property
    def _under(self) -> dict[str, Any]:
        """What a journal's key says of the arithmetic; an engine has its own."""
        return {} if self.arithmetic == TENSORRT else {"arithmetic": self.arithmetic.to_plain()}

    def _fitting(self, samples: Dataset, layers: Collection[str]) -> Callable[[Comparison], bool]:
        """Tells whether a comparison can be one on these samples, which has all tensors of `layers`."""
        tensors = self.model.tensors.keys() | self.model.inner.keys()
        judged = set(self.judging.names)

        def fits(comparison: Comparison) -> bool:
            named = comparison.inherited.keys() | comparison.introduced.keys() | set(comparison.broken)
            outputs = comparison.outputs.keys()
            return (
                comparison.is_of(len(samples))
                and comparison.inherited.keys() >= set(layers)
                and named <= tensors
                and judged.difference(self.judging.within) <= outputs
                and outputs | comparison.each.keys() <= judged
            )

        return fits

    def _fits_layers(self, layers: Sequence[str], sensitivities: Sensitivities) -> bool:
        """Whether sensitivities can be those of these layers on what is judged."""
        judged = set(self.judging.names)
        return sensitivities.keys() <= set(layers) and all(own.keys() <= judged for own in sensitivities.values())

    def journalled(
        self,
        title: str,
        key: Mapping[str, Any],
        work: Callable[[], Any],
        read: Callable[[Any], T],
        fits: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """What is known already under this key; else do the work, and note it in the journal.

        `work` gives plain values, and `read` makes of these what is asked for. What an earlier run has noted and `read`
        cannot take, or does not fit, is done anew. What is known of a repaired model is another thing, and of other
        layers of it: those are the context's for the model as it is alone.
        """
        if self.model.repairs:
            key = {**key, "repaired": self.model.content, "layers": self.model.grouping}
        name = json.dumps(key, sort_keys=True)
        if name not in self._done:
            if (known := self.journal.known(key)) is not None:
                if (old := _read(read, known)) is not None and fits(old):
                    self._done[name] = old
                    self.observer.note(f"{title}: taken from the journal of an earlier run")
                else:
                    self.observer.note(f"{title}: the journal's entry is not as precisionlab writes it; done anew")
            if name not in self._done:
                value = work()
                self.journal.record(key, value)
                self._done[name] = read(value)
        figures: T = self._done[name]
        return figures


def _read(read: Callable[[Any], T], known: Any) -> T | None:
    """What an earlier run has noted; None where it is nothing of ours."""
    try:
        return read(known)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _whole(parts: Sequence[Sensitivities], samples: int) -> Sensitivities:
    """Of what is there so far, the sensitivities of the layers that all samples went through."""
    counts = Counter(layer for part in parts for layer in part)
    return {layer: sensitivities for layer, sensitivities in merged(parts).items() if counts[layer] == samples}


def _key(plan: PrecisionPlan, table: CalibrationTable | None) -> dict[str, Any]:
    return {
        "default": plan.default.value,
        "around": plan.around.value,
        "ranges": None if table is None else table.digest,
        "pins": {layer: p.value for layer, p in plan.pinned().items()},
    }


def _digest(samples: Dataset) -> str:
    """The context says what the samples hold; here their names tell one part of them from another."""
    return hashlib.sha256(json.dumps(samples.names).encode()).hexdigest()
