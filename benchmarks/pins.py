"""Which nodes tools keep in high precision, and what that gives: `python -m benchmarks.pins [CASES] [--peers ...]`.

For each model, precisionlab and its peers are given the same samples and asked which nodes have to stay in high
precision. One judge that belongs to none of them (`benchmarks.pins_judge`) then rounds every other node, and compares
the model's outputs with the original's on samples that no tool has seen (every fourth). Beside it stand the seconds of
the tool's own call, and their ratio to what one pass for each node and sample would take (trying the nodes one by one
costs at least that).

Peers live in environments of their own under `benchmarks/.envs`, made on first use. Needs the prepared models
(`make models`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from benchmarks.comparison import PREPARED
from benchmarks.pins_judge import Arrays, candidates, end_error, named, rounded, session
from benchmarks.processes import timed
from precisionlab.data import open_dataset
from precisionlab.jobs.calibrate import calibrate
from precisionlab.model import load_model

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = Path(__file__).parent / ".envs"
CASES = {"magika": "fp16", "minilm_l3": "fp16", "ppocr4_rec": "int8", "ppocr4_det": "int8", "orient": "int8"}
TOLERANCE = {"fp16": 30.0, "int8": 20.0}  # dB; what precisionlab holds a plan to by default
HELD_OUT = 4  # every fourth sample is the judge's alone
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """Packages that a peer needs, by the names that pip knows them by."""

    requirements: tuple[str, ...]
    torch: bool = False


@dataclass(frozen=True)
class Peer:
    """A tool: the environment it lives in, and the module of `benchmarks.peers_pins` that asks it."""

    title: str
    environment: str
    module: str
    precisions: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What a tool answered: node → the precision it is kept in. `failed` says why there is no answer.

    `graph` is the tool's own version of the model, where it has rewritten the graph that the nodes belong to.
    """

    title: str
    high: Mapping[str, str] = field(default_factory=dict)
    seconds: float = math.nan
    version: str = ""
    failed: str | None = None
    graph: Path | None = None
    calibration: str | None = None


class UnavailableError(Exception):
    """A peer's environment cannot be made."""


ENVIRONMENTS_OF: Mapping[str, Environment] = {
    # What its extra "onnx" asks for, with ONNX Runtime for the CPU in place of the one for CUDA.
    "modelopt": Environment(
        (
            "nvidia-modelopt==0.47.0",
            "onnx~=1.21.0",
            "onnxruntime~=1.24.2",
            "onnxconverter-common==1.16.0",
            "onnxscript",
            "onnx-graphsurgeon",
            "onnxslim",
            "polygraphy",
            "cppimport",
            "lief",
            "ml_dtypes",
        ),
        torch=True,
    ),
    "onnxconverter": Environment(("onnxconverter-common==1.16.0", "onnxruntime")),
    "aimet": Environment(("aimet-onnx==2.42.0",), torch=True),
}
PEERS: Mapping[str, Peer] = {
    "autocast": Peer("ModelOpt AutoCast", "modelopt", "autocast", ("fp16",)),
    "onnxconverter": Peer("onnxconverter auto_mixed_precision", "onnxconverter", "onnxconverter", ("fp16",)),
    "aimet_amp": Peer("AIMET AMP", "aimet", "aimet", ("fp16", "int8"), ("amp",)),
    "aimet_analyzer": Peer("AIMET QuantAnalyzer", "aimet", "aimet", ("fp16", "int8"), ("analyzer",)),
}


