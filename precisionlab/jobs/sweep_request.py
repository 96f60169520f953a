"""What a sweep is asked for: options that were read and checked as far as they can be without the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from precisionlab.backends import device_of
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import EMULATION, RTX, choose_backend
from precisionlab.compare.tolerance import parse_tolerance
from precisionlab.errors import OptionError
from precisionlab.evaluate.prepare import Source, parse_holdout
from precisionlab.model.blocks import LARGEST
from precisionlab.plan.arithmetic import parse_arithmetic
from precisionlab.plan.file import plan_from_dict, read_plan_content
from precisionlab.precision import Precision, quantized_of
from precisionlab.search.devices import DEFAULT, DEVICES, DevicePeaks, devices_for, find_device
from precisionlab.search.options import (
    Grouping,
    Options,
    check_calibration,
    check_ladder,
    parse_around,
    parse_block,
    parse_grouping,
    parse_ladder,
    parse_minimize,
    parse_precisions,
)
from precisionlab.system.parsing import check_at_least, check_workers, parse_duration, parse_memory, parse_share


@dataclass(frozen=True)
class RunOptions:
    """Where and with what the work is done.

    `out` None: `reports/<model>`. `device` is what the emulation runs on, `batch` how many samples run together,
    `target` the GPU that costs are estimated for. `grouping` says where layers come from; None: as the
    backend has it by default. `notes` are of the backend's choice.
    """

    backend: str
    notes: tuple[str, ...]
    out: Path | None
    threads: int | None
    memory: int | None
    device: str
    batch: int
    processes: int | None
    dask: str | None
    grouping: Grouping | None
    target: DevicePeaks
    engine: EngineOptions

    @property
    def compiler(self) -> str:
        """The backend whose fusions are the layers, where those are asked for."""
        return RTX if self.backend == EMULATION else self.backend


@dataclass(frozen=True)
class SweepRequest:
    """All that a sweep is asked for. `plan` is the file of a plan that is measured, and nothing searched."""

    model: Path
    source: Source
    options: Options
    run: RunOptions
    plan: Path | None
    random_asked: bool


def sweep_options(
    *,
    precisions: str | Iterable[str],
    tolerance: str | Iterable[str],
    max_pins: int | None,
    repair: bool,
    around: str | None,
    block: int = LARGEST,
    calibration: str | None,
    metric: str | None,
    minimize: str,
    spend: str | float | None,
    ladder: str | Iterable[str] | None,
    budget: str | float | None,
    max_evaluations: int | None,
    max_cost: str | float | None,
    kernels: str,
    sums: str,
    each_layer: int | None,
) -> Options:
    """What is looked for. Raises OptionError for a value that cannot be."""
    low = parse_precisions(precisions)
    check_calibration(calibration, low)
    check_at_least(0, max_pins=max_pins)
    check_at_least(1, max_evaluations=max_evaluations, each_layer=each_layer)
    rungs, arithmetic = parse_ladder(ladder), parse_arithmetic(kernels, sums)
    check_ladder(rungs, low, arithmetic)
    return Options(
        precisions=low,
        tolerance=parse_tolerance([tolerance] if isinstance(tolerance, str) else tolerance),
        max_pins=max_pins,
        around=parse_around(around),
        block=parse_block(block),
        calibration=calibration,
        metric=metric,
        minimize=parse_minimize(minimize),
        spend=parse_share(spend, "spend"),
        ladder=rungs,
        budget=parse_duration(budget, "budget"),
        max_evaluations=max_evaluations,
        max_cost=parse_share(max_cost, "max_cost"),
        arithmetic=arithmetic,
        repair=repair,
        each_layer=each_layer,
    )


def data_options(
    data: str | Path | None,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    samples: int | None,
    seed: int,
    holdout: str | float,
    skip_bad: bool,
    random: bool,
) -> Source:
    """Where samples come from. Raises OptionError for a value that cannot be, or random inputs asked for with data."""
    check_at_least(0, seed=seed)
    check_at_least(1, samples=samples)
    if random and data is not None:
        raise OptionError("random asks for random inputs; leave it, or the data")
    return Source(data, shapes or {}, samples, seed, parse_holdout(holdout), skip_bad)


def _usual_device(
    precisions: str | Iterable[str], ladder: str | Iterable[str] | None, plan: str | Path | None
) -> DevicePeaks:
    """The device that costs are estimated for without a word: the usual one, or the first that has the precisions.

    And the quantized ones that pins may have; or those of the user's own plan, where there is one.
    """
    found: Iterable[Precision] = (*parse_precisions(precisions), *quantized_of(parse_ladder(ladder) or ()))
    if plan is not None:
        found = plan_from_dict(read_plan_content(Path(plan)), str(plan)).precisions
    return next(iter(devices_for(found)), DEVICES[DEFAULT])


def run_options(
    *,
    backend: str,
    out: str | Path | None,
    threads: int | None,
    memory: str | int | None,
    device: str,
    batch: int,
    processes: int | None,
    dask: str | None,
    layers: str | None,
    target: str | None,
    precisions: str | Iterable[str],
    ladder: str | Iterable[str] | None,
    plan: str | Path | None,
    engine: EngineOptions | None,
) -> RunOptions:
    """Where the work is done, checked before the samples are read: a GPU that cannot be used is told here.

    Raises OptionError for a value that cannot be, EngineError for a backend that is not here.
    """
    check_workers(threads, processes)
    check_at_least(1, batch=batch)
    device_of(device)
    grouping = None if layers is None else parse_grouping(layers)
    if grouping is Grouping.COMPILED and (processes or dask):
        raise OptionError("layers from a compiled engine are known to this process alone; leave --processes and --dask")
    choice = choose_backend(backend)
    return RunOptions(
        backend=choice.name,
        notes=choice.notes,
        out=Path(out) if out else None,
        threads=threads,
        memory=parse_memory(memory),
        device=device,
        batch=batch,
        processes=processes,
        dask=dask,
        grouping=grouping,
        target=find_device(target) if target is not None else _usual_device(precisions, ladder, plan),
        engine=engine or EngineOptions(),
    )
