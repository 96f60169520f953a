"""The HTML report of a calibration: one file that opens from disk, offline, and answers without a manual.

Are these ranges to be trusted? What was clipped? Where do the methods disagree? What now? Everything is drawn from
the fingerprint's facts, the table of `ranges.csv` and the histograms. Look, safety and the way figures are written
are those of `precisionlab.report.html`: names come from strangers' models, nothing is loaded, NaN and ∞ are shown as
such, and "–" stands for a figure that was never taken.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.lint import MOST_CLIPPED
from precisionlab.calibration.methods import AUTO, METHODS, words_of
from precisionlab.data.hook import is_hook
from precisionlab.evaluate.ranges import MeasuredRanges
from precisionlab.precision import Precision
from precisionlab.report.cells import short_percent
from precisionlab.report.commands import Command
from precisionlab.report.html import Row, as_flag, as_number, as_text, load_template, records_of
from precisionlab.report.sparkline import Sparkline, sparkline

if TYPE_CHECKING:
    import pandas as pd

FEW_SAMPLES = 16
FEW_LEVELS = 32
"""Of 128. A range with fewer in use stands for its few largest values, and all others share what is left."""

SAME = 1.01  # ranges that differ by less agree
SHOWN = 10  # tensors in the short tables
_NAMED = 5  # tensors that a warning names


def render_calibration(
    facts: Mapping[str, Any],
    ranges: pd.DataFrame,
    histograms: Mapping[str, Histogram],
    measured: Sequence[MeasuredRanges] = (),
    started_in: PurePath | None = None,
) -> str:
    """The whole page.

    `facts` is what the fingerprint says beside the ranges (`Fingerprint.facts`; what it lacks is left out; it may
    name the file as `cache`, or `cache.path`), `ranges` the table documented in `precisionlab.report.columns`,
    `histograms` those that the ranges were taken from; a tensor without one has no picture. `measured` is what `auto`
    chose by. Paths in commands are made absolute where `started_in` says which folder they were given in.
    """
    records = records_of(ranges)
    methods = tuple(name for name in METHODS if name in ranges)  # an older file may lack a method
    tensors = tuple(_tensor(i, row, methods, histograms.get(str(row["tensor"]))) for i, row in enumerate(records))
    samples = _fact(facts, "data", "samples")
    warnings = tuple(_warnings(tensors, None if samples is None else int(samples)))
    elsewhere = tuple(_about_tensors([tensor for tensor in tensors if not tensor.operand]))
    model, folder = _fact(facts, "model", "path"), _fact(facts, "data", "folder")
    cache, base = _cache(facts), PurePath() if started_in is None else started_in
    random = "folder" in (facts.get("data") or {}) and folder is None  # as the fingerprint writes it
    page = load_template().environment.get_template("calibration.html.j2")
    text = page.render(
        model=model,
        model_name="calibration" if model is None else PurePath(str(model)).name,
        model_hash=_fact(facts, "model", "sha256"),
        folder=folder,
        commands=_commands(base, model, folder, cache),
        measured=measured,
        elsewhere=elsewhere,
        data_hash=_fact(facts, "data", "sha256"),
        samples=samples,
        skipped=_fact(facts, "data", "skipped"),
        random=random,
        method=facts.get("method"),
        method_words=_method_words(facts.get("method"), tensors),
        tensorrt=facts.get("tensorrt") or _fact(facts, "cache", "tensorrt"),
        cache=str(base / cache) if cache else "FILE",
        model_path=None if model is None else str(base / str(model)),
        cache_known=cache is not None,
        cache_literal=repr(str(base / cache) if cache else "FILE"),
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
        most_clipped=short_percent(MOST_CLIPPED),
    )
    # A path on a POSIX system may hold bytes that are not UTF-8, as lone surrogates that no file can take.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _commands(base: PurePath, model: Any, folder: Any, cache: str | None) -> tuple[Command, ...]:
    """What checks and measures the cache, where its model is known."""
    if model is None:
        return ()
    path = str(base / str(model))
    data = [] if folder is None else ["--data", str(folder) if is_hook(str(folder)) else str(base / str(folder))]
    lint = ["cache", "lint", "FILE" if cache is None else str(base / cache), "--model", path]
    sweep = ["sweep", path, *data, "--precisions", str(Precision.INT8)]
    about = "Is every tensor there that INT8 needs, are the scales sound, is it still this model’s?"
    return (
        Command(f"Check it. {about}", shlex.join(["precisionlab", *lint])),
        Command("Measure the model in INT8", shlex.join(["precisionlab", *sweep])),
    )


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
        return short_percent(self.clipped_share)

    @property
    def zeros_text(self) -> str:
        """The share of exact zeros in percent."""
        return short_percent(self.zeros_share)


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
    return Threshold(method, amax, short_percent(clipped), chosen)


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
    """What speaks against the ranges: of tensors only where an int8 layer takes them."""
    if samples is not None and samples < FEW_SAMPLES:
        yield Warn(
            f"Few samples: {samples}",
            f"Others will go beyond these ranges. Calibrate with {FEW_SAMPLES} at the least, and with some hundreds "
            "where there are any.",
        )
    yield from _about_tensors([tensor for tensor in tensors if tensor.operand])


def _about_tensors(tensors: Sequence[TensorView]) -> Iterable[Warn]:
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
        f"More than {short_percent(MOST_CLIPPED)} % of the values clipped",
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
    """A warning about tensors, the worst first; none where there are none."""
    tensors = sorted(found, key=lambda tensor: -worst(tensor))
    if tensors:
        title = f"{what}: {_tensors(len(tensors))}"
        yield Warn(title, text, tuple(tensors[:_NAMED]), len(tensors) - _NAMED)


def _headline(tensors: Sequence[TensorView], warnings: Sequence[Warn], random: bool) -> str:
    if not tensors:
        return "There are no ranges: the model has no float tensor that INT8 could take"
    if random:
        return "Do not use them: they were taken from random numbers"
    if warnings:
        return f"Look at {'this' if len(warnings) == 1 else f'these {len(warnings)} points'} before you trust them"
    return "Nothing in the data speaks against them"
