"""A part of a graph that is computed at other powers of two, and gives what it gave.

Scaling by a power of two is exact, and commutes with every operator that is homogeneous: f(2^e · x) = 2^(p·e) · f(x).
So an operand can be scaled, and the scale carried on, through such operators, until a constant takes it up (the factor
behind a sum, the weights of a product), or it cancels (x / √mean x²). In float32 no bit changes then, but where a value
leaves the range of normal numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from precisionlab.model.subgraphs import outer_values

Use = tuple[ir.Node, int]
"""An input of a node, by its index."""


class UnscalableError(Exception):
    """The scale cannot be carried on, or would not come to an end."""


@dataclass(frozen=True)
class Region:
    """What a scale of 2^`exponent` on `start` entails.

    `uses` are the inputs that take the scaled `start`, `exponents` what each value computed of it is scaled by,
    `constants` by how much the constant at an input is scaled, `epsilons` by how much a normalisation's epsilon, and
    `restored` the values whose scale is taken back by a Mul where they are not taken by `carried`: inputs that let the
    scale pass.
    """

    start: ir.Value
    exponent: int
    uses: frozenset[Use]
    exponents: Mapping[ir.Value, int]
    constants: Mapping[Use, int]
    epsilons: Mapping[ir.Node, int]
    restored: frozenset[ir.Value]
    carried: frozenset[Use]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that compute at another scale, or whose constants change."""
        made = (value.producer() for value in self.exponents)
        taking = (node for node, _ in self.constants)
        return tuple(dict.fromkeys(node for node in (*made, *taking, *self.epsilons) if node is not None))


def ends_of(region: Region) -> tuple[ir.Node, ...]:
    """The nodes behind which nothing is scaled: whose constant takes the scale up, or whose result is scaled back."""
    scaled = {region.start, *region.exponents}
    taking = (node for node, _ in region.constants if node.outputs[0] not in scaled)
    restored = (value.producer() for value in region.restored)
    return tuple(dict.fromkeys(node for node in (*taking, *restored) if node is not None))


Fits = Callable[[ir.Value, int], bool]
"""Whether a value, scaled by a power of two, is held by the precision."""

