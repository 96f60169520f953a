"""Layers as a compiler fuses them: the kernels of a built engine in place of the patterns of `layers.py`.

What an engine tells of itself is loose: a node can stand in several kernels (a sum in two steps, a Conv also in the
kernel that reorders its input), or in none (folded, a view, shape flow), and a kernel can hold what a layer cannot:
several MatMuls (attention), or arithmetic in front of one. So each kernel becomes as few layers as the meaning of a
layer allows.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import onnx_ir as ir

from precisionlab.errors import EngineError
from precisionlab.model.flow import Fixed, outer_values, subgraphs
from precisionlab.model.graph import Layer, Model, Obstacle
from precisionlab.model.layers import is_anchor, layer_of, marked_islands
from precisionlab.model.lift import own_of
from precisionlab.system.wording import counted

_EXAMPLES = 3

Pair = tuple[str, str]
"""Two nodes of which the second takes what the first gives."""


@dataclass(frozen=True)
class Fusions:
    """How far the compiler's layers differ from those that our patterns make.

    `before` and `after` count the layers of our patterns and of the compiler, `same` those that hold the same nodes in
    both. `joined` counts the pairs of neighbouring nodes (the second takes what the first gives) that the compiler puts
    into one layer and our patterns keep apart, `parted` the other way round; a few of each are given by name.
    """

    before: int
    after: int
    same: int
    joined: int
    parted: int
    joined_examples: tuple[Pair, ...]
    parted_examples: tuple[Pair, ...]

    @property
    def text(self) -> str:
        """One sentence for the report."""
        return (
            f"The compiler makes {counted(self.after, 'layer')} where our patterns make {self.before}, {self.same} of "
            f"them the same; of neighbouring nodes it joins {counted(self.joined, 'pair')} that ours keep apart"
            f"{_examples(self.joined_examples, self.joined)}, and keeps apart {self.parted} that ours join"
            f"{_examples(self.parted_examples, self.parted)}."
        )


def with_compiled_layers(model: Model, kernels: Sequence[frozenset[str] | tuple[str, ...]]) -> tuple[Model, Fusions]:
    """The same model with the kernels of an engine as its layers, and how far that differs from the model's own.

    `kernels` are the names of the ONNX nodes that each kernel runs, in the engine's order. Names that the model does
    not have (casts of a typed graph) are passed over. Every node of the main graph is in exactly one layer of the
    result, and the layers are in topological order:

    1. The nodes of one kernel make one layer. A node in several belongs to the first that also runs a node which takes
       its output, else to the first. A node in none is a layer of its own.
    2. A layer holds at most one Conv, ConvTranspose, Gemm or MatMul that a precision can be given to, and it is the
       first node: int8 quantises the operands of that one. Nodes behind several belong to the last of these; those
       behind none make a layer of their own.
    3. Nodes that cannot be given a precision share a layer only with others of the same reason, and those in half of
       their own only with such; one that holds a subgraph is alone.
    4. Layers do not depend on each other in a circle: a layer is cut where a path leaves it and comes back.

    Raises EngineError where no kernel names any node of the model: then the engine does not tell what it fused.
    """
    known = [[name for name in dict.fromkeys(kernel) if name in model.node] for kernel in kernels]
    if not any(known):
        raise EngineError(
            f"none of the engine's {counted(len(kernels), 'kernel')} names a node of {model.path}, so its fusions are "
            "not known; build it from this model, with ProfilingVerbosity.DETAILED"
        )
    nodes = list(model.onnx.graph)
    fixed = {name: layer.fixed for layer in model.layers for name in layer.nodes}
    before = {node: tuple(_sources(node)) for node in nodes}
    groups = _acyclic(nodes, before, _units(nodes, before, fixed, _homes(nodes, before, known)))
    known_as = {name: layer for layer in model.layers for name in layer.nodes}
    inner = (layer for body in model.bodies.values() for layer in body.layers)
    layers = marked_islands(
        tuple(_layer(group, known_as[str(group[0].name)], model) for group in _ordered(groups, before)), inner
    )
    pairs = [(str(source.name), str(node.name)) for node in nodes for source in before[node]]
    return replace(model, layers=layers), _difference(model.layers, layers, pairs)


def _layer(group: list[ir.Node], before: Layer, model: Model) -> Layer:
    """The layer that these nodes make, the first of which was in `before`; what is alone as ever stays as it was."""
    if before.nodes == tuple(str(node.name) for node in group):
        return before
    fixed = None if before.fixed is None else Fixed(before.fixed, before.held, before.obstacle or Obstacle.OTHER)
    return layer_of(group, fixed, model.tensors)


def completed(model: Model, kernels: Sequence[frozenset[str] | tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The kernels with the nodes that none of them names, where our patterns fuse these behind a node that one names.

    TensorRT-RTX loses track of what it fuses behind a 1 × 1 Conv that it turns into a matrix product: the kernel runs
    Conv, BatchNormalization and HardSwish, and names the Conv alone. Where the engine is silent our patterns are the
    better guess; it is wrong where such nodes went to the kernel of what follows. All other nodes that no kernel names
    (views, shape flow, what was folded) stay without one.
    """
    nodes = list(model.onnx.graph)
    before = {node: tuple(_sources(node)) for node in nodes}
    full = [[name for name in dict.fromkeys(kernel) if name in model.node] for kernel in kernels]
    homes = {str(node.name): home for node, home in _homes(nodes, before, full).items()}
    for layer in model.layers:
        for leader, name in pairwise(layer.nodes):
            if name not in homes and leader in homes:
                homes[name] = homes[leader]
                full[homes[leader]].append(name)
    return tuple(map(tuple, full))


