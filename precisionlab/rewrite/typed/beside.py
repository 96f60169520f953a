"""What a typed model is held against, before it is typed: the model itself, on samples."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir


class Beside(Protocol):
    """The model in float32 on samples, which another form of it, in float32 too, is run beside."""

    def fault(self, converted: ir.Model) -> str | None:
        """In which way a form that should give the same gives something else, with what to do; None: in none."""
        ...

    def agreement(self, changed: ir.Model) -> float:
        """SQNR in dB of the worst output of a form that gives something else on purpose; inf where it does not."""
        ...


def in_words(decibels: float) -> str:
    """How far outputs agree, behind "the outputs agree with the model's"."""
    return "to the last bit" if decibels == float("inf") else f"to {decibels:.1f} dB"
