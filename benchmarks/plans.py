"""What one more plan costs: `python -m benchmarks.plans MODEL.onnx DATA [--device cuda] [--precision fp16]`.

Figures are in plain passes of a sample: ONNX Runtime's own session of the file, with all its optimisations, in the same
process (on a GPU with values bound to its memory). A fresh plan is `judge` of one that was not seen before, over all
samples, with whatever has to be made for it: of the first that is the sessions of all, of the next nothing. The ranking
is that of a sweep: all layers on one sample, a quarter on a second, six on six more, setting up included; its cost
stands beside L · N, as many passes as measuring each of L layers on N samples by a pass would take.

The floor of a fresh plan is one pass a sample, and its rounding; of the ranking 0.5 / N where layers stand behind one
another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import click
import onnxruntime as ort

from benchmarks.device import plain, seconds
from precisionlab.backends import emulation
from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.find import table_of
from precisionlab.compare.judging import judging_of
from precisionlab.data import Sample, open_dataset
from precisionlab.model import load_model
from precisionlab.model.layers import quantized_operands
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision

ROUNDS = ((1.0, slice(0, 1)), (0.25, slice(1, 2)), (6, slice(2, 8)))
"""How many of the layers (a share, or a number) on which of the samples."""
CUDA = ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", default="fp16", show_default=True)
@click.option("--samples", default=16, show_default=True)
@click.option("--plans", default=4, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(path: Path, data: Path, device: str, precision: str, samples: int, plans: int, threads: int) -> None:
    """Print a line for each figure."""
    model = load_model(path)
    dataset = open_dataset(data, model, samples, 0)
    given = list(dataset)
    backend = emulation(model, dataset, threads, None, device)
    assert isinstance(backend, OnnxRuntimeBackend)
    providers = [CUDA, "CPUExecutionProvider"] if device != "cpu" else ["CPUExecutionProvider"]
    each = seconds(plain(path, given, providers)) / len(given)
    low = Precision(precision)
    layers = [layer.name for layer in backend.model.layers]
    click.echo(f"{path}: {len(layers)} layers, {device}, {low}, {len(given)} samples, onnxruntime {ort.__version__}")
    click.echo(f"  a plain pass: {each * 1000:.2f} ms")
    show = Figures(backend, given, low, each)
    show.fresh_plans(plans)
    show.ranking()


class Figures:
    """The figures of one model."""

    def __init__(self, backend: OnnxRuntimeBackend, samples: list[Sample], low: Precision, each: float) -> None:
        self._backend, self._samples, self._each = backend, samples, each
        model = backend.model
        self._table = None
        if low.is_quantized:
            tensors = sorted({name for layer in model.layers for name in quantized_operands(model, layer)})
            collector = backend.collector(tensors)
            collector.add(samples, lambda done: None)
            self._table = table_of(collector.histograms(), "max", len(samples))
        self._low = PrecisionPlan(model.sha256, low)
        lowered = [layer for layer in model.layers if precision_of(layer, self._low) is not Precision.FP32]
        self._layers = [layer.name for layer in lowered]

    def fresh_plans(self, count: int) -> None:
        """Plans of one pin, two, …: none was seen before."""
        backend, table, samples, model = self._backend, self._table, self._samples, self._backend.model
        known = backend.compare(self._low, table, samples, _unheard, metric=None, introduced=False)
        for pins in range(1, count + 1):
            pinned = [model.layer[name] for name in self._layers[5 : 5 + 7 * pins : 7]]
            plan = self._low.with_pins(Pin(layer.name, layer.nodes, Precision.FP32, "") for layer in pinned)
            took = _timed(lambda plan=plan: backend.judge(plan, table, samples, _unheard, metric=None, known=known))
            click.echo(
                f"  fresh plan {pins}: {took:.2f} s, {took / self._each / len(samples):.1f} plain passes a sample"
            )

    def ranking(self) -> None:
        """The rounds of a sweep's ranking, and the whole of it beside L · N."""
        reference = PrecisionPlan(self._backend.model.sha256, Precision.FP32)
        judging, total = judging_of(self._backend.model), 0.0
        for share, part in ROUNDS:
            count = math.ceil(len(self._layers) * share) if share <= 1 else int(share)
            chosen = tuple(self._layers[:count])
            request = SensitivityRequest(reference, self._low, chosen, self._table, judging)
            of = self._samples[part]
            took = _timed(lambda request=request, of=of: list(self._backend.sensitivities(request, of)))
            total += took
            passes = took / self._each
            click.echo(f"  ranking {count} layers on {len(of)} samples: {took:.2f} s, {passes:.0f} plain passes")
        most = len(self._layers) * min(8, len(self._samples)) * self._each
        click.echo(f"  the ranking: {total / self._each:.0f} plain passes, {total / most:.3f} of L · N")


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _unheard(_: int) -> None:
    """Nobody listens."""


if __name__ == "__main__":
    main()
