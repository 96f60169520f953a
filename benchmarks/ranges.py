"""INT8 task metrics by the method that finds the ranges: `python -m benchmarks.ranges [MODELS]`.

Ours (all methods and `auto`) beside ONNX Runtime's MinMax and Entropy (its defaults, symmetric), each calibrated on
the same samples, and judged on others by the same emulation: SQNR of the worst output in dB over all samples, which
one bad sample may rule; the typical sample's SQNR (the mean of the samples' own); and the task metric.
Needs the prepared models (`make models`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.comparison import PREPARED
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.find import table_of
from precisionlab.calibration.methods import AUTO, METHODS
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.task import Accuracy, TaskMetric, load_metric
from precisionlab.data import Dataset, Sample, open_dataset
from precisionlab.evaluate.ranges import best_table, typical_sqnr
from precisionlab.model import Model, load_model
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for
from precisionlab.system.observer import Silent

METRICS = {
    "minilm_l3": "examples/metrics.py:WordSimSpearman",
    "ppocr4_rec": "examples/metrics.py:CtcCharacterErrorRate",
    "ppocr4_det": "examples/metrics.py:TextBoxF1",
}
MODELS = ("magika", "minilm_l3", "orient", "ppocr4_rec", "ppocr4_det")


@click.command()
@click.argument("models", nargs=-1)
@click.option("--calibrate-on", default=64, show_default=True)
@click.option("--judge-on", default=100, show_default=True)
def main(models: tuple[str, ...], calibrate_on: int, judge_on: int) -> None:
    """Print a row for each of MODELS (all if none is named)."""
    logging.disable(logging.WARNING)
    for name in models or MODELS:
        model = load_model(PREPARED / name / f"{name}.onnx")
        every = list(open_dataset(PREPARED / name / "data", model, None, 0))
        order = np.random.default_rng(0).permutation(len(every))
        few = min(calibrate_on, len(every) // 2)
        known, judged = ([every[i] for i in part] for part in (order[:few], order[few : few + judge_on]))
        _print(name, model, known, judged)


def _print(name: str, model: Model, known: list[Sample], judged: list[Sample]) -> None:
    backend = OnnxRuntimeBackend(model, known[0])
    dataset = open_dataset(PREPARED / name / "data", model, None, 0)
    metric = _metric(name, dataset)
    operands = tuple(
        dict.fromkeys(o for layer in backend.model.layers for o in quantized_operands(backend.model, layer))
    )
    collector = backend.collector(operands)
    collector.add(known, lambda done: None)
    histograms = collector.histograms()
    tables = {method: table_of(histograms, method, len(known)) for method in METHODS}

    def compare(samples: list[Sample], table: CalibrationTable, introduced: bool) -> Comparison:
        plan = plan_for(backend.model, Precision.INT8, table)
        return backend.compare(plan, table, samples, lambda done: None, metric=metric, introduced=introduced)

    tables[AUTO] = best_table(
        backend.model, dict(tables), lambda _, table, introduced: compare(known, table, introduced), Silent()
    )
    for peer in ("MinMax", "Entropy"):
        try:
            tables[f"ONNX Runtime {peer}"] = _peer_table(model.path, known, peer, operands)
        except Exception as error:  # the peer fails on some models; that is a result too
            click.echo(f"{name:<12} ONNX Runtime {peer}: {type(error).__name__}: {error}"[:110])
    found = {method: compare(judged, table, False) for method, table in tables.items()}
    first = next(iter(found.values()))
    click.echo(
        f"{name}: {first.metric_name} in float32 {first.reference_metric:.3f}; "
        f"{len(known)} samples calibrate, {len(judged)} judge"
    )
    for method, comparison in found.items():
        click.echo(
            f"{name:<12} {method:<22} {comparison.worst('sqnr'):7.1f} dB, typical {typical_sqnr(comparison):5.1f} dB "
            f"{comparison.metric:9.3f}"
        )


def _metric(name: str, dataset: Dataset) -> Callable[[], TaskMetric]:
    if name in METRICS:
        return load_metric(METRICS[name])
    return partial(Accuracy, dataset.manifest.output or dataset.model_outputs[0].name)


def _peer_table(path: Path, samples: list[Sample], method: str, operands: tuple[str, ...]) -> CalibrationTable:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    from benchmarks.peer import Reader

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            path, None, str(Path(folder) / "augmented.onnx"), calibrate_method=CalibrationMethod[method],
            extra_options={"symmetric": True},
        )  # fmt: skip
        calibrator.collect_data(Reader(samples))
        found = calibrator.compute_data()
    ranges = {}
    for name in operands:
        low, high = found[name].range_value
        ranges[name] = Range(float(max(abs(np.asarray(low)).max(), abs(np.asarray(high)).max())), method)
    return CalibrationTable(ranges, len(samples))


if __name__ == "__main__":
    main()
