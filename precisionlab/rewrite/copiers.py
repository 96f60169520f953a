"""What copies layers into a graph, for each arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from precisionlab.plan.arithmetic import Arithmetic, Kernels
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.stepped import SteppedCopier

CopierOf = Callable[..., LayerCopier]
"""Makes a copier of (builder, model, table, watched); see `LayerCopier`."""


def copier_of(arithmetic: Arithmetic) -> CopierOf:
    """What makes the copiers that compute so."""
    kind = SteppedCopier if arithmetic.kernels is Kernels.ONNXRUNTIME else LayerCopier
    return partial(kind, arithmetic=arithmetic)