@dataclass(frozen=True)
class Case:
    """A model made ready for every tool: each node named, the samples that tools see in a folder of .npz files."""

    name: str
    precision: str
    model: Path
    data: Path
    samples: int
    held_out: tuple[Arrays, ...]
    plain_seconds: float

    def passes(self, choice: Choice, nodes: int) -> float:
        """The choice's seconds over those of one plain pass for each node and sample."""
        return choice.seconds / (nodes * self.samples * self.plain_seconds)


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Which peers, comma-separated; '' for none.")
@click.option("--samples", default=32, show_default=True, help="The most samples that a tool sees.")
@click.option("--patience", default=300.0, show_default=True, help="Seconds after which a tool is cut off.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows to this file as well.")
def main(cases: tuple[str, ...], peers: str, samples: int, patience: float, json_file: Path | None) -> None:
    """Print the rows of each of CASES (all if none is named)."""
    asked = [PEERS[name] for name in filter(None, peers.split(","))]
    rows: list[dict[str, Any]] = []
    click.echo(
        f"{'model':<12}{'low':<6}{'tool':<36}{'high / nodes':>14}{'SQNR dB':>9}{'seconds':>9}{'/ L·N passes':>14}"
    )
    for name in cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            for row in _rows(prepare(name, samples, Path(folder)), asked, patience):
                click.echo(_line(row))
                rows.append(row)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


def _rows(case: Case, peers: Sequence[Peer], patience: float) -> Sequence[dict[str, Any]]:
    ours = ask_precisionlab(case, patience)
    if case.precision == "int8":
        table = calibrate(case.model, case.data, method=ours.calibration or "entropy", out=case.data.parent / "ranges")
        amax = {name: found.amax for name, found in table.table.ranges.items()}
    else:
        amax = {}
    choices = [Choice("nothing kept high", seconds=0.0), ours]
    if case.precision == "fp16":  # peers keep nodes in float32 alone
        choices.append(ask_precisionlab(case, patience, "--ladder", "fp32"))
    else:  # peers choose by all the samples that they see
        choices.append(ask_precisionlab(case, patience, "--holdout", "0"))
    choices += [ask(peer, case, patience) for peer in peers if case.precision in peer.precisions]
    return [_judged(case, choice, amax) for choice in choices]


def prepare(name: str, most: int, folder: Path) -> Case:
    """One of CASES, of the prepared models."""
    return case_of(name, CASES[name], PREPARED / name / f"{name}.onnx", PREPARED / name / "data", most, folder)


def case_of(name: str, precision: str, source: Path, samples: Path, most: int, folder: Path) -> Case:
    """Name the model's nodes, split the samples, and time a plain pass."""
    every = [s.inputs for s in open_dataset(samples, load_model(source), None, 0)]
    visible = [s for i, s in enumerate(every) if i % HELD_OUT != HELD_OUT - 1]
    step = max(1, len(visible) / most)  # spread over the whole set, which may be sorted by class
    seen = [visible[int(i * step)] for i in range(min(most, len(visible)))]
    model, data = named(onnx.load(source)), folder / "data"
    data.mkdir()
    onnx.save(model, folder / f"{name}.onnx")
    for index, sample in enumerate(seen):
        np.savez(data / f"{index:04}.npz", **sample)
    running = session(model)

    def plain() -> None:
        for sample in seen:
            running.run(None, dict(sample))

    plain()
    seconds = statistics.median(timed(plain) for _ in range(3)) / len(seen)
    held_out = tuple(islice(every, HELD_OUT - 1, None, HELD_OUT))
    return Case(name, precision, folder / f"{name}.onnx", data, len(seen), held_out, seconds)


def ask_precisionlab(case: Case, patience: float, *options: str) -> Choice:
    """Sweep the model as a user would, with the patience as the search's budget, and read the plan."""
    out = case.data.parent / "-".join(["sweep", *options])
    command = [sys.executable, "-m", "precisionlab", "sweep", str(case.model), "--data", str(case.data)]
    # The judge has the model as it is: a plan that counts on a repaired graph would be judged without its repairs.
    command += ["--precisions", case.precision, "--no-repair", "--out", str(out), "--budget", f"{patience:.0f}s"]
    command += options
    title = " ".join(["precisionlab", *options])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1:  # 1: the tolerance is not met; the nearest plan is there all the same
        return Choice(title, failed=_last_line(done.stderr))
    plan, run = (json.loads((out / name).read_text()) for name in ("plan.json", "run.json"))
    high = {node: pin["precision"] for pin in plan["pins"] for node in pin["nodes"]}
    return Choice(title, high, run["seconds"], run["precisionlab"], calibration=plan.get("calibration"))


