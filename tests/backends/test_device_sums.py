"""What is handed to a GPU to add products up in half, seen without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from models import Array

from precisionlab.backends.cuda.sums import DeviceProducts
from precisionlab.plan.arithmetic import Sums
from precisionlab.rewrite.sums import DOMAIN, SUMS


@dataclass
class Recorder:
    """In the launcher's place: keeps what is given, and which weights each launch takes."""

    held: dict[int, Array] = field(default_factory=dict)
    weights: list[Array] = field(default_factory=list)

    def given(self, array: Array, dtype: Any) -> SimpleNamespace:
        address = len(self.held) + 1
        self.held[address] = np.array(array, dtype)
        return SimpleNamespace(address=address)

    def launch_at(self, kernel: str, grid: Any, threads: int, operands: Any) -> None:
        self.weights.append(self.held[operands[0][0]])


class Products(DeviceProducts):
    """With what lies in a GPU's memory left out."""

    def _device(self, value: Any) -> Any:
        return self._launcher.given(np.asarray(value), np.float32)

    def _empty(self, layout: Any) -> Any:
        return SimpleNamespace(address=0)


def conv(op_type: str, recorder: Recorder) -> Any:
    inputs = ir.Value(name="x"), ir.Value(name="w")
    node = ir.Node(DOMAIN, op_type, inputs, [ir.AttrString(SUMS, Sums.HALF.value)])
    return Products(recorder, 0, (9, 0)).of(node)  # type: ignore[arg-type]


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_a_weight_that_is_computed_is_handed_over_anew_for_each_sample_and_a_constant_once(op_type: str) -> None:
    recorder = Recorder()
    work, x = conv(op_type, recorder), np.ones((1, 1, 4, 4), np.float32)
    one, two = np.full((1, 1, 2, 2), 1, np.float32), np.full((1, 1, 2, 2), 2, np.float32)
    for weight in (one, two, two, one):
        work(x, weight)
    assert [set(given[given != 0].tolist()) for given in recorder.weights] == [{1.0}, {2.0}, {2.0}, {1.0}]
    assert recorder.weights[1] is recorder.weights[2], "the same weight is not handed over again"


def test_a_weight_of_a_matrix_product_is_sent_once_and_a_computed_operand_each_time() -> None:
    sent: list[Array] = []

    class Sending(Products):
        def _device(self, value: Any) -> Any:
            sent.append(value)
            return super()._device(value)

    inputs = ir.Value(name="x"), ir.Value(name="w")
    node = ir.Node(DOMAIN, "MatMul", inputs, [ir.AttrString(SUMS, Sums.HALF.value)])
    work = Sending(Recorder(), 0, (9, 0)).of(node)  # type: ignore[arg-type]
    weight, x = np.ones((4, 3), np.float32), np.ones((2, 4), np.float32)
    for operand in (weight, weight, weight.copy(), weight):
        work(x, operand)
    assert len([array for array in sent if array.shape == weight.shape]) == 3
