"""Weights that are mapped from their file."""

from __future__ import annotations

import mmap

import onnx_ir as ir


def let_go(tensor: ir.TensorProtocol | None) -> None:
    """Give back the pages of a weight that is mapped from its file; they are read again where they are needed."""
    mapped = getattr(tensor, "raw", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # Windows has no such thing
        mapped.madvise(mmap.MADV_DONTNEED)
