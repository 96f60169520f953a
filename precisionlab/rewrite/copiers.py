"""What copies layers into a graph, for each arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from precisionlab.plan.arithmetic import Arithmetic, Kernels
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.half_sums import HalfSumsCopier
from precisionlab.rewrite.stepped import SteppedCopier

CopierOf = Callable[..., LayerCopier]
"""Makes a copier of (builder, model, table, watched); see `LayerCopier`."""


def copier_of(arithmetic: Arithmetic) -> CopierOf:
    """What makes the copiers that compute so."""
    if arithmetic.kernels is Kernels.ONNXRUNTIME:
        return partial(SteppedCopier, arithmetic=arithmetic)
    return partial(LayerCopier if arithmetic.is_float32 else HalfSumsCopier, arithmetic=arithmetic)
