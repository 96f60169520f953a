"""What every kind of repair has: where it applies, and how it is carried out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import onnx_ir as ir

from precisionlab.calibration.coarse import PARTS, CoarseHistogram
from precisionlab.errors import PlanError
from precisionlab.model import Model
from precisionlab.model.repair import Exactness, Repair
from precisionlab.precision import Format
from precisionlab.rewrite.repairs.channel_values import Observed
from precisionlab.rewrite.repairs.region import Ends, Order, squared


@dataclass(frozen=True)
class Sight:
    """What a repair is found from: the model, what its float32 tensors hold on the samples that choose, what breaks.

    `histograms` are by tensor, `broken` the layers that break in the precision whose format is `number_format`.
    `channels` tells what the channels of tensors hold; None where nobody can look: then nothing is found that hangs on
    them.
    """

    model: Model
    histograms: Mapping[str, CoarseHistogram]
    broken: frozenset[str]
    number_format: Format
    channels: Observed | None = None

    def fits(self, value: ir.Value) -> bool:
        """Whether the value stays below half of the precision's end.

        What nothing is known of is inside of a layer, and not rounded there: it does where what the layer gives does.
        """
        seen = self.histograms.get(str(value.name))
        made = value.producer()
        known = [seen] if seen is not None else self._given_by(made) if made is not None else []
        return all(one.amax <= self.number_format.largest / 2 for one in known)

    @property
    def ends(self) -> Ends:
        """Where a scale may end in the precision: a value fits well that has all its digits there too."""
        return Ends(self.fits, lambda value: self.fits(value) and self._is_normal(value))

    def _is_normal(self, value: ir.Value) -> bool:
        bulk = self.bulk(value)
        return bulk is None or bulk >= self.number_format.normal

    def is_held(self, value: ir.Value | None) -> bool:
        """Whether the value is no larger than the precision's largest number; of what is unknown: it is."""
        seen = self.histograms.get(str(value.name)) if value is not None else None
        return seen is None or seen.amax <= self.number_format.largest

    def may_replace(self, nodes: Iterable[ir.Node], operands: Iterable[ir.Value]) -> bool:
        """Whether nodes may be computed otherwise from operands: these are held, and float32 itself breaks nowhere."""
        return all(map(self.is_held, operands)) and not any(
            self.has_nonfinite(value) for node in nodes for value in node.outputs
        )

    def has_nonfinite(self, value: ir.Value) -> bool:
        """Whether NaN or Inf was seen in float32 itself."""
        seen = self.histograms.get(str(value.name))
        return seen is not None and seen.nonfinite > 0

    def breaking(self, nodes: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
        """Those of the nodes whose layers break, or that square what is so small that no square is a normal number."""
        return tuple(node for node in nodes if self.layer_of(node) in self.broken or self._vanishes(node))

    def _vanishes(self, node: ir.Node) -> bool:
        seen = self.histograms.get(str(node.outputs[0].name)) if squared(node) else None
        return seen is not None and 0 < seen.amax < self.number_format.normal

    def _given_by(self, node: ir.Node) -> list[CoarseHistogram]:
        """What the node's layer gives, as far as it is known."""
        names = self.model.layer[self.layer_of(node)].outputs
        return [self.histograms[name] for name in names if name in self.histograms]

    @cached_property
    def order(self) -> Order:
        """Where the nodes of the graph stand."""
        return Order(self.model.onnx.graph)

    def layer_of(self, node: ir.Node) -> str:
        """The layer that the node belongs to."""
        return self._layers[str(node.name)]

    @cached_property
    def _layers(self) -> Mapping[str, str]:
        """Node name → the name of its layer."""
        return {name: layer.name for layer in self.model.layers for name in layer.nodes}

    def bulk(self, value: ir.Value) -> float | None:
        """From where on the values of a tensor count: those below make up a ten thousandth of its squares' sum.

        None where nothing is known of it, or it holds nothing but zeros.
        """
        seen = self.histograms.get(str(value.name))
        return None if seen is None else _bulk(seen)


_NEGLIGIBLE = 1e-4


def _bulk(seen: CoarseHistogram) -> float | None:
    starts = [bin_start(seen.exponent, place) for place in range(len(seen.bins))]
    energies = [count * start * start for count, start in zip(seen.bins, starts, strict=True)]
    total, below = sum(energies), 0.0
    if not total:
        return None
    for start, energy in zip(starts, energies, strict=True):
        below += energy
        if below > _NEGLIGIBLE * total:
            return start
    return None


def bin_start(exponent: int, place: int) -> float:
    """Where a coarse histogram's bin begins."""
    octave, part = divmod(place, PARTS)
    return math.ldexp(1 + part / PARTS, exponent - 10 + octave)


@dataclass(frozen=True)
class Proposal:
    """A repair that could help, and the names of the nodes that break and would not break with it."""

    repair: Repair
    mends: frozenset[str]


def proposed(
    sight: Sight,
    nodes: Iterable[ir.Node],
    kind: str,
    exactness: Exactness,
    names: tuple[str, ...],
    scales: tuple[tuple[str, int], ...] = (),
    conditions: tuple[str, ...] = (),
) -> Iterator[Proposal]:
    """Such a repair where one of `nodes` breaks, which would not with it; for the first layer that does."""
    breaking = sight.breaking(nodes)
    if breaking:
        repair = Repair(kind, exactness, sight.layer_of(breaking[0]), names, scales, conditions)
        yield Proposal(repair, frozenset(str(node.name) for node in breaking))


class RepairPass(Protocol):
    """One kind of repair. `name` is what plans call it."""

    name: str
    title: str

    def find(self, sight: Sight) -> Iterable[Proposal]:
        """The repairs that could help a layer that breaks; whether they do, an evaluation says."""
        ...

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Carry the repair out. Raises PlanError where the graph is not as the repair needs it."""
        ...


def node_of(graph: ir.Graph, repair: Repair, index: int = 0) -> ir.Node:
    """The repair's node of this index. Raises PlanError where the graph has none of its name."""
    name = repair.nodes[index]
    found = next((node for node in graph if node.name == name), None)
    if found is None:
        raise refused(repair, f"the model has no node {name!r}")
    return found


def refused(repair: Repair, why: str) -> PlanError:
    """The error of a repair that cannot be carried out."""
    return PlanError(f"repair {repair}: {why}; sweep this model anew")