def ask(peer: Peer, case: Case, patience: float) -> Choice:
    """Run the peer's script in its environment; it prints its answer as its last line, in JSON."""
    try:
        python = environment(peer.environment)
    except UnavailableError as reason:
        return Choice(peer.title, failed=str(reason))
    answer = case.data.parent / f"{peer.module}.onnx"
    command = [str(python), "-m", f"benchmarks.peers_pins.{peer.module}", str(case.model), str(case.data)]
    command += [case.precision, str(TOLERANCE[case.precision]), str(answer), *peer.options]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        printed, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Choice(peer.title, failed=f"not finished after {patience:.0f} s")
    said = [line for line in printed.splitlines() if line.startswith("{")]
    if not said:
        return Choice(peer.title, failed=_last_line(errors) or f"exit code {process.returncode}")
    return _choice(peer.title, json.loads(said[-1]), answer)


def _choice(title: str, said: Mapping[str, Any], graph: Path) -> Choice:
    if "failed" in said:
        return Choice(title, failed=said["failed"], version=said.get("version", ""))
    high = dict.fromkeys(said["high"], said.get("precision", "fp32"))
    return Choice(title, high, said["seconds"], said["version"], graph=graph if graph.exists() else None)


def environment(name: str) -> Path:
    """The Python of an environment; it is made on first use. Raises UnavailableError where a package cannot be had."""
    wanted, folder = ENVIRONMENTS_OF[name], ENVIRONMENTS / name
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists() or complete.read_text() != repr(wanted):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        (ENVIRONMENTS / ".gitignore").write_text("*\n")
        if wanted.torch:
            _refuse_cuda(python)
            _pip(python, TORCH)
        kept = folder / "constraints.txt"
        kept.write_text(f"{TORCH}\n")
        _pip(python, "--constraint", str(kept), *wanted.requirements)
        complete.write_text(repr(wanted))
    return python


def _refuse_cuda(python: Path) -> None:
    """Raises UnavailableError where pip would bring PyTorch with CUDA, which is several GB."""
    report = json.loads(_pip(python, "--dry-run", "--quiet", "--report", "-", TORCH))
    if any(item["metadata"]["name"].startswith(("nvidia-", "cuda-")) for item in report["install"]):
        raise UnavailableError("pip would install PyTorch with CUDA; put a CPU build where pip finds it")


def _pip(python: Path, *arguments: str) -> str:
    done = subprocess.run([python, "-m", "pip", "install", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UnavailableError(f"pip install {arguments[-1]}: {_last_line(done.stderr)}")
    return done.stdout


def _judged(case: Case, choice: Choice, amax: Mapping[str, float]) -> dict[str, Any]:
    """A row of the table: the choice with its measured end error."""
    row: dict[str, Any] = {"model": case.name, "precision": case.precision, "tool": choice.title}
    row["version"] = choice.version
    if choice.failed:
        return {**row, "failed": choice.failed}
    original = onnx.load(case.model)
    graph = onnx.load(choice.graph) if choice.graph else original
    nodes = candidates(graph, case.precision)
    low = dict.fromkeys(nodes, case.precision) | choice.high
    low = {node: precision for node, precision in low.items() if precision != "fp32"}
    error = end_error(original, rounded(graph, low, amax), case.held_out)
    kept = {node: choice.high[node] for node in nodes if node in choice.high}
    return {
        **row,
        "high": kept,
        "nodes": len(nodes),
        "sqnr": error.sqnr if math.isfinite(error.sqnr) else str(error.sqnr),
        "nonfinite": error.nonfinite,
        "seconds": choice.seconds,
        "passes": case.passes(choice, len(nodes)),
        "samples": case.samples,
        "held_out": len(case.held_out),
        "plain_ms": case.plain_seconds * 1e3,
    }


def _line(row: Mapping[str, Any]) -> str:
    start = f"{row['model']:<12}{row['precision']:<6}{row['tool']:<36}"
    if "failed" in row:
        return f"{start}  {row['failed']}"
    high = f"{len(row['high'])} / {row['nodes']}"
    return f"{start}{high:>14}{float(row['sqnr']):9.1f}{row['seconds']:9.1f}{row['passes']:14.3f}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
