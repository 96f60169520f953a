"""How operators let the scale of an operand pass: f(2^e · x) = 2^(p·e) · f(x).

What a value is scaled by is written as its degree p, so that one walk tells of every exponent e. In float32 not a bit
changes by it, but where a value leaves the range of normal numbers, and in a power that is rounded as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import onnx_ir as ir

NONE = Fraction(0)

# f(2^e · x) = 2^e · f(x), of the first input; the others are shapes, indices, axes and slopes.
_PASSES_ON = frozenset(
    [
        *("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherElements", "GatherND"),
        *("Expand", "Tile", "Flatten", "Split", "DepthToSpace", "SpaceToDepth", "Trilu", "ReverseSequence", "Resize"),
        *("Relu", "LeakyRelu", "PRelu", "Abs", "Neg", "CumSum", "Upsample"),
        *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    ]
)
# The same of all inputs at one scale; what Where chooses by has none.
_JOINS = frozenset({"Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat", "Where"})
# Of inputs at one scale that does not show in the result.
_COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_PRODUCTS = frozenset({"Mul", "MatMul", "Gemm", "Conv", "ConvTranspose"})
_NORMALISATIONS = frozenset(
    {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}  # with an epsilon
)
# f(2^e · x) = f(x)
_FREE = frozenset({"LpNormalization", "Sign", "ArgMax", "ArgMin"})
_EXACT_POWERS = frozenset({1.0, 2.0, 3.0})  # that ONNX Runtime multiplies out
BIAS = 2  # the input of Gemm, Conv and ConvTranspose
_SCALE, _SHIFT, _MEAN = 1, 2, 3  # the inputs of BatchNormalization


class UnscalableError(Exception):
    """The scale cannot be carried on, or would not come to an end."""


class LoneScaleError(UnscalableError):
    """An input would have to be scaled too: 2^(`degree`·e) of what it is."""

    def __init__(self, value: ir.Value, degree: Fraction) -> None:
        super().__init__(value.name)
        self.value, self.degree = value, degree


@dataclass(frozen=True)
class Passed:
    """What a node gives where its inputs are scaled: outputs of this degree.

    `constants` is by how much those inputs, which are constants, must be scaled for it, `epsilon` by how much a
    normalisation's epsilon; `seeds` are further inputs that must take the scaled start of it all. `is_exact`: not a
    bit of what is rounded changes.
    """

    degree: Fraction = NONE
    constants: Mapping[int, Fraction] = field(default_factory=dict)
    epsilon: Fraction = NONE
    seeds: frozenset[int] = frozenset()
    is_exact: bool = True


@dataclass(frozen=True)
class Inputs:
    """A node, the degrees of its inputs, which values are scaled where it all starts, and where a scale may end.

    `is_norm` tells of a value whether it could be scaled to a degree where it is squared, `may_restore` whether its
    scale may be taken back by a Mul where that is not needed.
    """

    node: ir.Node
    degrees: tuple[Fraction, ...]
    is_start: Callable[[ir.Value | None], bool]
    is_norm: Callable[[ir.Value | None, Fraction], bool]
    fits: Callable[[ir.Value], bool]
    may_restore: Callable[[ir.Value], bool]

    def leave(self, index: int) -> None:
        """Raise UnscalableError where the input can be restored: so what it divides or multiplies stays as it is."""
        value = self.node.inputs[index]
        if value is not None and self.may_restore(value):
            raise UnscalableError

    def is_constant(self, index: int) -> bool:
        """Whether the input is a float32 constant that nothing has scaled so far."""
        return not self.degrees[index] and is_constant(self.node.inputs[index])

    def is_lone_start(self, index: int) -> bool:
        """Whether the input is what it all starts from, not scaled."""
        return not self.degrees[index] and self.is_start(self.node.inputs[index])

    def is_there(self, index: int) -> bool:
        """Whether the node has such an input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None


def passed(inputs: Inputs) -> Passed:
    """What the node makes of the scales of its inputs. Raises UnscalableError where it lets none pass."""
    node, degrees = inputs.node, inputs.degrees
    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
    if kind != "Split" and any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
        raise UnscalableError  # indices, means, masks
    rule = _RULES.get(kind)
    if rule is not None:
        return rule(inputs)
    if any(degrees[1:]):
        raise UnscalableError
    if passes_on(node):
        return Passed(degrees[0])
    if kind in _NORMALISATIONS:
        return Passed(epsilon=2 * degrees[0])
    if kind in _FREE:
        return Passed()
    raise UnscalableError


def passes_on(node: ir.Node) -> bool:
    """Whether what it gives has the scale of its first input, whatever its other inputs are."""
    is_listed = node.domain in ("", "ai.onnx") and node.op_type in _PASSES_ON
    return is_listed and not _number(node, "extrapolation_value")  # that Resize puts outside


def _number(node: ir.Node, attribute: str) -> float:
    found = node.attributes.get(attribute)
    return 0.0 if found is None else found.as_float()


