"""What a layer's metadata says of the ONNX nodes that it was made of.

The parsers write (onnx-tensorrt, `processMetadata`; TensorRT-RTX 1.7 as seen)

- 8.6 to 9.3: `[ONNX Layer: NAME | line | line]`, the lines of the node's doc string (those that name an installed
  package are left out, and each " is a '), and from 9.0 on ` | Local Function: f` behind them;
- 10.0 and 10.1: `[ONNX Layer: NAME | Local Function: f]`;
- later ones: `[ONNX Layer: inner | tb (then_branch) | iff (If)]`, or `… | call (f)` in a function.

The first two tell nothing of the body that a node stands in. What is longer than 4000 characters has its middle cut
out. Layers of an engine have one of these for each node that was fused, apart by 1E, 1F or nothing.

Nothing in it is quoted: names may hold bars, brackets, colons and spaces, and a doc string anything. So it is read by
the names that the file has, the longest that fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import onnx

_MARK = "[ONNX Layer: "
_BAR = " | "
_FUNCTION = "Local Function: "
_SEPARATORS = re.compile("[\x1e\x1f]")
_BETWEEN = re.compile(r"\][\x00-\x1f]*\[ONNX Layer: ")
_CLOSING = re.compile(r"\](?=[\s,+]*(?:\[ONNX Layer: |$))")
_AROUND = re.compile(r"(.+) \(([^()]*)\)", re.DOTALL)
_BODIES = frozenset({"then_branch", "else_branch", "body"})
"""The attributes of ONNX operators that hold a graph."""
_ENDS = 64
"""So many places where a node's text may end are looked at: names with brackets and marks in them are rare."""


@dataclass(frozen=True)
class NodeNames:
    """The nodes of an ONNX file by name, as TensorRT's parser calls them.

    `operators` has those of the main graph, with their operators. `holders` has those in bodies and functions, each
    with the node of the main graph that it is part of; "" where several nodes of the main graph have one of that name
    in them. `functions` are the names of the model's local functions.
    """

    operators: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    holders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    functions: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        return name in self.operators or name in self.holders

    @cached_property
    def longest(self) -> int:
        """The letters of the longest name; −1 where there is none."""
        return max(map(len, (*self.operators, *self.holders)), default=-1)

    def chain_of(self, name: str) -> tuple[str, ...]:
        """The node, and where it is none of the main graph's the one there that holds it."""
        return (name,) if name in self.operators else (name, self.holders[name])


NO_NAMES = NodeNames()


def names_of(model: onnx.ModelProto) -> NodeNames:
    """The names of a file's nodes."""
    functions = {function.name: function for function in model.functions}
    holders: dict[str, str] = {}
    for node in model.graph.node:
        outermost = _name_of(node)
        for name in {_name_of(inner) for inner in _inside(node, functions, set())}:
            holders[name] = outermost if holders.get(name, outermost) == outermost else ""
    operators = {_name_of(node): node.op_type for node in model.graph.node}
    return NodeNames(operators, holders, frozenset(functions))


def network_nodes(metadata: str, names: NodeNames = NO_NAMES) -> tuple[str, ...]:
    """The ONNX nodes that the metadata of a network's layer names, innermost first; none for text of another kind.

    The last of several is the one in the main graph, "" where that is not known.
    """
    text = metadata.strip()
    if not (text.startswith(_MARK) and text.endswith("]")):
        return ()
    content = text[len(_MARK) : -1]
    if _known_start(content, names) is not None:
        return _chain(content, names)
    groups = _BETWEEN.split(content)
    return tuple(dict.fromkeys(node for group in groups for node in _chain(group, names)))


def engine_nodes(metadata: str, names: NodeNames = NO_NAMES) -> tuple[str, ...]:
    """The nodes of the main graph that the metadata of an engine's layer names, each once, in its order.

    For a node in a body it is the one that holds that: names within may be those of other nodes outside.
    """
    chains = (_chain(text, names) for text in _texts(metadata, names))
    return tuple(dict.fromkeys(chain[-1] for chain in chains if chain[-1] or len(chain) < 2))


