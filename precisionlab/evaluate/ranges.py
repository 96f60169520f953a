"""The ranges of a job: all methods from one pass, and `auto`, which runs and compares them and takes the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from precisionlab.calibration.auto import cheapest_ranges
from precisionlab.calibration.blocks import Blocks
from precisionlab.calibration.find import table_of
from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.methods import AUTO, OUTPUT, default_method, methods_of, names_of
from precisionlab.calibration.table import CalibrationTable, block_table
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.confidence import interval
from precisionlab.compare.tolerance import Bound
from precisionlab.errors import PlanError
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.model import Model
from precisionlab.model.blocks import LARGEST
from precisionlab.model.layers import quantized_operands
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision, quantized_of
from precisionlab.rewrite.plans import plan_for
from precisionlab.system.wording import either

_EXACT = 20 * math.log10(2**24)  # dB; a relative error of float32's last digit

Compare = Callable[[str, CalibrationTable, bool], Comparison]
"""Compares the quantized model under a table, by its name; the flag asks for each layer's own error."""

Methods = Mapping[str, CalibrationTable]
"""By each calibration method the ranges of a model in one quantized precision."""

ChosenBlocks = Callable[[int, Precision], CalibrationTable]
"""The scales by `output` of weights in blocks of at most so many numbers, in a precision."""


@dataclass(frozen=True)
class MeasuredRanges:
    """The model under the ranges of one method: its worst output's SQNR, and that of its typical sample; in dB."""

    method: str
    sqnr: float
    typical: float
    taken: bool


@dataclass(frozen=True)
class ChosenRanges:
    """A table, and what it was chosen by; nothing where it was asked for."""

    table: CalibrationTable
    measured: tuple[MeasuredRanges, ...] = ()

    @property
    def figures(self) -> str:
        """The same as a line for the user; empty where nothing was measured."""
        if not self.measured:
            return ""
        said = ", ".join(f"{one.method} {one.sqnr:.1f} ({one.typical:.1f})" for one in self.measured)
        taken = next(one.method for one in self.measured if one.taken)
        return f"  SQNR of the final output by ranges (typical sample), dB: {said}; taken: {taken}"


def best_table(model: Model, methods: Mapping[str, CalibrationTable], compare: Compare) -> ChosenRanges:
    """The table under which the quantized model loses least: one method for all tensors, or the cheapest for each.

    Scales of weights alone are of one method.

    Each candidate is run and compared, and judged by the error of the worst final output.
    """
    found = {name: compare(name, table, True) for name, table in methods.items()}
    tables = dict(methods)
    if all(table.precision.needs_ranges for table in methods.values()):
        mixed = cheapest_ranges(model, methods, {name: comparison.introduced for name, comparison in found.items()})
        found[AUTO], tables[AUTO] = compare("the cheapest method for each tensor", mixed, False), mixed
    best = least_lossy(found)
    measured = (MeasuredRanges(name, c.worst("sqnr"), typical_sqnr(c), name == best) for name, c in found.items())
    return ChosenRanges(tables[best], tuple(measured))


def least_lossy(found: Mapping[str, Comparison]) -> str:
    """The name of the comparison with the least error at the final outputs.

    One bad sample can rule the error over all, and which method it hits is chance. So among those whose SQNR lies
    within the 95 % interval of the best one's, which these samples cannot tell apart, the typical sample decides.
    """
    total = {name: _or_least(comparison.worst("sqnr")) for name, comparison in found.items()}
    best = max(total, key=total.__getitem__)
    ends = interval(found[best], Bound("sqnr", True, 0.0))
    low = total[best] if ends is None else min(ends.low, total[best])
    near = [name for name in found if total[name] >= low]
    return max(near, key=lambda name: (_or_least(typical_sqnr(found[name])), total[name]))


def typical_sqnr(comparison: Comparison) -> float:
    """The mean over samples of the worst output's or part's SQNR, in dB; NaN where none has one."""
    every = [[e.figures("sqnr").values() for e in each] for each in comparison.each.values() if each[0].counts]
    samples = [[value for figures in sample for value in figures] for sample in zip(*every, strict=True)]
    worst = [min(found) for found in samples if found]
    # An output without any error would rule the mean as an infinity: nothing is better than float32's own noise.
    return math.fsum(min(sqnr, _EXACT) for sqnr in worst) / len(worst) if worst else math.nan


def _or_least(sqnr: float) -> float:
    return -math.inf if math.isnan(sqnr) else sqnr


def ranges_by_method(evaluator: Evaluator, precision: Precision) -> Methods:
    """By each method of the precision the ranges of every tensor that a quantized layer takes; from one pass."""
    return tables_by_method(_histograms(evaluator), len(evaluator.chosen), precision)


def tables_by_method(histograms: Mapping[str, Histogram], samples: int, precision: Precision) -> Methods:
    """The same from histograms that are known, over so many samples."""
    return {name: table_of(histograms, name, samples, precision=precision) for name in methods_of(precision)}


