"""What quantisers make of the same models: `python -m benchmarks.quantizers [CASES] [--precisions fp8,int8,int4]`.

For each model and precision, among float32: NVIDIA ModelOpt with its defaults, and a sweep of ours as a user runs it
(its default tolerance, so that it pins what it has to). ModelOpt measures nothing and keeps what it likes high, so that
the two files rarely have as many products low: a second sweep of ours is asked for more than can be had, and may pin no
more layers than ModelOpt keeps high. Where the first sweep has pinned no more and is no worse it is left out. All see
the same samples; ONNX Runtime runs the file that each has written, nothing optimised, on samples that none has seen
(every fourth). Shown are products (Conv, ConvTranspose, Gemm, MatMul) whose two operands, of int4 the weight, are
dequantised, of how many; Q/DQ nodes; the SQNR of the worst output; and the seconds of the tool's own call.

ModelOpt lives in an environment of its own: see `benchmarks.pins`. The models are those of `benchmarks.typed`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import onnx

from benchmarks.pins import ROOT, Case, case_of, environment
from benchmarks.pins_judge import QUANTIZED_OPS, end_error
from benchmarks.typed_models import files_of

CASES = ("magika", "minilm_l3", "orient", "ppocr4_rec")
PRECISIONS = ("fp8", "int8", "int4")
_THROUGH = frozenset({"Cast", "Reshape", "Transpose", "Mul"})
"""What may stand between what is dequantised and its product."""

_WEIGHTED = frozenset({"MatMul", "Gemm"})
"""Products whose weights may be in four bits."""

_BEYOND = "sqnr>=60"
"""What no quantised plan holds, so that a search goes on to the pins that it may have."""

_BLOCKS = 21
"""ONNX's first opset whose DequantizeLinear has blocks."""


@dataclass(frozen=True)
class Made:
    """A tool's file, or why there is none."""

    tool: str
    file: Path
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Judged:
    """The cells of a tool's row; how many products its file keeps high, and its SQNR, None where it does not run."""

    row: str
    high: int = 0
    sqnr: float | None = None


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--precisions", default=",".join(PRECISIONS), show_default=True)
@click.option("--samples", default=32, show_default=True, help="The most samples that a tool sees.")
@click.option("--patience", default=300, show_default=True, help="Seconds that a search of ours may take.")
def main(cases: tuple[str, ...], precisions: str, samples: int, patience: int) -> None:
    """Print a row for each tool and precision of CASES (all if none is named)."""
    click.echo("| model | precision | tool | products | Q + DQ | SQNR dB | seconds |\n|---|---|---|---|---|---|---|")
    for name in cases or CASES:
        for precision in precisions.split(","):
            with tempfile.TemporaryDirectory() as folder:
                case = case_of(name, precision, *files_of(name), samples, Path(folder))
                for row in _rows(case, patience):
                    click.echo(f"| {name} | {precision} | {row} |")


def _rows(case: Case, patience: int) -> Iterator[str]:
    """A tool's row each, as soon as it is there."""
    theirs = _judged(case, _modelopt(case))
    yield theirs.row
    ours = _judged(case, _ours(case, patience))
    yield ours.row
    if theirs.sqnr is not None and (ours.sqnr is None or ours.high > theirs.high or ours.sqnr < theirs.sqnr):
        yield _judged(case, _ours(case, patience, theirs.high)).row


def _modelopt(case: Case) -> Made:
    out = case.data.parent / "modelopt.onnx"
    given = [str(case.model), str(case.data), str(out)]
    module = "modelopt_int4" if case.precision == "int4" else "modelopt_quantized"
    asked = [*given, "rtn_dq"] if case.precision == "int4" else [case.precision, *given, "fp32"]
    command = [str(environment("modelopt")), "-m", f"benchmarks.peers_pins.{module}", *asked]
    return _run("ModelOpt", [command], out, case.data.parent)  # it builds an extension, where it is


def _ours(case: Case, patience: int, most: int | None = None) -> Made:
    """A sweep and its typed model; the best with at most so many pins where that is said."""
    title = "precisionlab" if most is None else f"precisionlab, at most {most} pinned"
    folder, out = case.data.parent / f"run {most}", case.data.parent / f"ours {most}.onnx"
    ours = [sys.executable, "-m", "precisionlab"]
    sweep = [*ours, "sweep", str(case.model), "--data", str(case.data), "--precisions", case.precision]
    sweep += ["--around", "fp32", "--ladder", "fp32", "--budget", f"{patience}s", "--out", str(folder)]
    sweep += [] if most is None else ["--max-pins", str(most), "--tolerance", _BEYOND]
    export = [*ours, "export", str(folder / "plan.json"), "--format", "typed-onnx", "--out", str(out)]
    return _run(title, [sweep, export], out, ROOT)


def _run(tool: str, commands: Sequence[Sequence[str]], out: Path, where: Path) -> Made:
    """Run them in turn; the seconds are those of the first, which does the work."""
    seconds, last = [], ""
    for command in commands:
        started = time.perf_counter()
        found = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=where, env=found, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        last = (done.stderr.strip().splitlines() or [""])[-1]
    return Made(tool, out, seconds[0], "" if out.exists() else last[:200])


def _judged(case: Case, made: Made) -> Judged:
    if made.failed:
        return Judged(f"{made.tool} | – | – | {made.failed} | {made.seconds:.0f}")
    model = _readable(onnx.load(made.file))
    kinds = [node.op_type for node in model.graph.node]
    low, every = _products(model, case.precision)
    counts = f"{kinds.count('QuantizeLinear')} + {kinds.count('DequantizeLinear')}"
    sqnr = None
    try:
        sqnr = end_error(onnx.load(case.model), model, case.held_out).sqnr
        figure = f"{sqnr:.1f}"
    except Exception as error:  # whatever ONNX Runtime raises: a file that it refuses is an answer too
        figure = f"refused: {str(error)[-120:]}"
    row = f"{made.tool} | {low} of {every} | {counts} | {figure} | {made.seconds:.0f}"
    return Judged(row, every - low, sqnr)


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at an opset that has the blocks which ModelOpt writes at any: only what they are called differs."""
    if any("block_size" in (attribute.name for attribute in node.attribute) for node in model.graph.node):
        for imported in model.opset_import:
            if imported.domain in ("", "ai.onnx"):
                imported.version = max(imported.version, _BLOCKS)
        model.ir_version = max(model.ir_version, 10)
    return model


def _products(model: onnx.ModelProto, precision: str) -> tuple[int, int]:
    """How many products are in the precision, and how many there are; of int4 those with a weight."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}

    def source(name: str) -> str:
        """What makes the tensor: an operator, nothing for a constant or an input."""
        while (node := makers.get(name)) is not None and node.op_type in _THROUGH:
            name = node.input[0]
        return node.op_type if node is not None else "Constant" if name in constants else ""

    def is_low(node: onnx.NodeProto) -> bool:
        return all(source(name) == "DequantizeLinear" for name in node.input[first:2])

    first, kinds = (1, _WEIGHTED) if precision == "int4" else (0, QUANTIZED_OPS)
    products = [node for node in model.graph.node if node.op_type in kinds]
    if precision == "int4":
        products = [node for node in products if source(node.input[1]) in ("Constant", "DequantizeLinear")]
    return sum(map(is_low, products)), len(products)


if __name__ == "__main__":
    main()
