"""What memory a budget holds to: `python -m benchmarks.memory [CASES] [--budgets 1G,4G]`.

For each model a whole sweep (FP16 and INT8, a search of at most two plans, 4 samples) as a user would start it, in a
process of its own: its peak resident memory, its processor time over that of the plain run (no `--memory`), and how far
its figures are from the plain run's: the greatest difference in dB between finite SQNRs of `layers.csv` and
`variants.csv`, and whether all pins are the same. The same once more, on one thread, and with each budget. Needs the
prepared models (`make models`).

`layers` is generated, a chain of 5,000 layers in FP16 with a search to its end, and `layers20k` one of 20,000 whose
search has five minutes, at the least memory that is enough for it. `weights` has 3 GB of weights in a file of its own
(12 MatMuls of 8,192 by 8,192, swept in FP16 with a tolerance that asks for pins, 8 random samples); it is written to a
temporary folder and removed, and left out where the disk or the memory has no room for it. Only one should run at a
time.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.typed_models import MODELS, files_of

GENERATED = ("layers", "layers20k", "weights")
_CHAINS = {"layers": 5000, "layers20k": 20_000}
_LEAST = {"layers20k": "1.67G"}
"""The memory that a refusal of less asks for."""
_SIDE = 8192
_NEEDED_DISK = 8 * 1024**3
_NEEDED_MEMORY = 14 * 1024**3


@dataclass(frozen=True)
class Run:
    """One run: its peak in MB, its processor seconds, its exit code, and the folder of its files."""

    peak: float
    seconds: float
    code: int
    folder: Path
    last: str


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--budgets", default="1G,4G", show_default=True)
@click.option("--samples", default=4, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(cases: tuple[str, ...], budgets: str, samples: int, threads: int) -> None:
    """Print a row for each run of CASES (all if none is named)."""
    click.echo(f"{'model':<12}{'run':<14}{'peak MB':>9}{'CPU':>8}{'max dB apart':>14}  pins")
    for case in cases or (*MODELS, *GENERATED):
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            where = Path(folder)
            command = _command(case, where, samples)
            if command is None:
                click.echo(f"{case:<12}left out: too little disk or memory is free")
                continue
            kinds = {"plain": [], "again": [], "1 thread": ["--threads", "1"]}
            kinds |= {f"--memory {budget}": ["--memory", budget] for budget in budgets.split(",")}
            if case == "weights":
                del kinds["again"], kinds["1 thread"]
            if case in _LEAST:
                kinds = {f"--memory {_LEAST[case]}": ["--memory", _LEAST[case]]}
            plain = None
            for kind, options in kinds.items():
                given = options if "--threads" in options else [*options, "--threads", str(threads)]
                run = _run([*command, *given], where / kind.strip("-").replace(" ", "-"))
                plain = plain or run
                click.echo(_row(case, kind, run, plain))


def _row(case: str, kind: str, run: Run, plain: Run) -> str:
    row = f"{case:<12}{kind:<14}{run.peak:9.0f}{run.seconds / plain.seconds:8.2f}"
    if run.code not in (0, 1):
        return f"{row}  {run.last}"
    if run is plain:
        return f"{row}  ({run.seconds:.1f} s CPU)"
    apart, same = _apart(run.folder, plain.folder)
    return f"{row}{apart:14.3g}  {'the same' if same else 'OTHERS'}"


def _command(case: str, folder: Path, samples: int) -> list[str] | None:
    command = [sys.executable, "-m", "precisionlab", "sweep"]
    if case in MODELS:
        model, data = files_of(case)
        return [*command, str(model), "--data", str(data), "--samples", str(samples), "--max-evaluations", "2"]
    if case in _CHAINS:
        chain_of_layers(folder / "layers.onnx", _CHAINS[case])
        ends = ["--budget", "5m"] if case == "layers20k" else []
        return [
            *command,
            str(folder / "layers.onnx"),
            "--random",
            "--precisions",
            "fp16",
            "--tolerance",
            "sqnr>=78",
            *ends,
        ]
    if shutil.disk_usage(folder).free < _NEEDED_DISK or _available() < _NEEDED_MEMORY:
        return None
    heavy_model(folder / "model" / "weights.onnx", 12, _SIDE)
    return [*command, str(folder / "model" / "weights.onnx"), "--precisions", "fp16", "--tolerance", "sqnr>=58",
            "--max-evaluations", "2"]  # fmt: skip


def _run(command: list[str], folder: Path) -> Run:
    """Run it, and ask the system for the peak of this very process."""
    with (folder.parent / f"{folder.name}.log").open("w+") as log:
        process = subprocess.Popen([*command, "--out", str(folder)], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        last = (log.read().strip().splitlines() or [""])[-1]
    return Run(usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime, process.returncode, folder, last)


def _apart(one: Path, other: Path) -> tuple[float, bool]:
    """The greatest difference of a finite SQNR, in dB, and whether the pins are the same."""
    most, same = 0.0, True
    for name in ("layers.csv", "variants.csv"):
        for mine, theirs in zip(_rows(one / name), _rows(other / name), strict=True):
            same = same and mine.get("pinned_to") == theirs.get("pinned_to")
            for column in mine:
                if "sqnr" in column and mine[column] and theirs[column]:
                    pair = float(mine[column]), float(theirs[column])
                    if all(map(math.isfinite, pair)):
                        most = max(most, abs(pair[0] - pair[1]))
                    elif pair[0] != pair[1] and not all(map(math.isnan, pair)):
                        most = math.inf
    return most, same


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(newline="") as stream:
        yield from csv.DictReader(stream)


def chain_of_layers(path: Path, layers: int, side: int = 16) -> None:
    """A chain of MatMul and Softmax, by turns."""
    generator = np.random.default_rng(0)
    nodes, weights, taken = [], [], "x"
    for i in range(layers):
        if i % 2 == 0:
            value = generator.standard_normal((side, side), np.float32)
            weights.append(onnx.numpy_helper.from_array(value, f"w{i}"))
            nodes.append(helper.make_node("MatMul", [taken, f"w{i}"], [f"y{i}"], name=f"n{i}"))
        else:
            nodes.append(helper.make_node("Softmax", [taken], [f"y{i}"], name=f"n{i}"))
        taken = f"y{i}"
    _save(path, nodes, weights, taken, side)


def heavy_model(path: Path, layers: int, side: int) -> None:
    """A chain of large MatMuls with Tanh, its weights in a file beside it."""
    path.parent.mkdir(parents=True)
    generator = np.random.default_rng(0)
    nodes, weights, taken = [], [], "x"
    with (path.parent / "weights.bin").open("wb") as stream:
        for i in range(layers):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[side, side])
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (("location", "weights.bin"), ("offset", stream.tell()), ("length", 4 * side * side)):
                tensor.external_data.add(key=key, value=str(entry))
            for _ in range(0, side, 1024 if side >= 1024 else side):
                rows = min(1024, side)
                stream.write((generator.standard_normal((rows, side), np.float32) * (1.5 / math.sqrt(side))).tobytes())
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [taken, f"w{i}"], [f"m{i}"], name=f"n{i}"))
            nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"t{i}"], name=f"tanh{i}"))
            taken = f"t{i}"
    _save(path, nodes, weights, taken, side)


def _save(path: Path, nodes: list[onnx.NodeProto], weights: list[TensorProto], output: str, side: int) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name in ("x", output)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    main()
