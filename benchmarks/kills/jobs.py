"""What is killed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "calib_data"
PREPARED = ROOT / "examples" / "prepared"


@dataclass(frozen=True)
class Job:
    """A command, without its `--out`, its share of the kills, and whether these fall on the end of the run alone."""

    name: str
    words: tuple[str, ...]
    share: int
    writing: bool = False

    @property
    def has_workers(self) -> bool:
        """Whether other processes work for the one that was started."""
        return "--processes" in self.words


def jobs() -> list[Job]:
    """Sweeps in both precisions, searches among many layers, and calibrations; few samples each."""

    def prepared(name: str) -> tuple[str, ...]:
        return str(PREPARED / name / f"{name}.onnx"), "--data", str(PREPARED / name / "data")

    few = ("--samples", "1", "--tolerance", "sqnr>=25", "--max-evaluations", "3")
    digits = (str(DIGITS / "digits.onnx"), "--data", str(DIGITS))
    small = ("sweep", *digits, "--samples", "8", "--tolerance", "sqnr>=40", "--precisions", "int8")
    half = (*prepared("magika"), "--precisions", "fp16")
    two = ("--processes", "2")
    cache = ("calibrate", *digits, "--samples", "16")
    return [
        Job("sweep digits", ("sweep", *digits, "--samples", "12", "--tolerance", "sqnr>=40"), 70),
        Job("sweep magika", ("sweep", *half, "--samples", "4"), 40),
        Job("sweep ppocr4_det", ("sweep", *prepared("ppocr4_det"), "--precisions", "int8", *few), 20),
        Job("calibrate digits", ("calibrate", *digits, "--method", "auto"), 50),
        Job("calibrate ppocr4_det", ("calibrate", *prepared("ppocr4_det"), "--samples", "4"), 20),
        Job("sweep digits, two processes", (*small, *two), 50),
        Job("calibrate digits, two processes", (*cache, "--method", "auto", *two), 30),
        Job("sweep digits, writing", small, 50, writing=True),
        Job(
            "sweep magika, writing", ("sweep", *prepared("magika"), "--samples", "1", "--precisions", "fp16"), 20, True
        ),
        Job("calibrate digits, writing", cache, 30, writing=True),
        Job("sweep digits, two processes, writing", (*small, *two), 20, writing=True),
    ]
