"""Runs the segments of one plan for many samples, within a share of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain, islice
from typing import Any, Generic, Protocol, TypeVar

import onnx_ir as ir

from precisionlab.backends.batching import ONE, Batching
from precisionlab.backends.device import CPU, Device, Running
from precisionlab.backends.memory import UNLIMITED, Share
from precisionlab.backends.sums.session import has_products
from precisionlab.calibration.table import CalibrationTable
from precisionlab.data import Sample
from precisionlab.model import Layer, Model
from precisionlab.plan.assign import check_opset
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.rewrite.copiers import CopierOf
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.observe import Flow, Key, Segment, cut, largest_need, segments

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

State = Mapping[Key, Any]
"""Values by flow and tensor, as the device has them: numpy's arrays on the CPU."""
Values = dict[Key, Any]

INSIDE = 2
"""What a segment holds while it runs, of what it shows and is given: rounded copies, and what its layers share."""

MAKERS = 4
"""Sessions that are made side by side: one takes a quarter of a millisecond for each of its nodes."""

_AT_ONCE = 256
"""Samples whose values wait at most while the parts of a model take turns."""


class Visit(Protocol[T_co]):
    """One sample's way through the segments."""

    def observer(self, segment: Segment, state: State) -> None:
        """Look at the values that stand after this segment."""
        ...

    def result(self) -> T_co:
        """What came of it."""
        ...


@dataclass(frozen=True)
class Ready:
    """The parts of a model, and a plan's segments of them with the sessions that run these.

    `replayed` are sessions in the place of those, faster where samples of one shape run one after the other: a sample
    has its `turn` for all of them, as what one gives holds until its next run, whichever thread or plan that is of.
    """

    parts: Sequence[Sequence[Layer]]
    sessions: Sequence[tuple[Segment, Running]]
    replayed: Sequence[Running] = ()
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)


@dataclass
class _Group(Generic[T]):
    """Samples that run together, each with its visit, and their values so far."""

    visits: Sequence[Visit[T]]
    state: Values


