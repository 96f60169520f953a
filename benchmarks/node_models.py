"""The models of ONNX's own backend tests, each through a sweep: `python -m benchmarks.node_models [--jobs N] [WORD]`.

Two thousand small models with data, one or more for every operator and form of it: those made for single operators
("node"), PyTorch's ("pytorch-converted", "pytorch-operator") and "simple" ones. Each is swept, or refused in one clear
sentence; everything else is a bug. What the sweep says is held against ONNX Runtime on the model as it is, and against
the variant run on its own. `--kind light` takes the nine networks whose weights are computed by ConstantOfShape, and
so are activations to a sweep: they want gigabytes, and minutes each.

Printed are the outcomes by number, the refusals by sentence, and each bug. A process that dies or hangs is a bug of the
model that it was at, and another goes on. WORD takes only the models with this in their names.
"""

from __future__ import annotations

import math
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.backend.test.loader import load_model_tests

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.session import Session
from precisionlab.compare.wide import is_float
from precisionlab.data import Sample
from precisionlab.errors import PrecisionLabError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model
from precisionlab.rewrite.toggle import whole
from precisionlab.search.outcome import PrecisionResult

ort.set_default_logger_severity(4)

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
_QUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FEWEST_DB = 0.5
"""As far may two ways to the same SQNR differ: sums are taken in another order, and outputs are a rounding apart."""
_PATIENCE = 300.0
"""Seconds after which a model counts as hung."""

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One model and one sample for it. An input is an array, or what stands for a sequence or an optional in Python."""

    name: str
    kind: str
    model: onnx.ModelProto = field(repr=False)
    inputs: Inputs = field(repr=False)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it is swept in: int8 only where something can be quantised."""
        quantized = any(node.op_type in _QUANTIZED for node in self.model.graph.node)
        return ("fp16", "int8") if quantized else ("fp16",)


@dataclass(frozen=True)
class Outcome:
    """What became of one model. `runs` says whether ONNX Runtime runs it as it is."""

    case: str
    what: str  # "met", "not met", "refused", "bug"
    text: str = ""
    runs: bool = True


def cases(kinds: Iterable[str] = KINDS) -> Iterator[Case]:
    """All models with data that this version of ONNX has, in the order of their names."""
    for kind in kinds:
        if kind == "light":
            yield from _light()
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ONNX's cases overflow and divide by zero on purpose
            found = sorted(load_model_tests(kind=kind), key=lambda test: str(test.name))
        for test in found:
            if test.model_dir is None:
                model = test.model
                values = [_array(value) for value in test.data_sets[0][0]]
            else:
                folder = Path(test.model_dir)
                model = onnx.load_model(folder / "model.onnx")
                files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda f: int(f.stem[6:]))
                values = [_read(file, info) for file, info in zip(files, _fed(model), strict=False)]
            yield Case(f"{kind}/{test.name}", kind, model, dict(zip(_names(model), values, strict=False)))


def _light() -> Iterator[Case]:
    for file in sorted((_DATA / "light").glob("*.onnx")):
        model = onnx.load_model(file)
        generator = np.random.default_rng(0)
        inputs = {
            info.name: generator.random([dim.dim_value for dim in info.type.tensor_type.shape.dim], np.float32)
            for info in _fed(model)
        }
        yield Case(f"light/{file.stem}", "light", model, inputs)


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that data is for: before IR 4 every weight is an input too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in weights]


def _names(model: onnx.ModelProto) -> list[str]:
    return [info.name for info in _fed(model)]


def _read(file: Path, info: onnx.ValueInfoProto) -> Any:
    content = file.read_bytes()
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind == "optional_type":
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if value is None or isinstance(value, (list, dict)) else np.asarray(value)


def written(case: Case, folder: Path) -> tuple[Path, Path]:
    """The model's file and the data folder, as a user would have them.

    What NumPy's files have no type for (bfloat16 and narrower) is saved as float32 and named in the manifest; what they
    cannot hold (sequences, optionals) is saved as one array all the same.
    """
    model, data = folder / "model.onnx", folder / "data"
    data.mkdir(parents=True)
    onnx.save_model(case.model, model)
    arrays, manifest = {}, []
    for name, value in case.inputs.items():
        array = np.concatenate([np.ravel(v) for v in value]) if isinstance(value, list) and value else np.asarray(value)
        if array.dtype.kind == "V":
            manifest.append(f'[inputs."{name}"]\ndtype = "{array.dtype}"\n')
            array = array.astype(np.float32)
        elif array.dtype.kind == "O":
            array = array.astype(str)
        arrays[name] = array
    np.savez(data / "sample.npz", **arrays)
    if manifest:
        (data / "dataset.toml").write_text("\n".join(manifest))
    return model, data


def _is_changed_at_load(model: Model) -> bool:
    """Whether it runs because loading has read half in float32, cut an operator off, or set a layout right."""
    has_half = any(layer.own is not None or layer.is_double for layer in model.layers)
    return has_half or model.tail is not None or any("layout" in node.attributes for node in model.onnx.graph)