def _joined(inputs: Inputs) -> Passed:
    """All at one scale: constants are brought to it."""
    first = 1 if inputs.node.op_type == "Where" else 0
    degree, *others = {degree for degree in inputs.degrees if degree}
    if others or any(inputs.degrees[:first]):
        raise UnscalableError
    constants, seeds = {}, set()
    for index, value in enumerate(inputs.node.inputs[first:], first):
        if inputs.degrees[index] or value is None:
            continue
        if inputs.is_constant(index):
            constants[index] = degree
        elif degree == 1 and inputs.is_lone_start(index):
            seeds.add(index)
        else:
            raise LoneScaleError(value, degree)
    return Passed(degree, constants, seeds=frozenset(seeds))


def _compared(inputs: Inputs) -> Passed:
    found = _joined(inputs)
    return Passed(NONE, found.constants, seeds=found.seeds)


def _clipped(inputs: Inputs) -> Passed:
    """Its limits are brought to the scale."""
    if "min" in inputs.node.attributes or "max" in inputs.node.attributes:
        raise UnscalableError  # attributes before opset 11
    return _joined(inputs)


def _padded(inputs: Inputs) -> Passed:
    """What it pads with is brought to the scale."""
    if any(inputs.degrees[1:]) or _number(inputs.node, "value"):
        raise UnscalableError
    if not inputs.is_there(2):
        return Passed(inputs.degrees[0])
    if not inputs.is_constant(2):
        raise UnscalableError
    return Passed(inputs.degrees[0], {2: inputs.degrees[0]})


def _product(inputs: Inputs) -> Passed:
    given = sum(inputs.degrees[:BIAS], NONE)
    bias = inputs.degrees[BIAS] if inputs.is_there(BIAS) else NONE
    seeds, constants = frozenset[int](), dict[int, Fraction]()
    if given and not bias:
        lone = next((index for index in range(BIAS) if inputs.is_lone_start(index)), None)
        taking = next((index for index in range(BIAS) if inputs.is_constant(index)), None)
        if given == -1 and lone is not None:
            inputs.leave(1 - lone)
            seeds, given = frozenset({lone}), NONE
        elif taking is not None and inputs.fits(inputs.node.outputs[0]):
            constants[taking], given = -given, NONE
    if inputs.is_there(BIAS) and bias != given:
        value = inputs.node.inputs[BIAS]
        assert value is not None
        if bias:
            raise UnscalableError
        if not inputs.is_constant(BIAS):
            raise LoneScaleError(value, given)
        constants[BIAS] = given
    return Passed(given, constants, seeds=seeds)


def _batch_normalised(inputs: Inputs) -> Passed:
    """(x − mean) · scale / √(var + e) + shift: the mean goes with x, the shift with the result."""
    if any(inputs.degrees[1:]) or not all(inputs.is_constant(index) for index in (_SCALE, _SHIFT, _MEAN)):
        raise UnscalableError
    (degree, *_) = inputs.degrees
    if inputs.fits(inputs.node.outputs[0]):
        return Passed(NONE, {_MEAN: degree, _SCALE: -degree})
    return Passed(degree, {_MEAN: degree, _SHIFT: degree})


def _quotient(inputs: Inputs) -> Passed:
    above, below = inputs.degrees
    given = above - below
    for index, sign in ((1, 1), (0, -1)):
        if given and inputs.is_constant(index) and inputs.fits(inputs.node.outputs[0]):
            return Passed(NONE, {index: sign * given})
    if below and not above:
        inputs.leave(1)
    if given == -1 and inputs.is_lone_start(0):
        return Passed(seeds=frozenset({0}))
    if given == 1 and inputs.is_lone_start(1):
        return Passed(seeds=frozenset({1}))
    value = inputs.node.inputs[1]
    if value is not None and not below and inputs.is_norm(value, above):
        raise LoneScaleError(value, above)
    return Passed(given)


def _inverted(inputs: Inputs) -> Passed:
    inputs.leave(0)
    return Passed(-inputs.degrees[0])


def _power(inputs: Inputs) -> Passed:
    power = scalar_of(inputs.node.inputs[1])
    if power is None or inputs.degrees[1]:
        raise UnscalableError
    if power < 0:
        inputs.leave(0)
    return Passed(Fraction(power) * inputs.degrees[0], is_exact=power in _EXACT_POWERS)


_RULES: Mapping[str, Callable[[Inputs], Passed]] = {
    **dict.fromkeys(_JOINS, _joined),
    **dict.fromkeys(_COMPARES, _compared),
    **dict.fromkeys(_PRODUCTS, _product),
    "BatchNormalization": _batch_normalised,
    "Clip": _clipped,
    "Div": _quotient,
    "Pad": _padded,
    "Pow": _power,
    "Reciprocal": _inverted,
    "ReduceSumSquare": lambda inputs: Passed(2 * inputs.degrees[0]),
    "Sqrt": lambda inputs: Passed(inputs.degrees[0] / 2),
}


def is_constant(value: ir.Value | None) -> bool:
    """Whether it is a float32 constant."""
    return value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT


def scalar_of(value: ir.Value | None) -> float | None:
    """A constant's only number; None for all else."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])
