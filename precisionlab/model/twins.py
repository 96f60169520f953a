"""Which tensor of a second model is which of the first: by what is certain, and by nothing else.

The same name, or what the user says; for ends the only one that is left; and for others what the same operator gives
from tensors that are twins already and from the same constants, where one node alone does so on either side, and the
same operators take it. Never a position, never a part of a name. What passes values on in another type (Q/DQ pairs,
Casts) is looked through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import onnx_ir as ir

from precisionlab.errors import ModelError, OptionError
from precisionlab.model.constants import alike, numbers_of
from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import Model, TensorInfo
from precisionlab.model.lift import OWN
from precisionlab.model.other import OtherModel

PASSES_ON = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, *OWN})
_SHOWN = 5


class By(str, Enum):
    """What makes two tensors twins."""

    NAME = "name"
    GIVEN = "given"
    LEFT = "the only one left"
    COMPUTED = "computed alike"


@dataclass(frozen=True)
class Twin:
    """A tensor of the model, its twin in the other, and what makes them twins.

    `taken` are what all that comes behind takes in its place, where the other alone quantises the values: by converters
    that leave a Relu to the quantiser's range, only those are the tensor.
    """

    ours: str
    theirs: str
    by: By
    taken: tuple[str, ...] = ()

    @property
    def read(self) -> str:
        """The tensor of the other model that is compared."""
        return self.taken[0] if self.taken else self.theirs


@dataclass(frozen=True)
class Twins:
    """All twins: those of the model's inputs (which the other may not take) and outputs, and of other tensors.

    `other_shape` are tensors whose names are the same and whose shapes cannot be. `notes` say what of the ends is not
    the same.
    """

    inputs: tuple[Twin, ...]
    outputs: tuple[Twin, ...]
    tensors: Mapping[str, Twin]
    other_shape: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def alone(self, other: OtherModel) -> tuple[str, ...]:
        """The float tensors of the other model that are no twins, without what only passes values on."""
        found = {twin.theirs for twin in (*self.tensors.values(), *self.outputs)}
        return tuple(
            name
            for name in other.made
            if name not in found and other.is_float(name) and operator_of(other.values[name]) not in PASSES_ON
        )


def twins_of(model: Model, other: OtherModel, given: Mapping[str, str]) -> Twins:
    """Find the twins; `given` are those that the user names, ours → theirs.

    Raises ModelError where inputs or outputs do not fit, OptionError for a given name that is in neither.
    """
    _check_given(model, other, given)
    inputs = _ends(model.inputs, other.inputs, given, "input", other)
    outputs = _ends(model.outputs, other.outputs, given, "output", other)
    search = _Search(model, other, {twin.ours: twin for twin in (*inputs, *outputs)})
    other_shape = search.by_name(given)
    search.by_structure()
    return Twins(inputs, outputs, search.twins, other_shape, tuple(_notes(model, other, inputs, outputs)))


def _check_given(model: Model, other: OtherModel, given: Mapping[str, str]) -> None:
    ours = {info.name for info in (*model.inputs, *model.outputs)} | model.tensors.keys()
    for name, theirs in given.items():
        for one, there, path in ((name, ours, model.path), (theirs, other.types, other.path)):
            if one not in there:
                raise OptionError(f"match {name!r}={theirs!r}: {path} has no tensor {one!r}")
    if len(set(given.values())) < len(given):
        raise OptionError("match: two tensors cannot have the same twin")


def _ends(
    ours: Sequence[TensorInfo], theirs: Sequence[TensorInfo], given: Mapping[str, str], what: str, other: OtherModel
) -> tuple[Twin, ...]:
    """The twins of inputs, or of outputs. An input that the other does not take is left out, so is its own output."""
    there = {info.name: info for info in theirs}
    found = [Twin(i.name, given[i.name], By.GIVEN) for i in ours if given.get(i.name) in there]
    taken = {twin.theirs for twin in found}
    by_name = [i for i in ours if i.name not in given and i.name in there and i.name not in taken]
    found += [Twin(info.name, info.name, By.NAME) for info in by_name]
    left = [info for info in ours if info.name not in {twin.ours for twin in found}]
    free = [info for info in theirs if info.name not in {twin.theirs for twin in found}]
    if len(left) == len(free) == 1:
        found.append(Twin(left[0].name, free[0].name, By.LEFT))
        left, free = [], []
    missing = free if what == "input" else left
    if missing:
        has, lacks = (free, left) if what == "input" else (left, free)
        side = f"takes {what}s" if what == "input" else f"lacks {what}s"
        choices = f"; the {what}s of the {'first' if what == 'input' else 'second'} that have no twin: {_named(lacks)}"
        raise ModelError(
            f"{other.path}: {side} that the {'first model does not have' if what == 'input' else 'first model has'}: "
            f"{_named(has)}{choices if lacks else ''}; name twins with --match OURS=THEIRS, or export it with the same "
            f"{what}s"
        )
    infos = {info.name: info for info in ours}
    for twin in found:
        _check_fit(infos[twin.ours], there[twin.theirs], what, other)
    return tuple(sorted(found, key=lambda twin: [info.name for info in ours].index(twin.ours)))


def _check_fit(ours: TensorInfo, theirs: TensorInfo, what: str, other: OtherModel) -> None:
    kinds = [_kind(info.dtype) for info in (ours, theirs)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise ModelError(
            f"{other.path}: {what} {theirs.name!r} is {_text(theirs)}, and {_text(ours)} in the first model; "
            "floats and whole numbers are not compared"
        )
    if not _shapes_fit(ours.shape, theirs.shape):
        raise ModelError(
            f"{other.path}: {what} {theirs.name!r} is {_text(theirs)}, and {_text(ours)} in the first model; "
            "export both at the same shapes"
        )


def _kind(dtype: ir.DataType | None) -> str | None:
    if dtype is None:
        return None
    return "float" if dtype in _FLOATS else "string" if dtype == ir.DataType.STRING else "whole"


def _shapes_fit(ours: Sequence[int | str | None] | None, theirs: Sequence[int | str | None] | None) -> bool:
    """Whether two shapes may be the same at run time."""
    if ours is None or theirs is None:
        return True
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _notes(model: Model, other: OtherModel, inputs: Iterable[Twin], outputs: Iterable[Twin]) -> Iterator[str]:
    """What of the ends is converted, renamed or left out, in sentences."""
    for what, twins, ours, theirs in (
        ("input", tuple(inputs), model.inputs, other.inputs),
        ("output", tuple(outputs), model.outputs, other.outputs),
    ):
        mine, there = {info.name: info for info in ours}, {info.name: info for info in theirs}
        for twin in twins:
            first, second = mine[twin.ours], there[twin.theirs]
            if twin.by is not By.NAME:
                how = "as the user says" if twin.by is By.GIVEN else "the only one left"
                yield f"{what} {twin.ours} is {twin.theirs} there ({how})"
            if None not in (first.dtype, second.dtype) and first.dtype != second.dtype:
                assert first.dtype is not None
                assert second.dtype is not None
                types = f"{second.dtype.name} there and {first.dtype.name} here"
                done = "values are converted" if what == "input" else "compared after conversion"
                yield f"{what} {twin.ours} is {types}: {done}"
        idle = [info.name for info in ours if info.name not in {twin.ours for twin in twins}]
        if idle:
            yield f"{what}s that the second model does not take: {', '.join(idle)}"
        more = [info.name for info in theirs if info.name not in {twin.theirs for twin in twins}]
        if more:
            yield f"{what}s of the second model alone, which are not compared: {', '.join(more)}"


class _Search:
    """The twins found so far, and the search for more."""

    def __init__(self, model: Model, other: OtherModel, twins: Mapping[str, Twin]) -> None:
        self._model, self._other = model, other
        self.twins: dict[str, Twin] = dict(twins)
        self._taken = {twin.theirs for twin in twins.values()}

    def by_name(self, given: Mapping[str, str]) -> tuple[str, ...]:
        """Tensors with the same names, or given ones; returns those whose shapes cannot be the same."""
        infos = {name: info for name, info in self._other.tensors.items() if name in self._other.values}
        aliases = {source: name for name, source in self._model.gone.items() if source is not None}
        rejected = []
        for node in self._model.onnx.graph:
            for value in node.outputs:
                name = str(value.name)
                ours = self._model.tensors.get(name)
                if name in self.twins or ours is None:
                    continue
                theirs = given.get(name) or next((n for n in (name, aliases.get(name)) if n in infos), None)
                if theirs is None or theirs in self._taken or not self._same_kind(ours, theirs):
                    continue
                if not _shapes_fit(ours.shape, infos[theirs].shape):
                    rejected.append(name)
                    continue
                self._pair(Twin(name, theirs, By.GIVEN if name in given else By.NAME))
        return tuple(rejected)

    def _pair(self, twin: Twin) -> None:
        ours = self._model.values.get(twin.ours)
        is_alike = ours is not None and bool(_taken(ours))  # the first model quantises it as well
        taken = () if is_alike else _taken(self._other.values[twin.theirs])
        self.twins[twin.ours] = replace(twin, taken=taken)
        self._taken.add(twin.theirs)

    def by_structure(self) -> None:
        """What the same operator gives from twins and the same constants, in the model's order."""
        for node in self._model.onnx.graph:
            open_outputs = [v for v in node.outputs if v.name and str(v.name) not in self.twins]
            if not open_outputs or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
                continue
            found = self._candidates(node)
            if not found or not all(_are_the_same(found[0], one) for one in found[1:]):
                continue  # several are one computation written more than once, or nobody can tell
            for ours, theirs in zip(node.outputs, found[0].outputs, strict=False):
                self._add(ours, theirs)

    def _add(self, ours: ir.Value, theirs: ir.Value) -> None:
        name, there = str(ours.name), name_in_file(theirs)
        info = self._model.tensors.get(name)
        if not name or not there or name in self.twins or there in self._taken or info is None:
            return
        if self._same_kind(info, there):
            self._pair(Twin(name, there, By.COMPUTED))

    def _same_kind(self, ours: TensorInfo, theirs: str) -> bool:
        kind = _kind(ours.dtype)
        return kind is not None and kind == _kind(self._other.types.get(theirs))

    def _candidates(self, node: ir.Node) -> list[ir.Node]:
        """The nodes of the other model that compute what this one does, from the same, and are no twins yet."""
        sources = [_source(value, self.twins.keys()) for value in node.inputs]
        known = next((s for s in sources if s is not None and str(s.name) in self.twins), None)
        if known is None:
            return []
        start = self._other.values[self.twins[str(known.name)].theirs]
        return [
            other
            for other in dict.fromkeys(_reached(start))
            if (other.op_type, other.domain in ONNX_DOMAINS) == (node.op_type, node.domain in ONNX_DOMAINS)
            and all(self._is_free(name_in_file(value)) for value in other.outputs)
            and self._takes_the_same(node, other)
            and all(_takers(a) == _takers(b) for a, b in zip(node.outputs, other.outputs, strict=False))
        ]

    def _is_free(self, name: str) -> bool:
        """Whether the file has such a tensor (what rounds is ours), which is no twin yet."""
        return not name or (name in self._other.types and name not in self._taken)

    def _takes_the_same(self, node: ir.Node, other: ir.Node) -> bool:
        if len(node.inputs) != len(other.inputs) or not _same_attributes(node, other):
            return False
        for ours, theirs in zip(node.inputs, other.inputs, strict=True):
            if ours is None or theirs is None:
                if ours is not theirs:
                    return False
                continue
            first, second = _source(ours, self.twins.keys()), _source(theirs, self._taken)
            twin = self.twins.get(str(first.name)) if first is not None else None
            if twin is not None:
                if second is None or str(second.name) != twin.theirs:
                    return False
            elif not alike(ours, theirs):
                return False
        return True


