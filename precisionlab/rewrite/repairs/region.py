"""A part of a graph that is computed at other powers of two, and gives what it gave.

Scaling by a power of two is exact, and commutes with every operator that is homogeneous. So an operand can be scaled,
and the scale carried on through such operators, until a constant takes it up (the factor behind a sum, the weights of a
product), or it cancels (x / √mean x²).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import onnx_ir as ir

from precisionlab.model.subgraphs import outer_values
from precisionlab.rewrite.repairs.passing import (
    NONE,
    Inputs,
    LoneScaleError,
    UnscalableError,
    is_constant,
    passed,
    passes_on,
    scalar_of,
)

Use = tuple[ir.Node, int]
"""An input of a node, by its index."""
Fits = Callable[[ir.Value], bool]


@dataclass(frozen=True)
class Ends:
    """Where a scale may end: whether a value `fits` unscaled, that is the precision holds it, and `fits_well`."""

    fits: Fits
    fits_well: Fits


_WEIGHTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Mul"})
_SUMS = frozenset({"Add", "Sub", "Sum", "Concat", "Max", "Min", "Clip"})
_MOST = 256
"""Where this many inputs would have to be scaled too, and more, nobody wants it."""


@dataclass(frozen=True)
class Region:
    """What it entails that the inputs `seeds` take 2^e of what they took; of e all is told by degrees.

    `degrees` is what each value computed of it is scaled by, `constants` by how much the constant at an input is
    scaled, `epsilons` by how much a normalisation's epsilon, and `restored` the values whose scale is taken back by a
    Mul where they are not taken by `carried`: inputs that let the scale pass. `is_exact`: in float32 not a bit changes.
    """

    seeds: frozenset[Use]
    degrees: Mapping[ir.Value, Fraction]
    constants: Mapping[Use, Fraction]
    epsilons: Mapping[ir.Node, Fraction]
    restored: frozenset[ir.Value]
    carried: frozenset[Use]
    is_exact: bool

    @property
    def values(self) -> Mapping[ir.Value, Fraction]:
        """All that is scaled, and is no constant, by degree."""
        seeds = (node.inputs[index] for node, index in self.seeds)
        return {**{v: Fraction(1) for v in seeds if v is not None and not is_constant(v)}, **self.degrees}

    @property
    def scaled_constants(self) -> Mapping[Use, Fraction]:
        """All constants that are scaled, those that it starts at too, by degree."""
        seeds = {(node, index): Fraction(1) for node, index in self.seeds if is_constant(node.inputs[index])}
        return {**seeds, **self.constants}

    @property
    def step(self) -> int:
        """What e must be a multiple of, so that all scales are whole powers of two."""
        found = (*self.degrees.values(), *self.constants.values(), *self.epsilons.values())
        return math.lcm(*(degree.denominator for degree in found))

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that compute at another scale."""
        return _once(value.producer() for value in self.degrees)

    @property
    def seeding(self) -> tuple[ir.Node, ...]:
        """The nodes that take what is scaled where it all starts, in no order that matters."""
        return _once(node for node, _ in sorted(self.seeds, key=lambda use: (str(use[0].name), use[1])))

    @property
    def ends(self) -> tuple[ir.Node, ...]:
        """The nodes behind which nothing is scaled: whose constant takes the scale up, or whose result is restored."""
        taking = (node for node, _ in self.constants if node.outputs[0] not in self.degrees)
        return _once([*taking, *(value.producer() for value in _by_name(self.restored))])


def _once(nodes: Iterable[ir.Node | None]) -> tuple[ir.Node, ...]:
    return tuple(dict.fromkeys(node for node in nodes if node is not None))


def _by_name(values: Iterable[ir.Value]) -> list[ir.Value]:
    return sorted(values, key=lambda value: str(value.name))


