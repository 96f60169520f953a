"""What every kind of repair has: where it applies, and how it is carried out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import onnx_ir as ir

from precisionlab.calibration.coarse import PARTS, CoarseHistogram
from precisionlab.errors import PlanError
from precisionlab.model import Model
from precisionlab.model.repair import Repair
from precisionlab.precision import Format
from precisionlab.rewrite.repairs.region import Fits, Order, Region


@dataclass(frozen=True)
class Sight:
    """What a repair is found from: the model, what its float32 tensors hold on the samples that choose, what breaks.

    `histograms` are by tensor, `broken` the layers that break in the precision whose format is `number_format`.
    """

    model: Model
    histograms: Mapping[str, CoarseHistogram]
    broken: frozenset[str]
    number_format: Format

    def fits(self, value: ir.Value) -> bool:
        """Whether the value stays below half of the precision's end; of what is unknown: it does."""
        seen = self.histograms.get(str(value.name))
        return seen is None or seen.amax <= self.number_format.largest / 2

    def breaking(self, nodes: Iterable[ir.Node]) -> list[str]:
        """The layers of these nodes that break, in the nodes' order."""
        return [layer for layer in map(self.layer_of, nodes) if layer in self.broken]

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


class RepairPass(Protocol):
    """One kind of repair. `name` is what plans call it."""

    name: str
    title: str

    def find(self, sight: Sight) -> Iterable[Repair]:
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


def ends_at(repair: Repair) -> Fits:
    """Has a region end where it did when the repair was found: at the nodes behind its first."""
    ends = frozenset(repair.nodes[1:])

    def fits(value: ir.Value) -> bool:
        made = value.producer()
        return made is not None and made.name in ends

    return fits


def scaled_names(first: ir.Node, region: Region) -> tuple[str, ...]:
    """The nodes of a repair that scales a region: its first, the others where it starts, and where it ends."""
    return tuple(dict.fromkeys(str(node.name) for node in (first, *region.seeding, *region.ends)))


def scale_of(repair: Repair, name: str, step: int = 1) -> int:
    """One of the repair's scales, a power of two and multiple of `step`. Raises PlanError where it has none of it."""
    scale = dict(repair.scales).get(name)
    if not isinstance(scale, int) or abs(scale) > 126 or scale % step:
        what = "power of two" if step == 1 else f"power of 2^{step}"
        raise refused(repair, f"it needs `{name}`, a {what} from −126 to 126")
    return scale