class Runner:
    """One plan's segments. Their sessions live as long as the runner does, or where the model is parted, in turn."""

    def __init__(
        self,
        model: Model,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        flows: tuple[Flow, ...],
        shown: tuple[Flow, ...],
        budget: int,
        share: Share = UNLIMITED,
        device: Device = CPU,
        copier: CopierOf = LayerCopier,
        ready: Ready | None = None,
        batching: Batching = ONE,
    ) -> None:
        """`budget` is how much a segment may show for a sample, `copier` makes its layers.

        `ready` is what runs the plan, where others have made it. `batching` says which samples run together.
        Raises OptionError where the share is too small.
        """
        check_opset(model.onnx, plan)
        # Not shared between the threads: where the model is cut, and so the last bits, must not depend on them.
        parts = ready.parts if ready else cut(model, len(shown), budget, share.weights, share.nodes)
        self._model, self._share, self._device = model, share, device
        self._segments = partial(segments, model, plan, table, parts, flows, shown, copier)
        self._stops = list(accumulate(len(part) for part in parts))
        self._each, self._carried, where = largest_need(model, parts, len(shown), len(frozenset(flows)))
        self._each, self._carried = INSIDE * batching.size * self._each, batching.size * self._carried
        self._batching = batching
        self.most = share.side_by_side(model, 1 << 16, self._each, where)
        self._ready = None if ready is None else ready.sessions
        self._shared = ready
        if ready is None and not share.is_parted:
            made = list(self._segments())
            self._ready = list(zip(made, sessions_of((one.graph for one in made), device), strict=True))

    def each(self, samples: Iterable[Sample], visit: Callable[[Sample], Visit[T]], threads: int) -> Iterator[T]:
        """What each sample's visit gives, in the samples' order; some side by side, on as many threads as fit."""
        threads = min(threads, self.most)
        if self._device is not CPU and any(has_products(segment.graph) for segment, _ in self._ready or ()):
            threads = 1  # what our own kernels read may be freed, and taken by another sample's
        threads = self._device.threads(threads, self._each)

        def begun(group: Sequence[Sample]) -> _Group[T]:
            visits = [visit(sample) for sample in group]
            fed = self._batching.inputs_of(group).items()
            return _Group(visits, {(Flow.REFERENCE, name): array for name, array in fed})

        if self._ready is None or self._share.is_parted:
            return self._in_turn(iter(samples), begun, threads)
        ready = self._ready
        turn: AbstractContextManager[Any] = nullcontext()
        if self._shared is not None and self._shared.replayed:
            samples, is_alike = _peeked(samples)
            if is_alike:
                ready = [(segment, run) for (segment, _), run in zip(ready, self._shared.replayed, strict=True)]
                threads, turn = 1, self._shared.turn

        def through(samples: Sequence[Sample]) -> list[T]:
            group = begun(samples)
            with turn:
                for (segment, session), stop in zip(ready, self._stops, strict=True):
                    self._step(segment, session, stop, group)
                return [visit.result() for visit in group.visits]

        found = side_by_side(through, self._batching.groups(samples), threads, self._device)
        return chain.from_iterable(found)

    def _in_turn(
        self, samples: Iterator[Sample], begun: Callable[[Sequence[Sample]], _Group[T]], threads: int
    ) -> Iterator[T]:
        """Each segment for as many groups as may wait together, before the next one is made."""
        room = self._share.samples - threads * self._each
        count = max(1, min(_AT_ONCE, room // max(1, 2 * self._carried)))
        waiting = self._batching.groups(samples)
        while groups := [begun(group) for group in islice(waiting, count)]:
            for (segment, session), stop in zip(self._opened(), self._stops, strict=True):
                step = partial(self._step, segment, session, stop)
                for _ in side_by_side(step, groups, threads, self._device):
                    pass
                session.close()
            yield from (visit.result() for group in groups for visit in group.visits)

    def _opened(self) -> Iterator[tuple[Segment, Running]]:
        """The segments in turn, each with its session."""
        if self._ready is not None:
            yield from self._ready
        else:
            yield from ((segment, self._device.session(segment.graph)) for segment in self._segments())

    def _step(self, segment: Segment, session: Running, stop: int, group: _Group[Any]) -> None:
        """One segment for one group, which keeps what those behind the segment's end, the layer `stop`, need."""
        values = session.run({name: group.state[key] for name, key in segment.feeds.items()})
        group.state.update((segment.fetches[name], value) for name, value in values.items())
        values.clear()
        for index, visit in enumerate(group.visits):
            visit.observer(segment, self._batching.share_of(group.state, index, len(group.visits)))
        last = self._model.last_use
        is_end = stop == len(self._model.layers)
        group.state = (
            {}
            if is_end
            else {
                (flow, name): v
                for (flow, name), v in group.state.items()
                if flow is not Flow.ALONE and last.get(name, -1) >= stop
            }
        )


def sessions_of(graphs: Iterable[ir.Model], device: Device) -> Iterator[Running]:
    """Each graph ready to run; a few are made at a time, as ONNX Runtime makes one on one thread."""
    return side_by_side(device.session, graphs, MAKERS, device)


def side_by_side(work: Callable[[Any], T], items: Iterable[Any], threads: int, device: Device = CPU) -> Iterator[T]:
    """Work on `threads` items at a time, in a pool of the device's; the results come in the items' order.

    No more than that are read ahead, so that memory does not grow with their number.
    """
    if threads == 1:
        yield from map(work, items)
        return
    with device.pool(threads) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                del item
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)


def _peeked(samples: Iterable[Sample]) -> tuple[Iterable[Sample], bool]:
    """The samples, and whether the first two are of the same shapes: then most are."""
    rest = iter(samples)
    first = list(islice(rest, 2))
    shapes = [{name: array.shape for name, array in sample.inputs.items()} for sample in first]
    return chain(first, rest), len(first) == 2 and shapes[0] == shapes[1]