def _chain(text: str, names: NodeNames) -> tuple[str, ...]:
    """The nodes that one text without its mark and bracket names, innermost first."""
    name = _known_start(text, names)
    if name is None:
        return _by_form(text)
    rest = text[len(name) + len(_BAR) :]
    if not rest or name not in names.holders:
        return names.chain_of(name)
    if around := _around(rest, names):
        return (name, *around)
    last = rest.rpartition(_BAR)[2]
    if last.startswith(_FUNCTION) and last.removeprefix(_FUNCTION) in names.functions:
        return (name, names.holders[name])
    return names.chain_of(name)


def _known_start(text: str, names: NodeNames) -> str | None:
    """The longest name of a node that the text begins with, with nothing or a bar behind it."""
    # Of a text without end only what can be a name is looked at: each try reads all letters in front of a bar.
    end = len(text) if len(text) <= names.longest else text.rfind(_BAR, 0, names.longest + len(_BAR))
    while end >= 0:
        if text[:end] in names:
            return text[:end]
        end = text.rfind(_BAR, 0, end)
    return None


def _around(text: str, names: NodeNames) -> tuple[str, ...]:
    """The nodes of `tb (then_branch) | iff (If)`, where the last one stands in the main graph; else none."""
    start = 0
    while start >= 0:
        outermost = _AROUND.fullmatch(text, start)
        if outermost is not None and names.operators.get(outermost[1]) == outermost[2]:
            between = (_AROUND.fullmatch(part) for part in text[:start].split(_BAR))
            inner = (found[1] for found in between if found is not None and found[2] not in _BODIES)
            return (*inner, outermost[1])
        start = text.find(_BAR, start)
        start = start + len(_BAR) if start >= 0 else start
    return ()


def _by_form(text: str) -> tuple[str, ...]:
    """The same where the file has no such name: what is in brackets behind each bar tells bodies alone."""
    inner, *around = text.split(_BAR)
    parts = [_AROUND.fullmatch(part) for part in around]
    found = [part.groups() for part in parts if part is not None]
    is_chain = len(found) == len(parts) and len(found) % 2 == 0 and all(kind in _BODIES for _, kind in found[::2])
    return (inner, *(name for name, _ in found[1::2])) if found and is_chain else (text,)


def _texts(metadata: str, names: NodeNames) -> Iterator[str]:
    """The texts of all nodes, without marks and brackets."""
    most = _ENDS if names.longest >= 0 else 1  # without names to tell by, a text ends where it can
    for part in _SEPARATORS.split(metadata):
        place = part.find(_MARK)
        while place >= 0:
            start = place + len(_MARK)
            ends = [match.start() for match, _ in zip(_CLOSING.finditer(part, start), range(most), strict=False)]
            if not ends:  # something stands behind the last
                if "]" in part[start:]:
                    yield part[start : part.rindex("]")]
                break
            end = next((end for end in ends if _ends_at(part, start, end, names)), ends[0])
            yield part[start:end]
            place = part.find(_MARK, end)


def _ends_at(part: str, start: int, end: int, names: NodeNames) -> bool:
    """Whether a node's text ends here: it is one of the file's, and so is that behind."""
    if _known_start(part[start:end], names) is None:
        return False
    place = part.find(_MARK, end)
    if place < 0:
        return True
    behind = place + len(_MARK)
    ends = (match.start() for match, _ in zip(_CLOSING.finditer(part, behind), range(_ENDS), strict=False))
    return any(_known_start(part[behind:other], names) is not None for other in ends)


def _name_of(node: onnx.NodeProto) -> str:
    """What the parser calls a node (`getNodeName`)."""
    return node.name or f"node_of_{next(iter(node.output), '')}"


def _inside(
    node: onnx.NodeProto, functions: Mapping[str, onnx.FunctionProto], seen: set[str]
) -> Iterator[onnx.NodeProto]:
    """All nodes within one: in its bodies, and in the function that it calls, each function once."""
    within: list[Iterable[onnx.NodeProto]] = [
        graph.node for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)
    ]
    # The parser takes a function for an operator's by its name alone.
    if node.op_type in functions and node.op_type not in seen:
        seen.add(node.op_type)
        within.append(functions[node.op_type].node)
    for nodes in within:
        for inner in nodes:
            yield inner
            yield from _inside(inner, functions, seen)