class Order:
    """Where each node of a graph stands, and what subgraphs take of its values."""

    def __init__(self, graph: ir.Graph) -> None:
        self._places: dict[ir.Node, int] = {}
        self._capturing: dict[ir.Value, list[ir.Node]] = {}
        self._captured: dict[ir.Node, frozenset[ir.Value]] = {}
        for place, node in enumerate(graph):
            self._places[node] = place
            if held := outer_values(node):
                self._captured[node] = frozenset(held)
                for value in held:
                    self._capturing.setdefault(value, []).append(node)

    def takers(self, value: ir.Value) -> set[tuple[int, ir.Node]]:
        """The nodes of the graph that take the value, with their places: themselves, or in a subgraph."""
        nodes = [use.node for use in value.uses() if use.node in self._places] + self._capturing.get(value, [])
        return {(self._places[node], node) for node in nodes}

    def captured(self, node: ir.Node) -> frozenset[ir.Value]:
        """The values that the node's subgraphs take from around them."""
        return self._captured.get(node, frozenset())

    def seeded(self, seeds: Iterable[Use]) -> set[tuple[int, ir.Node]]:
        """The nodes of these uses, with their places. Raises UnscalableError where one is in no such place."""
        if any(node not in self._places for node, _ in seeds):
            raise UnscalableError
        return {(self._places[node], node) for node, _ in seeds}


def region_of(order: Order, seeds: Iterable[Use], ends: Ends, *, may_restore: bool = True) -> Region:
    """What follows where these inputs take 2^e of what they took.

    A constant takes a scale up as soon as the value behind it fits without. What is added to something scaled is
    scaled where it is squared or multiplied by constant weights itself. Raises UnscalableError where the scale does
    not end (or without `may_restore`, does not end by itself).
    """
    known = frozenset(seeds)
    for _ in range(_MOST):
        walk = _Walk(order, set(known), ends, may_restore)
        more = walk.run()
        doubled = frozenset(use for use in walk.seeds if use[0].inputs[use[1]] in walk.degrees)
        if more is not None:
            known |= more
        elif doubled:
            known = _without(known, doubled, walk)
        else:
            return _region(walk)
    raise UnscalableError


def _region(walk: _Walk) -> Region:
    return Region(
        frozenset(walk.seeds),
        walk.degrees,
        walk.constants,
        walk.epsilons,
        frozenset(walk.restored),
        frozenset(walk.carried),
        walk.is_exact,
    )


def _without(seeds: frozenset[Use], doubled: frozenset[Use], walk: _Walk) -> frozenset[Use]:
    """The seeds but those that take what another seed has scaled already, to the same degree."""
    values = {node.inputs[index] for node, index in doubled}
    if not doubled <= seeds or any(value in walk.restored or walk.degrees[value] != 1 for value in values if value):
        raise UnscalableError
    return seeds - doubled


