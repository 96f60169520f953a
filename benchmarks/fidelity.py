"""How true the emulation is: `python -m benchmarks.fidelity [MODELS] --device cuda:0 --samples 8 --out DIR`.

For each model what `precisionlab fidelity` finds: FP16, BF16 and FP8 against ONNX Runtime's CUDA provider, INT8 against
integers on the CPU, every node a layer of its own on both sides, as ONNX Runtime fuses nothing there, and with the
rounding inside of its kernels emulated. FP16 also with the layers of a sweep (fp16 patterns), and just as a sweep
emulates them (fp16 sweep: TensorRT's kernels) against the same real kernels: that is no goal, but what fusing is taken
to spare. Prints a Markdown table, and writes `fidelity.json`, `fidelity.md` and `layers.csv.gz` to DIR as soon as each
model is done.

`python -m benchmarks.fidelity again --real DIR --packed PACKED --out OUT` holds the emulation as it is now against the
real figures that stand in DIR, on the same samples (fp16, bf16; the fp8 and int8 figures of DIR are repeated). It needs
no GPU.

`python -m benchmarks.fidelity pack --out /tmp/fidelity` gathers what a bare GPU machine without a network needs beside
the repository: the models with some samples, and onnx-ir. Archives beyond 48 MB are split, so that they can travel one
by one; `benchmarks/fidelity_device.sh` puts all together there.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import click
import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.processes import in_process

MODELS = ("magika", "minilm_l3", "orient", "ppocr4_det", "ppocr4_rec", "vit_focus", "layout")
CASES = ("fp16", "fp16 patterns", "fp16 sweep", "bf16", "fp8", "int8")
_SWEEP = "fp16 sweep"
PATIENCE = 420.0  # seconds for one model
PACKED = 16
_TELLING = 0.2  # dB
_PART = 48 * 1024**2
_WHEELS = ("onnx-ir",)

Row = dict[str, Any]


@click.command()
@click.argument("models", nargs=-1)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--samples", default=8, show_default=True)
@click.option("--cases", default=",".join(CASES), show_default=True, help="Which of them.")
@click.option("--packed", type=click.Path(path_type=Path), help="Take models from a folder that `pack` has filled.")
@click.option("--real", type=click.Path(path_type=Path), help="Of `again`: what a GPU machine has brought back.")
@click.option("--jobs", default=1, show_default=True, help="Models at a time.")
@click.option("--threads", type=int, help="Threads of each.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("/tmp/fidelity"), show_default=True)
def main(
    models: tuple[str, ...],
    device: str,
    samples: int,
    cases: str,
    packed: Path | None,
    real: Path | None,
    jobs: int,
    threads: int | None,
    out: Path,
) -> None:
    """Measure MODELS (all if none is named), measure the emulation alone: `again`, or gather them: `pack`."""
    out.mkdir(parents=True, exist_ok=True)
    again = models[:1] == ("again",)
    if again != (real is not None):
        raise click.UsageError("`again` and --real go together")
    models = models[1:] if again else models
    if models[:1] == ("pack",):
        pack(models[1:] or MODELS, out)
        return
    found: dict[str, list[Row]] = {}
    lock = Lock()

    def work(name: str) -> None:
        started = time.perf_counter()
        where = str(packed) if packed else None
        if real is not None:
            said = in_process(_again, name, where, str(real), cases, threads)
        else:
            said = in_process(_measured, name, where, device, samples, cases, threads, seconds=PATIENCE)
        rows = said.get("rows", [{"case": "all", "failed": said.get("failed")}])
        with lock:
            found[name] = rows
            _write(found, out)
        failed = "; ".join(f"{row['case']}: {row['failed']}" for row in rows if row.get("failed"))
        click.echo(f"{name}: {time.perf_counter() - started:.0f} s{f', FAILED {failed}' if failed else ''}", err=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, models or MODELS))
    click.echo(table(found))


def table(found: Mapping[str, Sequence[Row]]) -> str:
    """The figures of all models in Markdown."""
    head = (
        "model, case",
        "layers",
        "in fp32",
        "rank corr. introduced",
        "inherited",
        "worst shared",
        "median dB introduced",
        "inherited",
        "final dB emulated / real / optimised",
        "typical sample emulated / real",
        "NaN, Inf: both, emulated alone, real alone",
        "goals",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in (*(m for m in MODELS if m in found), *(m for m in found if m not in MODELS)):
        for row in found[name]:
            if row.get("failed"):
                lines.append(f"| {name}, {row['case']} | {row['failed'][:160]} |" + " |" * (len(head) - 2))
            else:
                lines.append(_line(name, row))
    return "\n".join([*lines, "", *_kinds(found)])


def _kinds(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """Where real layers are worse or better than emulated ones, by their kind: the median of each model's median."""
    each: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for rows in found.values():
        for row in rows:
            for kind, seen in (row["found"]["kinds"] if "found" in row else {}).items():
                each.setdefault((row["case"], kind), []).append((seen["layers"], seen["median_db"]))
    lines = ["| case | kind | layers | models | real − emulated, introduced, median dB |", "|---|---|---|---|---|"]
    ordered = sorted(each.items(), key=lambda item: (item[0][0], statistics.median(db for _, db in item[1])))
    for (case, kind), seen in ordered:
        apart = statistics.median(db for _, db in seen)
        if abs(apart) >= _TELLING:
            lines.append(f"| {case} | {kind} | {sum(count for count, _ in seen)} | {len(seen)} | {apart:+.2f} |")
    return lines