def ranges_by(evaluator: Evaluator, method: str, precision: Precision) -> CalibrationTable:
    """By one method the ranges of every tensor that a quantized layer takes."""
    return table_of(_histograms(evaluator), method, len(evaluator.chosen), precision=precision)


def _histograms(evaluator: Evaluator) -> Mapping[str, Histogram]:
    chosen, observer = evaluator.chosen, evaluator.observer
    observer.stage("ranges", len(chosen))
    collector = evaluator.backend.collector(operands_of(evaluator.model))
    collector.add(chosen, observer.advance)
    return collector.histograms()


def block_methods(size: int | None, precision: Precision = Precision.INT4) -> Methods:
    """By each method that takes no samples the scales of weights in blocks of at most so many (None: the largest)."""
    methods = (method for method in names_of(precision) if method != OUTPUT)
    return {method: block_table(Blocks(size or LARGEST, method), precision) for method in methods}


def block_ranges(plan: PrecisionPlan) -> tuple[PrecisionPlan, CalibrationTable]:
    """The scales of a plan that quantises weights alone by a method that takes no samples, and the plan with its name.

    Raises PlanError where the plan names `auto`, which is measured.
    """
    precision = next(p for p in plan.precisions if p.is_weight_only)
    method = method_of(plan, precision)
    if method == AUTO:
        known = either(names_of(precision))
        raise PlanError(f"the plan has `calibration` {AUTO} for {precision}, which is measured; name {known} in it")
    return replace(plan, calibration=method), block_methods(plan.block, precision)[method]


def named_method(method: str, table: CalibrationTable) -> str:
    """The method that a plan names: that which was taken, where the table is of weights alone."""
    return method if table.blocks is None else table.blocks.method


def method_of(plan: PrecisionPlan, precision: Precision) -> str:
    """The method by which a plan has the ranges of one of its quantized precisions.

    That which it names is of its default, or of those that it has in pins alone; another's is the one that its
    precision has without a word.
    """
    named = plan.calibration
    is_other = plan.default.is_quantized and precision is not plan.default
    if named is None or is_other or named not in (*names_of(precision), AUTO):
        return default_method(precision)
    return named


def ranges_of_plan(
    evaluator: Evaluator,
    plan: PrecisionPlan,
    methods: Mapping[Precision, Methods] | None = None,
    chosen_blocks: ChosenBlocks | None = None,
) -> tuple[PrecisionPlan, ChosenRanges]:
    """The ranges of every quantized precision of a plan, each by its method, and the plan with its method's name.

    `methods` None: they are found from a pass. The table is that of the default, with the others beside it. Of weights
    alone `chosen_blocks` finds the scales by `output`, where the plan has these.
    """
    found = set(plan.precisions)
    wanted = [precision for precision in Precision if precision.is_quantized and precision in found]
    wanted.sort(key=lambda precision: precision is not plan.default)
    if methods is None:
        ranged = quantized_of(found)
        histograms = _histograms(evaluator) if ranged else {}
        methods = {p: tables_by_method(histograms, len(evaluator.chosen), p) for p in ranged}
    for precision in wanted:
        if precision.is_weight_only:
            own = block_methods(plan.block, precision)
            if method_of(plan, precision) in (OUTPUT, AUTO) and chosen_blocks is not None:
                own = {**own, OUTPUT: chosen_blocks(plan.block or LARGEST, precision)}
            methods = {**methods, precision: own}
    chosen = [chosen_ranges(evaluator, methods[p], method_of(plan, p)) for p in wanted]
    table = replace(chosen[0].table, others=tuple(one.table for one in chosen[1:]))
    named = named_method(method_of(plan, wanted[0]), table)
    return replace(plan, calibration=named), replace(chosen[0], table=table)


def operands_of(model: Model) -> tuple[str, ...]:
    """The tensors that quantized layers take, each once, in topological order of the layers."""
    return tuple(dict.fromkeys(name for layer in model.layers for name in quantized_operands(model, layer)))


def chosen_ranges(evaluator: Evaluator, methods: Mapping[str, CalibrationTable], method: str) -> ChosenRanges:
    """The ranges by one method, or with `auto` the best of all."""
    if method != AUTO:
        return ChosenRanges(methods[method])
    return best_table(evaluator.model, methods, partial(compared_with, evaluator))


def compared_with(evaluator: Evaluator, name: str, table: CalibrationTable, introduced: bool) -> Comparison:
    """The model in the table's precision under these ranges, with float32 around its quantized layers."""
    plan = plan_for(evaluator.model, table.precision, table)
    return evaluator.compare(_title(name, table.precision), plan, table, introduced=introduced)


def held_to(evaluator: Evaluator, name: str, table: CalibrationTable) -> Comparison | None:
    """The same on the samples held out; None where none are."""
    return evaluator.hold_to(_title(name, table.precision), plan_for(evaluator.model, table.precision, table), table)


def _title(name: str, precision: Precision) -> str:
    return f"{precision}" + ("" if name == default_method(precision) else f", ranges by {name}")
