"""Whose arithmetic an emulated variant is computed in: what constants become in half, and what sums are kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from precisionlab.errors import OptionError
from precisionlab.system.wording import either


class Kernels(str, Enum):
    """Whose rounding inside of layers is emulated."""

    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"  # its CUDA provider's: node by node


class Constants(str, Enum):
    """What becomes of a constant that half cannot hold.

    TensorRT's builder puts the nearest finite number that is not 0 in its place (its log: "Converting to closest finite
    FP16 value", "Converting to FP16 minimum subnormalized value"); a Cast gives Inf, or 0.
    """

    CLAMPED = "clamped"
    ROUNDED = "rounded"


class Sums(str, Enum):
    """What a kernel in half keeps the running sum of its products in."""

    FLOAT32 = "float32"
    HALF = "half"  # tensor cores: 16 products at a time are exact, and rounded with the sum so far
    HALF_SINGLE = "half-single"  # without tensor cores: rounded at every product


class Fusing(str, Enum):
    """What is computed in one kernel with a Conv, ConvTranspose, Gemm or MatMul, and not rounded between."""

    FOLDED = "folded"  # weakly typed TensorRT: all of the layer, BatchNormalization in the weights
    TYPED = "typed"  # strongly typed TensorRT: see `rewrite/parted.py`
    COMPILED = "compiled"  # the same where layers are a typed engine's own kernels


@dataclass(frozen=True)
class Arithmetic:
    """How an emulated variant computes.

    Sums matter to layers in half alone; in every other precision they are kept in float32 (or int32). `layers` has the
    sums of each layer by its name, as an engine was seen to keep them, and all others in float32; None: `sums` is what
    all layers have. `integers` is what the integer sums of an int8 MatMul or Gemm are kept in before they are scaled,
    where its weight has a scale for each channel and floats around are half (see `rewrite/integer_sums.py`). `fusing`
    says what of a layer is one kernel.
    """

    kernels: Kernels = Kernels.TENSORRT
    sums: Sums = Sums.FLOAT32
    constants: Constants = Constants.CLAMPED
    layers: tuple[tuple[str, Sums], ...] | None = None
    integers: Sums = Sums.FLOAT32
    fusing: Fusing = Fusing.FOLDED

    def sums_of(self, layer: str) -> Sums:
        """What a layer in half keeps its sums in."""
        return self.sums if self.layers is None else dict(self.layers).get(layer, Sums.FLOAT32)

    @property
    def words(self) -> str:
        """What is unlike in a sweep's own arithmetic, TensorRT's with sums in float32; empty where nothing is."""
        if self.kernels is Kernels.ONNXRUNTIME:
            return "with the rounding of ONNX Runtime’s CUDA kernels"
        found = []
        if not self.is_float32:
            found.append("sums in half" if self.sums is not Sums.HALF_SINGLE else "sums in half, product by product")
        if self.constants is Constants.ROUNDED:
            found.append("constants not clamped")
        if self.integers is not Sums.FLOAT32:
            found.append("integer sums in half")
        if self.fusing is Fusing.TYPED:
            found.append("what TensorRT-RTX may keep apart rounded between")
        return f"with {' and '.join(found)}" if found else ""

    @property
    def is_float32(self) -> bool:
        """Whether all layers keep their sums in float32."""
        return not self.layers if self.layers is not None else self.sums is Sums.FLOAT32

    def to_plain(self) -> dict[str, Any]:
        """What a journal's key and `run.json` hold of it."""
        own: dict[str, Any] = (
            {} if self.layers is None else {"layers": {name: sums.value for name, sums in self.layers}}
        )
        if self.integers is not Sums.FLOAT32:
            own["integers"] = self.integers.value
        if self.fusing is not Fusing.FOLDED:
            own["fusing"] = self.fusing.value
        return {"kernels": self.kernels.value, "sums": self.sums.value, "constants": self.constants.value, **own}

    @classmethod
    def from_plain(cls, data: Any) -> Arithmetic:
        """What `to_plain` wrote; of plans from before there was such a thing, None. Raises ValueError otherwise."""
        if data is None:
            return cls()
        if not isinstance(data, Mapping):
            raise ValueError("`arithmetic` must be an object")
        try:
            return cls(
                Kernels(data["kernels"]),
                Sums(data["sums"]),
                Constants(data["constants"]),
                integers=Sums(data.get("integers", Sums.FLOAT32)),
                fusing=Fusing(data.get("fusing", Fusing.FOLDED)),
            )
        except KeyError as error:
            raise ValueError(f"`arithmetic` lacks {error}") from None


TENSORRT = Arithmetic()
"""What a sweep emulates: TensorRT's, with sums in float32."""

ONNXRUNTIME = Arithmetic(Kernels.ONNXRUNTIME, Sums.FLOAT32, Constants.ROUNDED)
"""ONNX Runtime's CUDA kernels."""


def parse_arithmetic(kernels: str, sums: str) -> Arithmetic:
    """What `--kernels` and `--sums` ask for. Raises OptionError for an unknown name, or a pair that there is not."""
    if kernels not in {kind.value for kind in Kernels}:
        raise OptionError(f"unknown kernels {kernels!r}; use {either(kind.value for kind in Kernels)}")
    if sums not in {kind.value for kind in Sums}:
        raise OptionError(f"unknown sums {sums!r}; use {either(kind.value for kind in Sums)}")
    if Kernels(kernels) is Kernels.TENSORRT:
        return Arithmetic(sums=Sums(sums))
    if Sums(sums) is not Sums.FLOAT32:
        raise OptionError(f"sums {sums}: ONNX Runtime's kernels add in float32; leave --sums, or ask for TensorRT's")
    return ONNXRUNTIME
