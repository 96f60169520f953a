"""Precisions, and all that is known of each: its number format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from precisionlab.errors import OptionError
from precisionlab.system.wording import meant

if TYPE_CHECKING:
    import numpy as np
    from onnx_ir import DataType


@dataclass(frozen=True)
class Format:
    """A number format: what its values can be, and what is taken for granted of it. All that is known of one is here.

    `dtype` is onnx_ir's name of its element type, `tensorrt` TensorRT's of its data type (its builder flag is called as
    the precision is), `builders` the TensorRTs with flags that have it, where not all do; `computed_as` the precision
    that a GPU without arithmetic of its own for it computes in instead, where it does. Of a value: `largest` is the
    largest finite one, `normal` the smallest with all digits, `least` the smallest above 0 (subnormal), `epsilon` the
    distance from 1 to the next. `itemsize` is in bytes. `opset` is ONNX's first with a Cast to and from it. `colours`
    are its own in a report, light and dark. `sqnr_db` is what it is held to by default: noise of a thousandth of the
    signal's power for floats, of a hundredth for quantized formats, as models in good health reach and task metrics do
    not notice. `rungs` are the precisions that a pin may have in its place, the cheapest first; another quantized one
    where it is asked for.

    `is_quantized`: its values are steps of a scale, amax / `largest`, so that it needs ranges, and other layers are in
    a float format around; `normal`, `least` and `epsilon` are in steps then, and a grid whose steps are all of one size
    has its `normal` beyond its largest. `is_implicit`: weakly typed TensorRT quantises to it from ranges alone, by its
    builder flag and a calibration cache (implicit quantization); another one needs Q/DQ nodes in the model.
    `is_weight_only`: constant weights alone are stored in it, each block of them with a scale, and products are
    computed in the float format around: it needs no ranges. `around` is that format where nobody says.
    `clamps_constants`: TensorRT's builder puts the nearest number in the place of a constant that would be Inf or 0.
    `sums_in_itself`: kernels may keep the running sum of products in it too; in other formats that is in float32 or
    int32. `stored_as` is the precision that it is in all but the sums of matrix products, where it is one for pins
    alone.

    Sources: IEEE 754 binary16 and binary32; bfloat16 is binary32's first half; E4M3 without infinities: P. Micikevicius
    et al., "FP8 formats for deep learning", 2022, table 1.
    """

    dtype: str
    title: str
    tensorrt: str
    largest: float
    normal: float
    least: float
    epsilon: float
    itemsize: float
    opset: int
    sqnr_db: float
    colours: tuple[str, str]
    rungs: tuple[str, ...] = ("fp32",)
    is_quantized: bool = False
    is_implicit: bool = False
    is_weight_only: bool = False
    around: str = "fp32"
    builders: str = ""
    computed_as: str = ""
    clamps_constants: bool = False
    sums_in_itself: bool = False
    stored_as: str = ""

    @property
    def is_uniform(self) -> bool:
        """Whether its values are all as far apart as the least two."""
        return self.normal > self.largest

    @property
    def lowest(self) -> float:
        """The least value: of integers in two's complement one step below the largest's negative."""
        return -self.normal if self.is_uniform else -self.largest

    def holds(self, other: Format) -> bool:
        """Whether every value of the other is one of its own, in range and in digits."""
        return self.largest >= other.largest and self.least <= other.least and self.epsilon <= other.epsilon

    @property
    def overflowing(self) -> float:
        """From this reference on, an Inf in the format is what any device may round to.

        Half of the largest value: what a value has inherited of error by then may lift it over the end, where it would
        fit if it were exact (magika: a reference of 0.9 of float16's largest, in a variant that is right).
        """
        return self.largest / 2

    @cached_property
    def element(self) -> DataType:
        """onnx_ir's element type."""
        from onnx_ir import DataType

        return DataType[self.dtype]

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """NumPy's type, of ml_dtypes where NumPy has none of its own."""
        return self.element.numpy()


_FORMATS = {
    "fp32": Format(
        *("FLOAT", "FP32", "FLOAT"),
        *((2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149, 2.0**-23),
        itemsize=4,
        opset=6,
        sqnr_db=30.0,
        colours=("#b0418c", "#d673b4"),
    ),
    "fp16": Format(
        *("FLOAT16", "FP16", "HALF"),
        *(65504.0, 2.0**-14, 2.0**-24, 2.0**-10),
        itemsize=2,
        opset=6,
        sqnr_db=30.0,
        colours=("#3f86c9", "#4f96d8"),
        rungs=("fp16-sums32", "bf16", "fp32"),
        clamps_constants=True,
        sums_in_itself=True,
    ),
    # A MatMul between Casts to and from float32: TensorRT makes one kernel of it that takes and gives half and adds up
    # in float32 (Torch-TensorRT's `use_fp32_acc`; see `rewrite/typed/summed.py`).
    "fp16-sums32": Format(
        *("FLOAT16", "FP16, float32 sums", "HALF"),
        *(65504.0, 2.0**-14, 2.0**-24, 2.0**-10),
        itemsize=2,
        opset=6,
        sqnr_db=30.0,
        colours=("#5b6fc4", "#7285da"),
        clamps_constants=True,
        stored_as="fp16",
        computed_as="fp16",
    ),
    "bf16": Format(
        *("BFLOAT16", "BF16", "BF16"),
        *((2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133, 2.0**-7),
        itemsize=2,
        opset=13,
        sqnr_db=30.0,
        colours=("#2a9d8f", "#35ad9e"),
        rungs=("fp16", "fp16-sums32", "fp32"),
        builders="TensorRT 10.0 to 10.16",
    ),
    "fp8": Format(
        *("FLOAT8E4M3FN", "FP8", "FP8"),
        *(448.0, 2.0**-6, 2.0**-9, 2.0**-3),
        itemsize=1,
        opset=19,
        sqnr_db=20.0,
        colours=("#c2632f", "#d9804f"),
        rungs=("int8", "fp16", "fp16-sums32", "bf16", "fp32"),
        is_quantized=True,
    ),
    "int8": Format(
        *("INT8", "INT8", "INT8"),
        *(127.0, 128.0, 1.0, 2.0**-7),
        itemsize=1,
        opset=10,
        sqnr_db=20.0,
        colours=("#e08a2e", "#e29a48"),
        rungs=("fp8", "fp16", "fp16-sums32", "bf16", "fp32"),
        is_quantized=True,
        is_implicit=True,
    ),
    "int4": Format(
        *("INT4", "INT4", "INT4"),
        *(7.0, 8.0, 1.0, 2.0**-3),
        itemsize=0.5,
        opset=21,
        sqnr_db=20.0,
        colours=("#8a6fb3", "#a48ccb"),
        rungs=("int8", "fp16", "bf16", "fp32"),
        is_quantized=True,
        is_weight_only=True,
        around="fp16",
    ),
}


class Precision(str, Enum):
    """A precision that a layer can be run in."""

    FP32 = "fp32"
    FP16 = "fp16"
    FP16_SUMS32 = "fp16-sums32"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"

    def __str__(self) -> str:
        return self.value

    @cached_property
    def number_format(self) -> Format:
        """Its number format."""
        return _FORMATS[self.value]

    @cached_property
    def is_quantized(self) -> bool:
        """Whether its values are steps of a scale; float layers then stand around its own."""
        return self.number_format.is_quantized

    @cached_property
    def is_weight_only(self) -> bool:
        """Whether it is for constant weights, and computes in the float format around."""
        return self.number_format.is_weight_only

    @cached_property
    def needs_ranges(self) -> bool:
        """Whether it quantises activations."""
        return self.is_quantized and not self.is_weight_only

    @property
    def around(self) -> Precision:
        """The precision of the float layers around its own, where nobody says."""
        return Precision(self.number_format.around)

    @property
    def is_low(self) -> bool:
        """Whether it is any but float32."""
        return self is not Precision.FP32

    @cached_property
    def is_low_float(self) -> bool:
        """Whether it is a float format below float32."""
        return self.is_low and not self.is_quantized

    @property
    def rungs(self) -> tuple[Precision, ...]:
        """The precisions that a pinned layer may have in its place, the cheapest first."""
        return tuple(map(Precision, self.number_format.rungs))

    @property
    def computed_as(self) -> Precision:
        """What computes it on a GPU that has no arithmetic of its own for it; itself where nothing does."""
        return Precision(self.number_format.computed_as or self.value)

    @cached_property
    def stored_as(self) -> Precision:
        """The precision that its values and constants are in; itself but for those that are for pins alone."""
        return Precision(self.number_format.stored_as or self.value)

    @property
    def is_for_pins(self) -> bool:
        """Whether it is for pins of matrix products alone, and no format of its own."""
        return self.stored_as is not self

    @classmethod
    def formats(cls) -> tuple[Precision, ...]:
        """Those that are number formats of their own, float32 first."""
        return tuple(precision for precision in cls if not precision.is_for_pins)

    @classmethod
    def low(cls) -> tuple[Precision, ...]:
        """Those that can be swept."""
        return tuple(precision for precision in cls.formats() if precision.is_low)

    @classmethod
    def floats(cls) -> tuple[Precision, ...]:
        """The float formats, float32 first."""
        return tuple(precision for precision in cls.formats() if not precision.is_quantized)

    @classmethod
    def of_element(cls, dtype: DataType | None) -> Precision | None:
        """The float precision whose values have this element type; None for any other type."""
        return next((precision for precision in cls.floats() if precision.number_format.element == dtype), None)

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read a precision's name. Raises OptionError for anything else."""
        try:
            return cls(text.strip().lower())
        except ValueError:
            names = [precision.value for precision in cls]
            said = f"unknown precision {text.strip()!r}{meant(text.strip(), names)}"
            raise OptionError(f"{said}; use one of {', '.join(names)}") from None


def any_quantized(precisions: Iterable[Precision]) -> bool:
    """Whether one of them needs ranges."""
    return any(precision.needs_ranges for precision in precisions)


def any_scaled(precisions: Iterable[Precision]) -> bool:
    """Whether one of them has scales: by ranges, or of weights alone."""
    return any(precision.is_quantized for precision in precisions)


def quantized_of(precisions: Iterable[Precision]) -> tuple[Precision, ...]:
    """Those that need ranges, each once, in the order of their definition."""
    found = set(precisions)
    return tuple(precision for precision in Precision if precision.needs_ranges and precision in found)
