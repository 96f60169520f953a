"""Computes at load what depends on constants alone, as TensorRT does before it builds.

So a weight is a weight, whatever an exporter has put between it and its layer (Transpose, Cast, Identity, the Mul and
Div of a weight normalisation): it is rounded and quantised as one, and its arithmetic, which no engine runs, neither
overflows nor needs pins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import onnx_ir as ir
from onnx_ir.passes import common as passes

from precisionlab.model.expression import NUMPY, RAISED, BeyondHalfError, Expression, expression, sources
from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.inference import infer_types

_SMALL = 1 << 20
"""Elements that a folded tensor may always have: a table of positions, a mask of 1024 × 1024."""

_GROWTH = 1 << 24
"""Elements by which folding may enlarge a model in all."""

_LAZY = 1 << 20
"""Bytes from which a weight in a file of its own is computed anew when it is read: memory is not to hold it."""

_COMPUTED = NUMPY | {ir.DataType.BFLOAT16}

_FAILS: tuple[type[Exception], ...] = (*RAISED, BeyondHalfError)
"""There is no kernel for some types, or a value is too large for its own."""

# Quantize and Dequantize: what a model says of its own scales stays. Dropout, as it may draw.
_STAY = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"),
    }
)


def fold_constants(model: ir.Model) -> int:
    """Put constants in the place of what is computed from constants alone; returns the bytes that stay beside them.

    1. In the main graph and in subgraphs, which see the constants around them.
    2. ONNX's own operators alone; none that draws random numbers or holds a graph, neither Quantize nor Dequantize,
       and none that gives an output of the graph.
    3. What has more elements than it is made of stays where it is beyond a million of them, or where such tensors would
       enlarge the model much: a mask that an Expand blows up belongs into no file.
    4. Values are ONNX Runtime's, in the types that the model has, half by way of float32. What it cannot compute stays,
       and so does what half precision on the way makes infinite: that is an overflow to be seen.

    The constants that were folded away stay in memory with the file that they were read from; their bytes are returned.
    """
    before = _in_memory(model)
    for graph in list(model.graphs()):
        _Fold(model, graph).run()
    passes.RemoveUnusedNodesPass()(model)
    after = _in_memory(model)
    return sum(size for key, size in before.items() if key not in after)


def _in_memory(model: ir.Model) -> dict[int, int]:
    tensors = (v.const_value for graph in model.graphs() for v in graph.initializers.values())
    return {id(t): t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor)}


class _Fold:
    """Folds one graph."""

    def __init__(self, model: ir.Model, graph: ir.Graph) -> None:
        self._model = model
        self._graph = graph
        self._grown = 0
        self._failed: set[ir.Value] = set()

    def run(self) -> None:
        """In rounds: what an Expand gives has a known size only when its shape is a constant."""
        while (found := self._foldable()) and self._replace(found):
            pass

    def _foldable(self) -> dict[ir.Value, ir.TensorType]:
        """Each value that can be folded, in the order of the nodes, with its type."""
        self._pass_identities()
        candidates: list[ir.Node] = []
        constant: set[ir.Value] = set()
        for node in self._graph:
            if self._can(node) and all(v is None or v in constant or _is_constant(v) for v in node.inputs):
                candidates.append(node)
                constant.update(node.outputs)
        if not candidates:
            return {}
        known = _inferred(expression(self._model, (v for node in candidates for v in node.outputs if v.name)).graph)
        found: dict[ir.Value, ir.TensorType] = {}
        for node in candidates:
            given = {v: known[str(v.name)] for v in node.outputs if v.name}
            types = {v: k.type for v, k in given.items() if isinstance(k.type, ir.TensorType) and k.dtype in _COMPUTED}
            taken = [v for v in node.inputs if v is not None]
            if types.keys() == given.keys() and all(v in found or _is_constant(v) for v in taken):
                size = _elements(given.values())
                if size is not None and self._fits(size, _elements(known.get(str(v.name), v) for v in taken) or 0):
                    found.update(types)
        return found

    def _can(self, node: ir.Node) -> bool:
        return (
            node.domain in ONNX_DOMAINS
            and node.op_type not in _STAY
            and bool(node.inputs)
            and not any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
            and not any(v.is_graph_output() or v in self._failed for v in node.outputs)
        )

    def _fits(self, size: int, source: int) -> bool:
        if size <= max(source, 1):
            return True
        if size > _SMALL or self._grown + size > _GROWTH:
            return False
        self._grown += size
        return True

    def _pass_identities(self) -> None:
        """Have what takes a constant by an Identity take it itself, so that a weight in two places stays one."""
        for node in list(self._graph):
            if node.op_type == "Identity" and self._can(node):
                source = node.inputs[0]
                if source is not None and _is_constant(source):
                    node.outputs[0].replace_all_uses_with(source)
                    self._graph.remove(node, safe=True)

    def _replace(self, found: Mapping[ir.Value, ir.TensorType]) -> bool:
        """Put constants in the place of the values that are taken by others; whether that was possible anywhere."""
        taken = (v for v in found if any(not _gives(use.node, found) for use in v.uses()))
        wanted = [v for v in taken if found[v].dtype in NUMPY]  # bfloat16 only on the way to another
        lazy = [v for v in wanted if any(_is_lazy(source) for source in sources([v]))]
        constants = self._now([v for v in wanted if v not in lazy])
        constants.update(self._later(lazy, found))
        for value, constant in constants.items():
            value.replace_all_uses_with(constant)
        for node in {v.producer(): None for v in reversed(list(found))}:
            if node is not None and not any(v.uses() for v in node.outputs):
                self._graph.remove(node, safe=True)
        for value, constant in constants.items():
            constant.name, value.name = value.name, None
            self._graph.register_initializer(constant)
        return bool(constants) or bool(self._failed.intersection(wanted))

    def _now(self, wanted: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
        """The values, computed; those that cannot be are noted, and left out."""
        if not wanted:
            return {}
        try:
            computed = expression(self._model, wanted).values()
        except _FAILS:
            if len(wanted) > 1:
                return {value: found for one in wanted for value, found in self._now([one]).items()}
            self._failed.update(wanted)
            return {}
        return {
            value: _constant(ir.tensor(array, name=value.name)) for value, array in zip(wanted, computed, strict=True)
        }

    def _later(self, wanted: Sequence[ir.Value], found: Mapping[ir.Value, ir.TensorType]) -> dict[ir.Value, ir.Value]:
        """The values, each computed whenever it is read."""
        constants = {}
        for value in wanted:
            made = expression(self._model, [value])
            if made.has_half:  # else it is not computed before it is read
                try:
                    made.values()
                except BeyondHalfError:
                    self._failed.add(value)
                    continue
            shape = _inferred(made.graph)[str(value.name)].shape
            assert shape is not None
            dims = ir.Shape(shape.numpy())
            later = ir.LazyTensor(partial(_computed, made), found[value].dtype, dims, name=value.name)
            constants[value] = _constant(later)
        return constants


def _computed(made: Expression) -> ir.TensorProtocol:
    return ir.tensor(made.values()[0])


def _constant(tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tuple(tensor.shape.numpy()))
    return ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)


def _inferred(graph: ir.Model) -> Mapping[str, ir.Value]:
    """The values of an expression's graph by name, with their types and shapes as far as those can be told."""
    infer_types(graph)
    return {str(v.name): v for node in graph.graph for v in node.outputs if v.name}


def _elements(values: Iterable[ir.Value]) -> int | None:
    """How many elements they have together; None where that is not known."""
    count = 0
    for value in values:
        if value.shape is None or not value.shape.is_static():
            return None
        count += math.prod(value.shape.numpy())
    return count


def _gives(node: ir.Node, found: Mapping[ir.Value, ir.TensorType]) -> bool:
    return any(value in found for value in node.outputs)


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def _is_lazy(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)) and tensor.nbytes >= _LAZY