def judged(case: Case, folder: Path) -> Outcome:
    """Sweep one model in a fresh folder, and judge what comes of it."""
    model, data = written(case, folder)
    plain = plain_outputs(model, case.inputs)
    try:
        result = sweep(model, data, precisions=case.precisions, out=folder / "out", threads=1, max_evaluations=40)
    except PrecisionLabError as error:
        text = str(error)
        if "\n" in text or not text:
            return Outcome(case.name, "bug", f"refused in more than one line: {text}", plain is not None)
        return Outcome(case.name, "refused", text.replace(str(folder), ""), plain is not None)
    except Exception:
        return Outcome(case.name, "bug", traceback.format_exc(limit=-4), plain is not None)
    if plain is None and not _is_changed_at_load(result.model):
        return Outcome(case.name, "bug", "swept, though ONNX Runtime does not run the model", False)
    if plain is None:  # nothing to hold the figures against
        return Outcome(case.name, "met" if result.met else "not met", _figures(result), False)
    found = faults(result, case.inputs, plain)
    if found:
        return Outcome(case.name, "bug", "; ".join(found))
    return Outcome(case.name, "met" if result.met else "not met", _figures(result))


def _figures(result: SweepResult) -> str:
    return ", ".join(f"{p.precision} {p.low.comparison.worst('sqnr'):.1f} dB" for p in result.precisions)


def plain_outputs(model: Path, inputs: Inputs) -> dict[str, Any] | None:
    """ONNX Runtime's outputs on the model as it is; None where it does not run."""
    try:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
        feeds = {name: _fed_value(value) for name, value in inputs.items()}
        quiet = ort.RunOptions()
        quiet.log_severity_level = 4
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds, quiet), strict=True))
    except Exception:
        return None


