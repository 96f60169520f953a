"""Where a sweep's layers come from: our patterns, or the fused kernels of an engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from precisionlab.backends.engine import EngineBackend
from precisionlab.backends.registry import RTX
from precisionlab.errors import EngineError
from precisionlab.jobs.plan_source import grouped_as_in, run_beside
from precisionlab.jobs.sweep_request import RunOptions
from precisionlab.model import Model
from precisionlab.model.compiled import Fusions, completed, in_every, with_compiled_layers
from precisionlab.precision import Precision
from precisionlab.search.options import Grouping, Options
from precisionlab.system.observer import Observer

Opener = Callable[[str], AbstractContextManager[EngineBackend]]
"""Opens the backend of this name on the model at hand."""


@dataclass(frozen=True)
class Grouped:
    """A model with its layers. `fusions` are what was made of an engine's kernels; None where our patterns are taken.

    `note` says why these are taken with a backend whose own fusions are the layers by default; empty otherwise.
    """

    model: Model
    fusions: Fusions | None = None
    note: str = ""


def as_the_plan(model: Model, plan: Path | None, run: RunOptions) -> Grouped:
    """The model with the layers that the user's own plan was found for, unless patterns are asked for.

    Raises PlanError where the run beside the plan cannot be read, or has another model's layers.
    """
    if plan is None or run.grouping is Grouping.PATTERNS:
        return Grouped(model)
    return Grouped(*grouped_as_in(run_beside(plan), model))


def as_compiled(known: Grouped, run: RunOptions, options: Options, engines: Opener, observer: Observer) -> Grouped:
    """The model with an engine's fusions as its layers, where these are asked for.

    Raises EngineError where they cannot be had.
    """
    if run.grouping is not Grouping.COMPILED:
        return known
    return _compiled(known.model, run, options, engines, observer)


def by_default(known: Grouped, run: RunOptions, options: Options, engines: Opener, observer: Observer) -> Grouped:
    """The model with the layers that the backend has where none are asked for, and no plan of the user's has some.

    With TensorRT-RTX, whose compiler runs on every machine, they are its own. Where these cannot be had, layers are
    our patterns, and `note` says why.
    """
    if run.grouping is not None or run.backend != RTX:
        return known
    if run.processes or run.dask:
        return Grouped(known.model, note=_note("those of a compiled engine are known to one process alone"))
    try:
        return _compiled(known.model, run, options, engines, observer)
    except EngineError as error:
        return Grouped(known.model, note=_note(str(error)))


def grouped_anew(
    model: Model, known: Grouped, run: RunOptions, options: Options, engines: Opener, observer: Observer
) -> Grouped:
    """A repaired model with its engine's fusions as its layers, as the model without repairs (`known`) has its own.

    Where they cannot be had, the layers are what `known` has of nodes that are still there.
    """
    try:
        return _compiled(model, run, options, engines, observer)
    except EngineError as error:
        note = f"The repaired model's layers are those of the model as it is: {error}"
        return Grouped(as_far_as_kept(model, known), known.fusions, note)


def as_far_as_kept(model: Model, known: Grouped) -> Model:
    """A repaired model with the layers of the model without repairs, of nodes that are still there; others alone."""
    if known.fusions is None:
        return model
    groups = (tuple(node for node in layer.nodes if node in model.node) for layer in known.model.layers)
    return with_compiled_layers(model, completed(model, [group for group in groups if group]))[0]


def _note(why: str) -> str:
    return f"Layers are fused by our patterns, and not as {RTX} does it, which may keep apart what they join: {why}"


def _compiled(model: Model, run: RunOptions, options: Options, engines: Opener, observer: Observer) -> Grouped:
    precision = _typed_as(options)
    observer.note(f"layers: the model is compiled in {precision}, to take the engine's fused kernels for its layers")
    with engines(run.compiler) as backend:
        kernels = backend.kernels(precision)
    return Grouped(*with_compiled_layers(model, in_every(model, [completed(model, profile) for profile in kernels])))


def _typed_as(options: Options) -> Precision:
    """What the engine is compiled in: half precision where that is swept, or stands around int8; else float32."""
    floats = [p for p in (*options.precisions, *map(options.around_of, options.precisions)) if p.is_low_float]
    return Precision.FP16 if Precision.FP16 in floats else floats[0] if floats else Precision.FP32
