"""Weights in a GPU's memory: each is sent once, whichever sessions ask for it, and no more are kept than may be."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.backends.cuda.weights import DeviceWeights
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import constant_array, held_tensor, quantized_tensor


class Sent:
    """What stands for a GPU's memory."""

    def __init__(self) -> None:
        self.arrays: list[NDArray[Any]] = []

    def __call__(self, array: NDArray[Any]) -> DeviceArray:
        self.arrays.append(array)
        return cast("DeviceArray", array.copy())


def tensor(value: float, size: int = 100) -> ir.Tensor:
    return ir.tensor(np.full(size, value, np.float32))


def test_a_weight_is_sent_once_for_all_that_ask_for_it_and_rounded_it_is_another() -> None:
    sent = Sent()
    weights = DeviceWeights(sent, 1 << 20)
    own = tensor(1 / 3)
    rounded = [held_tensor(own, Precision.FP16, Constants.CLAMPED) for _ in range(2)]
    first, second = weights.of({"a": own, "b": rounded[0]}), weights.of({"c": rounded[1], "d": own})
    assert first["a"] is second["d"]
    assert first["b"] is second["c"]
    assert len(sent.arrays) == 2
    assert np.array_equal(sent.arrays[1], constant_array(own.numpy(), Precision.FP16, Constants.CLAMPED))


def test_weights_rounded_in_other_ways_are_not_taken_for_each_other() -> None:
    own = ir.tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4))
    scales = [np.full(3, 1 / 127, np.float32), np.full(3, 1 / 64, np.float32)]
    made = [
        *(held_tensor(own, p, c) for p in (Precision.FP16, Precision.BF16) for c in Constants),
        *(quantized_tensor(own, scale, 0, Precision.INT8) for scale in scales),
        quantized_tensor(own, np.float32(1 / 127).reshape(()), None, Precision.INT8),
    ]
    assert len(set(map(id, made))) == len(made)
    assert quantized_tensor(own, scales[0].copy(), 0, Precision.INT8) is made[-3]


def test_threads_that_ask_at_once_wait_for_one_copy() -> None:
    sent, own, together = Sent(), tensor(2), Barrier(4)
    weights = DeviceWeights(sent, 1 << 20)

    def ask(_: int) -> DeviceArray:
        together.wait()
        return weights.of({"w": own})["w"]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(sent.arrays) == 1
    assert all(one is found[0] for one in found)


def test_those_used_last_are_kept_and_the_others_let_go() -> None:
    sent = Sent()
    weights = DeviceWeights(sent, 900)
    a, b, c = tensor(1), tensor(2), tensor(3)
    for one in (a, b, a, c, a):  # each 400 bytes: there is room for two
        weights.of({"w": one})
    assert [array[0] for array in sent.arrays] == [1, 2, 3]
    gone = weakref.ref(weights.of({"w": b})["w"])
    weights.of({"w": tensor(4)})
    weights.of({"w": tensor(5)})
    gc.collect()
    assert gone() is None
    assert len(weights.of({"w": tensor(6, 1000)})) == 1


def test_what_could_not_be_sent_is_tried_again() -> None:
    own, calls = tensor(1), []

    def failing(array: NDArray[Any]) -> DeviceArray:
        calls.append(array)
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return cast("DeviceArray", array)

    weights = DeviceWeights(failing, 1 << 20)
    with pytest.raises(RuntimeError, match="no memory"):
        weights.of({"w": own})
    assert weights.of({"w": own})["w"] is not None
