"""Sweeps in one process for hours: `python -m benchmarks.soak [--hours H] [--csv FILE]`.

Round after round: digits swept in both precisions, magika in FP16 and ppocr4_det's INT8 ranges on few samples, a
report drawn again, calibrations, and input that is refused. After each round the process's resident memory (MB), its
open files and its threads are written down. What leaks grows with the rounds: the last line says by how much a round,
over the second half, with the standard error of the slope, and the first and the last quarter's medians.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np

from precisionlab.errors import PrecisionLabError
from precisionlab.jobs.calibrate import calibrate
from precisionlab.jobs.sweep import sweep
from precisionlab.report.redraw import redraw

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "calib_data"
PREPARED = ROOT / "examples" / "prepared"


def round_of_work(out: Path) -> None:
    """What one round does, in a fresh folder."""
    for name in ("a", "b"):
        sweep(DIGITS / "digits.onnx", DIGITS, out=out / name, samples=16)
    redraw(out / "a")
    sweep(PREPARED / "magika" / "magika.onnx", PREPARED / "magika" / "data", precisions="fp16", samples=4,
          holdout=0, out=out / "magika")  # fmt: skip
    calibrate(DIGITS / "digits.onnx", DIGITS, out=out / "calibration")
    calibrate(PREPARED / "ppocr4_det" / "ppocr4_det.onnx", PREPARED / "ppocr4_det" / "data", samples=1,
              out=out / "detector")  # fmt: skip
    broken = out / "broken.onnx"
    broken.write_bytes((DIGITS / "digits.onnx").read_bytes()[:-100])
    with contextlib.suppress(PrecisionLabError):
        sweep(broken, DIGITS, out=out / "broken")


def resident() -> float:
    """The process's resident memory, in MB (`/proc/self/status`)."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))) / 1024


@click.command()
@click.option("--hours", default=2.0, show_default=True)
@click.option("--csv", type=click.Path(path_type=Path), default=None, help="Where each round's figures go.")
def main(hours: float, csv: Path | None) -> None:
    """Run rounds until the time is over, and tell what grew."""
    started, rows = time.monotonic(), []
    lines = ["round,seconds,resident_mb,open_files,threads"]
    while time.monotonic() - started < hours * 3600:
        folder = Path(tempfile.mkdtemp(prefix="soak"))
        try:
            round_of_work(folder)
        finally:
            shutil.rmtree(folder)
        gc.collect()
        row = (
            time.monotonic() - started,
            resident(),
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
        )
        rows.append(row)
        lines.append(f"{len(rows)},{row[0]:.0f},{row[1]:.1f},{row[2]},{row[3]}")
        if csv:
            csv.write_text("\n".join(lines) + "\n")
        click.echo(lines[-1])
    memory = [row[1] for row in rows]
    half = np.array(memory[len(memory) // 2 :])
    (slope, _), covariance = np.polyfit(np.arange(half.size), half, 1, cov=True)
    quarter = max(1, len(memory) // 4)
    click.echo(
        f"{len(rows)} rounds in {rows[-1][0] / 3600:.2f} h; second half: {slope:+.3f} ± {covariance[0, 0] ** 0.5:.3f} "
        f"MB a round; median of the first quarter {statistics.median(memory[:quarter]):.0f} MB, of the last "
        f"{statistics.median(memory[-quarter:]):.0f} MB; open files {rows[0][2]} → {rows[-1][2]}, "
        f"threads {rows[0][3]} → {rows[-1][3]}"
    )


if __name__ == "__main__":
    main()