def in_every(model: Model, profiles: Sequence[Sequence[Sequence[str]]]) -> tuple[tuple[str, ...], ...]:
    """Kernels that hold together what the kernels of every profile of an engine do.

    An engine has kernels of its own for each profile: a product of one row is fused with what follows it, one of many
    rows is not. What is rounded between two nodes in any of them is rounded there for some input. A node that a profile
    has in no kernel is alone.
    """
    nodes = list(model.onnx.graph)
    before = {node: tuple(_sources(node)) for node in nodes}
    homes = [_homes(nodes, before, kernels) for kernels in profiles]
    found: dict[tuple[int | ir.Node, ...], list[str]] = {}
    for node in nodes:
        if any(node in home for home in homes):
            found.setdefault(tuple(home.get(node, node) for home in homes), []).append(str(node.name))
    return tuple(map(tuple, found.values()))


def _sources(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the main graph that give what the node and its subgraphs take, each once."""
    values = [*node.inputs, *sorted(outer_values(node), key=lambda value: str(value.name))]
    producers = (v.producer() for v in values if v is not None)
    yield from dict.fromkeys(p for p in producers if p is not None and p.graph is node.graph)


def _homes(
    nodes: Sequence[ir.Node], before: Mapping[ir.Node, Sequence[ir.Node]], kernels: Sequence[Sequence[str]]
) -> dict[ir.Node, int]:
    """Node → the one kernel that it belongs to.

    A kernel that also runs what takes the node's output has it in full; the others have a part of it (partial sums,
    another order of its input in memory).
    """
    holders: dict[str, list[int]] = {}
    for index, kernel in enumerate(kernels):
        for name in kernel:
            holders.setdefault(name, []).append(index)
    takers: dict[ir.Node, set[int]] = {node: set() for node in nodes}
    for node in nodes:
        for source in before[node]:
            takers[source].update(holders.get(str(node.name), ()))
    return {
        node: next((k for k in holders[str(node.name)] if k in takers[node]), holders[str(node.name)][0])
        for node in nodes
        if str(node.name) in holders
    }


def _units(
    nodes: Sequence[ir.Node],
    before: Mapping[ir.Node, Sequence[ir.Node]],
    fixed: Mapping[str, str | None],
    homes: Mapping[ir.Node, int],
) -> dict[ir.Node, Hashable]:
    """Node → what it may share a layer under: its kernel, and there its reason to be fixed, or its last anchor."""
    anchor: dict[ir.Node, int] = {}  # the place of the last anchor that the node is, or is behind; -1: none
    units: dict[ir.Node, Hashable] = {}
    for place, node in enumerate(nodes):
        if node not in homes:
            units[node] = node
            continue
        reason = fixed[str(node.name)]
        inside = (anchor[source] for source in before[node] if homes.get(source) == homes[node])
        anchor[node] = place if reason is None and is_anchor(node) else max(inside, default=-1)
        if any(True for _ in subgraphs(node)):
            units[node] = node
        else:
            units[node] = (homes[node], anchor[node] if reason is None else reason, own_of(node))
    return units


class _Part:
    """A layer that is being put together, and the parts that take directly what it gives."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.after: set[_Part] = set()

    def reaches(self, parts: Collection[_Part]) -> bool:
        """Whether any of the parts depends on this one, directly or by way of others."""
        wanted, seen, waiting = set(parts), set(self.after), list(self.after)
        while waiting:
            part = waiting.pop()
            if part in wanted:
                return True
            waiting += part.after - seen
            seen |= part.after
        return False


