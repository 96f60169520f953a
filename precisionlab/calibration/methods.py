"""The calibration methods: how a range is found from a histogram, and what is said of that.

A method that is added to `METHODS` is known to options and their errors, to the command line's help, to the tables of a
calibration and to its report. The searches themselves are in `thresholds`, and are imported when one runs, so that
help is there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precisionlab.errors import OptionError
from precisionlab.precision import Format, Precision
from precisionlab.system.wording import either, meant

if TYPE_CHECKING:
    from precisionlab.calibration.histogram import Histogram

MSE, MAX, OUTPUT = "mse", "max", "output"
BLOCK_METHODS = (MSE, MAX, OUTPUT)
"""How scales of weights in blocks are found; the first is what is taken without a word, the last looks at samples."""

AUTO = "auto"
"""Not a method of its own: for each tensor the one of METHODS that costs least, measured (`auto.py`)."""

OUTPUT_WORDS = "the scales of weights with the least squared error of the products that samples make with them"

AUTO_WORDS = "of the methods, the one that costs the model least, measured"


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes: its name, above and up to what it must lie, and what it is without a word."""

    name: str
    above: float
    most: float
    default: float

    def check(self, value: float) -> None:
        """Raises OptionError for a value that cannot be."""
        if not self.above < value <= self.most:
            raise OptionError(
                f"{self.name} is {value:g}; it must lie above {self.above:g} and be at most {self.most:g}"
            )


@dataclass(frozen=True)
class Method:
    """One method: `find` gives a histogram's threshold for a format, by the value of `parameter` where it has one.

    `words` say what the range is, as a phrase that follows the name. `counts_levels`: it goes by how many values of
    one distance there are, and says nothing of a format whose values lie closer together near zero.
    """

    name: str
    find: Callable[[Histogram, float, Format], float]
    words: str
    parameter: Parameter | None = None
    counts_levels: bool = False

    @property
    def default(self) -> float:
        """The parameter's value without a word; 0 for a method that takes none."""
        return self.parameter.default if self.parameter else 0.0

    def called(self, value: float) -> str:
        """The name with the parameter's value: `percentile 99.99`."""
        return self.name if self.parameter is None else f"{self.name} {value:g}"


def _entropy(histogram: Histogram, _: float, __: Format) -> float:
    from precisionlab.calibration.thresholds import entropy

    return entropy(histogram)


def _capped(histogram: Histogram, _: float, __: Format) -> float:
    from precisionlab.calibration.thresholds import capped_entropy

    return capped_entropy(histogram)


def _percentile(histogram: Histogram, share: float, _: Format) -> float:
    from precisionlab.calibration.thresholds import percentile

    return percentile(histogram, share)


def _mse(histogram: Histogram, _: float, number_format: Format) -> float:
    from precisionlab.calibration.thresholds import mse

    return mse(histogram, number_format)


def _max(histogram: Histogram, _: float, __: Format) -> float:
    return histogram.amax


PERCENTILE = Parameter("percentile", 0.0, 100.0, 99.99)

_ALL = (
    Method(
        "entropy",
        _entropy,
        "the range that loses the least information (KL divergence, TensorRT’s published algorithm)",
        counts_levels=True,
    ),
    Method("capped", _capped, "as entropy, but at most one value in 10 000 is clipped", counts_levels=True),
    Method("percentile", _percentile, "the range that keeps the given share of the values", PERCENTILE),
    Method("mse", _mse, "the range with the least squared error"),
    Method("max", _max, "the whole range, nothing clipped"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""Name → method, in the order in which they are told of; the first is what is taken without a word."""

DEFAULT_METHOD = _ALL[0].name
_WHOLE = _ALL[-1].name
DEFAULT_PERCENTILE = PERCENTILE.default


def methods_of(precision: Precision) -> dict[str, Method]:
    """Name → method, of those that a precision with ranges has; the first is what is taken without a word.

    Where values lie closer together near zero, a wide range costs nothing but what vanishes below the least of them,
    and the first is the one that clips nothing.
    """
    if precision.number_format.is_uniform:
        return METHODS
    left = {name: method for name, method in METHODS.items() if not method.counts_levels}
    return {_WHOLE: left[_WHOLE], **left}


def names_of(precision: Precision) -> tuple[str, ...]:
    """The methods of a quantized precision; of one for weights alone those that find the scales of their blocks."""
    return BLOCK_METHODS if precision.is_weight_only else tuple(methods_of(precision))


def default_method(precision: Precision) -> str:
    """The method that is taken without a word."""
    return names_of(precision)[0]


def words_of(name: str) -> str:
    """What a method's ranges are, or those of `auto`; empty for what is neither."""
    if name == AUTO:
        return AUTO_WORDS
    if name == OUTPUT:
        return OUTPUT_WORDS
    return METHODS[name].words if name in METHODS else ""


def choices() -> tuple[str, ...]:
    """All that may be asked for."""
    return (*METHODS, OUTPUT, AUTO)


def check_method(name: str, known: Collection[str]) -> None:
    """Raises OptionError for a name that is not among those known."""
    if name not in known:
        raise OptionError(f"unknown calibration method {name!r}{meant(name, known)}; use one of {', '.join(known)}")


def check_method_of(name: str, precisions: Iterable[Precision]) -> None:
    """Raises OptionError for a method, or `auto`, that a quantized one of these precisions has not."""
    for precision in precisions:
        if precision.is_weight_only and name not in (*names_of(precision), AUTO):
            raise OptionError(
                f"calibration {name}: {precision} has scales of blocks of weights, and no ranges of tensors; use "
                f"{either((*names_of(precision), AUTO))} with {precision}"
            )
        if precision.needs_ranges and name == OUTPUT:
            raise OptionError(f"calibration {name}: it is for scales of weights alone, in int4; leave {precision} out")
        if precision.needs_ranges and name not in (*methods_of(precision), AUTO):
            raise OptionError(
                f"calibration {name}: it counts values of one distance, and those of {precision} lie closer together "
                f"near zero; use {either((*methods_of(precision), AUTO))} with {precision}"
            )