def _line(name: str, row: Row) -> str:
    found = row["found"]
    own, so_far = found["introduced"], found["inherited"]
    final, nonfinite = found["final_sqnr_db"], found["nonfinite"]
    missed = [goal["name"] for goal in found["goals"] if goal["met"] is False]
    shared = f"{own['shared']}/{own['worst']}, {so_far['shared']}/{so_far['worst']}" if own else "–"
    cells = (
        f"{name}, {row['case']}",
        str(found["layers"]),
        str(len(found["unsupported"])),
        _figure(own and own["spearman"], ".4f"),
        _figure(so_far["spearman"], ".4f"),
        shared,
        _figure(own and own["median_db"], ".2f"),
        _figure(so_far["median_db"], ".2f"),
        " / ".join(_figure(final[key], ".1f") for key in ("emulated", "real", "optimised")),
        " / ".join(_figure(found["typical_sqnr_db"][key], ".1f") for key in ("emulated", "real")),
        f"{nonfinite['both']}, {len(nonfinite['emulated_only'])}, {len(nonfinite['real_only'])}",
        "none" if row["case"] == _SWEEP else "met" if not missed else f"missed: {'; '.join(missed)}",
    )
    return f"| {' | '.join(cells)} |"


def _figure(value: Any, form: str) -> str:
    return "–" if value is None else value if isinstance(value, str) else format(value, form)


def _write(found: Mapping[str, Sequence[Row]], out: Path) -> None:
    plain = {name: [{k: v for k, v in row.items() if k != "csv"} for row in rows] for name, rows in found.items()}
    (out / "fidelity.json").write_text(json.dumps(plain, indent=1) + "\n")
    (out / "fidelity.md").write_text(table(found) + "\n")
    with gzip.open(out / "layers.csv.gz", "wt") as stream:
        first = True
        for name, rows in found.items():
            for row in rows:
                head, _, body = row.get("csv", "").partition("\n")
                if first and head:
                    stream.write(f"model,case,{head}\n")
                    first = False
                # A quoted cell may go on over lines; names with line ends are not among these models'.
                stream.writelines(f"{name},{row['case']},{line}\n" for line in body.splitlines())


