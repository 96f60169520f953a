"""What the ranking by sensitivity costs: `python -m benchmarks.sensitivity [CASES] [--samples 8] [--repeats 3]`.

For each model: the time that a sweep ranks its L layers in, by what each alone does to the final outputs (in rounds:
all on the worst of N samples, a quarter on the next, six on two more; setting up included), over the time of L·N plain
ONNX Runtime passes of the same samples in the same process; the same with `--whole` for all layers on all samples; and
what a certificate costs for each pin, in passes over the samples. Seconds are by the clock, and in brackets of
processor time, which tells more where the machine has other work. Needs the prepared models (`make models`).

The floor: running each layer's rest of the network and no more is 0.5 of the passes where the layers are alike and
all behind each other, less where the network has branches or its first layers are the dear ones; rounding comes on top.
Rounds measure L + max(8, L/4) + 6·2 pairs of a layer and a sample, of L·8.

Beside it with `--whole`, for models of repeated blocks, whether measuring one block would do: the rank correlation
(Spearman) of the layers' sensitivities between the blocks, and how many times larger that to a layer is in one block
than in another.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import click
import numpy as np
from scipy.stats import spearmanr

from benchmarks.comparison import load_case, plain_passes
from benchmarks.processes import cpu_timed, in_process, peak_megabytes, timed
from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.find import table_of
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import Sensitivities, merged
from precisionlab.evaluate.samples import worst_samples
from precisionlab.model import Model, load_model
from precisionlab.model.layers import quantized_operands
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for
from precisionlab.search.pinning.rounds import ranked_in_rounds
from precisionlab.search.rank import rank, rank_by_sensitivity, relative_gain

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
@click.option("--whole", is_flag=True, help="Also measure all layers on all samples.")
def main(cases: tuple[str, ...], samples: int, repeats: int, threads: int, whole: bool) -> None:
    """Print a row for each of CASES (all if none is named)."""
    click.echo(f"{samples} samples, {threads} threads, medians of {repeats}")
    click.echo(f"{'model':<26}{'low':<6}{'layers':>7}{'plain ms':>9}{'rounds s':>10}{'/ L·N':>13}{'a pin':>7}{'MB':>6}")
    for case in cases or CASES:
        row = in_process(_measure, case, samples, repeats, threads, whole)
        click.echo(
            f"{case:<26}{CASES[case]:<6}{row['layers']:>7}{row['plain']:9.1f}{row['ranking']:10.2f}"
            f"{row['ratio']:7.3f} ({row['cpu']:.2f}){row['pin']:7.1f}{row['peak']:6.0f}"
        )
        if whole:
            click.echo(f"{'':<26}all layers on all samples: {row['whole']:.2f}")
        if row["blocks"]:
            low, high, spread = row["blocks"]
            click.echo(f"{'':<26}between blocks: Spearman {low:.2f} to {high:.2f}; its sensitivity {spread:.0f}×")


def _measure(case: str, count: int, repeats: int, threads: int, whole: bool) -> dict[str, Any]:
    path, samples = load_case(case, count)
    plain = plain_passes(path, samples, threads)
    backend = OnnxRuntimeBackend(load_model(path), samples[0], threads)
    model, table = backend.model, None
    if CASES[case] is Precision.INT8:
        collector = backend.collector(tuple({o: None for la in model.layers for o in quantized_operands(model, la)}))
        collector.add(samples, lambda done: None)
        table = table_of(collector.histograms(), "max", count)
    low = plan_for(model, CASES[case], table)
    touched = [layer for layer in model.layers if precision_of(layer, low) is not Precision.FP32]
    names = tuple(layer.name for layer in touched)
    reference, judging = PrecisionPlan(model.sha256, Precision.FP32), judging_of(model)
    known = backend.compare(low, table, samples, lambda done: None, metric=None, introduced=True)
    worst = worst_samples([sample.name for sample in samples], known)
    by_name = {sample.name: sample for sample in samples}

    def sensitivities(layers: Sequence[str], chosen: Sequence[str]) -> Sensitivities:
        request = SensitivityRequest(reference, low, tuple(layers), table, judging)
        return merged(backend.sensitivities(request, [by_name[name] for name in chosen]))

    def rounds() -> None:
        ranked_in_rounds(rank(touched, known.introduced), names, worst, sensitivities, rank_by_sensitivity)

    def one_pin() -> None:
        backend.judge(low, table, samples, lambda done: None, metric=None, known=known)

    plain()
    rounds()
    times = [(timed(plain), timed(rounds), timed(one_pin)) for _ in range(repeats)]
    cpu = [cpu_timed(rounds) / (cpu_timed(plain) * len(names)) for _ in range(repeats)]
    row: dict[str, Any] = {
        "layers": len(names),
        "plain": statistics.median(p for p, _, _ in times) / count * 1e3,
        "ranking": statistics.median(r for _, r, _ in times),
        "ratio": statistics.median(r / (p * len(names)) for p, r, _ in times),
        "cpu": statistics.median(cpu),
        "pin": statistics.median(c / p for p, _, c in times),
        "peak": peak_megabytes(),
        "blocks": None,
    }
    if whole:
        every = [sample.name for sample in samples]
        row["whole"] = timed(lambda: sensitivities(names, every)) / (timed(plain) * len(names))
        gains = {name: relative_gain(found) for name, found in sensitivities(names, every).items()}
        row["blocks"] = _blocks(model, gains)
    return row


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
