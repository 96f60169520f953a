"""Runs the graphs that toggle single layers: the sensitivity of all that is judged to each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import CPU, Device, Running
from precisionlab.backends.runner import side_by_side
from precisionlab.compare.judged import judged_differences, judged_sensitivities
from precisionlab.compare.sensitivity import Toggled, Told
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.toggle import Stage, stage_ends, stage_of, whole

StageFunction = Callable[..., Toggled]
"""Takes a sample, and how many threads to use for it."""

Arrays = Mapping[str, Any]
"""Tensors by name, as the device has them."""

Reference = Callable[[Sample], Arrays]
"""What is judged of the reference, for a sample, in the host's memory."""


_FIRST = 64
"""Numbers that tell most values apart that are not the same."""


class SensitivityStages:
    """The stages of one request, each by its number, counted from 0. Threads may share it."""

    def __init__(
        self,
        model: Model,
        request: SensitivityRequest,
        samples: int,
        budget: int,
        device: Device = CPU,
        reference: Reference | None = None,
    ) -> None:
        """`reference` gives what is judged of the reference, where that is known: then it is not run here."""
        model = request.judging.watched(model)
        self._device = device
        self._model = model
        self._request = request
        self._stops = stage_ends(model, frozenset(request.layers), samples, budget)
        self._copier = copier_of(request.arithmetic)
        self._finals = Finals(model, request, device, reference)
        self._last: tuple[int, StageFunction] | None = None
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many stages there are."""
        return len(self._stops)

    def each(self) -> Iterator[StageFunction]:
        """For each stage the function of it; made while the stage before it is at work.

        The sessions of a stage live no longer than until the next but one is made.
        """
        with ThreadPoolExecutor(1) as maker:
            upcoming = [maker.submit(self.made, 0)] if self.count else []
            for index in range(self.count):
                toggled_of = upcoming.pop().result()
                if index + 1 < self.count:
                    upcoming.append(maker.submit(self.made, index + 1))
                yield toggled_of

    def stage(self, index: int) -> StageFunction:
        """The function of this stage; the last one asked for is kept."""
        with self._lock:
            if self._last is None or self._last[0] != index:
                self._last = None  # not two at a time: sessions take memory
                self._last = (index, self.made(index))
            return self._last[1]

    def made(self, index: int) -> StageFunction:
        """The function of this stage, made anew."""
        plan, other, table = self._request.plan, self._request.other, self._request.table
        start = self._stops[index - 1] if index else 0
        layers = frozenset(self._request.layers)
        stage = stage_of(self._model, plan, other, layers, table, start, self._stops[index], self._copier)
        return _StageRunner(stage, self._finals, self._device).toggled_of


class Finals:
    """What is judged of the reference, of the base that layers are toggled in, and of the whole variant."""

    def __init__(self, model: Model, request: SensitivityRequest, device: Device, reference: Reference | None) -> None:
        self._host = device.host
        self.request = request
        self.names = judged_outputs(model)
        self._reference, float32 = reference, PrecisionPlan(model.sha256, Precision.FP32)
        plans = (float32, request.plan, request.other)
        self._sessions: dict[PrecisionPlan, tuple[Running, dict[str, str]]] = {}
        for plan in dict.fromkeys(plans):
            if plan == float32 and reference is not None:
                continue
            graph, names = whole(model, plan, request.table, copier_of(request.arithmetic))
            self._sessions[plan] = (device.session(graph), names)
        self._plans = plans
        self._low = 2 if request.plan.default is Precision.FP32 else 1
        self._known: dict[str, tuple[Arrays, Arrays, Arrays]] = {}

    def of(self, sample: Sample) -> tuple[Arrays, Arrays, Arrays]:
        """Reference, base, and the whole variant's error; kept, as every stage asks for them again."""
        if sample.name not in self._known:
            outputs: dict[PrecisionPlan, Arrays] = {}
            if self._reference is not None:
                outputs[self._plans[0]] = self._reference(sample)
            for plan, (session, names) in self._sessions.items():
                values = session.run(sample.inputs)
                outputs[plan] = {name: self._host(values[names[name]]) for name in self.names}
            finals = [outputs[plan] for plan in self._plans]
            reference, base, variant = finals[0], finals[1], finals[self._low]
            error = judged_differences(self.request.judging, reference, variant)
            self._known[sample.name] = (reference, base, error)
        return self._known[sample.name]


class _StageRunner:
    def __init__(self, stage: Stage, finals: Finals, device: Device) -> None:
        self._host, self._device = device.host, device
        self._stage = stage
        self._finals = finals
        self._head = device.session(stage.head)
        self._rest = None if stage.rest is None else device.session(stage.rest)

    def toggled_of(self, sample: Sample, threads: int = 1) -> Toggled:
        """What each toggled layer of the stage does to one sample; `threads` of them at a time."""
        reference, base, error = self._finals.of(sample)
        values = self._head.run(sample.inputs)
        alive = {name: values[shown] for name, shown in self._stage.alive.items()}

        def toggled(branch: Mapping[str, str]) -> Told:
            changed = {name: values[shown] for name, shown in branch.items()}
            every = self._outputs(base, alive, changed)
            outputs = {name: self._host(every[name]) for name in self._finals.names}
            return told_of(self._finals.request, reference, outputs, error)

        branches = self._stage.branches
        told = side_by_side(toggled, branches.values(), threads, self._device)
        return Toggled(sample.name, dict(zip(branches, told, strict=True)))

    def _outputs(self, base: Arrays, alive: Arrays, changed: Arrays) -> Arrays:
        """The final outputs with these tensors changed; the base's own where they are the same after all."""
        if all(is_same(alive[name], value) for name, value in changed.items()):
            return base
        outputs = {**base, **changed}
        if self._rest is not None:
            state = {**alive, **changed}
            feeds = {feed: state[name] for name, feed in self._stage.feeds.items()}
            outputs.update((self._stage.fetches[name], v) for name, v in self._rest.run(feeds).items())
        return outputs


def told_of(request: SensitivityRequest, reference: Arrays, outputs: Arrays, error: Arrays) -> Told:
    """What is judged tells of a toggled layer, beside the reference; `error` is that of the whole variant."""
    judging = request.judging
    sensitivities = judged_sensitivities(judging, reference, outputs, error)
    if not request.values:
        return Told(sensitivities)
    return Told(sensitivities, {name: value for name, value in outputs.items() if name not in judging.within})


def is_same(a: Any, b: Any) -> bool:
    """Whether two values are known to be the same bit for bit; those in a GPU's memory are not looked at for that."""
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return False
    if a.shape != b.shape or a.reshape(-1)[:_FIRST].tobytes() != b.reshape(-1)[:_FIRST].tobytes():
        return False
    return a.tobytes() == b.tobytes()


def judged_outputs(model: Model) -> list[str]:
    """The outputs whose values hang on what is computed."""
    constants = {str(v.name) for v in model.onnx.graph.outputs if v.is_initializer()}
    return [info.name for info in model.outputs if info.name not in constants]