# f(2^e · x) = 2^e · f(x), of the first input; the others are shapes, indices and axes.
_PASSES_ON = frozenset(
    [
        *("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "Flatten"),
        *("Split", "Relu", "LeakyRelu", "Abs", "Neg", "DepthToSpace", "SpaceToDepth"),
        *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    ]
)
# The same of all inputs at one scale.
_JOINS = frozenset({"Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat"})
_PRODUCTS = frozenset({"Mul", "MatMul", "Gemm", "Conv", "ConvTranspose"})
_NORMALISATIONS = frozenset({"LayerNormalization", "InstanceNormalization", "RMSNormalization"})
_BIAS = 2  # of Gemm, Conv and ConvTranspose


def region_of(
    graph: ir.Graph, start: ir.Value, exponent: int, uses: Iterable[Use], fits: Fits, *, may_restore: bool = True
) -> Region:
    """What follows where these uses take `start` · 2^`exponent`.

    A constant takes a scale up as soon as the value behind it `fits` without. Raises UnscalableError where the scale
    does not end (or without `may_restore`, does not end by itself).
    """
    walk = _Walk(graph, start, exponent, set(uses), fits, may_restore)
    walk.run()
    return Region(
        start,
        exponent,
        frozenset(walk.uses),
        walk.exponents,
        walk.constants,
        walk.epsilons,
        frozenset(walk.restored),
        frozenset(walk.carried),
    )


@dataclass
class _Walk:
    graph: ir.Graph
    start: ir.Value
    exponent: int
    uses: set[Use]
    fits: Fits
    may_restore: bool
    exponents: dict[ir.Value, int] = field(default_factory=dict)
    constants: dict[Use, int] = field(default_factory=dict)
    epsilons: dict[ir.Node, int] = field(default_factory=dict)
    restored: set[ir.Value] = field(default_factory=set)
    carried: set[Use] = field(default_factory=set)

    def run(self) -> None:
        for node in self.graph:
            scales = [self._scale(node, index) for index in range(len(node.inputs))]
            if not any(scales):
                if self._captures_scaled(node):
                    self._restore(value for value in _captured(node) if value in self.exponents)
                continue
            try:
                given = self._given(node, scales)
            except UnscalableError:
                self.constants = {use: scale for use, scale in self.constants.items() if use[0] is not node}
                self._restore(value for value in node.inputs if value in self.exponents)
                if any(self._scale(node, index) for index in range(len(node.inputs))):
                    raise
                continue
            self.carried.update((node, index) for index, scale in enumerate(scales) if scale)
            if given:
                self.exponents.update(dict.fromkeys(node.outputs, given))
        if any(value in self.exponents for value in self.graph.outputs):
            raise UnscalableError  # what leaves the model keeps its name

    def _scale(self, node: ir.Node, index: int) -> int:
        value = node.inputs[index]
        if value is None or value in self.restored:
            return 0
        if value is self.start:
            return self.exponent if (node, index) in self.uses else 0
        return self.exponents.get(value, 0)

    def _captures_scaled(self, node: ir.Node) -> bool:
        return any(value in self.exponents and value not in self.restored for value in _captured(node))

    def _restore(self, values: Iterable[ir.Value]) -> None:
        for value in set(values):
            if not self.may_restore or not self.fits(value, 0):
                raise UnscalableError
            self.restored.add(value)

    def _given(self, node: ir.Node, scales: list[int]) -> int:
        """What the node's outputs are scaled by. Raises UnscalableError where it lets no scale pass."""
        kind = node.op_type if node.domain in ("", "ai.onnx") else ""
        if len(node.outputs) > 1 and kind != "Split":
            raise UnscalableError  # indices, means, masks
        if kind in _PASSES_ON and not any(scales[1:]):
            return scales[0]
        if kind in _NORMALISATIONS and not any(scales[1:]):
            self.epsilons[node] = 2 * scales[0]
            return 0
        if kind in _JOINS:
            return self._joined(node, scales)
        if kind in _PRODUCTS:
            return self._product(node, scales)
        if kind == "Clip":
            return self._clipped(node, scales)
        if kind == "Div":
            return self._quotient(node, scales)
        if kind == "Sqrt":
            return _half(scales[0])
        if kind == "Reciprocal":
            return -scales[0]
        if kind == "ReduceSumSquare" and not any(scales[1:]):
            return 2 * scales[0]
        if kind == "Pow" and not scales[1]:
            return self._power(node, scales[0])
        raise UnscalableError

    def _joined(self, node: ir.Node, scales: list[int]) -> int:
        """All at one scale: constants are brought to it."""
        (scale, *others) = {scale for scale in scales if scale}
        if others:
            raise UnscalableError
        for index, value in enumerate(node.inputs):
            if scales[index]:
                continue
            if value is None or not is_constant(value):
                raise UnscalableError
            self.constants[node, index] = scale
        return scale

    def _clipped(self, node: ir.Node, scales: list[int]) -> int:
        """Its limits are brought to the scale."""
        for index in range(1, len(node.inputs)):
            if node.inputs[index] is not None:
                if scales[index] or not is_constant(node.inputs[index]):
                    raise UnscalableError
                self.constants[node, index] = scales[0]
        return scales[0]

    def _product(self, node: ir.Node, scales: list[int]) -> int:
        given = sum(scales[:_BIAS])
        if given and not self._cancels(node, scales, given):
            index = next((i for i in range(_BIAS) if node.inputs[i] is not None and is_constant(node.inputs[i])), None)
            if index is not None and self.fits(node.outputs[0], 0):
                self.constants[node, index] = -given
                given = 0
        elif given:
            given = 0
        self._bias(node, given)
        return given

    def _cancels(self, node: ir.Node, scales: list[int], given: int) -> bool:
        """Whether the other factor is `start` as it was, and scaled takes the scale away."""
        for index in range(_BIAS):
            if node.inputs[index] is self.start and not scales[index] and given == -self.exponent:
                self.uses.add((node, index))
                return True
        return False

    def _bias(self, node: ir.Node, given: int) -> None:
        if given and len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None:
            if not is_constant(node.inputs[_BIAS]):
                raise UnscalableError
            self.constants[node, _BIAS] = given

    def _quotient(self, node: ir.Node, scales: list[int]) -> int:
        given = scales[0] - scales[1]
        if given and node.inputs[0] is self.start and not scales[0] and scales[1] == self.exponent:
            self.uses.add((node, 0))
            return 0
        for index, sign in ((1, 1), (0, -1)):
            value = node.inputs[index]
            if given and value is not None and is_constant(value) and self.fits(node.outputs[0], 0):
                self.constants[node, index] = sign * given
                return 0
        return given

    def _power(self, node: ir.Node, scale: int) -> int:
        power = scalar_of(node.inputs[1])
        if power is None or not (power * scale).is_integer():
            raise UnscalableError
        return int(power * scale)


def _half(scale: int) -> int:
    if scale % 2:
        raise UnscalableError
    return scale // 2


def _captured(node: ir.Node) -> set[ir.Value]:
    return set(outer_values(node))


def is_constant(value: ir.Value | None) -> bool:
    """Whether it is a float32 constant."""
    return value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT


def scalar_of(value: ir.Value | None) -> float | None:
    """A constant's only number; None for all else."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def apply(graph: ir.Graph, region: Region, name: str) -> None:
    """Change the graph so. The scaled `start` is called `name`, what is restored `name~1` and so on."""
    if region.uses:
        scaled = _scaled(graph, region.start, region.exponent, name, after=region.start.producer())
        for node, index in region.uses:
            node.replace_input_with(index, scaled)
    for (node, index), exponent in region.constants.items():
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        numbers = np.ldexp(value.const_value.numpy(), exponent)
        node.replace_input_with(index, constant(graph, numbers, f"{value.name}·2^{exponent}"))
    for node, exponent in region.epsilons.items():
        attribute = node.attributes.get("epsilon")
        epsilon = 1e-5 if attribute is None else attribute.as_float()
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", float(np.ldexp(np.float32(epsilon), exponent)))
    for number, value in enumerate(sorted(region.restored, key=lambda value: str(value.name)), 1):
        _restore(graph, value, region, f"{name}~{number}")


def _restore(graph: ir.Graph, value: ir.Value, region: Region, name: str) -> None:
    """What takes the value and lets no scale pass takes it as it was."""
    uses = [(use.node, use.idx) for use in value.uses() if (use.node, use.idx) not in region.carried]
    restored = _scaled(graph, value, -region.exponents[value], name, after=value.producer())
    for node, index in uses:
        node.replace_input_with(index, restored)


def _scaled(graph: ir.Graph, value: ir.Value, exponent: int, name: str, after: ir.Node | None) -> ir.Value:
    factor = constant(graph, np.float32(np.ldexp(1.0, exponent)), f"2^{exponent}")
    node = ir.Node("", "Mul", [value, factor], name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = name, value.type, value.shape
    if after is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(after, node)
    return output


def constant(graph: ir.Graph, numbers: np.ndarray, name: str) -> ir.Value:
    """A float32 initialiser of the graph; one of this name and content is used again."""
    array = np.asarray(numbers, np.float32)
    tensor = ir.tensor(array, name=name)
    while (known := graph.initializers.get(name)) is not None:
        if known.const_value is not None and np.array_equal(known.const_value.numpy(), array):
            return known
        name += "'"
    tensor.name = name
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
