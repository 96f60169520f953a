"""Which outputs are rows that an operator picks by their values, as TopK and NonMaxSuppression do.

Two scores that differ by less than a precision's rounding change places, and all that is picked by them with them: the
same rows stand in another order, or there are more or fewer of them. An axis of rows is followed from the operator that
picks them to the outputs, and ends where their order does not matter any more (a sum over them, an attention's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import Model
from precisionlab.model.kinds import is_share
from precisionlab.model.pickers import Suppression, Threshold, suppression_of, threshold_of

Rows = dict[int, frozenset[str]]
"""The axes of a tensor that are rows, each with the nodes that pick them."""

_PICKERS = frozenset({"TopK", "NonMaxSuppression", "NonZero", "Unique", "Compress"})
_REDUCTIONS = ("Reduce", "Arg")
_GATHERS = frozenset({"Gather", "GatherElements", "GatherND"})
_RESHAPES = frozenset({"Reshape", "Flatten"})
_PIECES = frozenset({"Slice", "Split", "Pad"})
_SHAPES = frozenset({"Shape", "Size"})
_FORGET = _SHAPES | {"Range", "If", "Loop", "Scan", "Einsum"}
_BY_DATA_ALONE = frozenset({"ScatterElements", "ScatterND", "Scatter"})


@dataclass(frozen=True)
class Picked:
    """Tensors whose rows the same operators pick: each with the axis that its rows lie along.

    `by` names the operators as "TopK topk". `ahead` are the float tensors that they go by and pick from. `score` is the
    tensor among them that tells how high a row stands, one float for each row or shares of which the largest is it, and
    `sorted_by` the one ahead whose largest values in falling order are the rows' scores; empty where there is none.
    `suppression` is known where a NonMaxSuppression alone picks them, `threshold` where the mask of one does.
    """

    by: tuple[str, ...]
    tensors: tuple[tuple[str, int], ...]
    ahead: tuple[str, ...]
    score: str
    sorted_by: str
    suppression: Suppression | None = None
    threshold: Threshold | None = None


@dataclass(frozen=True)
class Moving:
    """Layers whose rows may stand elsewhere: by their `own` picking alone, or `so_far`, with what they are given."""

    own: frozenset[str]
    so_far: frozenset[str]


def picked_rows(model: Model) -> tuple[Picked, ...]:
    """The final outputs whose rows are picked by value, those with the same rows together, and what is ahead."""
    return _Selections(model).found()


def moving_layers(model: Model) -> Moving:
    """The layers whose outputs are rows picked by value: no figure of theirs, taken place by place, says anything."""
    selections = _Selections(model)
    far = {layer.name for layer in model.layers if any(map(selections.by, layer.outputs))}
    own = {
        layer.name for layer in model.layers if any(selections.by(name) & set(layer.nodes) for name in layer.outputs)
    }
    return Moving(frozenset(own), frozenset(far))


class _Selections:
    """The rows of every tensor of the main graph."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rows: dict[str, Rows] = {}
        self._varies: set[str] = set()
        self._ahead: dict[str, dict[str, None]] = {}
        self._producers = {str(v.name): node for node in model.onnx.graph for v in node.outputs if v.name}
        floats = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
        self._floats = {name for name, info in model.tensors.items() if info.dtype in floats}
        self._varies.update(info.name for info in model.inputs if info.name in self._floats)
        for node in model.onnx.graph:
            self._follow(node)

    def found(self) -> tuple[Picked, ...]:
        groups: dict[frozenset[str], list[tuple[str, int]]] = {}
        for info in self._model.outputs:
            for tensor in self._with_ahead(info.name):
                rows = self._rows.get(tensor, {})
                if len(rows) == 1:  # rows against rows have no order to be put into
                    ((axis, by),) = rows.items()
                    groups.setdefault(by, []).append((tensor, axis))
        return tuple(self._group(by, list(dict.fromkeys(tensors))) for by, tensors in groups.items())

    def by(self, tensor: str) -> frozenset[str]:
        """The nodes that pick rows of the tensor."""
        return frozenset().union(*self._rows.get(tensor, {}).values())

    def _group(self, by: frozenset[str], tensors: list[tuple[str, int]]) -> Picked:
        places = {name: place for place, name in enumerate(self._model.node)}
        order = sorted(by, key=places.__getitem__)
        ahead = dict.fromkeys(name for one in order for name in self._ahead.get(one, {}))
        score = next((name for name, axis in tensors if self._is_score(name, axis)), "")
        score = score or next((name for name, _ in tensors if is_share(self._model, name)), "")
        kinds = tuple(f"{self._model.node[name].op_type} {name}" for name in order)
        by_value = self._sorted_by(order), *self._known(order)
        return Picked(kinds, tuple(tensors), tuple(ahead), score, *by_value)

    def _sorted_by(self, by: list[str]) -> str:
        """What a TopK, where it alone picks, takes the largest of for each batch: (batch, values) or (values,)."""
        node = self._model.node[by[0]]
        if len(by) > 1 or node.op_type != "TopK" or node.inputs[0] is None:
            return ""
        largest = node.attributes.get("largest")
        operand = str(node.inputs[0].name)
        rank, rows = self._rank(operand), self._rows[str(node.outputs[1].name)]
        is_last = rank is not None and rank <= 2 and list(rows) == [rank - 1]
        return operand if is_last and (largest is None or largest.as_int() == 1) else ""

    def _known(self, by: list[str]) -> tuple[Suppression | None, Threshold | None]:
        """How an operator picks that does so alone, where that is known."""
        node = self._model.node[by[0]]
        return (suppression_of(node), threshold_of(node)) if len(by) == 1 else (None, None)

    def _is_score(self, tensor: str, axis: int) -> bool:
        """Whether there is one float for each row."""
        shape = self._model.tensors[tensor].shape
        return tensor in self._floats and all(dim == 1 for k, dim in enumerate(shape or ()) if k not in (0, axis))

    def _with_ahead(self, output: str) -> list[str]:
        """An output, and what is ahead of its rows: that may be rows itself, of an operator before."""
        tensors = {output: None}
        todo = [output]
        while todo:
            for by in self._rows.get(todo.pop(), {}).values():
                new = [name for one in by for name in self._ahead.get(one, {}) if name not in tensors]
                tensors.update(dict.fromkeys(new))
                todo += new
        return list(tensors)

    # One node

    def _follow(self, node: ir.Node) -> None:
        inputs = [None if v is None else str(v.name) for v in node.inputs]
        varies = node.op_type not in _SHAPES and any(name in self._varies for name in inputs if name is not None)
        for value in node.outputs:
            name = str(value.name)
            if varies:
                self._varies.add(name)
            if rows := self._out(node, inputs, name):
                self._rows[name] = rows

    def _out(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        """The rows of one output."""
        kind = node.op_type if node.domain in ONNX_DOMAINS else ""
        deciding = [name for name in self._deciding(kind, inputs) if name in self._varies]
        if deciding:
            self._note_ahead(node, deciding)
            return self._picked(node, kind, output)
        if kind in _FORGET:
            return {}
        if kind in _GATHERS and inputs[0] is not None and inputs[1] is not None:
            return self._gathered(node, kind, inputs[0], inputs[1], output)
        carriers: Mapping[str, Callable[[ir.Node, list[str | None], str], Rows]] = {
            "Transpose": self._transposed,
            "MatMul": self._multiplied,
            "Gemm": self._multiplied,
            "Concat": self._joined,
            "RoiAlign": self._regions,
            "MaxRoiPool": self._regions,
            "GridSample": self._sampled,
            "Squeeze": self._reduced,
            "Unsqueeze": self._unsqueezed,
        }
        if kind in carriers:
            return carriers[kind](node, inputs, output)
        if kind in _RESHAPES:
            return self._reshaped(inputs[0], output)
        if kind.startswith(_REDUCTIONS):
            return self._reduced(node, inputs, output)
        if kind in _BY_DATA_ALONE:
            return self._of(inputs[0])
        return self._aligned(inputs, output, is_piece=kind in _PIECES)

    def _deciding(self, kind: str, inputs: list[str | None]) -> list[str]:
        """The inputs whose values pick the rows."""
        if kind not in _PICKERS:
            return []
        places = {"NonMaxSuppression": (0, 1), "Compress": (1,)}.get(kind, (0,))
        return [name for place in places if place < len(inputs) and (name := inputs[place]) is not None]

    def _picked(self, node: ir.Node, kind: str, output: str) -> Rows:
        rank = self._rank(output)
        axis = {"NonMaxSuppression": 0, "NonZero": 1}.get(kind)
        if axis is None:
            attribute = node.attributes.get("axis")
            axis = (-1 if kind == "TopK" else 0) if attribute is None else attribute.as_int()
        axis = axis % rank if rank else 0
        shape = self._shape(output)
        if shape is not None and axis < len(shape) and shape[axis] == 1 and kind == "TopK":
            return {}  # the largest alone has no order
        return {axis: frozenset({str(node.name)})}

    def _note_ahead(self, node: ir.Node, inputs: list[str]) -> None:
        """The float tensors that a node goes by; behind a comparison or an integer those that it is made from."""
        ahead = self._ahead.setdefault(str(node.name), {})
        visited: set[str] = set()
        todo = list(reversed(inputs))
        while todo:
            name = todo.pop()
            producer = self._producers.get(name)
            if name in visited or name not in self._varies or producer is None:
                continue  # a graph's own input is exact
            visited.add(name)
            if name in self._floats:
                ahead[name] = None
            else:
                todo += [str(v.name) for v in reversed(producer.inputs) if v is not None]

    def _gathered(self, node: ir.Node, kind: str, data: str, indices: str, output: str) -> Rows:
        of_indices = self._of(indices)
        attribute = node.attributes.get("axis")
        axis = (attribute.as_int() if attribute is not None else 0) % (self._rank(data) or 1)
        for by in of_indices.values():
            if data in self._varies and data in self._floats and data in self._producers and not self._of(data):
                for one in by:
                    self._ahead.setdefault(one, {})[data] = None
        if kind == "Gather":
            rank = self._rank(indices) or 0
            rows = {axis + at: by for at, by in of_indices.items()}
            for at, by in self._of(data).items():
                if at != axis:
                    rows.setdefault(at if at < axis else at - 1 + rank, by)
                elif not of_indices and rank:
                    rows.setdefault(at, by)  # fixed places in the order are rows still
            return rows
        if kind == "GatherElements":
            return {**{at: by for at, by in self._of(data).items() if at != axis}, **of_indices}
        last = (self._rank(indices) or 1) - 1
        return {at: by for at, by in of_indices.items() if at != last}

    def _transposed(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        rows = self._of(inputs[0])
        rank = self._rank(output) or 0
        attribute = node.attributes.get("perm")
        perm = list(range(rank))[::-1] if attribute is None else list(attribute.as_ints())
        return {perm.index(at): by for at, by in rows.items() if at in perm}

    def _multiplied(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        """What a product sums over ends here: it does not hang on the order."""
        rank = self._rank(output) or 0
        rows: Rows = {}
        for side, name in enumerate(inputs[:2]):
            own = self._rank(name) or 0
            is_turned = node.op_type == "Gemm" and f"trans{'AB'[side]}" in node.attributes
            turned = is_turned and bool(node.attributes[f"trans{'AB'[side]}"].as_int())
            summed = (own - 1 if side == 0 else own - 2) if not turned else (own - 2 if side == 0 else own - 1)
            for at, by in self._of(name).items():
                if at == summed:
                    continue
                place = (rank - 2 + side) if at >= own - 2 else at + rank - own
                rows[place] = rows.get(place, frozenset()) | by
        return rows

    def _joined(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        axis = node.attributes["axis"].as_int() % (self._rank(output) or 1)
        rows: Rows = {}
        for name in inputs:
            for at, by in self._of(name).items():
                rows[at] = rows.get(at, frozenset()) | by
        whole = all(axis in self._of(name) for name in inputs)
        return {at: by for at, by in rows.items() if at != axis or whole}

    def _regions(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        regions = self._of(inputs[1])
        return {0: regions[0]} if 0 in regions else {}

    def _sampled(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        return {at + 1 if at else 0: by for at, by in self._of(inputs[1]).items() if at < (self._rank(output) or 0) - 1}

    def _reduced(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        rank, rank_after = self._rank(inputs[0]) or 0, self._rank(output)
        axes = self._axes(node)
        if axes is None:  # all, or not known
            return {}
        summed = {axis % rank for axis in axes} if rank else set()
        rows = {at: by for at, by in self._of(inputs[0]).items() if at not in summed}
        if rank_after == rank:
            return rows
        return {at - sum(axis < at for axis in summed): by for at, by in rows.items()}

    def _unsqueezed(self, node: ir.Node, inputs: list[str | None], output: str) -> Rows:
        rank, axes = self._rank(output) or 0, self._axes(node)
        if axes is None:
            return {}
        new = {axis % rank for axis in axes}
        places = [at for at in range(rank) if at not in new]
        return {places[at]: by for at, by in self._of(inputs[0]).items() if at < len(places)}

    def _axes(self, node: ir.Node) -> list[int] | None:
        if node.op_type.startswith("Arg"):
            attribute = node.attributes.get("axis")
            return [0 if attribute is None else attribute.as_int()]
        if "axes" in node.attributes:
            return list(node.attributes["axes"].as_ints())
        if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
            return [int(axis) for axis in node.inputs[1].const_value.numpy().reshape(-1)]
        return None

    def _reshaped(self, data: str | None, output: str) -> Rows:
        """An axis of rows is there still where as many elements stand in front of it, and it is as long."""
        before, after = self._shape(data), self._shape(output)
        if before is None or after is None:
            return {}
        rows: Rows = {}
        for at, by in self._of(data).items():
            places = [
                k
                for k, size in enumerate(after)
                if size == before[at] and math.prod(after[:k]) == math.prod(before[:at])
            ]
            if places:
                # Of axes of length 1 around it any would do; rows of one element are told from those by none.
                rows[places[0] if before[at] != 1 else min(places, key=lambda k: abs(k - at))] = by
        return rows

    def _aligned(self, inputs: list[str | None], output: str, is_piece: bool) -> Rows:
        """As of elementwise operators, and of all others that keep the axis: aligned at the end, and as long."""
        rank, shape = self._rank(output), self._shape(output)
        if rank is None:
            return {}
        rows: Rows = {}
        for name in inputs:
            own = self._shape(name)
            for at, by in self._of(name).items():
                place = at + rank - (self._rank(name) or 0)
                is_kept = own is None or shape is None or (place < len(shape) and own[at] == shape[place])
                if 0 <= place < rank and (is_kept or is_piece):
                    rows[place] = rows.get(place, frozenset()) | by
        return rows

    # What is known of tensors

    def _of(self, name: str | None) -> Rows:
        return {} if name is None else self._rows.get(name, {})

    def _rank(self, name: str | None) -> int | None:
        info = None if name is None else self._model.tensors.get(name)
        return None if info is None or info.shape is None else len(info.shape)

    def _shape(self, name: str | None) -> tuple[int, ...] | None:
        info = None if name is None else self._model.tensors.get(name)
        if info is None or info.shape is None:
            return None
        dims = tuple(dim for dim in info.shape if isinstance(dim, int))
        return dims if len(dims) == len(info.shape) else None