@dataclass
class _Walk:
    order: Order
    seeds: set[Use]
    ends: Ends
    may_restore: bool
    degrees: dict[ir.Value, Fraction] = field(default_factory=dict)
    constants: dict[Use, Fraction] = field(default_factory=dict)
    epsilons: dict[ir.Node, Fraction] = field(default_factory=dict)
    restored: set[ir.Value] = field(default_factory=set)
    carried: set[Use] = field(default_factory=set)
    is_exact: bool = True

    def run(self) -> frozenset[Use] | None:
        """Walk from the seeds to all ends; or give the further seeds that are needed for it."""
        self._starts = {node.inputs[index] for node, index in self.seeds if not is_constant(node.inputs[index])}
        waiting = [(place, id(node), node) for place, node in self.order.seeded(self.seeds)]
        heapq.heapify(waiting)
        seen: set[ir.Node] = set()
        while waiting:
            node = heapq.heappop(waiting)[-1]
            if node in seen:
                continue
            seen.add(node)
            more = self._visit(node)
            if more is not None:
                return more
            for value in node.outputs:
                if value in self.degrees:
                    if value.is_graph_output():
                        if not self.may_restore or not self.ends.fits(value):
                            raise UnscalableError
                        self.restored.add(value)
                    for place, taker in self.order.takers(value):
                        heapq.heappush(waiting, (place, id(taker), taker))
        return None

    def _visit(self, node: ir.Node) -> frozenset[Use] | None:
        degrees = tuple(self._degree(node, index) for index in range(len(node.inputs)))
        captured = [value for value in self.order.captured(node) if self._is_scaled(value)]
        try:
            if captured:
                raise UnscalableError  # no scale goes into a subgraph
            if not any(degrees):
                return None
            found = passed(Inputs(node, degrees, self._starts.__contains__, _is_norm, self.ends.fits, self._is_left))
        except UnscalableError as error:
            taken = {value for value in (*node.inputs, *captured) if value is not None and self._is_scaled(value)}
            if self._can_restore(node, taken):
                self.restored |= taken
                return None
            more = _roots(error.value, error.degree) if isinstance(error, LoneScaleError) else frozenset[Use]()
            if not more or more <= self.seeds:
                raise UnscalableError from None
            return more
        self.is_exact = self.is_exact and found.is_exact
        self.constants.update({(node, index): degree for index, degree in found.constants.items()})
        self.seeds.update((node, index) for index in found.seeds)
        self.carried.update((node, index) for index, degree in enumerate(degrees) if degree)
        if found.epsilon:
            self.epsilons[node] = found.epsilon
        if found.degree:
            self.degrees.update(dict.fromkeys(node.outputs, found.degree))
        return None

    def _degree(self, node: ir.Node, index: int) -> Fraction:
        if (node, index) in self.seeds:
            return Fraction(1)
        value = node.inputs[index]
        return self.degrees[value] if value is not None and self._is_scaled(value) else NONE

    def _is_scaled(self, value: ir.Value) -> bool:
        return value in self.degrees and value not in self.restored

    def _is_left(self, value: ir.Value) -> bool:
        return self.may_restore and self.ends.fits_well(value)

    def _can_restore(self, node: ir.Node, values: Iterable[ir.Value]) -> bool:
        return (
            self.may_restore
            and all(self.ends.fits(value) for value in values)
            and not any((node, index) in self.seeds for index in range(len(node.inputs)))
        )


def _roots(value: ir.Value, degree: Fraction) -> frozenset[Use]:
    """The inputs that make a value 2^(degree·e) as large where they take 2^e as much; none where there are no such."""
    made = value.producer()
    if made is None or made.domain not in ("", "ai.onnx"):
        return frozenset()
    if degree == (1 if made.op_type == "ReduceL2" else 2) and (squares := squared(made)):
        return frozenset(squares)
    if degree == 1 and (weights := weights_of(made)) is not None:
        return frozenset({(made, weights)})
    if passes_on(made) and made.inputs[0] is not None:
        is_table = degree == 1 and is_constant(made.inputs[0])
        return frozenset({(made, 0)}) if is_table else _roots(made.inputs[0], degree)
    if made.op_type == "Sqrt" and made.inputs[0] is not None:
        return _roots(made.inputs[0], 2 * degree)
    if made.op_type == "Mul":
        return next(
            (roots for part in made.inputs if part is not None and (roots := _roots(part, degree))), frozenset()
        )
    if made.op_type in _SUMS:
        parts = [_roots(part, degree) for part in made.inputs if part is not None and not is_constant(part)]
        return frozenset[Use]().union(*parts) if all(parts) else frozenset()
    return frozenset()


def _is_norm(value: ir.Value | None, degree: Fraction) -> bool:
    """Whether a value could be scaled where it is squared, on its way to a root."""
    roots = _roots(value, degree) if value is not None else frozenset[Use]()
    return bool(roots) and not any(is_constant(node.inputs[index]) for node, index in roots)


def squared(node: ir.Node) -> tuple[Use, ...]:
    """The inputs by which a node takes what it squares; none for a node that does not."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return ()
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return ((node, 0), (node, 1))
    if node.op_type in ("ReduceSumSquare", "ReduceL2"):
        return ((node, 0),)
    if node.op_type == "Pow" and scalar_of(node.inputs[1]) == 2:
        return ((node, 0),)
    return ()


def weights_of(node: ir.Node) -> int | None:
    """The input that holds the constant weights of a product; None where there is none."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _WEIGHTED:
        return None
    return next((index for index in (1, 0) if is_constant(node.inputs[index])), None)
