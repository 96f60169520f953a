"""The HTML report of a calibration: one file that opens from disk, offline, and answers without a manual.

Are these ranges to be trusted? What was clipped? Where do the methods disagree? What now? Everything is drawn from
the fingerprint's facts, the table of `ranges.csv` and the histograms. Look, safety and the way figures are written
are those of `precisionlab.report.html`: names come from strangers' models, nothing is loaded, NaN and ∞ are shown as
such, and "–" stands for a figure that was never taken.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.lint import MOST_CLIPPED
from precisionlab.calibration.methods import AUTO, METHODS, words_of
from precisionlab.report.html import Row, as_flag, as_number, as_text, load_template, records_of, show

if TYPE_CHECKING:
    import pandas as pd

FEW_SAMPLES = 16
FEW_LEVELS = 32
"""Of 128. A range with fewer in use stands for its few largest values, and all others share what is left."""

SAME = 1.01  # ranges that differ by less agree
SHOWN = 10  # tensors in the short tables
_NAMED = 5  # tensors that a warning names


def render_calibration(facts: Mapping[str, Any], ranges: pd.DataFrame, histograms: Mapping[str, Histogram]) -> str:
    """The whole page.

    `facts` is what the fingerprint says beside the ranges (`Fingerprint.facts`; what it lacks is left out; it may
    name the file as `cache`, or `cache.path`), `ranges` the table documented in `precisionlab.report.columns`,
    `histograms` those that the ranges were taken from; a tensor without one has no picture.
    """
    records = records_of(ranges)
    methods = tuple(name for name in METHODS if name in ranges)  # an older file may lack a method
    tensors = tuple(_tensor(i, row, methods, histograms.get(str(row["tensor"]))) for i, row in enumerate(records))
    samples = _fact(facts, "data", "samples")
    warnings = tuple(_warnings(tensors, None if samples is None else int(samples)))
    model, folder = _fact(facts, "model", "path"), _fact(facts, "data", "folder")
    cache = _cache(facts)
    random = "folder" in (facts.get("data") or {}) and folder is None  # as the fingerprint writes it
    page = load_template().environment.get_template("calibration.html.j2")
    text = page.render(
        model=model,
        model_name="calibration" if model is None else PurePath(str(model)).name,
        model_hash=_fact(facts, "model", "sha256"),
        folder=folder,
        data_hash=_fact(facts, "data", "sha256"),
        samples=samples,
        skipped=_fact(facts, "data", "skipped"),
        random=random,
        method=facts.get("method"),
        method_words=_method_words(facts.get("method"), tensors),
        tensorrt=facts.get("tensorrt") or _fact(facts, "cache", "tensorrt"),
        cache=cache or "FILE",
        cache_known=cache is not None,
        cache_literal=repr(cache or "FILE"),
        versions=facts.get("versions") or {},
        tensors=tensors,
        operands=sum(tensor.operand for tensor in tensors),
        warnings=warnings,
        headline=_headline(tensors, warnings, random),
        clipped=_top(tensors, lambda t: t.clipped_share, 0.0),
        clipped_tensors=sum(tensor.clips for tensor in tensors),
        disputed=_top(tensors, lambda t: t.disagreement, SAME),
        methods=methods,
        drawing=Sparkline,
        most_clipped=percent(MOST_CLIPPED),
    )
    # A path on a POSIX system may hold bytes that are not UTF-8, as lone surrogates that no file can take.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _fact(facts: Mapping[str, Any], group: str, key: str) -> Any:
    """One fact; None where it, or the group that it stands in, is missing."""
    found = facts.get(group)
    return found.get(key) if isinstance(found, Mapping) else None


def _cache(facts: Mapping[str, Any]) -> str | None:
    """Where the cache lies, if the facts say it."""
    found = facts.get("cache")
    path = found.get("path") if isinstance(found, Mapping) else found
    return None if path is None else str(path)


def _method_words(method: Any, tensors: Sequence[TensorView]) -> str:
    words = str(method).split(maxsplit=1)
    said = words_of(words[0]) if words else ""
    taken = Counter(tensor.method for tensor in tensors)
    if words and words[0] == AUTO and taken:
        said += ": " + ", ".join(f"{name} for {_tensors(number)}" for name, number in taken.most_common())
    return said


def percent(share: float | None) -> str:
    """A share as percent, with three digits that count; less than everything is never rounded up to 100."""
    if share is None or not math.isfinite(share):
        return show(share, "g")
    return show(min(100 * share, 99.9) if share < 1 else 100 * share, ".3g")


def _tensors(number: int) -> str:
    return f"{number} tensor{'' if number == 1 else 's'}"


# The tensors


@dataclass(frozen=True)
class Threshold:
    """The range that one method gives a tensor, and what it would clip."""

    method: str
    amax: float | None
    clipped: str
    chosen: bool


@dataclass(frozen=True)
class TensorView:
    """One row of the tables."""

    index: int
    name: str
    operand: bool
    method: str
    amax: float | None
    scale: float | None
    largest: float | None
    count: float | None
    clipped: float | None
    clipped_share: float | None
    levels: float | None
    zeros_share: float | None
    nonfinite: float | None
    thresholds: tuple[Threshold, ...]
    disagreement: float | None
    picture: Sparkline | None

    @property
    def zero(self) -> bool:
        """Whether it was zero throughout."""
        return self.largest == 0 and bool(self.count)

    @property
    def clips(self) -> bool:
        """Whether anything lies beyond its range."""
        return bool(self.clipped)

    @property
    def heavy(self) -> bool:
        """Whether more is clipped than anybody means to."""
        return self.clipped_share is not None and self.clipped_share > MOST_CLIPPED

    @property
    def coarse(self) -> bool:
        """Whether few levels are in use. Where there is no value, or only zeros, other words are right."""
        return self.levels is not None and self.levels < FEW_LEVELS and self.largest != 0

    @property
    def clipped_text(self) -> str:
        """The clipped share in percent."""
        return percent(self.clipped_share)

    @property
    def zeros_text(self) -> str:
        """The share of exact zeros in percent."""
        return percent(self.zeros_share)


def _tensor(index: int, row: Row, methods: Iterable[str], histogram: Histogram | None) -> TensorView:
    count, zeros = as_number(row, "count"), as_number(row, "zeros")
    # Of a tensor that never held an element nothing was measured.
    counted = "count" if count or as_number(row, "nonfinite") else None
    amax = as_number(row, "amax", counted)
    method = as_text(row, "method")
    return TensorView(
        index=index,
        name=str(row["tensor"]),
        operand=as_flag(row, "operand"),
        method=method,
        amax=amax,
        scale=as_number(row, "scale", counted),
        largest=as_number(row, "largest", "count"),
        count=count,
        clipped=as_number(row, "clipped"),
        clipped_share=as_number(row, "clipped_share") if count else None,
        levels=as_number(row, "levels_used"),
        zeros_share=zeros / count if count and zeros is not None else None,
        nonfinite=as_number(row, "nonfinite"),
        thresholds=tuple(_threshold(name, row, histogram, name == method, counted) for name in methods),
        disagreement=as_number(row, "disagreement"),
        picture=None if histogram is None or amax is None else sparkline(histogram, amax),
    )


def _threshold(method: str, row: Row, histogram: Histogram | None, chosen: bool, column: str | None) -> Threshold:
    amax = as_number(row, method, column)
    counted = histogram is not None and histogram.count > 0 and amax is not None and math.isfinite(amax)
    clipped = histogram.clipped(amax) / histogram.count if counted and histogram and amax is not None else None
    return Threshold(method, amax, percent(clipped), chosen)


def _top(
    tensors: Iterable[TensorView], figure: Callable[[TensorView], float | None], beyond: float
) -> tuple[TensorView, ...]:
    """The tensors with the largest figure above `beyond`, those that an int8 layer takes first."""
    found = [(value, tensor) for tensor in tensors if (value := figure(tensor)) is not None and value > beyond]
    found.sort(key=lambda pair: (not pair[1].operand, -pair[0]))
    return tuple(tensor for _, tensor in found[:SHOWN])


# Warnings


@dataclass(frozen=True)
class Warn:
    """Something that speaks against the ranges: what, why it matters and what to do, and the tensors."""

    title: str
    text: str
    tensors: tuple[TensorView, ...] = ()
    more: int = 0


def _warnings(tensors: Sequence[TensorView], samples: int | None) -> Iterable[Warn]:
    if samples is not None and samples < FEW_SAMPLES:
        yield Warn(
            f"Few samples: {samples}",
            f"Others will go beyond these ranges. Calibrate with {FEW_SAMPLES} at the least, and with some hundreds "
            "where there are any.",
        )
    yield from _about(
        (t for t in tensors if t.nonfinite),
        "NaN or Inf",
        "They took no part in the ranges, and INT8 cannot hold them. Find the sample that causes them, or keep the "
        "layers that take these tensors in float.",
        worst=lambda t: t.nonfinite or 0.0,
    )
    yield from _about(
        (t for t in tensors if t.count == 0 and not t.nonfinite),
        "Never held an element in the samples",
        "They have no range and no scale, and layers that take them run without INT8. Calibrate with samples in which "
        "they hold some.",
    )
    yield from _about(
        (t for t in tensors if t.count == 0 and t.nonfinite),
        "No finite value",
        "Nothing is known of these, so their range is a guess. Calibrate with samples that reach them.",
    )
    yield from _about(
        (t for t in tensors if t.zero),
        "Zero throughout",
        "Every value in every sample was 0, so the range is a guess. Calibrate with samples that make them move.",
    )
    yield from _about(
        (t for t in tensors if t.heavy),
        f"More than {percent(MOST_CLIPPED)} % of the values clipped",
        "This is no longer a tail of outliers. Look at the pictures, and try the method capped or max.",
        worst=lambda t: t.clipped_share or 0.0,
    )
    yield from _about(
        (t for t in tensors if t.coarse),
        f"Fewer than {FEW_LEVELS} of the 128 levels in use",
        "Outliers stretch the range, so that all other values share a few levels; or the tensor holds few values, or "
        "few different ones, as a mask does. See what the other methods give, or keep its layers in float.",
        worst=lambda t: -(t.levels or 0.0),
    )


def _about(
    found: Iterable[TensorView], what: str, text: str, worst: Callable[[TensorView], float] = lambda _: 0.0
) -> Iterable[Warn]:
    """A warning about tensors, those that an int8 layer takes first, then the worst; none where there are none."""
    tensors = sorted(found, key=lambda tensor: (not tensor.operand, -worst(tensor)))
    if tensors:
        operands = sum(tensor.operand for tensor in tensors)
        feed = f", {operands or 'none'} of which feed{'s' if operands == 1 else ''} an INT8 layer"
        if len(tensors) == 1:
            feed = f", which {'feeds an' if operands else 'feeds no'} INT8 layer"
        title = f"{what}: {_tensors(len(tensors))}{feed}"
        yield Warn(title, text, tuple(tensors[:_NAMED]), len(tensors) - _NAMED)


def _headline(tensors: Sequence[TensorView], warnings: Sequence[Warn], random: bool) -> str:
    if not tensors:
        return "There are no ranges: the model has no float tensor that INT8 could take"
    if random:
        return "Do not use them: they were taken from random numbers"
    if warnings:
        return f"Look at {'this' if len(warnings) == 1 else f'these {len(warnings)} points'} before you trust them"
    return "Nothing in the data speaks against them"


# The picture of a histogram

COLUMNS = 64


@dataclass(frozen=True)
class Sparkline:
    """A histogram as two SVG paths in a box of WIDTH × HEIGHT.

    `kept` is the outline of what lies within the range, to be filled; `clipped` has a single stroke for each column
    beyond it. `threshold` is where the range ends on the drawing; None where that is not on it. `words` say the
    same for those who do not see it.
    """

    WIDTH = 2 * COLUMNS + 2  # two for each column, one of margin at both ends, so that no line is cut in half
    HEIGHT = 28

    kept: str
    clipped: str
    threshold: float | None
    words: str


def sparkline(histogram: Histogram, amax: float) -> Sparkline | None:
    """Where the values of a tensor lie between 0 and the largest, and where its range ends; None for nothing but zeros.

    The height of a column is logarithmic. Exact zeros are not drawn: every range keeps them, and those of a
    ReLU would flatten all else. Values count as clipped bin by bin, as `Histogram.clipped` counts them.

    Paths written by hand and not by pygal, as the chart of the sweep's report is: pygal gives 10 kB of groups, labels
    and tooltips for a picture that needs 300 bytes and no axis, and there are 700 of them on a page.
    """
    if histogram.amax == 0:
        return None
    counts = histogram.bins.copy()
    counts[0] -= histogram.zeros
    place = np.minimum((np.arange(counts.size) + 0.5) * (histogram.width / histogram.amax) * COLUMNS, COLUMNS - 1)
    shown = 0 <= amax <= histogram.amax
    end = COLUMNS * (amax / histogram.amax) if shown else float(COLUMNS)  # in columns
    first_beyond = math.ceil(amax / histogram.width) if shown and amax < histogram.amax else counts.size
    # The column that the range ends in is split there, and a bin is drawn on the side that it counts to.
    kept = _columns(place[:first_beyond], counts[:first_beyond], 0, max(math.ceil(end) - 1, 0))
    clipped = _columns(place[first_beyond:], counts[first_beyond:], min(int(end), COLUMNS - 1), COLUMNS - 1)
    top = max(int((kept + clipped).max()), 1)
    return Sparkline(
        _outline(_heights(kept, top), end),
        _strokes(_heights(clipped, top), end),
        round(1 + 2 * end, 1) if shown else None,
        _words(histogram, amax, shown),
    )


def _columns(place: NDArray[np.float64], counts: NDArray[np.int64], first: int, last: int) -> NDArray[np.float64]:
    """Bins added up into columns; those that fall beside first … last count to the nearest of these."""
    columns = np.clip(place.astype(np.int64), first, last)
    return np.asarray(np.bincount(columns, weights=counts, minlength=COLUMNS), np.float64)


def _heights(columns: NDArray[np.float64], top: int) -> list[int]:
    """Logarithmic heights; what is not empty can be seen."""
    room = Sparkline.HEIGHT - 1
    return [max(1, round(room * math.log1p(count) / math.log1p(top))) if count else 0 for count in columns]


def _outline(heights: Sequence[int], end: float) -> str:
    """The outline of columns up to `end`, with equal neighbours drawn as one."""
    base, drawn, at, height = Sparkline.HEIGHT, "", 0.0, 0
    for column, now in enumerate([*heights[: math.ceil(end)], 0]):
        here = min(float(column), end)
        if now != height:
            drawn += (f"H{1 + 2 * here:.4g}" if here > at else "") + f"V{base - now}"
            at, height = here, now
    return f"M1 {base}{drawn}z" if drawn else ""


def _strokes(heights: Sequence[int], end: float) -> str:
    """One upright stroke in the middle of each column, of the part beyond `end` in the one that is split."""
    return "".join(
        f"M{1 + max(column, end) + column + 1:.4g} {Sparkline.HEIGHT}v-{height}"
        for column, height in enumerate(heights)
        if height
    )


def _words(histogram: Histogram, amax: float, shown: bool) -> str:
    start = f"Histogram of the magnitudes up to {show(histogram.amax, '.3g')}. "
    if not shown:
        return f"{start}The range ends at {show(amax, '.3g')}, outside the picture."
    beyond = histogram.clipped(amax)
    where = "there" if amax == histogram.amax else f"at {percent(amax / histogram.amax)} % of that"
    lies = "nothing lies" if not beyond else f"{percent(beyond / histogram.count)} % of the values lie"
    return f"{start}The range ends {where}; {lies} beyond."
