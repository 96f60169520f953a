"""The values of tensors inside a running engine, where TensorRT can show them without making them outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from precisionlab.backends.tensorrt.jobs import Shape

Take = Callable[[str, int, str, Shape, Any], None]
"""Called with a tensor's name, the address of its values, its data type (as TensorRT names it: FLOAT, HALF, …), its
shape, and the handle of the CUDA stream that computes it.

The address is that of GPU memory, or of host memory for shape tensors, and is only good during the call: wait for that
stream, and copy with cudaMemcpyDefault, which finds out by itself where the address lies."""


def make_listener(trt: Any, take: Take) -> Any | None:
    """A `trt.IDebugListener` that hands each debug tensor on to `take`; None where TensorRT has none (8.6).

    TensorRT goes on after an exception, so none leaves the listener: the first is kept, later tensors are left out,
    and `raise_kept()` raises it; call that after every run.
    """
    if not hasattr(trt, "IDebugListener"):
        return None

    class Listener(trt.IDebugListener):  # type: ignore[misc]
        """TensorRT's debug listener, for one execution context."""

        def __init__(self) -> None:
            trt.IDebugListener.__init__(self)
            self._kept: BaseException | None = None

        def process_debug_tensor(self, addr: int, location: Any, type: Any, shape: Any, name: str, stream: int) -> bool:
            """Called by TensorRT when a debug tensor has been enqueued."""
            if self._kept is None:
                try:
                    take(name, addr, type.name, tuple(shape), stream)
                except BaseException as error:
                    self._kept = error
            return self._kept is None

        def raise_kept(self) -> None:
            """Raise what went wrong in `take`, if anything did, and listen again."""
            kept, self._kept = self._kept, None
            if kept is not None:
                raise kept

    return Listener()