def _measured(name: str, packed: str | None, device: str, samples: int, cases: str, threads: int | None) -> Row:
    """All cases of one model."""
    from precisionlab.errors import PrecisionLabError
    from precisionlab.jobs.fidelity import fidelity

    path, data = _files(name, packed)
    rows: list[Row] = []
    for case in cases.split(","):
        precision, _, more = case.partition(" ")
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            try:
                result = fidelity(
                    path,
                    data,
                    precisions=precision,
                    device=device,
                    layers="patterns" if more else None,
                    kernels="tensorrt" if case == _SWEEP else None,
                    samples=samples,
                    threads=threads,
                    out=folder,
                    page=False,
                )
            except PrecisionLabError as error:
                rows.append({"case": case, "failed": str(error)})
                continue
            except Exception as error:  # whatever it is, the other cases' figures are to be had
                rows.append({"case": case, "failed": f"{type(error).__name__}: {error}"})
                continue
            said = json.loads((result.folder / "fidelity.json").read_text())
            (found,) = said.pop("precisions")
            row = {"case": case, "found": found, "facts": said, "seconds": time.perf_counter() - started}
            row["csv"] = (result.folder / "fidelity.csv").read_text()
            rows.append(row)
        print(f"  {name} {case}: {rows[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    return {"rows": rows}


def _again(name: str, packed: str | None, real: str, cases: str, threads: int | None) -> Row:
    """The real figures that stand in `real`, of one model, beside those of the emulation as it is."""
    with gzip.open(Path(real) / "layers.csv.gz", "rt", newline="") as stream:
        known = [_renamed(row) for row in csv.DictReader(stream) if row["model"] == name]
    stood = {row["case"]: row for row in json.loads((Path(real) / "fidelity.json").read_text())[name]}
    rows = []
    for case in cases.split(","):
        like = "fp16 patterns" if case == _SWEEP else case  # the same layers on the real side
        if like in stood:
            row = {**stood[like], "case": case}
            if "found" in row:
                row["found"] = _renamed(row["found"])
            of_case = [each for each in known if each["case"] == like]
            is_new = "found" in row and case not in ("fp8", "int8")
            rows.append(_emulated(name, packed, row, of_case, threads) if is_new else {**row, "csv": _lines(of_case)})
            print(f"  {name} {case}", file=sys.stderr, flush=True)
    return {"rows": rows}


def _renamed(row: Mapping[str, Any]) -> Row:
    """The row under today's names: `unsupported` was `unreal`."""
    return {"unsupported" if name == "unreal" else name: value for name, value in row.items()}


def _emulated(name: str, packed: str | None, row: Row, known: Sequence[Row], threads: int | None) -> Row:
    """The row with its emulated figures found anew."""
    from precisionlab.backends.memory import default_memory
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
    from precisionlab.data import open_dataset
    from precisionlab.evaluate.ranges import typical_sqnr
    from precisionlab.jobs import fidelity
    from precisionlab.model import load_model
    from precisionlab.plan.arithmetic import ONNXRUNTIME, Arithmetic, Constants
    from precisionlab.plan.plan import Pin, PrecisionPlan
    from precisionlab.precision import Precision
    from precisionlab.report.csvfile import to_csv
    from precisionlab.report.fidelity import fidelity_table
    from precisionlab.rewrite.real import one_node_layers

    found, facts = row["found"], row["facts"]
    path, data = _files(name, packed)
    model = load_model(path)
    dataset = open_dataset(data, model, facts["data"]["samples"], facts["data"]["seed"])
    if (model.sha256, dataset.sha256) != (facts["model"]["sha256"], facts["data"]["sha256"]):
        return {"case": row["case"], "failed": "the model or its samples are not those that the GPU had"}
    # The GPU ran models whose constants were rounded, whichever kernels are emulated.
    arithmetic = Arithmetic(constants=Constants.ROUNDED) if row["case"] == _SWEEP else ONNXRUNTIME
    layers = model if facts["layers"] == fidelity.PATTERNS else one_node_layers(model)
    backend = OnnxRuntimeBackend(layers, next(iter(dataset)), threads, memory=default_memory())
    pins = [Pin(n, backend.model.layer[n].nodes, Precision.FP32, why) for n, why in found["unsupported"].items()]
    plan = PrecisionPlan(model.sha256, Precision(found["precision"])).with_pins(pins)
    started = time.perf_counter()
    now = backend.compare(plan, None, dataset, lambda done: None, metric=None, introduced=True, arithmetic=arithmetic)
    broken = frozenset(now.nonfinite)
    compared = [
        fidelity.Row(
            layer=each["layer"],
            kind=each["kind"],
            tensor=each["tensor"],
            introduced=_pair(now.introduced, each, "introduced"),
            inherited=_pair(now.inherited, each, "inherited"),
            nonfinite=(each["tensor"] in broken, each["nonfinite_real"] == "True"),
            unsupported=each["unsupported"] or None,
        )
        for each in known
    ]
    final, typical = found["final_sqnr_db"], found["typical_sqnr_db"]
    fresh = fidelity.PrecisionFidelity(
        precision=plan.default,
        rows=tuple(compared),
        introduced=fidelity.agreements_of(compared, lambda each: each.introduced),
        inherited=fidelity.agreements_of(compared, lambda each: each.inherited),
        final=(now.worst("sqnr"), float(final["real"])),
        typical=(typical_sqnr(now), float(typical["real"])),
        optimised=None if final["optimised"] is None else float(final["optimised"]),
        optimised_note=found["optimised_note"],
        unsupported=found["unsupported"],
        device=found["device"],
        layers=found["layers"],
        seconds=(now.seconds, found["seconds"]["real"]),
    )
    result = fidelity.FidelityResult(path.name, (fresh,), facts, Path())
    said = {"case": row["case"], "found": fidelity.plain(fresh), "facts": {**facts, **arithmetic.to_plain()}}
    return {**said, "seconds": time.perf_counter() - started, "csv": to_csv(fidelity_table(result))}


def _pair(found: Mapping[str, Any], real: Row, flow: str) -> tuple[float | None, float | None]:
    """Emulated and real; neither where the emulation does not have it. An empty cell of a real layer is a NaN."""
    own = found.get(real["tensor"])
    return (None, None) if own is None else (own.sqnr, float(real[f"{flow}_real"] or "nan"))


def _lines(known: Sequence[Row]) -> str:
    """The rows as they stood in `layers.csv.gz`, without model and case."""
    text = io.StringIO()
    if known:
        writer = csv.DictWriter(
            text, [name for name in known[0] if name not in ("model", "case")], extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(known)
    return text.getvalue()


def _files(name: str, packed: str | None) -> tuple[Path, Path]:
    if packed is not None:
        folder = Path(packed) / name
        return folder / f"{name}.onnx", folder / "data"
    from benchmarks.typed_models import files_of

    return files_of(name)


def pack(models: Sequence[str], out: Path) -> None:
    """Write one archive for each model, in parts where it is large, and the wheels."""
    for name in models:
        path, data = _files(name, None)
        files = _spread(sorted(data.glob("*.npz")), PACKED)
        model = onnx.load(path)
        if name == "minilm_l3":
            _without_unused_rows(model, files)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:xz", preset=1) as archive:
            _add(archive, f"{name}/{name}.onnx", model.SerializeToString())
            text = f'name = "{name}"\ndescription = "samples of {name}"\nmodel = "../{name}.onnx"\n'
            _add(archive, f"{name}/data/dataset.toml", text.encode())
            for file in files:
                _add(archive, f"{name}/data/{file.name}", _plain_npz(file))
        packed = content.getvalue()
        count = math.ceil(len(packed) / _PART)
        for part in range(count):
            (out / f"{name}.tar.xz.{part:02}").write_bytes(packed[part * _PART : (part + 1) * _PART])
        click.echo(f"{name}: {len(packed) / 1e6:.1f} MB in {count}", err=True)
    wheels = out / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--python-version", "3.12", "--dest", str(wheels), *_pinned()], check=True)


def _pinned() -> list[str]:
    """The wheels, in the versions that are here."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in _WHEELS]


def _spread(files: Sequence[Path], count: int) -> list[Path]:
    """So many of the files, evenly spaced."""
    return [files[i * len(files) // count] for i in range(count)] if len(files) > count else list(files)


def _plain_npz(file: Path) -> bytes:
    """The same arrays uncompressed: the archive around them does that better."""
    with np.load(file) as arrays:
        content = io.BytesIO()
        np.savez(content, **{name: arrays[name] for name in arrays.files})
    return content.getvalue()


def _without_unused_rows(model: onnx.ModelProto, files: Sequence[Path]) -> None:
    """Zeros in the rows of the word embedding that no sample takes: they weigh nothing when packed, and do nothing."""
    used: set[int] = {0}
    for file in files:
        with np.load(file) as arrays:
            used.update(int(v) for name in arrays.files if "ids" in name for v in np.unique(arrays[name]))
    table = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    rows = numpy_helper.to_array(table).copy()
    rows[[i for i in range(len(rows)) if i not in used]] = 0
    table.CopyFrom(numpy_helper.from_array(rows, table.name))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()
