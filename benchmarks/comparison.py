"""What comparing every layer costs: `python -m benchmarks.comparison [--samples 32] [--batch 1] [--peer]`.

For each model: the time of one `compare` call (inherited and introduced error of all layers, one FP16 variant;
building its graph included) over the time of plain ONNX Runtime passes of the same samples, taken alternately
in one process, and the process's peak memory. `--batch` runs so many samples of one shape together; the plain passes
stay one by one. With `--peer` also ONNX Runtime's own `qdq_loss_debug`, which
compares each tensor of an INT8 model with the float one, in a process of its own. Needs the prepared models
(`make models`).

The floor: reference, variant and each layer alone are three computations, so 3× if gates and sums were free
and nothing were observed; an FP16 gate costs about 0.07 ms and the sums about 0.5 ms for a million values on one core.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.processes import in_process, peak_megabytes, timed
from precisionlab.backends.batching import batching_of
from precisionlab.backends.device import CPU
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.data import Sample, open_dataset
from precisionlab.model import load_model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision

PREPARED = Path(__file__).parent.parent / "examples" / "prepared"
CASES = ("orient", "minilm_l3", "minilm_l3 at 128 tokens", "magika", "ppocr4_rec", "ppocr4_det")


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--samples", default=32, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--batch", default=1, show_default=True, help="Samples of one shape that ours runs together.")
@click.option("--peer", is_flag=True, help="Also measure ONNX Runtime's qdq_loss_debug.")
def main(cases: tuple[str, ...], samples: int, repeats: int, threads: int, batch: int, peer: bool) -> None:
    """Print a row for each of CASES (all if none is named)."""
    click.echo(f"{samples} samples, {batch} together, {threads} threads, medians of {repeats}")
    click.echo(f"{'model':<26}{'plain ms':>9}{'ours ms':>9}{'ratio':>7}{'peak MB':>9}{'peer ratio':>12}{'peer MB':>9}")
    for case in cases or CASES:
        row = in_process(_measure, case, samples, repeats, threads, batch)
        line = f"{case:<26}{row['plain']:9.1f}{row['ours']:9.1f}{row['ratio']:7.1f}{row['peak']:9.0f}"
        if peer:
            other = in_process(_measure_peer, case, samples, threads)
            line += f"{other['ratio']:12.1f}{other['peak']:9.0f}" if "ratio" in other else f"  {other['failed']}"
        click.echo(line)


def load_case(case: str, count: int) -> tuple[Path, list[Sample]]:
    name = case.split()[0]
    path = PREPARED / name / f"{name}.onnx"
    model = load_model(path)
    samples = list(islice(_repeated(open_dataset(PREPARED / name / "data", model, None, 0)), count))
    if case.endswith("tokens"):
        generator = np.random.default_rng(0)
        shape = (1, int(case.split()[2]))
        samples = [
            Sample(
                str(i), {"input_ids": generator.integers(1, 30000, shape), "attention_mask": np.ones(shape, np.int64)}
            )
            for i in range(count)
        ]
    return path, samples


def _repeated(dataset: Any) -> Iterator[Sample]:
    while True:
        yield from dataset


def plain_passes(path: Path, samples: list[Sample], threads: int) -> Callable[[], None]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run() -> None:
        for sample in samples:
            session.run(None, dict(sample.inputs))

    return run


def _measure(case: str, count: int, repeats: int, threads: int, batch: int) -> dict[str, Any]:
    path, samples = load_case(case, count)
    plain = plain_passes(path, samples, threads)
    backend = OnnxRuntimeBackend(load_model(path), samples[0], threads)
    backend.run_together(batching_of(backend.model, batch, samples, CPU, backend.budget))
    plan = PrecisionPlan(backend.model.sha256, Precision.FP16)

    def ours() -> None:
        backend.compare(plan, None, samples, lambda done: None, metric=None, introduced=True)

    plain()
    ours()
    times = [(timed(plain), timed(ours)) for _ in range(repeats)]
    return {
        "plain": statistics.median(p for p, _ in times) * 1e3,
        "ours": statistics.median(o for _, o in times) * 1e3,
        "ratio": statistics.median(o / p for p, o in times),
        "peak": peak_megabytes(),
    }


def _measure_peer(case: str, count: int, threads: int) -> dict[str, Any]:
    import logging
    import tempfile

    from onnxruntime.quantization import QuantFormat, QuantType, qdq_loss_debug, quantize_static

    from benchmarks.peer import Reader

    logging.disable(logging.WARNING)
    path, samples = load_case(case, count)
    plain = plain_passes(path, samples, threads)

    with tempfile.TemporaryDirectory() as folder:
        quantized, seen, seen_quantized = (str(Path(folder) / n) for n in ("int8.onnx", "float+.onnx", "int8+.onnx"))
        try:
            quantize_static(
                str(path), quantized, Reader(samples), quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"], extra_options={"ActivationSymmetric": True},
            )  # fmt: skip
        except Exception as error:  # the peer fails on some models; that is a result too
            return {"failed": f"{type(error).__name__}: {error}"[:60]}

        def peer() -> None:
            qdq_loss_debug.modify_model_output_intermediate_tensors(str(path), seen)
            qdq_loss_debug.modify_model_output_intermediate_tensors(quantized, seen_quantized)
            floats = qdq_loss_debug.collect_activations(seen, Reader(samples))
            lows = qdq_loss_debug.collect_activations(seen_quantized, Reader(samples))
            qdq_loss_debug.compute_activation_error(qdq_loss_debug.create_activation_matching(lows, floats))

        plain()
        try:
            seconds = timed(peer)
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"[:60]}
        return {
            "ratio": seconds / timed(plain),
            "peak": peak_megabytes(),
        }


if __name__ == "__main__":
    main()
