"""Whether a sweep's options can be had: at the model's opset, on its target, and with the figures of its reference."""

from __future__ import annotations

import math
from dataclasses import replace

from precisionlab.backends.engine import EngineBackend
from precisionlab.backends.registry import KINDS
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import has_named, judging_of
from precisionlab.compare.metrics import AgreementMetric, Scope
from precisionlab.compare.tolerance import Bound
from precisionlab.errors import ModelError, OptionError
from precisionlab.evaluate.task_metric import check_metric
from precisionlab.model import Model
from precisionlab.model.blocks import SIZES
from precisionlab.plan.assign import check_opset
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.plan.weak import CANNOT_CHOOSE_SUMS, check_weak
from precisionlab.precision import Precision
from precisionlab.search.devices import DevicePeaks, devices_for
from precisionlab.search.grounds import Grounds
from precisionlab.search.options import Options, check_ladder


def without_needless(model: Model, options: Options) -> tuple[Options, dict[Precision, str]]:
    """The options without the precisions of weights that no layer of the model can have, and why of each of these.

    Around such a precision all would be swept in half, and called by its name. Raises ModelError where none is left,
    OptionError where the ladder has a rung for it alone.
    """
    needless = {
        precision: f"no layer can have its weight in {precision}, which is for constants of MatMul and Gemm whose rows "
        f"are a multiple of {SIZES[-1]}, and more than that"
        for precision in options.precisions
        if precision.is_weight_only and not any(layer.takes(precision) for layer in model.layers)
    }
    left = tuple(precision for precision in options.precisions if precision not in needless)
    if not left:
        why = "; ".join(needless.values())
        raise ModelError(f"{model.path}: {why}; leave {' and '.join(map(str, needless))} out")
    if needless:
        check_ladder(options.ladder, left, options.arithmetic)
    return replace(options, precisions=left), needless


def check_precisions(model: Model, options: Options, plan: PrecisionPlan | None) -> None:
    """Raises ModelError where a precision asked for cannot be had at the model's opset."""
    for precision in options.precisions:
        check_opset(model.onnx, plan or PrecisionPlan(model.sha256, precision, around=options.around_of(precision)))


def check_ahead(model: Model, options: Options, backend: str) -> None:
    """What needs no sample: outputs that a tolerance names, the user's metric, and the package that builds engines.

    Raises OptionError for an output that the model has not and a metric that cannot be loaded, EngineError for a
    package that is not installed.
    """
    named = {bound.output for precision in options.precisions for bound in options.tolerance_of(precision)}
    for name in sorted(name for name in named if name is not None):
        if not has_named(model, name):
            judging_of(model, [name])
    if options.metric is not None:
        check_metric(options.metric)
    KINDS[backend].check()


def check_choosable(model: Model, engines: EngineBackend, options: Options, plan: PrecisionPlan | None) -> None:
    """Raises OptionError where pins may have a precision that the engines cannot be told, PlanError where they have.

    And PlanError where a precision that is swept is one that they cannot be told for this model.
    """
    if engines.is_typed:
        return
    for precision in options.precisions:
        check_weak(model, plan or PrecisionPlan(model.sha256, precision, around=options.around_of(precision)))
    for rung in options.ladder or ():
        if rung.is_for_pins:
            raise OptionError(f"ladder: {rung}: {CANNOT_CHOOSE_SUMS}; leave it, and name bf16 or fp32")
        if rung.is_quantized and not rung.number_format.is_implicit:
            raise OptionError(
                f"ladder: {rung}: weakly typed TensorRT takes it by Q/DQ nodes alone; leave it, or --typed"
            )


_WITHOUT_FLOATS = (
    "the model has no float output that is finite in the reference; "
    'for class numbers, masks and the like ask for "top1>=0.99", for others give a metric'
)


def check_tolerance(options: Options, reference: Comparison, grounds: Grounds) -> None:
    """Raises OptionError where the reference itself has not the figure that a tolerance asks for."""
    for precision in options.precisions:
        for bound in options.tolerance_of(precision):
            if math.isnan(bound.of(reference)) and not grounds.unknown((bound,)):
                raise OptionError(f"tolerance {bound} cannot be judged: {_why_not(bound, reference)}")


def _why_not(bound: Bound, reference: Comparison) -> str:
    """Why the reference has no such figure, and which tensors have one."""
    metric = bound.of_metric
    if metric.scope is Scope.TASK:
        return "the data has no labels with a metric"
    if bound.output is not None:
        others = [name for name in reference.outputs if not math.isnan(reference.worst(bound.metric, name))]
        lacks = (
            "has no class axis"
            if isinstance(metric, AgreementMetric)
            else f"has no {bound.metric}: it holds no float that is finite"
        )
        offer = f"; {bound.metric} is known of {', '.join(others)}" if others else ""
        return f"{bound.output} {lacks}{offer}"
    return "no output of the model has a class axis" if isinstance(metric, AgreementMetric) else _WITHOUT_FLOATS


def check_target(options: Options, target: DevicePeaks) -> None:
    """Raises OptionError where the target has no arithmetic in a precision asked for."""
    around = [options.around_of(precision) for precision in options.precisions if precision.is_quantized]
    for precision in (*options.precisions, *around, *options.quantized):
        if target.peak(precision) is None:
            others = ", ".join(device.name for device in devices_for([precision]))
            raise OptionError(
                f"target {target.name} has no {precision}; choose another --target ({others}) or precision"
            )
