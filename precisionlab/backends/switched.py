"""Sessions that all plans of a search share: what is pinned is an input of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import accumulate
from threading import Lock
from typing import Any

import numpy as np

from precisionlab.backends.device import CPU, Device, Running
from precisionlab.backends.memory import BUILT, Share
from precisionlab.backends.part_sessions import PartSessions, TurnedSession
from precisionlab.backends.runner import INSIDE, Ready, sessions_of
from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Layer, Model
from precisionlab.plan.arithmetic import Arithmetic
from precisionlab.plan.assign import is_reference
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Flow, Segment, cut, largest_need, segments
from precisionlab.rewrite.switched import (
    base_of,
    can_switch,
    differing,
    has_bodies,
    in_branches,
    in_values,
    is_laid_out,
    switched_parts,
)

_PARTS, _LEAST = 16, 32
"""Into so many parts a model is cut, of no fewer nodes: to toggle a layer takes its part, and those behind it."""

_SESSIONS = 2
"""One part in so many of what samples have is for sessions that stay, where a model is parted."""

_COPIES = 3
"""Copies of its weights that such a session takes: rounded ones, and both packed."""

_ON_GPU = 64
"""Nodes of a part on a GPU: to begin and end a run takes as long there as dozens of kernels."""


def pinned_to_float32(plan: PrecisionPlan) -> frozenset[str]:
    """The layers that the plan pins to float32."""
    return frozenset(name for name, precision in plan.pinned().items() if precision is Precision.FP32)


def can_be_switched(model: Model, base: PrecisionPlan, arithmetic: Arithmetic, device: Device) -> bool:
    """Whether sessions can be made for all plans of a base together, but for those that pin a layer with bodies."""
    if not arithmetic.is_float32 or any(layer.inside for layer in model.layers):
        return False
    if device is CPU and is_laid_out(model):
        return False
    if device is not CPU:
        copier = copier_of(arithmetic)(GraphBuilder(model.onnx), model, None)
        switched = (layer for layer in model.layers if can_switch(model, layer, base))
        return all(copier.can_be_blended(layer, base) for layer in switched)
    return True


class Switchable:
    """Which plans of a model can share sessions; what can be said of a whole base is asked once."""

    def __init__(self, model: Model, device: Device) -> None:
        self._model, self._device = model, device
        self._asked: tuple[tuple[PrecisionPlan, Arithmetic], bool] | None = None

    def is_shared(self, base: PrecisionPlan, pinned: Collection[str], arithmetic: Arithmetic) -> bool:
        """Whether plans of this base can share sessions that pin some of these layers to float32, or none."""
        key = base, arithmetic
        if self._asked is None or self._asked[0] != key:
            self._asked = key, can_be_switched(self._model, base, arithmetic, self._device)
        return self._asked[1] and not any(has_bodies(self._model, self._model.layer[name]) for name in pinned)


def parts_of(model: Model, budget: int, share: Share, device: Device) -> list[list[Layer]]:
    """How the model is cut for them: what a part shows for a sample stays within `budget` bytes."""
    nodes = max(_LEAST, len(model.node) // _PARTS) if device is CPU else _ON_GPU
    return cut(model, 1, budget, share.weights, nodes if share.nodes is None else min(nodes, share.nodes))


def has_room_for_sessions(model: Model, budget: int, share: Share, device: Device) -> bool:
    """Whether sessions may stay from plan to plan, and samples still have their room.

    Where the model is parted, half of what samples have is for sessions that stay.
    """
    if not share.is_parted:
        return True
    each, *_ = largest_need(model, parts_of(model, budget, share, device), 1, 1)
    return INSIDE * each <= share.samples - share.samples // _SESSIONS


class SwitchedSessions:
    """The sessions for all plans that differ from one in their pins to float32."""

    def __init__(
        self,
        model: Model,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        arithmetic: Arithmetic,
        budget: int,
        share: Share,
        device: Device,
    ) -> None:
        """`budget` is how much a graph may show for a sample; of the `share` is what stays, where it has to be parted.

        `share` is from then on what is left of it.
        """
        copier = copier_of(arithmetic)
        self._copier_of, self._table = copier, table
        self._copier = copier(GraphBuilder(model.onnx), model, table)
        self.model, self.device = model, device
        self._turn = Lock()
        self._beside: tuple[PrecisionPlan, list[tuple[Segment, Running]]] | None = None
        self.cut = parts_of(model, budget, share, device)
        self.stops = list(accumulate(len(part) for part in self.cut))
        self.each, *_ = largest_need(model, self.cut, 1, 1)
        switching = in_branches if device is CPU else in_values
        self._parts = list(switched_parts(model, base_of(plan), table, self.cut, copier, switching))
        self._set = {is_pinned: device.value(np.asarray(is_pinned)) for is_pinned in (False, True)}
        needs = [sum(_COPIES * layer.weight_bytes + BUILT * len(layer.nodes) for layer in part) for part in self.cut]
        room = share.samples // _SESSIONS if share.is_parted else None
        self._sessions = PartSessions([part.graph for part in self._parts], needs, room, device)
        self.share = replace(share, samples=share.samples - self._sessions.held)

    def of(self, plan: PrecisionPlan) -> Ready:
        """What runs the plan."""
        self._beside = None
        pinned = pinned_to_float32(plan)
        tensors = differing(self.model, plan, self._copier)
        ready: list[tuple[Segment, Running]] = []
        replayed: list[Running | None] = []
        for index, part in enumerate(self._parts):
            states = {own: layer in pinned for own, layer in part.switches.items()}
            switches = {own: self._set[state] for own, state in states.items()}
            ready.append((part.segment(tensors), TurnedSession(self._sessions, index, switches)))
            if self.device is not CPU:
                replayed.append(self.device.replayed(self._sessions.at(index), states))
        usable = [one for one in replayed if one is not None] if all(replayed) else ()
        return Ready(self.cut, ready, usable, self._turn)

    def end_turn(self, part: int) -> None:
        """Let go of a part's session, unless it stays."""
        self._sessions.end_turn(part)

    def run(self, part: int, values: Mapping[str, Any], pinned: Collection[str]) -> dict[str, Any]:
        """What the layers of a part give, by tensor, of values by tensor."""
        of, session = self._parts[part], self._sessions.at(part)
        feeds = {own: values[name] for own, name in of.feeds.items()}
        feeds.update((own, self._set[layer in pinned]) for own, layer in of.switches.items())
        return {of.fetches[own]: value for own, value in session.run(feeds).items()}

    def takes(self, part: int) -> frozenset[str]:
        """The tensors that a part takes."""
        return frozenset(self._parts[part].feeds.values())

    def beside(self, plan: PrecisionPlan) -> list[tuple[Segment, Running]]:
        """A plan's own sessions over the same parts, that show what other parts and the outputs take.

        They stay until another plan's are asked for, or those that are shared are to run one.
        """
        if self._beside is None or self._beside[0] != plan:
            self._beside = None
            flow = Flow.REFERENCE if is_reference(plan) else Flow.VARIANT
            made = list(segments(self.model, plan, self._table, self.cut, (flow,), (), self._copier_of))
            sessions = sessions_of((segment.graph for segment in made), self.device)
            self._beside = plan, list(zip(made, sessions, strict=True))
        return self._beside[1]