def _fed_value(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else np.asarray(value)


def faults(result: SweepResult, inputs: Inputs, plain: Mapping[str, Any]) -> list[str]:
    """What is wrong with the figures of a sweep of one sample: held against ONNX Runtime on the model as it is."""
    found = []
    sample = Sample("sample", {name: _fed_value(value) for name, value in inputs.items()})
    outputs = list(dict.fromkeys(info.name for info in result.model.outputs))
    if outputs != list(plain):
        return [f"the model's outputs are {list(plain)}, the sweep's {outputs}"]
    reference = OnnxRuntimeBackend(result.model, sample, threads=1).reference(outputs)(sample)
    plain = dict(plain)
    for name in outputs:
        own, given = reference.get(name), plain[name]
        is_half = isinstance(given, np.ndarray) and given.dtype == np.float16
        if not same(own.astype(np.float16) if is_half and own is not None else own, given):
            found.append(f"the reference's {name} is not ONNX Runtime's")
        elif is_half:
            plain[name] = own  # what the file gives in half is held against its float32 reading
    if found:
        return found
    for name, errors in result.reference.comparison.outputs.items():
        floats = isinstance(plain[name], np.ndarray) and is_float(plain[name])
        if (errors.errors is not None) != floats:
            found.append(f"{name} has {'no ' if floats else ''}errors")
        elif errors.errors is not None and (errors.errors.err2 != 0 or errors.errors.nonfinite):
            found.append(f"the fp32 variant's {name} differs from the reference")
    for precision in result.precisions:
        found += _against(result, precision, sample, plain)
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two outputs are the same but for the order of sums."""
    if isinstance(a, (list, tuple)) or isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind not in "fc":
        return a.tobytes() == b.tobytes() if a.dtype.kind != "O" else bool(np.all(a == b))
    with np.errstate(all="ignore"):
        scale = float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0))
        tolerance = max(64 * float(np.finfo(a.dtype).eps) * scale, 1e-30)
        return bool(np.allclose(a, b, rtol=1e-4, atol=tolerance, equal_nan=True))


def _against(
    result: SweepResult, precision: PrecisionResult, sample: Sample, plain: Mapping[str, NDArray[Any]]
) -> list[str]:
    """What of a variant's figures is not what its graph gives when it runs on its own."""
    found = []
    for variant in (precision.low, precision.mixed):
        graph, names = whole(result.model, variant.plan, precision.table)
        values = Session(graph, 1).run(sample.inputs) if names else {}
        for name, own in variant.comparison.outputs.items():
            if own.errors is None or name not in names:
                continue
            reference, output = plain[name], values[names[name]]
            if reference.shape != output.shape:
                continue
            finite = np.isfinite(reference)
            if own.errors.elements != np.count_nonzero(finite):
                found.append(f"{variant.name}: {name} counts {own.errors.elements} elements")
            with np.errstate(all="ignore"):
                error = (output[finite].astype(np.float64) - reference[finite]) ** 2
                signal, noise = float(np.sum(reference[finite].astype(np.float64) ** 2)), float(np.sum(error))
            said, really = own.errors.sqnr, _sqnr(signal, noise, int(finite.sum()))
            apart = abs(said - really) if math.isfinite(said) and math.isfinite(really) else 0.0
            exact = min(said, really) > 100 or (said == math.inf and really > 100)
            if not exact and (apart > _FEWEST_DB or math.isfinite(said) != math.isfinite(really)):
                found.append(f"{variant.name}: {name} is said to have {said:.2f} dB, and has {really:.2f}")
    for name, errors in precision.low.comparison.inherited.items():
        if math.isnan(errors.sqnr) and errors.elements and not errors.new_nan and not errors.ref_mismatch:
            found.append(f"{precision.low.name}: {name} has no figure though nothing of it is NaN")
    return found


def _sqnr(signal: float, noise: float, elements: int) -> float:
    if not elements or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def _worker(connection: Connection, kinds: Sequence[str], folder: Path) -> None:
    """Judge the models whose names come, one after the other."""
    every = {case.name: case for case in cases(kinds)}
    while (name := connection.recv()) is not None:
        own = Path(tempfile.mkdtemp(dir=folder))
        try:
            found = judged(every[name], own)
        except Exception:
            found = Outcome(name, "bug", traceback.format_exc(limit=-4))
        connection.send(found)
        shutil.rmtree(own, ignore_errors=True)


class _Hand:
    """A process that judges one model at a time."""

    def __init__(self, kinds: Sequence[str], folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_worker, args=(other, kinds, folder), daemon=True)
        self.process.start()
        other.close()
        self.at: str | None = None
        self.since = 0.0

    def give(self, name: str) -> None:
        self.at, self.since = name, time.monotonic()
        with suppress(OSError):  # it died in between: there is no answer, and that is noticed
            self.connection.send(name)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def outcomes(names: Sequence[str], kinds: Sequence[str], jobs: int, folder: Path) -> Iterator[Outcome]:
    """What becomes of the models, as it comes; a process that dies or hangs costs the one model that it was at."""
    waiting = list(reversed(names))
    hands = [_Hand(kinds, folder) for _ in range(min(jobs, len(names)))]
    try:
        for hand in hands:
            hand.give(waiting.pop())
        while busy := [hand for hand in hands if hand.at is not None]:
            ready = wait([hand.connection for hand in busy], timeout=5)
            for place, hand in enumerate(hands):
                if hand.at is None:
                    continue
                name, lost = hand.at, ""
                if hand.connection in ready:
                    try:
                        yield hand.connection.recv()
                    except (EOFError, ConnectionError):
                        hand.process.join()
                        lost = f"the process died (exit code {hand.process.exitcode})"
                elif time.monotonic() - hand.since > _PATIENCE:
                    lost = f"no end after {_PATIENCE:.0f} s"
                else:
                    continue
                if lost:
                    yield Outcome(name, "bug", lost)
                    hand.end()
                    hands[place] = hand = _Hand(kinds, folder)
                hand.at = None
                if waiting:
                    hand.give(waiting.pop())
    finally:
        for hand in hands:
            hand.end()


def sentence(text: str) -> str:
    """A refusal without the names in it, so that like ones fall together."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    return re.sub(r"\b[A-Za-z]*\d[\w×.]*\b", "#", text)


@click.command()
@click.argument("word", default="")
@click.option("--jobs", default=2, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice((*KINDS, "light")), default=KINDS)
@click.option("--csv", type=click.Path(path_type=Path), default=None, help="Where each model's outcome goes.")
def main(word: str, jobs: int, kinds: tuple[str, ...], csv: Path | None) -> None:
    """Sweep all of them, and say what became of them."""
    names = [case.name for case in cases(kinds) if word in case.name]
    started = time.monotonic()
    found: list[Outcome] = []
    folder = Path(tempfile.mkdtemp(prefix="node_models"))
    try:
        for outcome in outcomes(names, kinds, jobs, folder):
            found.append(outcome)
            if sys.stderr.isatty():
                print(f"\r{len(found)}/{len(names)}", end="", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if csv:
        rows = sorted(f"{o.case}\t{o.what}\t{o.runs}\t{o.text!r}" for o in found)
        csv.write_text("\n".join(rows) + "\n")
    counts = Counter(outcome.what for outcome in found)
    print(
        f"{len(found)} models, {time.monotonic() - started:.0f} s: " + ", ".join(f"{n} {w}" for w, n in counts.items())
    )
    for runs in (False, True):
        groups: dict[str, list[str]] = defaultdict(list)
        for outcome in found:
            if outcome.what == "refused" and outcome.runs == runs:
                groups[sentence(outcome.text)].append(outcome.case)
        total = sum(map(len, groups.values()))
        print(f"\nrefused, and ONNX Runtime {'runs' if runs else 'does not run'} them: {total}")
        for text, names_of in sorted(groups.items(), key=lambda g: -len(g[1])):
            print(f"{len(names_of):5}  {text}   ({', '.join(names_of[:2])})")
    bugs = [outcome for outcome in found if outcome.what == "bug"]
    for outcome in sorted(bugs, key=lambda o: o.case):
        print(f"\nBUG {outcome.case} (ONNX Runtime {'runs' if outcome.runs else 'does not run'} it)\n{outcome.text}")
    sys.exit(bool(bugs))


if __name__ == "__main__":
    main()
