"""Repairs a model: rewrites what breaks in a low precision into what gives the same and does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from precisionlab.backends.equivalence import Equivalence
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.methods import OUTPUT
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, default_tolerance, meets, parse_tolerance
from precisionlab.errors import ModelError, OptionError
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Source, parse_holdout, prepare
from precisionlab.evaluate.ranges import Methods, block_methods
from precisionlab.jobs.objects import DataSource, MetricSource, ModelSource, takes_objects
from precisionlab.jobs.quantized_ranges import NO_RANGES, Ranges, ranges_that_hold
from precisionlab.jobs.repair_trials import Means, RepairTrials
from precisionlab.jobs.repaired_file import beside_original, is_as_promised, write_repaired
from precisionlab.model import Model, load_model
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import repaired_precisions, why_left_alone
from precisionlab.search.certificate import Figures, figures_of
from precisionlab.search.options import parse_around
from precisionlab.search.quantized_repairs import find_quantized_repairs
from precisionlab.search.repairing import Found, find_repairs
from precisionlab.system.lock import held_file
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import check_workers, parse_memory
from precisionlab.system.wording import either


@dataclass(frozen=True)
class RepairResult:
    """What was repaired, and what that makes of the model in `precision`, without a pin.

    `found` has the repairs that are kept, and those released again. `before` and `after` are the figures on the samples
    that choose, `held_out` the two on those that do not (None where there are none); all are emulated. `same` says how
    the repaired model lies beside the original in float32, over all samples. `file` is the repaired model; None where
    nothing was repaired.
    """

    precision: Precision
    tolerance: Tolerance
    found: Found
    before: Figures
    after: Figures
    held_out: tuple[Figures, Figures] | None
    same: Equivalence | None
    file: Path | None
    causes: Mapping[str, str]

    @property
    def met(self) -> bool:
        """Whether the model is right in the precision now, on all samples."""
        return self.after.met and (self.held_out is None or self.held_out[1].met)


@takes_objects
def repair(
    model: ModelSource,
    data: DataSource,
    *,
    precision: str | None = None,
    around: str | None = None,
    tolerance: str | Iterable[str] = (),
    out: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    holdout: str | float = 0.25,
    metric: MetricSource | None = None,
    skip_bad: bool = False,
    threads: int | None = None,
    memory: str | int | None = None,
    observer: Observer | None = None,
) -> RepairResult:
    """Rewrite what breaks in a low precision into an equivalent that does not, and write the model to `out`.

    Repairs are found where the model breaks, and kept by whole evaluations in emulation, none that is not needed. The
    repaired model gives the original's float32: bit for bit, or where one of its repairs rounds elsewhere to 1e-5 of an
    output's largest number, on every sample, or nothing is written. `out` is by default `<model>.repaired.onnx` in the
    current folder. `precision` is float16 by default; the options are those of `sweep`. Of a quantized precision
    `around` is that of the other layers (by default fp32, and fp16 around int4): where it is a half one, what breaks in
    these is repaired. In int8 powers of two are moved from activations' channels into weights then, and the ranges are
    found anew, of the repaired model, by the method that the model as it is needs.

    Raises PrecisionLabError (ModelError, DataError, OptionError) for input that cannot be used.
    """
    observer = observer_of(observer)
    check_workers(threads, None)
    low, beside = _low(precision, parse_around(around))
    loaded = load_model(Path(model))
    if own := why_left_alone(loaded):
        raise ModelError(f"{loaded.path}: {own}; repair the float32 model that it was made from")
    file = Path(out) if out is not None else Path(f"{loaded.name}.repaired.onnx")
    if file.resolve() == loaded.path.resolve():
        raise OptionError(f"--out {file}: is the model itself; choose another --out")
    bounds = parse_tolerance([tolerance] if isinstance(tolerance, str) else list(tolerance)) or default_tolerance(low)
    source = Source(data, {}, samples, seed, parse_holdout(holdout), skip_bad)
    with held_file(file, observer.note, "choose another --out"):
        ready = prepare(loaded, source, metric, threads, None, observer, parse_memory(memory))
        judging = ready.judging(bounds)

        def opened(model: Model) -> Means:
            made = ready.of(model, threads) if model.repairs else ready
            return Means(made.evaluator(NoJournal(), observer, judging), made.local.look)

        def is_same(model: Model) -> bool:
            same = beside_original(model, ready.dataset, ready.local.threads, observer)
            return is_as_promised(model, same)

        def ranges_of(means: Means) -> Ranges:
            return _ranges(means, low, bounds)

        trials = RepairTrials(opened(loaded), low, beside, bounds, opened, ranges_of, is_same=is_same)
        before, held_before = trials.whole(())
        holds_held_out = held_before is None or meets(held_before, bounds) or not low.is_quantized
        if meets(before, bounds) and holds_held_out and meets(trials.judged(()), bounds):
            nothing = Found((), (), {}, 1)
            figures = figures_of(before, bounds)
            held = None if held_before is None else (figures_of(held_before, bounds),) * 2
            return RepairResult(low, bounds, nothing, figures, figures, held, None, None, {})
        why = trials.broken(())
        found = _found(trials, low, beside, bounds, observer)
        if compared := trials.ranges(found.repairs).figures:
            observer.note(compared)
        after, held_after = trials.whole(found.repairs)
        if not low.is_quantized:
            _note_outputs(loaded, trials.histograms(()), low, observer)
        same = None
        if found.repairs:
            same = trials.same(found.repairs, ready.dataset, ready.local.threads)
            write_repaired(trials.model(found.repairs), file)
        return RepairResult(
            low,
            bounds,
            found,
            figures_of(before, bounds),
            figures_of(after, bounds),
            _both(held_before, held_after, bounds),
            same,
            file if found.repairs else None,
            why,
        )


def _found(
    trials: RepairTrials, precision: Precision, around: Precision, bounds: Tolerance, observer: Observer
) -> Found:
    if precision.is_quantized:
        return find_quantized_repairs(trials, precision, around, bounds, observer.note)
    return find_repairs(trials, precision, bounds, observer.note)


def _ranges(means: Means, precision: Precision, bounds: Tolerance) -> Ranges:
    """The ranges of a quantized precision, or scales of its weights: the usual, or the best where those do not hold."""
    if not precision.is_quantized:
        return NO_RANGES
    own = block_methods(None) if precision.is_weight_only else means.methods(precision)

    def by_samples() -> Methods:
        return {OUTPUT: means.methods(precision)[OUTPUT]} if precision.is_weight_only else {}

    return ranges_that_hold(means.evaluator, own, bounds, others=by_samples)


def _low(name: str | None, around: Precision | None) -> tuple[Precision, Precision]:
    """The precision, and that of the float layers around. Raises OptionError where there are no repairs for them."""
    precision = Precision.FP16 if name is None else Precision.parse(name)
    own, floats = repaired_precisions(), [one for one in repaired_precisions() if not one.is_quantized]
    if not precision.is_quantized:
        if precision not in own:
            quantized = either(one for one in Precision.low() if one.is_quantized)
            raise OptionError(
                f"precision {precision}: repairs are for {either(floats)}, and for {quantized} among these"
            )
        if around not in (None, Precision.FP32):
            raise OptionError(f"around {around}: is for quantized precisions; {precision} has no other layers around")
        return precision, Precision.FP32
    beside = around or precision.around
    if precision not in own and beside not in floats:
        raise OptionError(
            f"precision {precision}: among {beside} there are no repairs for it, and among {either(floats)} those of "
            f"the layers around; give --around {floats[0]}"
        )
    return precision, beside


def _note_outputs(
    model: Model, histograms: Mapping[str, CoarseHistogram], precision: Precision, observer: Observer
) -> None:
    """Say of outputs that the precision cannot hold that nothing which gives the same brings them into it."""
    largest = precision.number_format.largest
    for output in model.outputs:
        seen = histograms.get(output.name)
        if seen is not None and seen.amax > largest:
            observer.note(
                f"output {output.name}: float32 itself gives up to {seen.amax:.3g}, and {precision} ends at "
                f"{largest:.5g}: what gives the same cannot be right there; pin its layer to fp32, or have "
                "the model give it smaller"
            )


def _both(before: Comparison | None, after: Comparison | None, bounds: Tolerance) -> tuple[Figures, Figures] | None:
    if before is None or after is None:
        return None
    return figures_of(before, bounds), figures_of(after, bounds)
