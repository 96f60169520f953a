"""What calibration costs: `python -m benchmarks.calibration [CASES] [--samples 16,64,256] [--peers]`.

For each model and number of samples: the time of one calibration (all float tensors, histograms and `entropy`
thresholds, setting up included) over that of plain ONNX Runtime passes of the same samples, taken alternately in
one process, and the process's peak memory. With `--peers` also ONNX Runtime's own calibraters, each in a process of
its own: MinMax, Percentile, Entropy (128 bins of 128 levels, its default) and Entropy with 2048 bins of 128 levels.
Needs the prepared models (`make models`).

The floor: a pass that shows every tensor costs 1.0 to 1.6 plain passes, filling a histogram about 0.5 ms for a
million values on one core.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.comparison import load_case, plain_passes
from benchmarks.processes import in_process, peak_megabytes, timed
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.find import table_of
from precisionlab.jobs.calibrate import calibrated_tensors
from precisionlab.model import load_model

CASES = ("orient", "minilm_l3", "minilm_l3 at 128 tokens", "ppocr4_det")
PEERS = {
    "MinMax": ("MinMax", {}),
    "Percentile": ("Percentile", {}),
    "Entropy": ("Entropy", {}),
    "Entropy 2048": ("Entropy", {"num_bins": 2048, "num_quantized_bins": 128}),
}
_PATIENCE = 150.0  # seconds; a peer that takes longer is cut off, and said to be
_MEMORY = 16 * 1024**3  # bytes; a peer that wants more is refused it, and said to be


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--samples", default="16,64,256", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--peers", is_flag=True, help="Also measure ONNX Runtime's own calibraters.")
def main(cases: tuple[str, ...], samples: str, repeats: int, threads: int, peers: bool) -> None:
    """Print a row for each of CASES (all if none is named), number of samples and tool."""
    click.echo(f"{threads} threads, medians of {repeats} (the peers: one run)")
    click.echo(f"{'model':<26}{'samples':>8}  {'tool':<14}{'ratio':>8}{'peak MB':>9}")
    for case in cases or CASES:
        for count in map(int, samples.split(",")):
            _print(case, count, "ours, entropy", in_process(_measure, case, count, repeats, threads))
            for name in PEERS if peers else ():
                _print(case, count, name, in_process(_measure_peer, case, count, name, threads, seconds=_PATIENCE))


def _print(case: str, count: int, tool: str, row: dict[str, Any]) -> None:
    figures = f"  {row['failed']}" if "failed" in row else f"{row['ratio']:8.1f}{row['peak']:9.0f}"
    click.echo(f"{case:<26}{count:>8}  {tool:<14}{figures}")


def _measure(case: str, count: int, repeats: int, threads: int) -> dict[str, Any]:
    path, samples = load_case(case, count)
    plain = plain_passes(path, samples, threads)
    backend = OnnxRuntimeBackend(load_model(path), samples[0], threads)

    def ours() -> None:
        collector = backend.collector(calibrated_tensors(backend.model))
        collector.add(samples, lambda done: None)
        table_of(collector.histograms(), "entropy", count)

    plain()
    ours()
    ratios = [1 / timed(plain) * timed(ours) for _ in range(repeats)]
    return {"ratio": statistics.median(ratios), "peak": peak_megabytes()}


def _measure_peer(case: str, count: int, name: str, threads: int) -> dict[str, Any]:
    import logging
    import resource

    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    from benchmarks.peer import Reader

    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    path, samples = load_case(case, count)
    plain = plain_passes(path, samples, threads)

    method, options = PEERS[name]
    plain()
    base = timed(plain)
    with tempfile.TemporaryDirectory() as folder:

        def peer() -> None:
            calibrator = create_calibrator(
                path, None, str(Path(folder) / "augmented.onnx"), calibrate_method=CalibrationMethod[method],
                extra_options={"symmetric": True, **options},
            )  # fmt: skip
            calibrator.collect_data(Reader(samples))
            calibrator.compute_data()

        try:
            seconds = timed(peer)
        except Exception as error:  # the peer fails on some models; that is a result too
            return {"failed": f"{type(error).__name__}: {error}"[:60]}
    return {"ratio": seconds / base, "peak": peak_megabytes()}


if __name__ == "__main__":
    main()