def _are_the_same(first: ir.Node, second: ir.Node) -> bool:
    """Whether two nodes of the second model, which take the same twins, take the same constants to the bit as well."""
    for a, b in zip(first.inputs, second.inputs, strict=True):
        mine, theirs = (None if value is None else numbers_of(value) for value in (a, b))
        if mine is None or theirs is None:
            if mine is not theirs:
                return False
        elif not np.array_equal(mine, theirs):
            return False
    return True


def _source(value: ir.Value | None, ends: Collection[str]) -> ir.Value | None:
    """What the value is passed on from: the nearest of these tensors, or what no such node gives."""
    while value is not None and str(value.name) not in ends:
        node = value.producer()
        if node is None or node.op_type not in PASSES_ON:
            break
        value = node.inputs[0]
    return value


def _taken(value: ir.Value) -> tuple[str, ...]:
    """What is behind the quantisers of a value, where nothing else takes it and they all give the same."""
    first = [use.node for use in value.uses()]
    if value.is_graph_output() or not first or not _are_one(first, "QuantizeLinear", value):
        return ()
    second = [(use.node, node.outputs[0]) for node in first for use in node.outputs[0].uses()]
    if not second or any(node.outputs[0].is_graph_output() for node in first):
        return ()
    if not all(_are_one([node], "DequantizeLinear", of) for node, of in second):
        return ()
    nodes = [node for node, _ in second]
    if any(node.inputs[1:] != nodes[0].inputs[1:] for node in nodes):
        return ()
    return tuple(name_in_file(node.outputs[0]) for node in nodes)


