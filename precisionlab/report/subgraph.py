"""The part of a graph that a repair changes, before and after it, as `run.json` holds it.

Shown are the nodes that came, went, or take other constants, those whose inputs lead elsewhere, what lies between them
(that computes at another scale; what computes with lengths alone does not), and their neighbours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

MOST = 36
"""Nodes of a part that are shown, besides inputs and outputs of the model."""
_BESIDE = 3
"""Neighbours shown of each node on each side."""
_LARGEST_PLAIN = 6
"""Powers of two up to 2^6 are written as numbers."""
_LENGTHS = frozenset({"Shape", "Size"})

_PLAIN_TYPES = frozenset({"INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS"})


@dataclass(frozen=True)
class _Node:
    """A node, by name. `facts` are all that it is but for where its inputs come from."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]
    facts: tuple[Any, ...]


@dataclass(frozen=True)
class _Snapshot:
    """A graph's nodes by name, in topological order, and its own inputs and outputs."""

    nodes: Mapping[str, _Node]
    inputs: frozenset[str]
    outputs: frozenset[str]

    @cached_property
    def maker(self) -> Mapping[str, str]:
        """Tensor → the node that gives it."""
        return {tensor: name for name, node in self.nodes.items() for tensor in node.outputs}

    @cached_property
    def above(self) -> Mapping[str, Sequence[str]]:
        """Node → those that it takes from."""
        return {
            name: list(dict.fromkeys(self.maker[tensor] for tensor in node.inputs if tensor in self.maker))
            for name, node in self.nodes.items()
        }

    @cached_property
    def below(self) -> Mapping[str, Sequence[str]]:
        """Node → those that take from it."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, sources in self.above.items():
            for source in sources:
                found[source].append(name)
        return found

    def between(self, ends: frozenset[str]) -> set[str]:
        """The nodes that some end leads to, and that lead to some end, not by way of lengths."""
        return _reached(ends, self.followed(self.below)) & _reached(ends, self.followed(self.above))

    def followed(self, links: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
        """The links but for those to nodes that give lengths: what is repaired leaves these as they are."""
        return {name: [one for one in others if self.nodes[one].kind not in _LENGTHS] for name, others in links.items()}


def changed_part(before: ir.Graph, after: ir.Graph) -> dict[str, Any]:
    """What differs between two graphs: `before` and `after`, lists of nodes in topological order, and `hidden`.

    A node has `name`, `kind` (its operator, or `input` or `output` of the model), `constants` (texts), `state` (`kept`,
    `changed`, `gone` in the first, `new` in the second), `inputs` and `beyond`: the places of those that it takes from,
    directly and through nodes that are not shown. `hidden` counts these.
    """
    old, new = _snapshot(before), _snapshot(after)
    common = old.nodes.keys() & new.nodes.keys()
    changed = frozenset(name for name in common if old.nodes[name].facts != new.nodes[name].facts)
    led = frozenset(name for name in common if _led(old, name) != _led(new, name))
    core = changed | led
    sides = ((old, core | (old.nodes.keys() - common), "gone"), (new, core | (new.nodes.keys() - common), "new"))
    inside: set[str] = set().union(*(side.between(ends) for side, ends, _ in sides))
    beside = {name for side, ends, _ in sides for name in _neighbours(side, ends)}
    ends = sides[0][1] | sides[1][1]
    shown = inside | beside | ends
    if len(shown) > MOST:
        shown = set(_first(ends | beside, old, new))
    states = {**dict.fromkeys(changed, "changed")}
    drawn = [
        _side(side, shown, inside, {**states, **dict.fromkeys(side.nodes.keys() - common, word)})
        for side, _, word in sides
    ]
    return {"before": drawn[0], "after": drawn[1], "hidden": len((inside | ends) - shown)}


def _first(names: Iterable[str], old: _Snapshot, new: _Snapshot) -> Iterator[str]:
    """So many of them as are shown, in topological order."""
    wanted = set(names)
    yield from [name for name in dict.fromkeys([*new.nodes, *old.nodes]) if name in wanted][:MOST]


def _led(side: _Snapshot, name: str) -> tuple[str, ...]:
    """Where a node's inputs come from."""
    return tuple(side.maker.get(tensor, tensor) for tensor in side.nodes[name].inputs)


