"""What the ranking by sensitivity costs: `python -m benchmarks.sensitivity [CASES] [--samples 8] [--repeats 3]`.

For each model: the time to measure what each of its L layers alone does to the final outputs, over N samples (setting
up included), over the time of L·N plain ONNX Runtime passes of the same samples in the same process; and what a
certificate costs for each pin, in passes over the samples. Needs the prepared models (`make models`).

The floor: running each layer's rest of the network and no more is 0.5 of L·N passes where the layers are alike and
all behind each other, less where the network has branches or its first layers are the dear ones; rounding comes on top.

Beside it, for models of repeated blocks, whether measuring one block would do: the rank correlation (Spearman) of the
layers' sensitivities between the blocks, and how many times larger that to a layer is in one block than in another.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import click
import numpy as np
from scipy.stats import spearmanr

from benchmarks.comparison import load_case, plain_passes
from benchmarks.processes import in_process, peak_megabytes, timed
from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.find import table_of
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import merged
from precisionlab.model import Model, load_model
from precisionlab.model.layers import int8_operands
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for
from precisionlab.search.rank import relative_gain

CASES = {
    "magika": Precision.FP16,
    "minilm_l3": Precision.FP16,
    "minilm_l3 at 128 tokens": Precision.FP16,
    "ppocr4_rec": Precision.INT8,
    "ppocr4_det": Precision.INT8,
    "orient": Precision.INT8,
}
_BLOCK = re.compile(r"(?<=layer\.)\d+")


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--samples", default=8, show_default=True, help="As many as a sweep measures sensitivities on.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(cases: tuple[str, ...], samples: int, repeats: int, threads: int) -> None:
    """Print a row for each of CASES (all if none is named)."""
    click.echo(f"{samples} samples, {threads} threads, medians of {repeats}")
    click.echo(f"{'model':<26}{'low':<6}{'layers':>7}{'plain ms':>9}{'ranking s':>10}{'/ L·N':>7}{'a pin':>7}{'MB':>6}")
    for case in cases or CASES:
        row = in_process(_measure, case, samples, repeats, threads)
        click.echo(
            f"{case:<26}{CASES[case]:<6}{row['layers']:>7}{row['plain']:9.1f}{row['ranking']:10.2f}{row['ratio']:7.2f}"
            f"{row['pin']:7.1f}{row['peak']:6.0f}"
        )
        if row["blocks"]:
            low, high, spread = row["blocks"]
            click.echo(f"{'':<26}between blocks: Spearman {low:.2f} to {high:.2f}; its sensitivity {spread:.0f}×")


def _measure(case: str, count: int, repeats: int, threads: int) -> dict[str, Any]:
    path, samples = load_case(case, count)
    plain = plain_passes(path, samples, threads)
    backend = OnnxRuntimeBackend(load_model(path), samples[0], threads)
    model, table = backend.model, None
    if CASES[case] is Precision.INT8:
        collector = backend.collector(tuple({o: None for la in model.layers for o in int8_operands(model, la)}))
        collector.add(samples, lambda done: None)
        table = table_of(collector.histograms(), "max", count)
    low = plan_for(model, CASES[case], table)
    touched = tuple(layer.name for layer in model.layers if precision_of(layer, low) is not Precision.FP32)
    request = SensitivityRequest(PrecisionPlan(model.sha256, Precision.FP32), low, touched, table, judging_of(model))
    known = backend.compare(low, table, samples, lambda done: None, metric=None, introduced=False)

    def ranking() -> None:
        merged(backend.sensitivities(request, samples))

    def one_pin() -> None:
        backend.judge(low, table, samples, lambda done: None, metric=None, known=known)

    plain()
    ranking()
    times = [(timed(plain), timed(ranking), timed(one_pin)) for _ in range(repeats)]
    gains = {name: relative_gain(found) for name, found in merged(backend.sensitivities(request, samples)).items()}
    return {
        "layers": len(touched),
        "plain": statistics.median(p for p, _, _ in times) / count * 1e3,
        "ranking": statistics.median(r for _, r, _ in times),
        "ratio": statistics.median(r / (p * len(touched)) for p, r, _ in times),
        "pin": statistics.median(c / p for p, _, c in times),
        "peak": peak_megabytes(),
        "blocks": _blocks(model, gains),
    }


def _blocks(model: Model, gains: Mapping[str, float]) -> tuple[float, float, float] | None:
    """The least and the greatest rank correlation between two blocks, and the median spread of sensitivities."""
    by_block: dict[str, dict[str, float]] = {}
    for name, gain in gains.items():
        if (found := _BLOCK.search(name)) and np.isfinite(gain):
            by_block.setdefault(found[0], {})[_BLOCK.sub("*", name)] = abs(gain)
    common = set.intersection(*map(set, by_block.values())) if len(by_block) > 1 else set()
    if len(common) < 3:
        return None
    table = np.array([[block[name] for name in sorted(common)] for block in by_block.values()])
    ranks = [float(spearmanr(a, b).statistic) for a, b in combinations(table, 2)]
    spread = np.median(table.max(0) / np.maximum(table.min(0), np.finfo(float).tiny))
    return min(ranks), max(ranks), float(spread)


if __name__ == "__main__":
    main()
