"""How many of an int8 product's integer sums half could not hold, were they kept in it before they are scaled.

That is what TensorRT-RTX does with a weight that has a scale for each channel where floats around are half; see
`rewrite/integer_sums.py`. Typed models of ours are written otherwise, those of other tools are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.grid import rounded_to_grid, spread_along
from precisionlab.calibration.table import CalibrationTable, weight_scales
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.model import Model
from precisionlab.model.mapped import let_go
from precisionlab.plan.arithmetic import Kernels
from precisionlab.plan.assign import around_of, precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.channel_scales import weight_by_channel
from precisionlab.rewrite.integer_sums import product_scales
from precisionlab.rewrite.sums import GEMM
from precisionlab.system.plain import Amount, of_kind

Look = Callable[[Iterable[Any], Callable[[str, NDArray[Any]], None]], None]
_SAMPLES = 32
"""On so many samples sums are counted: a share needs no more."""
_LARGEST = Precision.FP16.number_format.largest


@dataclass(frozen=True)
class IntegerSums:
    """A layer's integer sums on the samples that choose: the share beyond half, and the largest.

    `lost` is the share of the channels whose product of scales is 0 in half: they give nothing.
    """

    beyond: Amount
    largest: Amount
    lost: Amount

    @property
    def harms(self) -> bool:
        """Whether half loses anything of them but digits."""
        return bool(self.beyond or self.lost)


def integer_sums(
    evaluator: Evaluator, plan: PrecisionPlan, table: CalibrationTable | None, look: Look
) -> dict[str, IntegerSums]:
    """Layer name → its integer sums, of the int8 products of the plan whose sums a half model may have unscaled.

    `look` shows the reference's tensors sample by sample. None where ONNX Runtime's kernels are emulated, whose sums
    are int32.
    """
    if table is None or evaluator.arithmetic.kernels is not Kernels.TENSORRT:
        return {}
    found = _products(evaluator.model, plan, table)
    if not found:
        return {}
    names = evaluator.chosen.names[:_SAMPLES]

    def work() -> dict[str, Any]:
        evaluator.observer.stage("int8, integer sums", len(names))
        counts = {name: _Counting(product) for name, product in found.items()}

        def see(tensor: str, value: NDArray[Any]) -> None:
            for counting in counts.values():
                if counting.product.tensor == tensor and value.dtype == np.float32:
                    counting.add(value)

        look(islice(evaluator.chosen, len(names)), see)
        return {name: asdict(counting.found()) for name, counting in counts.items()}

    key = {"integer_sums": sorted(found), "ranges": table.digest, "on": list(names)}
    return evaluator.journalled("int8, integer sums", key, work, _read, lambda sums: sums.keys() == found.keys())


def _read(data: Any) -> dict[str, IntegerSums]:
    known: dict[str, IntegerSums] = of_kind(Mapping[str, IntegerSums], data)
    return known


@dataclass(frozen=True)
class _Product:
    """One quantized product of an activation, `tensor`, with its scale `step`, and a constant.

    `lost` is as in IntegerSums.
    """

    node: ir.Node
    index: int
    axis: int
    tensor: str
    step: float
    lost: float
    precision: Precision

    def levels(self) -> NDArray[np.float32]:
        """The weight in steps of its scales, float32; read anew, so that no weight is held."""
        tensor = self.node.inputs[self.index].const_value  # type: ignore[union-attr]
        assert tensor is not None
        weight = tensor.numpy()
        number_format = self.precision.number_format
        spread = spread_along(weight_scales(weight, self.axis, number_format), self.axis, weight.ndim)
        found = rounded_to_grid(np.asarray(weight / spread, np.float32), number_format)
        let_go(tensor)
        return np.asarray(self._turned(found, self.index), np.float32)

    def sums(self, value: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sums in steps of one sample's activation, float32."""
        levels = rounded_to_grid(value / np.float32(self.step), self.precision.number_format)
        levels = self._turned(levels, 1 - self.index)
        operands = (self.levels(), levels) if self.index == 0 else (levels, self.levels())
        return np.asarray(np.matmul(*operands), np.float32)

    def _turned(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        name = ("transA", "transB")[index]
        is_turned = self.node.op_type == GEMM and name in self.node.attributes and self.node.attributes[name].as_int()
        return array.T if is_turned else array


def _products(model: Model, plan: PrecisionPlan, table: CalibrationTable) -> dict[str, _Product]:
    products = {}
    for layer in model.layers:
        precision = precision_of(layer, plan)
        if not (layer.quantizable and precision.needs_ranges) or around_of(layer, plan) is not Precision.FP16:
            continue
        node = model.node[layer.nodes[0]]
        found, scales = weight_by_channel(node), product_scales(node, table, model.tensors, precision)
        if found is None or scales is None:
            continue
        tensor = str(node.inputs[1 - found[0]].name)  # type: ignore[union-attr]
        with np.errstate(under="ignore"):
            lost = float((scales.astype(np.float16) == 0).mean())
        products[layer.name] = _Product(node, *found, tensor, table.scale(tensor, precision), lost, precision)
    return products


class _Counting:
    """The sums of one layer while samples go by."""

    def __init__(self, product: _Product) -> None:
        self.product = product
        self._beyond = self._count = 0
        self._largest = 0.0

    def add(self, value: NDArray[np.float32]) -> None:
        """Count one sample's sums; those of values that are no numbers are no fault of half."""
        sums = np.abs(self.product.sums(np.nan_to_num(value)))
        self._beyond += int(np.count_nonzero(sums > _LARGEST))
        self._count += sums.size
        self._largest = max(self._largest, float(sums.max(initial=0)))

    def found(self) -> IntegerSums:
        """What was counted."""
        return IntegerSums(self._beyond / self._count if self._count else 0.0, self._largest, self.product.lost)
