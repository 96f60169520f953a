"""Calibration, comparison and search on a GPU: `python -m benchmarks.device MODEL.onnx DATA [MODEL.onnx DATA]…`.

For each model, times of a sample, each with all set up and run once before: a plain pass of ONNX Runtime's CUDA
provider with all its optimisations, values bound to the GPU's memory; the histograms of every tensor that a sweep looks
at; the comparison with each layer alone; the ranking (every layer alone to the outputs). Beside them the same on the
CPU with all its cores. Then how much of the GPU's memory is in use, pass after pass. In Markdown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from precisionlab.backends import emulation
from precisionlab.backends.base import Detail, Evaluation, SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.tensorrt.cuda import Cuda
from precisionlab.compare.judging import judging_of
from precisionlab.data import open_dataset
from precisionlab.model import Model, load_model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import is_observed

SAMPLES = 32


def plain(path: Path, samples: list[Any], providers: list[Any]) -> Callable[[], None]:
    """A plain pass over all samples."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=providers)
    names = [info.name for info in session.get_outputs()]

    def once() -> None:
        for sample in samples:
            binding = session.io_binding()
            for name, array in sample.inputs.items():
                binding.bind_cpu_input(name, array)
            for name in names:
                binding.bind_output(name, "cpu" if providers == ["CPUExecutionProvider"] else "cuda")
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

    return once


def work(backend: OnnxRuntimeBackend, samples: list[Any]) -> dict[str, Callable[[], None]]:
    """What a sweep does, over all samples, with sessions that are made once."""
    model: Model = backend.model
    plan = PrecisionPlan(model.sha256, Precision.FP16)
    tensors = tuple(name for layer in model.layers for name in layer.outputs if is_observed(model, name))
    collector = backend.collector(tensors)
    watch = backend.watch(Evaluation(plan, None, Detail.INTRODUCED, False, judging_of(model)))
    low = tuple(layer.name for layer in model.layers if precision_of(layer, plan) is not Precision.FP32)
    request = SensitivityRequest(PrecisionPlan(model.sha256, Precision.FP32), plan, low, None, judging_of(model))

    def ranking() -> None:
        for _ in backend.sensitivities(request, samples[:8]):
            pass

    return {
        "histograms": lambda: collector.add(samples, lambda done: None),
        "comparison": lambda: [None for _ in watch(samples)] and None,
        "ranking (8 samples, sessions made anew)": ranking,
    }


def seconds(action: Callable[[], None]) -> float:
    """The shortest of three, after one that does not count."""
    action()
    found = []
    for _ in range(3):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> None:
    """Measure each model given."""
    given = [Path(argument) for argument in sys.argv[1:]]
    cuda = Cuda.load()
    print(
        f"{cuda.device()}; onnxruntime {ort.__version__}; milliseconds a sample (× plain passes on the same device)\n"
    )
    print("| model | what | GPU | CPU | CPU / GPU |\n|---|---|---|---|---|")
    for path, data in zip(given[::2], given[1::2], strict=True):
        model = load_model(path)
        dataset = open_dataset(data, model, SAMPLES, 0)
        samples = list(dataset)
        backends = [emulation(model, dataset, None, None, device) for device in ("cuda", "cpu")]
        cuda_options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        passes = [
            seconds(plain(path, samples, [("CUDAExecutionProvider", cuda_options), "CPUExecutionProvider"])),
            seconds(plain(path, samples, ["CPUExecutionProvider"])),
        ]
        scale = 1000 / len(samples)
        cells = [f"{p * scale:.2f}" for p in passes]
        print(f"| {path.stem} | plain pass | {cells[0]} | {cells[1]} | {passes[1] / passes[0]:.1f} |")
        jobs = [work(backend, samples) for backend in backends]
        for name in jobs[0]:
            times = [seconds(job[name]) for job in jobs]
            factor = 1000 / len(samples[:8] if "8" in name else samples)
            cells = [f"{t * factor:.2f} ({t * factor / (p * scale):.1f}×)" for t, p in zip(times, passes, strict=True)]
            print(f"| {path.stem} | {name} | {cells[0]} | {cells[1]} | {times[1] / times[0]:.1f} |", flush=True)
        shown = backends[0].model
        collector = backends[0].collector([n for la in shown.layers for n in la.outputs if is_observed(shown, n)])
        used = []
        for _ in range(4):
            collector.add(samples, lambda done: None)
            free, total = cuda.memory()
            used.append(f"{(total - free) / 1e6:.0f}")
        print(f"| {path.stem} | GPU memory in use, MB, after each of four passes | {', '.join(used)} | | |")


if __name__ == "__main__":
    main()
