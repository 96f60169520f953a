"""Whether a layer's sum of products passes the end of half on its way, where its kernel keeps the sum in half.

First by a bound that costs nothing: no order of summation passes the largest operand times the sum of a channel's
weights, all taken without their sign. Of layers whose bound is beyond half the samples are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.sums.kernel import in_the_end, largest_on_the_way
from precisionlab.backends.sums.operands import product_of
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.model import Layer, Model
from precisionlab.model.contraction import products_of
from precisionlab.model.mapped import let_go
from precisionlab.plan.arithmetic import Arithmetic, Constants, Fusing, Kernels, Sums
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import constant_array, rounded_array
from precisionlab.rewrite.half_sums import folded_scale
from precisionlab.rewrite.sums import CONV, CONVOLUTIONS, GEMM, adds_up
from precisionlab.system.plain import of_kind

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RunningSum:
    """How large the sums of a layer's products are, over the samples that choose.

    `bound` is what no order of summation can pass. `absolute` is the largest sum of products without their signs,
    `largest` the largest running sum behind a block, in the order of tensor cores, and `result` what that sum comes to
    in the end; None where the bound fits, and nothing was looked at.
    """

    bound: float
    absolute: float | None = None
    largest: float | None = None
    result: float | None = None


def running_sums(
    evaluator: Evaluator,
    plan: PrecisionPlan,
    largest: Mapping[str, float],
    look: Callable[[Iterable[Any], Callable[[str, NDArray[Any]], None]], None],
) -> dict[str, RunningSum]:
    """Layer name → its sums, of layers that the plan has in a precision whose kernels may keep sums in it.

    `largest` has the largest |x| of the reference's tensors, `look` shows these sample by sample. Layers whose bound is
    not known, as an operand's range is not, are left out; so are all where ONNX Runtime's kernels are emulated, which
    add up in float32.
    """
    model = evaluator.model
    if evaluator.arithmetic.kernels is not Kernels.TENSORRT:
        return {}
    terms = {
        layer.name: _terms(model, layer, precision_of(layer, plan), evaluator.arithmetic)
        for layer in model.layers
        if _adds_in_itself(model, layer, plan)
    }
    bounds = {name: found.bound(largest) for name, found in terms.items() if found is not None}
    known = {name: RunningSum(bound) for name, bound in bounds.items() if bound is not None}
    ends = {name: precision_of(model.layer[name], plan).number_format.largest for name in known}
    beyond = {name: found for name, found in terms.items() if found is not None and name in known}
    beyond = {n: found for n, found in beyond.items() if known[n].bound > ends[n] and found.fits(largest, ends[n])}
    if not beyond:
        return known

    def work() -> dict[str, Any]:
        evaluator.observer.stage(f"{plan.default}, sums on their way", len(evaluator.chosen))
        watching = _Watching(beyond, evaluator.observer.advance)
        look(watching.each(evaluator.chosen), watching.see)
        return {name: asdict(found) for name, found in watching.found(known).items()}

    key = {
        "running_sums": sorted(beyond),
        "default": plan.default.value,
        **evaluator.arithmetic.to_plain(),
        "on": list(evaluator.chosen.names),
    }
    return {**known, **evaluator.journalled("sums on their way", key, work, _read)}


def _read(data: Any) -> dict[str, RunningSum]:
    found: dict[str, RunningSum] = of_kind(Mapping[str, RunningSum], data)
    return found


@dataclass(frozen=True)
class _Terms:
    """One layer's operands: tensors by name, or a constant; `node` says how they are multiplied.

    `constant` reads it anew each time, so that weights are not held; `norm` is the largest sum of a channel of it.
    """

    node: ir.Node
    tensors: tuple[str | None, str | None]
    constant: Callable[[], Array] | None
    norm: float
    products: int | None

    def bound(self, largest: Mapping[str, float]) -> float | None:
        """What no order of summation can pass; None where a range is not known."""
        ranges = [largest.get(name) for name in self.tensors if name is not None]
        known = [value for value in ranges if value is not None]
        if len(known) < len(ranges):
            return None
        if self.constant is None:
            return None if self.products is None else self.products * math.prod(known)
        return known[0] * self.norm

    def handed(self) -> Array:
        """The constant among them."""
        assert self.constant is not None
        return self.constant()

    def fits(self, largest: Mapping[str, float], end: float) -> bool:
        """Whether the operands themselves fit the precision: else that is what breaks."""
        return all(largest[name] <= end for name in self.tensors if name is not None)


def _adds_in_itself(model: Model, layer: Layer, plan: PrecisionPlan) -> bool:
    is_half = precision_of(layer, plan).number_format.sums_in_itself
    return is_half and bool(layer.nodes) and adds_up(model.node[layer.nodes[0]])


def _terms(model: Model, layer: Layer, precision: Precision, arithmetic: Arithmetic) -> _Terms | None:
    nodes = [model.node[name] for name in layer.nodes]
    node = nodes[0]
    values = node.inputs[:2]
    constant: Callable[[], Array] | None = None
    weight: ir.Value | None = None
    names: list[str | None] = []
    for value in values:
        assert value is not None
        if value.const_value is None:
            names.append(str(value.name))
            continue
        if constant is not None or value.dtype != ir.DataType.FLOAT:
            return None
        folded = nodes if arithmetic.fusing is Fusing.FOLDED else nodes[:1]
        constant, weight = partial(_handed, folded, value, precision, arithmetic.constants), value
        names.append(None)
    if node.op_type in CONVOLUTIONS and names[1] is not None:
        return None
    norm = 0.0
    if weight is not None and constant is not None:
        key = f"precisionlab.norm.{node.name}.{precision}.{arithmetic.constants}"
        if key not in weight.meta or folded_scale(nodes) is not None:
            weight.meta[key] = _largest_norm(node, constant(), on_the_left=names[0] is None)
        norm = weight.meta[key]
    return _Terms(node, (names[0], names[1]), constant, norm, products_of(node, model.tensors))


def _handed(nodes: Sequence[ir.Node], value: ir.Value, precision: Precision, constants: Constants) -> Array:
    """A constant operand as the kernel is handed it: with the scale of a BatchNormalization behind it, and rounded."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    scale = folded_scale(nodes)
    if scale is not None:
        array = np.asarray(array * scale.reshape(-1, *[1] * (array.ndim - 1)), np.float32)
    found = constant_array(array, precision, constants)
    let_go(value.const_value)
    return found