def _acyclic(
    nodes: Sequence[ir.Node], before: Mapping[ir.Node, Sequence[ir.Node]], units: Mapping[ir.Node, Hashable]
) -> list[list[ir.Node]]:
    """The nodes of each unit in one group, or in as few as it takes for no group to depend on itself through others.

    Node by node, in topological order, into the earliest group of its unit that it does not close a circle with. For a
    unit alone that is the fewest: a node opens the n-th group only where a path leaves and comes back n - 1 times.
    """
    opened: dict[Hashable, list[_Part]] = {}
    home: dict[ir.Node, _Part] = {}
    for node in nodes:
        parts = opened.setdefault(units[node], [])
        taken = {home[source] for source in before[node]}
        # The node has no successors yet, so that a circle can only go from the part to one that the node takes from.
        part = next((p for p in parts if not p.reaches(taken - {p})), None)
        if part is None:
            part = _Part()
            parts.append(part)
        part.nodes.append(node)
        home[node] = part
        for source in taken - {part}:
            source.after.add(part)
    return [part.nodes for parts in opened.values() for part in parts]


def _ordered(groups: Sequence[list[ir.Node]], before: Mapping[ir.Node, Sequence[ir.Node]]) -> Iterator[list[ir.Node]]:
    """The groups in topological order; of those that are free to go, the one whose last node stands first.

    That is the order of `layers_of` wherever it is a topological one.
    """
    place = {node: i for i, node in enumerate(before)}
    home = {node: g for g, group in enumerate(groups) for node in group}
    after: list[set[int]] = [set() for _ in groups]
    for node, sources in before.items():
        for source in sources:
            if home[source] != home[node]:
                after[home[source]].add(home[node])
    missing = [0] * len(groups)
    for followers in after:
        for g in followers:
            missing[g] += 1
    ready = [(place[group[-1]], g) for g, group in enumerate(groups) if not missing[g]]
    heapq.heapify(ready)
    while ready:
        _, current = heapq.heappop(ready)
        yield groups[current]
        for g in after[current]:
            missing[g] -= 1
            if not missing[g]:
                heapq.heappush(ready, (place[groups[g][-1]], g))


def _difference(ours: Sequence[Layer], compiled: Sequence[Layer], pairs: Sequence[Pair]) -> Fusions:
    """Compare two groupings of the same nodes, over the pairs of nodes that are neighbours."""
    mine = {name: i for i, layer in enumerate(ours) for name in layer.nodes}
    theirs = {name: i for i, layer in enumerate(compiled) for name in layer.nodes}
    joined = [(a, b) for a, b in pairs if mine[a] != mine[b] and theirs[a] == theirs[b]]
    parted = [(a, b) for a, b in pairs if mine[a] == mine[b] and theirs[a] != theirs[b]]
    same = {frozenset(layer.nodes) for layer in ours} & {frozenset(layer.nodes) for layer in compiled}
    return Fusions(
        before=len(ours),
        after=len(compiled),
        same=len(same),
        joined=len(joined),
        parted=len(parted),
        joined_examples=tuple(joined[:_EXAMPLES]),
        parted_examples=tuple(parted[:_EXAMPLES]),
    )


def _examples(pairs: Sequence[Pair], count: int) -> str:
    if not pairs:
        return ""
    named = ", ".join(f"{first} → {second}" for first, second in pairs)
    return f" ({named}{', …' if count > len(pairs) else ''})"
