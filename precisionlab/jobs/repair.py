"""Repairs a model: rewrites what breaks in half precision into what gives the same and does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from precisionlab.backends.equivalence import Equivalence, equivalence
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import Judging
from precisionlab.compare.tolerance import Tolerance, default_tolerance, meets, parse_tolerance
from precisionlab.errors import ModelError, OptionError
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Prepared, Source, parse_holdout, prepare
from precisionlab.evaluate.values import observed_values
from precisionlab.model import Model, load_model
from precisionlab.model.save import save_model
from precisionlab.model.tail import graft
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.plan.repair import Exactness
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for
from precisionlab.rewrite.repairs import is_repairable, repaired_graph, repaired_precisions
from precisionlab.search.causes import causes
from precisionlab.search.certificate import Figures, figures_of
from precisionlab.search.repairing import Found, Repairs, find_repairs
from precisionlab.system.disk import temporary_folder
from precisionlab.system.lock import held_file
from precisionlab.system.observer import Observer, Silent
from precisionlab.system.parsing import check_workers, parse_memory
from precisionlab.system.wording import either

NEARLY = 1e-5
"""What a repair that rounds elsewhere may differ by in float32, as a share of an output's largest number."""


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


def repair(
    model: str | Path,
    data: str | Path,
    *,
    precision: str | None = None,
    tolerance: str | Iterable[str] = (),
    out: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    holdout: str | float = 0.25,
    metric: str | None = None,
    skip_bad: bool = False,
    threads: int | None = None,
    memory: str | int | None = None,
    observer: Observer | None = None,
) -> RepairResult:
    """Rewrite what breaks in a low float precision into an equivalent that does not, and write the model to `out`.

    Repairs are found where the model breaks, and kept by whole evaluations in emulation, none that is not needed. The
    repaired model gives the original's float32: bit for bit, or where one of its repairs rounds elsewhere to 1e-5 of an
    output's largest number, on every sample, or nothing is written. `out` is by default `<model>.repaired.onnx` in the
    current folder. `precision` is float16 by default; the options are those of `sweep`.

    Raises PrecisionLabError (ModelError, DataError, OptionError) for input that cannot be used.
    """
    observer = observer or Silent()
    check_workers(threads, None)
    low = Precision.FP16 if precision is None else _low(precision)
    loaded = load_model(Path(model))
    if not is_repairable(loaded, low):
        raise ModelError(f"{loaded.path}: computes in half itself; repair the float32 model that it was made from")
    file = Path(out) if out is not None else Path(f"{loaded.name}.repaired.onnx")
    if file.resolve() == loaded.path.resolve():
        raise OptionError(f"--out {file}: is the model itself; choose another --out")
    bounds = parse_tolerance([tolerance] if isinstance(tolerance, str) else list(tolerance)) or default_tolerance(low)
    source = Source(data, {}, samples, seed, parse_holdout(holdout), skip_bad)
    with temporary_folder() as folder, held_file(file, observer.note, "choose another --out"):
        ready = prepare(loaded, source, metric, threads, None, observer, parse_memory(memory))
        trials = _Trials(ready, ready.judging(bounds), low, threads, folder, observer)
        before, held_before = trials.whole(())
        if meets(before, bounds):
            nothing = Found((), (), {}, 1)
            figures = figures_of(before, bounds)
            held = None if held_before is None else (figures_of(held_before, bounds),) * 2
            return RepairResult(low, bounds, nothing, figures, figures, held, None, None, {})
        why = trials.broken(())
        found = find_repairs(trials, low, bounds, observer.note)
        after, held_after = trials.whole(found.repairs)
        same = trials.same(found.repairs) if found.repairs else None
        if same is not None:
            _check(loaded, found.repairs, same)
            _write(loaded, found.repairs, file)
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


def _low(name: str) -> Precision:
    precision = Precision.parse(name)
    if precision not in repaired_precisions():
        raise OptionError(f"precision {name}: repairs are for {either(repaired_precisions())}")
    return precision


def _both(before: Comparison | None, after: Comparison | None, bounds: Tolerance) -> tuple[Figures, Figures] | None:
    if before is None or after is None:
        return None
    return figures_of(before, bounds), figures_of(after, bounds)