def _largest_norm(node: ir.Node, constant: Array, *, on_the_left: bool) -> float:
    """The largest sum of a channel's weights without their signs, in float64: what one output is the sum of."""
    weights = np.abs(constant)
    if weights.size == 0:
        return 0.0
    if node.op_type == CONV:
        return float(weights.reshape(len(weights), -1).sum(axis=1, dtype=np.float64).max())
    if node.op_type in CONVOLUTIONS:  # transposed: all taps, although only those a stride apart meet
        group = node.attributes["group"].as_int() if "group" in node.attributes else 1
        by_group = weights.reshape(group, len(weights) // group, *weights.shape[1:])
        return float(by_group.sum(axis=(1, *range(3, by_group.ndim)), dtype=np.float64).max())
    if weights.ndim == 1:
        return float(weights.sum(dtype=np.float64))
    is_turned = node.op_type == GEMM and bool(_whole(node, "transA" if on_the_left else "transB"))
    return float(weights.sum(axis=-1 if on_the_left != is_turned else -2, dtype=np.float64).max())


def _whole(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


class _Watching:
    """Looks at the operands of some layers while samples go by."""

    def __init__(self, terms: Mapping[str, _Terms], advance: Callable[[int], None]) -> None:
        self._terms = terms
        self._advance = advance
        self._takers: dict[str, list[str]] = {}
        for layer, found in terms.items():
            for name in dict.fromkeys(found.tensors):
                if name is not None:
                    self._takers.setdefault(name, []).append(layer)
        self._waiting: dict[str, dict[str, Array]] = {}
        self._found: dict[str, tuple[float, float, float]] = {}

    def each(self, samples: Iterable[Any]) -> Iterable[Any]:
        """The samples, one after the other."""
        for done, sample in enumerate(samples):
            self._advance(done)
            yield sample

    def see(self, name: str, value: NDArray[Any]) -> None:
        """Take note of an operand; where it is a layer's last one, of its sums.

        Every sample shows each operand once, one sample behind the other. The next one is fetched meanwhile, by another
        thread: what `each` does says nothing of where this is.
        """
        for layer in self._takers.get(name, ()):
            terms, held = self._terms[layer], self._waiting.setdefault(layer, {})
            held[name] = np.array(value, np.float32)
            if all(tensor in held for tensor in terms.tensors if tensor is not None):
                self._add(layer, terms, self._waiting.pop(layer))

    def _add(self, layer: str, terms: _Terms, held: Mapping[str, Array]) -> None:
        first, second = (
            _turned(terms.node, index, held[name] if name is not None else terms.handed())
            for index, name in enumerate(terms.tensors)
        )
        found = _sums_of(terms.node, first, second)
        if not math.isfinite(found[0]):
            return  # of an operand that is Inf itself: no fault of the sum
        before = self._found.get(layer)
        if before is None or found[1] > before[1]:
            absolute = found[0] if before is None else max(found[0], before[0])
            self._found[layer] = (absolute, *found[1:])
        else:
            self._found[layer] = (max(found[0], before[0]), *before[1:])

    def found(self, known: Mapping[str, RunningSum]) -> dict[str, RunningSum]:
        """What was seen."""
        return {name: RunningSum(known[name].bound, *sums) for name, sums in self._found.items()}


def _turned(node: ir.Node, index: int, value: Array) -> Array:
    """An operand as the product takes it, rounded to half."""
    is_turned = node.op_type == GEMM and _whole(node, ("transA", "transB")[index])
    return rounded_array(np.asarray(value.T if is_turned else value, np.float32), Precision.FP16)


def _sums_of(node: ir.Node, first: Array, second: Array) -> tuple[float, float, float]:
    """The largest sum without signs, the largest running sum, and what that one comes to."""
    on_the_way = product_of(node, Sums.HALF, largest_on_the_way)
    with np.errstate(invalid="ignore"):
        absolute = on_the_way(np.abs(first), np.abs(second))
        running = on_the_way(first, second)
    if not running.size:
        return 0.0, 0.0, 0.0
    at = int(np.nanargmax(running)) if not np.isnan(running).all() else 0
    results = _plain(node, first, second)
    return float(np.nanmax(absolute)), float(running.flat[at]), float(np.abs(results.flat[at]))


def _plain(node: ir.Node, first: Array, second: Array) -> Array:
    """The products added up in float32, of which the last running sum is what they come to."""
    return np.asarray(product_of(node, Sums.HALF, in_the_end)(first, second), np.float32)