def _are_one(nodes: Sequence[ir.Node], operator: str, value: ir.Value) -> bool:
    """Whether all of these are this operator on the value, with the same scale."""
    return all(
        node.op_type == operator and node.inputs[0] is value and node.inputs[1:] == nodes[0].inputs[1:]
        for node in nodes
    )


def name_in_file(value: ir.Value) -> str:
    """What the file calls a value: one that is rounded has its name behind the Casts that do so."""
    return str(value.name).removesuffix(":exact")


def _reached(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that take the value, be it passed on, and those that pass it on."""
    for use in value.uses():
        yield use.node
        if use.node.op_type in PASSES_ON and use.idx == 0:
            yield from _reached(use.node.outputs[0])


def _users(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that take the value, be it passed on."""
    for use in value.uses():
        if use.node.op_type in PASSES_ON:
            if use.idx == 0:
                yield from _users(use.node.outputs[0])
        else:
            yield use.node


def _takers(value: ir.Value) -> list[str]:
    return sorted(node.op_type for node in _users(value))


def operator_of(value: ir.Value) -> str:
    """The operator that gives a value of the second model, behind what rounds it; empty for an input."""
    node = value.producer()
    while node is not None and node.op_type == "Cast" and str(node.inputs[0] and node.inputs[0].name).endswith(":half"):
        half = node.inputs[0].producer() if node.inputs[0] else None  # the pair that rounds
        exact = half.inputs[0] if half is not None else None
        node = exact.producer() if exact is not None else None
    return node.op_type if node is not None else ""


def _same_attributes(node: ir.Node, other: ir.Node) -> bool:
    mine, theirs = ({n: a for n, a in one.attributes.items() if a.type in _PLAIN} for one in (node, other))
    return all(n in mine and n in theirs and _value(mine[n]) == _value(theirs[n]) for n in mine.keys() | theirs.keys())


_PLAIN = frozenset({ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.FLOAT})


def _value(attribute: ir.Attr) -> object:
    value = attribute.value
    if attribute.type == ir.AttributeType.FLOAT:
        return round(float(value), 9)
    return tuple(value) if attribute.type == ir.AttributeType.INTS else value


def _named(infos: Sequence[TensorInfo]) -> str:
    more = f" and {len(infos) - _SHOWN} more" if len(infos) > _SHOWN else ""
    return ", ".join(f"{info.name} ({_text(info)})" for info in infos[:_SHOWN]) + more


def _text(info: TensorInfo) -> str:
    shape = "" if info.shape is None else f"[{', '.join('?' if d is None else str(d) for d in info.shape)}]"
    return f"{info.dtype.name if info.dtype is not None else 'unknown'}{shape}"
