"""How long an engine takes, and how long each layer of the model takes in it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precisionlab.backends.tensorrt.cuda import Event
from precisionlab.backends.tensorrt.execution import Engine
from precisionlab.backends.tensorrt.jobs import Arrays, EngineLayer, Latency
from precisionlab.backends.tensorrt.pin_report import parts_of
from precisionlab.backends.tensorrt.profile_names import without_profile
from precisionlab.backends.tensorrt.profiler import make_profiler

if TYPE_CHECKING:
    from precisionlab.model import Layer

_LEAST_RUNS = 5
"""So many runs are timed, however long one takes."""
_SPREAD = (5, 95)
"""The percentiles between which most runs lie: one that the system interrupts must not make the figure."""


@dataclass(frozen=True)
class Group:
    """Model layers whose time cannot be told apart, and their milliseconds together."""

    layers: tuple[str, ...]
    milliseconds: float


@dataclass(frozen=True)
class LayerTimes:
    """Where an engine's time goes, in milliseconds a run; its parts add up to all of it.

    `times` has each model layer that runs in kernels of its own, with the copies that stand before them. `groups` are
    those that share kernels, and copies that several layers take. `rest` belongs to no layer that is known. A layer in
    none of them has no kernel that is known: folded into a constant, or nothing to be done.
    """

    times: Mapping[str, float]
    groups: tuple[Group, ...]
    rest: float


def measure(engine: Engine, inputs: Arrays, runs: int = 100, warmup: int = 20, seconds: float = 10.0) -> Latency:
    """How long one run takes on the GPU, from the first kernel to the last, with the inputs in its memory already.

    One run at a time, as for one sample alone. `low` and `high` are the 5th and 95th percentile. A slow engine is
    run less often, so that warming up and timing take `seconds` each at most, but at least 5 times.
    Raises DataError and EngineError as `Engine.run` does.
    """
    engine.bind(inputs)
    begun = time.perf_counter()
    for done in range(1, warmup + 1):
        engine.enqueue()
        engine.stream.wait()
        if time.perf_counter() - begun > seconds and done > 1:
            break
    taken: list[float] = []
    with ExitStack() as stack:
        start, end = (stack.enter_context(Event(engine.cuda)) for _ in range(2))
        begun = time.perf_counter()
        while len(taken) < _LEAST_RUNS or (len(taken) < runs and time.perf_counter() - begun < seconds):
            start.record(engine.stream)
            engine.enqueue()
            end.record(engine.stream)
            end.wait()
            taken.append(end.since(start))
    low, high = np.percentile(taken, _SPREAD)
    return Latency(float(np.median(taken)), float(low), float(high), len(taken))


def measure_layers(
    engine: Engine, inputs: Arrays, runs: int = 20, warmup: int = 5, seconds: float = 10.0
) -> dict[str, float]:
    """Engine layer → its milliseconds a run, the mean of some; empty where TensorRT does not tell them.

    Watching costs time: the sum is more than `measure` gives. Raises DataError and EngineError as `Engine.run` does.
    """
    profiler = make_profiler(engine.trt)
    with engine.profiled(profiler) as report:
        engine.bind(inputs)
        begun = time.perf_counter()
        for done in range(warmup + runs):
            engine.enqueue()
            engine.stream.wait()
            # A warm-up that is not reported is not counted.
            if done >= warmup and not report():
                return {}
            if done >= warmup and time.perf_counter() - begun > seconds:
                break
    found: dict[str, float] = profiler.layers()
    return found


def times_of_layers(
    milliseconds: Mapping[str, float], engine_layers: Iterable[EngineLayer], model_layers: Sequence[Layer]
) -> LayerTimes:
    """What `measure_layers` has found, by the layers of the model. See `LayerTimes`.

    An engine's layer runs the model's layers whose nodes its metadata names; without metadata those whose tensors it
    gives, or whose nodes its own name is made of. One that runs none, such as a copy into another memory layout, counts
    for the layers that take what it gives, and where none takes it for the layer that it takes it from. Names are
    compared whole.
    """
    kernels = _Kernels(engine_layers, model_layers)
    together = _Together()
    for name in milliseconds:
        together.join(kernels.running(name))
    sums: dict[tuple[str, ...], float] = {}
    rest = 0.0
    for name, taken in milliseconds.items():
        found = kernels.running(name) or kernels.beside(name)
        if not found:
            rest += taken
            continue
        members = {member for layer in found for member in together.of(layer)}
        key = tuple(layer.name for layer in model_layers if layer.name in members)
        sums[key] = sums.get(key, 0.0) + taken
    times = {layers[0]: taken for layers, taken in sums.items() if len(layers) == 1}
    groups = tuple(Group(layers, taken) for layers, taken in sums.items() if len(layers) > 1)
    return LayerTimes(times, groups, rest)


class _Kernels:
    """An engine's layers by name, and the model's layers that they run."""

    def __init__(self, engine_layers: Iterable[EngineLayer], model_layers: Sequence[Layer]) -> None:
        self._of_node = {node: layer.name for layer in model_layers for node in layer.nodes}
        self._of_tensor = {tensor: layer.name for layer in model_layers for tensor in layer.outputs}
        self._between = [layer.name for layer in model_layers]
        self._named: dict[str, list[EngineLayer]] = {}
        self._takers: dict[str, list[EngineLayer]] = {}
        self._givers: dict[str, list[EngineLayer]] = {}
        self._known: dict[str, set[str]] = {}
        for layer in engine_layers:
            self._named.setdefault(layer.name, []).append(layer)
            for tensor in layer.inputs:
                self._takers.setdefault(tensor.name, []).append(layer)
            for tensor in layer.outputs:
                self._givers.setdefault(tensor.name, []).append(layer)

    def running(self, name: str) -> set[str]:
        """The model's layers that the engine's layers of this name run."""
        if name not in self._known:
            # A name that the inspector has not told still says what it is made of.
            layers = self._named.get(name) or [EngineLayer(name, "", (), (), ())]
            self._known[name] = {found for layer in layers for found in self._run_by(layer)}
        return self._known[name]

    def beside(self, name: str) -> set[str]:
        """The model's layers that take what these engine layers give, or else give what they take."""
        layers = self._named.get(name, [])
        return self._next(layers, forward=True) or self._next(layers, forward=False)

    def _next(self, layers: Iterable[EngineLayer], *, forward: bool) -> set[str]:
        """The model's layers that are next on the way, past engine layers that run none."""
        found: set[str] = set()
        seen: set[str] = set()
        waiting = [tensor.name for layer in layers for tensor in (layer.outputs if forward else layer.inputs)]
        while waiting:
            tensor = waiting.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            for layer in (self._takers if forward else self._givers).get(tensor, ()):
                runs = self.running(layer.name)
                found |= runs
                if not runs:
                    waiting += [t.name for t in (layer.outputs if forward else layer.inputs)]
        return found

    def _run_by(self, layer: EngineLayer) -> set[str]:
        if layer.nodes:
            return {self._of_node[node] for node in layer.nodes if node in self._of_node}
        by_tensor = {self._of_tensor[t.name] for t in layer.outputs if t.name in self._of_tensor}
        title = without_profile(layer)
        by_name = {self._of_node[part] for part in (title, *parts_of(title)) if part in self._of_node}
        if "{ForeignNode[" in title and len(by_name) > 1:
            # It says where it begins and ends, not what it runs in between.
            first, *_, last = sorted(self._between.index(found) for found in by_name)
            by_name |= set(self._between[first : last + 1])
        return by_tensor | by_name


class _Together:
    """Model layers that run in kernels together, and those that do with any of these."""

    def __init__(self) -> None:
        self._sets: dict[str, set[str]] = {}

    def join(self, layers: Iterable[str]) -> None:
        """These run in one kernel."""
        merged = {member for layer in layers for member in self.of(layer)}
        for member in merged:
            self._sets[member] = merged

    def of(self, layer: str) -> set[str]:
        """A layer with all that it runs with."""
        return self._sets.get(layer, {layer})
