"""What the user asked for, and the checks of option values that the jobs share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from precisionlab.calibration.methods import check_method, check_method_of, choices
from precisionlab.compare.tolerance import Tolerance, default_tolerance
from precisionlab.errors import OptionError
from precisionlab.model.blocks import LARGEST, SIZES
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.precision import Precision, quantized_of
from precisionlab.system.wording import either


class Grouping(str, Enum):
    """Where the layers come from: our patterns of what TensorRT documents, or the fusions of a compiled engine."""

    PATTERNS = "patterns"
    COMPILED = "compiled"


class Minimize(str, Enum):
    """What a plan that meets the tolerance has as little of as possible."""

    PINS = "pins"
    COST = "cost"


@dataclass(frozen=True)
class Options:
    """What the user asked for in a sweep.

    `tolerance` empty: the default of each precision. `spend` is the share that the pins may add to the cost; then
    the tolerance does not end the search. `ladder` are the precisions that pins may have; None: all that cost less
    than fp32 there, and fp32; but with `no_new_precision` only those that the plan has without its pins as well, as a
    precision that TensorRT's builder may use for one layer it may use for all. `budget` is in seconds, of the
    whole run; `max_evaluations` are plans of each precision. None for these: until the
    search is done. `max_cost` is the most that a plan may cost, as a share of float32's; None: whatever it takes.
    `typed` says that the engines take each layer's type from the model, where its sums can be asked for in float32.
    `around` None: what each precision has around without a word. `block` is the most numbers of a weight in int4 that
    have one scale. `arithmetic` is how variants are emulated. `repair` says whether the model may be repaired before
    pins are searched for. `each_layer`: on so many samples each layer is measured by itself; None: on none.
    """

    precisions: tuple[Precision, ...] = (Precision.FP16, Precision.INT8)
    tolerance: Tolerance = ()
    max_pins: int | None = None
    around: Precision | None = None
    calibration: str | None = None
    metric: str | None = None
    minimize: Minimize = Minimize.PINS
    spend: float | None = None
    ladder: tuple[Precision, ...] | None = None
    no_new_precision: bool = False
    typed: bool = False
    budget: float | None = None
    max_evaluations: int | None = None
    max_cost: float | None = None
    arithmetic: Arithmetic = TENSORRT
    repair: bool = True
    each_layer: int | None = None
    block: int = LARGEST

    def tolerance_of(self, precision: Precision) -> Tolerance:
        """The tolerance that this precision is held to."""
        return self.tolerance or default_tolerance(precision)

    @property
    def quantized(self) -> tuple[Precision, ...]:
        """The quantized precisions that layers may have, by default or by a pin."""
        return quantized_of((*self.precisions, *(self.ladder or ())))

    def around_of(self, precision: Precision) -> Precision:
        """The precision of the float layers around those in a quantized one."""
        return self.around or precision.around

    @property
    def chooses_sums(self) -> bool:
        """Whether pins may ask for sums in float32 without being told: it changes a figure, and the target has it."""
        return self.typed and not self.arithmetic.is_float32


def check_calibration(method: str | None, precisions: Iterable[Precision] = ()) -> None:
    """Raises OptionError for what is neither a calibration method nor `auto`; None was not given.

    And for one that a quantized one of these precisions has not.
    """
    if method is not None:
        check_method(method, choices())
        check_method_of(method, precisions)


def parse_precisions(texts: str | Iterable[str]) -> tuple[Precision, ...]:
    """The low precisions to sweep. Raises OptionError for none, an unknown one, or fp32."""
    found = _parsed(texts)
    if not found or not set(found) <= set(Precision.low()):
        low = ", ".join(precision.value for precision in Precision.low())
        alone = "".join(f"; {p} is for pins alone, by --ladder" for p in found if p.is_for_pins)
        raise OptionError(f"precisions are the low ones to sweep: {low} (fp32 is always measured){alone}")
    return found


def parse_ladder(texts: str | Iterable[str] | None) -> tuple[Precision, ...] | None:
    """The precisions that pins may have. Raises OptionError where fp32 is not among them."""
    if texts is None:
        return None
    found = _parsed(texts)
    if Precision.FP32 not in found:
        low = either(precision for precision in Precision if precision.is_low)
        raise OptionError(f"ladder are the precisions that pins may have: fp32, and {low} beside it")
    return found


def check_ladder(
    ladder: tuple[Precision, ...] | None, precisions: tuple[Precision, ...], arithmetic: Arithmetic
) -> None:
    """Raises OptionError where a rung would change no figure: what adds up in float32 anyway needs no telling.

    And for a quantized rung that none of the precisions swept can have.
    """
    for rung in ladder or ():
        if rung.is_quantized and not any(rung in precision.rungs for precision in precisions):
            have = either(precision for precision in Precision.low() if rung in precision.rungs)
            raise OptionError(f"ladder: {rung}: pins of {have} alone may have it, beside --precisions {have}; leave it")
        if rung.is_for_pins and arithmetic.is_float32:
            raise OptionError(
                f"ladder: where sums are in float32, {rung} is no other than {rung.stored_as}; "
                "give --sums half with it, or leave it"
            )


def parse_block(value: int) -> int:
    """The most numbers of a weight that have one scale. Raises OptionError for what no block may be."""
    if value not in SIZES:
        raise OptionError(
            f"block is how many numbers of a weight have one scale: {either(map(str, SIZES))}, not {value}"
        )
    return value


def parse_around(text: str | None) -> Precision | None:
    """The precision of the float layers around quantized ones; None: that which each has without a word.

    Raises OptionError for what is no float's own.
    """
    if text is None:
        return None
    precision = Precision.parse(text)
    if precision not in Precision.floats():
        raise OptionError(f"around is the precision of the float layers: {either(Precision.floats())}")
    return precision


def parse_minimize(text: str) -> Minimize:
    """What to minimise. Raises OptionError for anything but pins and cost."""
    try:
        return Minimize(text.strip().lower())
    except ValueError:
        raise OptionError(f"unknown aim {text!r}: minimize pins or cost") from None


def parse_grouping(text: str) -> Grouping:
    """Where layers come from. Raises OptionError for anything but patterns and compiled."""
    try:
        return Grouping(text.strip().lower())
    except ValueError:
        raise OptionError(f"unknown layers {text!r}: patterns, or compiled") from None


def _parsed(texts: str | Iterable[str]) -> tuple[Precision, ...]:
    parts = texts.split(",") if isinstance(texts, str) else list(texts)
    return tuple(dict.fromkeys(Precision.parse(text) for text in parts))
