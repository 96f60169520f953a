"""What quantisers make of the same models: `python -m benchmarks.quantizers [CASES] [--precisions fp8,int8,int4]`.

For each model and precision, among float32: NVIDIA ModelOpt with its defaults, and a sweep of ours as a user runs it
(its default tolerance, so that it pins what it has to). Both see the same samples; ONNX Runtime runs the file that each
has written, nothing optimised, on samples that neither has seen (every fourth). Shown are products (Conv,
ConvTranspose, Gemm, MatMul) whose two operands, of int4 the weight, are dequantised, of how many; Q/DQ nodes; the SQNR
of the worst output; and the seconds of the tool's own call.

ModelOpt lives in an environment of its own: see `benchmarks.pins`. Needs the prepared models (`make models`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import onnx

from benchmarks.comparison import PREPARED
from benchmarks.pins import ROOT, Case, case_of, environment
from benchmarks.pins_judge import QUANTIZED_OPS, end_error

CASES = ("magika", "minilm_l3", "orient", "ppocr4_rec")
PRECISIONS = ("fp8", "int8", "int4")
_THROUGH = frozenset({"Cast", "Reshape", "Transpose", "Mul"})
"""What may stand between what is dequantised and its product."""

_BLOCKS = 21
"""ONNX's first opset whose DequantizeLinear has blocks."""


@dataclass(frozen=True)
class Made:
    """A tool's file, or why there is none."""

    tool: str
    file: Path
    seconds: float
    failed: str = ""


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
                source = PREPARED / name
                case = case_of(name, precision, source / f"{name}.onnx", source / "data", samples, Path(folder))
                for made in (_modelopt(case), _ours(case, patience)):
                    click.echo(f"| {name} | {precision} | {made.tool} | {_judged(case, made)} |")


def _modelopt(case: Case) -> Made:
    out = case.data.parent / "modelopt.onnx"
    given = [str(case.model), str(case.data), str(out)]
    module = "modelopt_int4" if case.precision == "int4" else "modelopt_quantized"
    asked = [*given, "rtn_dq"] if case.precision == "int4" else [case.precision, *given, "fp32"]
    command = [str(environment("modelopt")), "-m", f"benchmarks.peers_pins.{module}", *asked]
    return _run("ModelOpt", [command], out, case.data.parent)  # it builds an extension, where it is


def _ours(case: Case, patience: int) -> Made:
    folder, out = case.data.parent / "run", case.data.parent / "ours.onnx"
    ours = [sys.executable, "-m", "precisionlab"]
    sweep = [*ours, "sweep", str(case.model), "--data", str(case.data), "--precisions", case.precision]
    sweep += ["--around", "fp32", "--budget", f"{patience}s", "--out", str(folder)]
    export = [*ours, "export", str(folder / "plan.json"), "--format", "typed-onnx", "--out", str(out)]
    return _run("precisionlab", [sweep, export], out, ROOT)


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


def _judged(case: Case, made: Made) -> str:
    """The cells of a row."""
    if made.failed:
        return f"– | – | {made.failed} | {made.seconds:.0f}"
    model = _readable(onnx.load(made.file))
    kinds = [node.op_type for node in model.graph.node]
    low, every = _products(model, case.precision)
    counts = f"{kinds.count('QuantizeLinear')} + {kinds.count('DequantizeLinear')}"
    try:
        figure = f"{end_error(onnx.load(case.model), model, case.held_out).sqnr:.1f}"
    except Exception as error:  # whatever ONNX Runtime raises: a file that it refuses is an answer too
        figure = f"refused: {str(error)[-120:]}"
    return f"{low} of {every} | {counts} | {figure} | {made.seconds:.0f}"


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at an opset that has the blocks which ModelOpt writes at any: only what they are called differs."""
    if any("block_size" in (attribute.name for attribute in node.attribute) for node in model.graph.node):
        for imported in model.opset_import:
            if imported.domain in ("", "ai.onnx"):
                imported.version = max(imported.version, _BLOCKS)
        model.ir_version = max(model.ir_version, 10)
    return model


def _products(model: onnx.ModelProto, precision: str) -> tuple[int, int]:
    """How many products are in the precision, and how many there are."""
    makers = {name: node for node in model.graph.node for name in node.output}

    def is_low(name: str) -> bool:
        node = makers.get(name)
        while node is not None and node.op_type in _THROUGH:
            node = makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    products = [node for node in model.graph.node if node.op_type in QUANTIZED_OPS]
    first = 1 if precision == "int4" else 0
    return sum(all(map(is_low, node.input[first:2])) for node in products), len(products)


if __name__ == "__main__":
    main()
