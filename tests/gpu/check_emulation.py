"""Holds the emulation on a GPU against the one on the CPU; needs onnxruntime-gpu, cuda-python with NVRTC, and a GPU.

    PYTHONPATH=<repository>:<repository>/tests python tests/gpu/check_emulation.py [MODEL.onnx DATA]…

Sums and counts of error are those of the CPU's loops (counts exactly, sums to 1e-10), histograms the same to the last
bin. Plans whose runs are captured as CUDA graphs have the figures of ordinary runs, and a whole sweep of the bundled
digits, and of each model given, ends with the same pins and with figures within 2 dB of the CPU's, or 3 % of them.
Prints a line for each check, and exits with 1 where one has failed.
"""

from __future__ import annotations

import math
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from precisionlab import sweep
from precisionlab.backends import emulation
from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.backends.cuda.device import Gpu, gpu
from precisionlab.calibration.histogram import Histograms
from precisionlab.compare.errors import ErrorTable
from precisionlab.data import open_dataset
from precisionlab.model import load_model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision

DIGITS = Path(__file__).parents[2] / "calib_data"
RANDOM = np.random.default_rng(0)


def there(array: NDArray[np.float32]) -> DeviceArray:
    """The array in the GPU's memory."""
    return DeviceArray(ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))


def odd(size: int) -> NDArray[np.float32]:
    """Values of all kinds: tiny, huge, zero, NaN and infinite among them."""
    values = (RANDOM.normal(size=size) * 10.0 ** RANDOM.uniform(-8, 6, size)).astype(np.float32)
    for special in (0.0, -0.0, math.nan, math.inf, -math.inf, 65504.0, 65505.0, 3e38, -3e38, 1e-45):
        values[RANDOM.integers(0, size, 1 + size // 1000)] = special
    return values


def check_error_sums(card: Gpu) -> None:
    """Sums and counts of plain and odd pairs, empty and scalar ones among them."""
    sizes = (0, 1, 255, 256, 257, 100_003, 3_000_001)
    plain = [RANDOM.normal(size=size).astype(np.float32) for size in sizes]
    pairs = [(a, (a + 1e-3 * RANDOM.normal(size=a.size)).astype(np.float32)) for a in plain]
    pairs += [(odd(size), odd(size)) for size in sizes[1:]]
    formats = [Precision.formats()[row % 3].number_format for row in range(len(pairs) + 1)]
    expected, table = ErrorTable(len(formats), formats), card.errors(formats)
    kept = []
    for row, (reference, output) in enumerate(pairs):
        for _ in range(2):
            expected.add(row, reference, output)
            kept.append((there(reference), there(output)))
            table.add(row, *kept[-1])
    expected.count_nonfinite(len(pairs), pairs[-1][1])
    table.count_nonfinite(len(pairs), kept[-1][1])
    found = table.result()
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_allclose(found.sums[:, :4], expected.sums[:, :4], rtol=1e-10)
    np.testing.assert_array_equal(found.sums[:, 4:], expected.sums[:, 4:])


def check_histograms(card: Gpu) -> None:
    """Histograms that grow, of several tensors over several batches: the same bins as on the CPU."""
    names = tuple("abc")
    expected, found = Histograms(names), card.histograms(names)
    for size in (10, 5_000, 1, 200_001, 0, 1_000_000):
        kept = []
        for power, name in enumerate(names):
            values = odd(size) if name == "c" and size else RANDOM.normal(size=size).astype(np.float32) * 7.0**power
            values = values.astype(np.float32)
            expected.add(name, values)
            kept.append(there(values))
            found.add(name, kept[-1])
        found.settle()
    for name in names:
        a, b = found[name], expected[name]
        np.testing.assert_array_equal(a.bins, b.bins)
        assert (a.exponent, a.amax, a.zeros, a.nonfinite) == (b.exponent, b.amax, b.zeros, b.nonfinite), (name, a, b)


def check_replays(card: Gpu, path: Path, data: Path) -> None:
    """Plans whose runs are captured, at the shapes that come again: every figure is that of ordinary runs."""
    model = load_model(path)
    samples = open_dataset(data, model, 8, 0)
    backend = emulation(model, samples, 4, None, card.name)
    low = PrecisionPlan(model.sha256, Precision.FP16)
    layers = [layer for layer in backend.model.layers if precision_of(layer, low) is not Precision.FP32]
    known = backend.compare(low, None, samples, lambda _: None, metric=None, introduced=False)

    def judged() -> list[dict[str, object]]:
        found = []
        for count in (1, 2, 3):
            plan = low.with_pins(Pin(layer.name, layer.nodes, Precision.FP32, "") for layer in layers[:: 2 * count])
            found.append(backend.judge(plan, None, samples, lambda _: None, metric=None, known=known).to_dict())
        return [{name: str(value) for name, value in one.items() if name != "seconds"} for one in found]

    captured = judged()
    with patch.object(Gpu, "replayed", lambda *_: None):
        assert captured == judged()


def check_sweep(model: Path, data: Path) -> None:
    """The whole job on both."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            sweep(model, data, samples=8, max_evaluations=60, device=device, out=Path(folder) / device)
            for device in ("cpu", "cuda")
        ]
    cpu, cuda = (run.variants.set_index(["variant", "output"]) for run in runs)
    pins = [{name: sorted(pin.layer for pin in plan.pins) for name, plan in run.plans.items()} for run in runs]
    text = [f"{index[0]} {a:.1f}/{b:.1f}" for index, a, b in zip(cpu.index, cpu.sqnr_db, cuda.sqnr_db, strict=True)]
    print(f"     {model.stem}: SQNR cpu/cuda, dB: {', '.join(text)}; pins the same: {pins[0] == pins[1]}", flush=True)
    for a, b in zip(cpu.sqnr_db, cuda.sqnr_db, strict=True):
        assert (math.isnan(a) and math.isnan(b)) or a == b or abs(a - b) <= max(2.0, 0.03 * abs(a)), text


def main() -> int:
    """Run all checks."""
    card = gpu(0)
    print(card.facts)
    checks: list[tuple[str, Callable[[], None]]] = [
        ("error sums", partial(check_error_sums, card)),
        ("histograms", partial(check_histograms, card)),
        ("sweep of digits", partial(check_sweep, DIGITS / "digits.onnx", DIGITS)),
    ]
    given = [Path(argument) for argument in sys.argv[1:]]
    for model, data in zip(given[::2], given[1::2], strict=True):
        checks.append((f"captured runs of {model.stem}", partial(check_replays, card, model, data)))
        checks.append((f"sweep of {model.stem}", partial(check_sweep, model, data)))
    failed = 0
    for name, check in checks:
        try:
            check()
            print(f"ok   {name}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
