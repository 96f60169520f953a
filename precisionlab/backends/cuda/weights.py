"""Weights in the GPU's memory, which the sessions of a run share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.model.mapped import let_go


class DeviceWeights:
    """Each weight is read, rounded and sent once, whichever sessions take it; those used last are kept.

    A session of its own copies of 300 MB takes a second, most of it for memory on their way through the host.
    """

    def __init__(self, send: Callable[[NDArray[Any]], DeviceArray], most: int) -> None:
        """`send` copies an array into the GPU's memory; `most` is how many bytes are kept for later sessions."""
        self._send, self._most = send, most
        self._kept: OrderedDict[int, tuple[ir.TensorProtocol, Future[DeviceArray]]] = OrderedDict()
        self._lock = Lock()

    def of(self, tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, DeviceArray]:
        """The tensors in the GPU's memory, by the names that they are asked for by."""
        return {name: self._one(tensor) for name, tensor in tensors.items()}

    def _one(self, tensor: ir.TensorProtocol) -> DeviceArray:
        with self._lock:
            found = self._kept.get(id(tensor))  # the tensor is kept too, so that no other has its number
            future = Future[DeviceArray]() if found is None else found[1]
            self._kept[id(tensor)] = tensor, future
            self._kept.move_to_end(id(tensor))
            self._forget()
        if found is None:
            try:
                future.set_result(self._send(np.ascontiguousarray(tensor.numpy())))
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    self._kept.pop(id(tensor), None)
            finally:
                let_go(tensor)
        return future.result()

    def _forget(self) -> None:
        """Keep no more than may be kept, but always the last; what sessions have of the others stays with them."""
        total = sum(tensor.nbytes for tensor, _ in self._kept.values())
        while total > self._most and len(self._kept) > 1:
            _, (tensor, _) = self._kept.popitem(last=False)
            total -= tensor.nbytes