def _neighbours(side: _Snapshot, ends: Iterable[str]) -> Iterator[str]:
    above, below = side.followed(side.above), side.followed(side.below)
    for name in ends:
        yield from above[name][:_BESIDE]
        yield from below[name][:_BESIDE]


def _reached(starts: Iterable[str], links: Mapping[str, Sequence[str]]) -> set[str]:
    """The starts, and all that can be reached from them."""
    found, waiting = set(starts), deque(starts)
    while waiting:
        for name in links.get(waiting.popleft(), ()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _side(side: _Snapshot, shown: set[str], inside: set[str], states: Mapping[str, str]) -> list[dict[str, Any]]:
    """The nodes of one side, with what feeds them; the model's inputs first, and its outputs last."""
    names = [name for name in side.nodes if name in shown]
    fed = [t for t in side.inputs if any(t in side.nodes[name].inputs for name in names)]
    given = [t for t in side.outputs if side.maker.get(t) in shown]
    place = {f"input {tensor}": number for number, tensor in enumerate(sorted(fed))}
    place |= {name: number for number, name in enumerate(names, len(place))}
    found = [_entry(tensor, "input") for tensor in sorted(fed)]
    for name in names:
        node = side.nodes[name]
        direct = [place[f"input {t}"] for t in node.inputs if t in fed]
        direct += [place[source] for source in side.above[name] if source in place]
        far = _through(side, name, shown, inside)
        entry = _entry(name, node.kind, node.constants, states.get(name, "kept"))
        found.append({**entry, "inputs": sorted(set(direct)), "beyond": sorted(place[one] for one in far)})
    return found + [{**_entry(tensor, "output"), "inputs": [place[side.maker[tensor]]]} for tensor in sorted(given)]


def _through(side: _Snapshot, name: str, shown: set[str], inside: set[str]) -> set[str]:
    """The nodes shown that lead to this one through nodes between that are not."""
    waiting = [source for source in side.above[name] if source in inside and source not in shown]
    found, seen = set[str](), set(waiting)
    while waiting:
        for source in side.above[waiting.pop()]:
            if source in shown:
                found.add(source)
            elif source in inside and source not in seen:
                seen.add(source)
                waiting.append(source)
    return found - set(side.above[name])


def _entry(name: str, kind: str, constants: Sequence[str] = (), state: str = "kept") -> dict[str, Any]:
    return {"name": name, "kind": kind, "constants": list(constants), "state": state, "inputs": [], "beyond": []}


def _snapshot(graph: ir.Graph) -> _Snapshot:
    inputs = frozenset(str(value.name) for value in graph.inputs if value.const_value is None)
    outputs = frozenset(str(value.name) for value in graph.outputs)
    return _Snapshot({str(node.name): _node(node) for node in graph}, inputs, outputs)


def _node(node: ir.Node) -> _Node:
    values = [value for value in node.inputs if value is not None]
    constants = [value for value in values if value.const_value is not None]
    texts = tuple(text for value in constants if (text := _constant(value)))
    attributes = tuple(
        sorted((name, str(one.value)) for name, one in node.attributes.items() if one.type.name in _PLAIN_TYPES)
    )
    return _Node(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}",
        tuple(str(value.name) for value in values if value.const_value is None),
        tuple(str(value.name) for value in node.outputs),
        (*texts, *(f"{name} {value}" for name, value in attributes if name == "epsilon")),
        (node.domain, node.op_type, attributes, tuple(str(value.name) for value in constants), texts),
    )


def _constant(value: ir.Value) -> str:
    """A constant in a few letters: its number, or its name; nothing for shapes and axes."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return ""
    if tensor.size != 1:
        return f"{value.name} [{'×'.join(map(str, tensor.shape.numpy()))}]"
    return number_text(float(tensor.numpy().reshape(-1)[0]))


def number_text(number: float) -> str:
    """`0.5`, `2^-9`, `1e-05`: far powers of two as such."""
    if math.isfinite(number) and number:
        mantissa, exponent = math.frexp(number)
        if abs(mantissa) == 0.5 and not -4 < exponent - 1 <= _LARGEST_PLAIN:
            return f"{'-' if number < 0 else ''}2^{exponent - 1}"
    return f"{number:.3g}"
