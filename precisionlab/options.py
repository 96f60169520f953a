"""What the user asked for, and the checks of option values that the jobs share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from precisionlab.calibration.methods import check_method, choices
from precisionlab.compare.tolerance import Tolerance, default_tolerance
from precisionlab.errors import OptionError
from precisionlab.precision import Precision, any_quantized
from precisionlab.wording import either

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_MOST_WORKERS = 1024
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


class Grouping(str, Enum):
    """Where the layers come from: our patterns of what TensorRT documents, or the fusions of a compiled engine."""

    PATTERNS = "patterns"
    COMPILED = "compiled"


class Minimize(str, Enum):
    """What a plan that meets the tolerance has as little of as possible."""

    PINS = "pins"
    COST = "cost"


@dataclass(frozen=True)
class EngineOptions:
    """How TensorRT's engines are built and looked at, where they are.

    `shapes` are `--shapes` texts for dynamic inputs; empty: as the data has them. `workspace` and `observe` are bytes:
    what TensorRT may use in a build (None: its own limit), and what may be looked at in one engine (0: nothing).
    `prefer` makes pins wishes. `calibrate` lets TensorRT find the INT8 ranges by itself. `builds` is how many engines
    of a precision are built at most. `store` is where engines are kept between runs; None: in the run's folder.
    `compute` is the compute capability that is compiled for where no GPU is here, such as `SM80`.
    """

    shapes: tuple[str, ...] = ()
    workspace: int | None = None
    observe: int = 256 * 1024**2
    prefer: bool = False
    calibrate: bool = False
    builds: int = 8
    store: str | None = None
    compute: str | None = None


@dataclass(frozen=True)
class Options:
    """What the user asked for in a sweep.

    `tolerance` empty: the default of each precision. `spend` is the share that the pins may add to the cost; then
    the tolerance does not end the search. `ladder` are the precisions that pins may have; None: all that cost less
    than fp32 there, and fp32; but with `no_new_precision` only those that the plan has without its pins as well, as a
    precision that TensorRT's builder may use for one layer it may use for all. `budget` is in seconds, of the
    whole run's ranges, ranking and search; `max_evaluations` are plans of each precision. None for these: until the
    search is done. `max_cost` is the most that a plan may cost, as a share of float32's; None: whatever it takes.
    """

    precisions: tuple[Precision, ...] = (Precision.FP16, Precision.INT8)
    tolerance: Tolerance = ()
    max_pins: int | None = None
    around: Precision = Precision.FP32
    calibration: str | None = None
    metric: str | None = None
    minimize: Minimize = Minimize.PINS
    spend: float | None = None
    ladder: tuple[Precision, ...] | None = None
    no_new_precision: bool = False
    budget: float | None = None
    max_evaluations: int | None = None
    max_cost: float | None = None

    def tolerance_of(self, precision: Precision) -> Tolerance:
        """The tolerance that this precision is held to."""
        return self.tolerance or default_tolerance(precision)


def check_at_least(least: int, **options: float | None) -> None:
    """Raises OptionError for an option below `least`; None is an option that was not given."""
    for name, value in options.items():
        if value is not None and value < least:
            raise OptionError(f"{name} is {value}; it must be at least {least}")


def check_workers(threads: int | None, processes: int | None = None) -> None:
    """Raises OptionError for numbers of threads or processes that no machine has; None was not given."""
    check_at_least(1, threads=threads, processes=processes)
    for name, value in (("threads", threads), ("processes", processes)):
        if value is not None and value > _MOST_WORKERS:
            raise OptionError(f"{name} is {value}; it must be at most {_MOST_WORKERS}")


def check_calibration(method: str | None) -> None:
    """Raises OptionError for what is neither a calibration method nor `auto`; None was not given."""
    if method is not None:
        check_method(method, choices())


def parse_precisions(texts: str | Iterable[str]) -> tuple[Precision, ...]:
    """The low precisions to sweep. Raises OptionError for none, an unknown one, or fp32."""
    found = _parsed(texts)
    if not found or Precision.FP32 in found:
        low = ", ".join(precision.value for precision in Precision if precision.is_low)
        raise OptionError(f"precisions are the low ones to sweep: {low} (fp32 is always measured)")
    return found


def parse_ladder(texts: str | Iterable[str] | None) -> tuple[Precision, ...] | None:
    """The precisions that pins may have. Raises OptionError where fp32 is not among them, or int8 is."""
    if texts is None:
        return None
    found = _parsed(texts)
    if Precision.FP32 not in found or any_quantized(found):
        low = either(precision for precision in Precision if precision.is_low_float)
        raise OptionError(f"ladder are the precisions that pins may have: fp32, and {low} beside it")
    return found


def parse_around(text: str) -> Precision:
    """The precision of the float layers around int8 ones. Raises OptionError for int8."""
    precision = Precision.parse(text)
    if precision.is_quantized:
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


def parse_share(text: str | float | None, name: str) -> float | None:
    """A share such as 0.05 or "5%".

    Raises OptionError for what is neither, for less than 0, and for 1 or more without a percent sign: 5 may mean
    5 % or 500 %, and 1 may mean 1 %.
    """
    if text is None:
        return None
    written = str(text).strip()
    try:
        share = float(written[:-1]) / 100 if written.endswith("%") else float(written)
    except ValueError:
        raise OptionError(f"{name} {text!r}: write a share such as 0.05 or 5%") from None
    if not 0 <= share < float("inf"):
        raise OptionError(f"{name} {text!r}: a share is at least 0")
    if share >= 1 and not written.endswith("%"):
        raise OptionError(
            f"{name} {text!r}: that may mean {share:g} % or {100 * share:g} %; write it with a percent sign, such as "
            f"{share:g}%"
        )
    return share


def parse_duration(text: str | float | None, name: str) -> float | None:
    """Seconds, from 90, "90s", "30m" or "1h30m". Raises OptionError for anything else, or nothing at all."""
    if text is None:
        return None
    if isinstance(text, (int, float)) and 0 <= text < float("inf"):
        return float(text)
    match = _DURATION.fullmatch(str(text).strip())
    if not match or not any(match.groups()):
        raise OptionError(f"{name} {text!r}: write a time such as 90s, 30m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def parse_memory(text: str | int | None) -> int | None:
    """Bytes of memory, as `parse_size` reads them. Raises OptionError for nothing at all too."""
    found = parse_size(text, "memory")
    if found == 0:
        raise OptionError(f"memory {text!r}: write what the work may take, such as 512M or 4G")
    return found


def parse_size(text: str | int | None, name: str) -> int | None:
    """Bytes, from 4096, "512M" or "4G" (powers of 1024). Raises OptionError for anything else."""
    if text is None:
        return None
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise OptionError(f"{name} {text!r}: write a size such as 512M or 4G")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def _parsed(texts: str | Iterable[str]) -> tuple[Precision, ...]:
    parts = texts.split(",") if isinstance(texts, str) else list(texts)
    return tuple(dict.fromkeys(Precision.parse(text) for text in parts))