def _check(model: Model, repairs: Repairs, same: Equivalence) -> None:
    """Raises ModelError where the repaired model is not what its repairs promise."""
    promised = all(one.exactness is Exactness.BITWISE for one in repairs)
    if (promised and not same.is_bitwise) or same.largest > NEARLY:
        kinds = ", ".join(map(str, repairs))
        raise ModelError(
            f"{model.path}: with {kinds} its float32 outputs differ by {same.largest:.2g} of their largest number, "
            "which such repairs must not do; nothing was written; please report this"
        )


def _write(model: Model, repairs: Repairs, file: Path) -> None:
    graph = repaired_graph(model.onnx, repairs)
    if model.tail is not None:
        graft(graph, model.tail)
    save_model(graph, file, model.data_files)


class _Trials:
    """The model with repairs, each set of them built once."""

    def __init__(
        self,
        ready: Prepared,
        judging: Judging,
        precision: Precision,
        threads: int | None,
        folder: Path,
        observer: Observer,
    ) -> None:
        self._ready, self._judging, self._precision = ready, judging, precision
        self._threads, self._folder, self._observer = threads, folder, observer
        self._evaluators: dict[Repairs, Evaluator] = {}
        self._broken: dict[Repairs, Mapping[str, str]] = {}

    def model(self, repairs: Repairs) -> Model:
        """The model at the shapes of the data. Raises PlanError where a repair cannot be carried out."""
        return self._evaluator(repairs).model

    def judged(self, repairs: Repairs) -> Comparison:
        """The final outputs in the precision."""
        evaluator = self._evaluator(repairs)
        return evaluator.judge(self._title(repairs), self._plan(evaluator.model), None, self._reference(repairs))

    def whole(self, repairs: Repairs) -> tuple[Comparison, Comparison | None]:
        """All tensors in the precision, on the samples that choose, and on those held out."""
        evaluator = self._evaluator(repairs)
        plan = self._plan(evaluator.model)
        compared = evaluator.compare(self._title(repairs), plan, None, introduced=True)
        return compared, evaluator.hold_to(self._title(repairs), plan, None)

    def broken(self, repairs: Repairs) -> Mapping[str, str]:
        """Layer → why it breaks in the precision."""
        if repairs not in self._broken:
            evaluator = self._evaluator(repairs)
            plan = self._plan(evaluator.model)
            low = evaluator.compare(self._title(repairs), plan, None, introduced=True)
            found = causes(evaluator.model, plan, low.inherited, low.introduced)
            self._broken[repairs] = {name: str(cause) for name, cause in found.items()}
        return self._broken[repairs]

    def histograms(self, repairs: Repairs) -> Mapping[str, CoarseHistogram]:
        """What the tensors hold in float32, on the samples that choose."""
        evaluator = self._evaluator(repairs)
        return observed_values(evaluator, False, self._ready.local.look).histograms

    def same(self, repairs: Repairs) -> Equivalence:
        """How the repaired model lies beside the original in float32, on all samples."""
        dataset, original = self._ready.dataset, self._ready.local.model.onnx
        self._observer.stage("the repaired model beside the original, in float32", len(dataset))
        repaired = repaired_graph(original, repairs)
        return equivalence(original, repaired, dataset, self._ready.local.threads, self._observer.advance)

    def _evaluator(self, repairs: Repairs) -> Evaluator:
        if repairs not in self._evaluators:
            ready = self._ready
            if repairs:
                original = ready.local.model
                path = self._folder / f"{len(self._evaluators)}" / f"{original.name}.onnx"
                path.parent.mkdir()
                save_model(repaired_graph(original.onnx, repairs), path, original.data_files)
                ready = ready.of(load_model(path), self._threads)
            self._evaluators[repairs] = ready.evaluator(NoJournal(), self._observer, self._judging)
        return self._evaluators[repairs]

    def _reference(self, repairs: Repairs) -> Comparison:
        evaluator = self._evaluator(repairs)
        return evaluator.compare("float32", PrecisionPlan(evaluator.model.sha256, Precision.FP32), None)

    def _plan(self, model: Model) -> PrecisionPlan:
        return plan_for(model, self._precision)

    def _title(self, repairs: Repairs) -> str:
        return f"{self._precision} with {len(repairs)} repairs" if repairs else f"{self._precision}"
