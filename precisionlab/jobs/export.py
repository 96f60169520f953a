"""The export of a plan: what another tool needs to build the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from precisionlab.backends.registry import RTX
from precisionlab.backends.tensorrt.plugins import libraries_of
from precisionlab.backends.tuning import UNTUNED, Tuning
from precisionlab.calibration.release_here import default_release
from precisionlab.errors import OptionError, PlanError
from precisionlab.export import Export, Subject
from precisionlab.export.offers import names_in_file
from precisionlab.export.tuned import check_weakly
from precisionlab.jobs.needs import Needs
from precisionlab.jobs.plan_source import arithmetic_of, is_told, layered_for, model_of, run_beside, source_of
from precisionlab.jobs.repaired_file import repairs_text, write_repaired
from precisionlab.model import Model, load_model
from precisionlab.model.portable import tensorrt_notes
from precisionlab.model.prepared import exported_file, prepared_name
from precisionlab.model.tail import graft
from precisionlab.plan.arithmetic import Fusing
from precisionlab.plan.assign import precision_of, read_plan_for
from precisionlab.plan.file import read_plan_content
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.plan.weak import check_weak, explicit_layer
from precisionlab.precision import any_quantized
from precisionlab.rewrite.parted import layers_apart
from precisionlab.rewrite.typed.beside import Beside
from precisionlab.search.options import check_calibration
from precisionlab.system.disk import drafted, told, write_whole_bytes
from precisionlab.system.lock import held_file
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import check_workers
from precisionlab.system.release import release_of
from precisionlab.system.wording import counted, either, meant

_ADVICE = "choose another --out"


@dataclass(frozen=True)
class Exported:
    """What was exported: `text` where it goes to standard output, and otherwise the files that were written."""

    text: str | None
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def export_plan(
    plan: str | Path,
    target: str,
    *,
    out: str | Path | None = None,
    model: str | Path | None = None,
    data: str | Path | None = None,
    shapes: Sequence[str] = (),
    tensorrt: str | None = None,
    hold_float: bool = False,
    tuning: Tuning = UNTUNED,
    plugins: Sequence[str] = (),
    typed: bool = False,
    threads: int | None = None,
    observer: Observer | None = None,
) -> Exported:
    """Write a plan as `target` (one of `FORMATS`) wants it, to the file `out` and to files beside it.

    Without `out` the text is returned; targets of several files, or of binary ones, need it. Model and data are those
    of the `run.json` beside the plan, unless `model` and `data` name others; data is looked at only where int8 ranges
    are needed, or the shapes of dynamic inputs that `shapes` (NAME:MIN,OPT,MAX) does not give. `tensorrt` is the
    version that a calibration cache is written for, by default the installed one. `hold_float` holds what the plan has
    in float beside int8, where TensorRT may else run any layer in it that has scales on both sides. `tuning` and
    `plugins` (libraries) are for builds by trtexec and Polygraphy. With `typed` the plan stands in the types of a model
    beside, for a strongly typed network. Where the plan has repairs, all of this is of the repaired model, which stands
    beside what names it; as `REPAIRED` it is all that is written. Raises a PrecisionLabError where the plan cannot be
    read or is another model's, the target cannot be told it, or a file cannot be written.
    """
    if target not in FORMATS:
        raise OptionError(f"unknown format {target!r}{meant(target, FORMATS)}; use one of {', '.join(FORMATS)}")
    if hold_float and target not in _HOLDING:
        raise OptionError(
            f"--hold-float is for {either(sorted(_HOLDING))}: in {target} the model itself says its types"
        )
    if (tuning != UNTUNED or plugins) and target not in _SHAPED:
        raise OptionError(f"plugins and options of builds are for {either(sorted(_SHAPED))}: {target} builds no engine")
    libraries = tuple(library.path for library in libraries_of(plugins))
    check_workers(threads)
    if typed:
        _check_typed(target, hold_float, tensorrt)
    else:
        check_weakly(tuning)
    if tensorrt is not None:
        _check_release(target, tensorrt)
    path = Path(plan)
    run = run_beside(path)
    loaded = layered_for(run, load_model(Path(model if model is not None else model_of(run, path))), path)
    asked = read_plan_for(loaded, path)
    check_calibration(asked.calibration)
    source = source_of(run, data)
    observer = observer_of(observer)
    found = Needs(loaded, asked, source, threads, observer)
    file = None if out is None else _checked(Path(out), (path, loaded.path, *loaded.data_files))
    if target == REPAIRED:
        return _repaired(loaded, found, path, _required(file, "the model is a file"), observer)
    prepared = _prepared(loaded, file) if target in _NAMING and not typed else None
    if target in _HOLDING and not typed and (target in _SHAPED or explicit_layer(loaded, asked) is None):
        check_weak(loaded, asked)  # before samples are read in vain
    for note in () if target == _ONNXRUNTIME else tensorrt_notes(loaded):
        if not (note.is_silent and target == TYPED):  # that is put right there, with a note
            observer.note(f"{loaded.path.name}: {note}")
    if typed or target == TYPED:
        _tell_apart(loaded, asked, path, observer)
    with nullcontext() if file is None else held_file(file, observer.note, _ADVICE):
        if loaded.repairs and not is_told(path):
            found.same()
        asked, table = found.ranges() if _is_quantized(loaded, asked) else (asked, None)
        profiles, *more = found.profiles(shapes) if target in _SHAPED else ({},)
        subject = Subject(
            loaded, asked, table, profiles, names_in_file(loaded), tensorrt or default_release(), prepared, hold_float,
            tuning, libraries, more_profiles=tuple(more),
        )  # fmt: skip
        if target == TYPED:
            done = _typed(subject, found, _required(file, "the model is a file"))
        elif typed:
            done = _strongly_typed(subject, target, found, _required(file, "the typed model stands beside"), observer)
        else:
            done = _written(TARGETS[target](subject, file), file, observer, subject)
    return replace(done, notes=(*_repair_notes(loaded, prepared), *done.notes))


def _repaired(model: Model, needs: Needs, plan: Path, out: Path, observer: Observer) -> Exported:
    """The repaired model, once it was run beside the original."""
    if not model.repairs:
        raise PlanError(
            f"{plan}: has no repairs, so there is no other model to write: its own is {model.path}; use that, or sweep "
            "it anew (without --no-repair) to have repairs tried"
        )
    with held_file(out, observer.note, _ADVICE):
        same = needs.same()
        files = write_repaired(model, out)
    return Exported(None, files, (f"{repairs_text(model)}; in float32 it gives what {model.path} gives, {same.words}",))


def _repair_notes(model: Model, prepared: Path | None) -> tuple[str, ...]:
    """What is to be known where the model that is handed on is a repaired one."""
    if not model.repairs:
        return ()
    where = "what is written" if prepared is None else prepared.name
    return (f"{where} is {model.path.name} with {repairs_text(model)}: the plan is right with it alone",)


def _tell_apart(model: Model, plan: PrecisionPlan, path: Path, observer: Observer) -> None:
    """Tell of layers that the plan's figures were emulated as one kernel of, and typed TensorRT makes several of."""
    if arithmetic_of(read_plan_content(path), path).fusing is not Fusing.FOLDED:
        return
    if apart := layers_apart(model, plan):
        observer.note(
            f"{model.path.name}: strongly typed TensorRT rounds inside of {counted(len(apart), 'layer')}, such as "
            f"{apart[0].name!r} ({apart[0].kind}), which this plan was found without, so that an overflow there went "
            f"unseen; sweep with --backend {RTX}, which needs no GPU, or measure the engine"
        )


def _is_quantized(model: Model, plan: PrecisionPlan) -> bool:
    return any(precision_of(layer, plan).is_quantized for layer in model.layers)


def _prepared(model: Model, out: Path | None) -> Path | None:
    """Where the copy of the model goes that has the plan's names; None where its own file has them."""
    if model.exported is None:
        return None
    inlined = "the model's functions were inlined, and the copy that has the plan's names stands beside"
    lifted = "the model holds float16 or bfloat16 of its own, and a float32 copy, which pins can change, stands beside"
    repaired = "the plan has repairs, and the model with them stands beside"
    _required(out, repaired if model.repairs else inlined if model.is_inlined else lifted)
    assert out is not None
    return out.parent / prepared_name(model)


def _trtexec(subject: Subject, out: Path | None) -> Export:
    from precisionlab.export.trtexec import trtexec_command, trtexec_script

    if out is not None:
        return trtexec_script(subject)
    if any_quantized(subject.enabled):
        _required(out, "a calibration cache stands beside the command")
    return trtexec_command(subject)


def _polygraphy(subject: Subject, out: Path | None) -> Export:
    from precisionlab.export.polygraphy import check_file, polygraphy_script

    if out is None and any_quantized(subject.enabled):
        _required(out, "a calibration cache stands beside the script")
    return polygraphy_script(subject, check_file(out))


def _modelopt(subject: Subject, out: Path | None) -> Export:
    from precisionlab.export.modelopt import modelopt_json
    from precisionlab.jobs.modelopt_trial import tried

    export = modelopt_json(subject)
    if export.beside:
        _required(out, "a calibration cache stands beside it")
    return tried(export)


def _onnxruntime(subject: Subject, out: Path | None) -> Export:
    from precisionlab.export.onnxruntime import onnxruntime_model

    _required(out, "the model is a file")
    return onnxruntime_model(subject)


def _json(subject: Subject, out: Path | None) -> Export:
    from precisionlab.export.plain import plan_json

    return plan_json(subject)


def _typed(subject: Subject, beside: Beside, out: Path) -> Exported:
    from precisionlab.rewrite.typed import save_typed, typed_model

    typed = typed_model(subject.model, subject.plan, subject.table, beside=beside)
    if subject.model.tail is not None:
        graft(typed.onnx, subject.model.tail)
    save_typed(typed, out)
    return Exported(None, (out,), (*typed.notes, *typed.clamped))


def _strongly_typed(subject: Subject, target: str, beside: Beside, out: Path, observer: Observer) -> Exported:
    """The typed model, and what builds it as a strongly typed network; the model first, which the other names."""
    path = out.parent / f"{subject.model.name}.typed.onnx"
    if path.resolve() in {subject.model.path.resolve(), out.resolve()}:
        raise OptionError(f"--out {out}: the typed model beside it would be {path}; choose another folder or name")
    with held_file(path, observer.note, _ADVICE):
        written = _typed(subject, beside, path)
        export = TARGETS[target](replace(subject, file=path, typed=True), out)
        done = _written(export, out, observer, subject)
    return Exported(None, (*done.files, *written.files), (*written.notes, *done.notes))


TYPED = "typed-onnx"
REPAIRED = "repaired-onnx"
_ONNXRUNTIME = "onnxruntime"
_LAST_WITHOUT_TYPES = 8
_LAST_WEAK = 10
"""The last major version of TensorRT with precision flags, pins and calibration caches."""
_SHAPED = frozenset({"trtexec", "polygraphy"})
_HOLDING = frozenset({"trtexec", "polygraphy", "json"})
"""What holds layers of a weakly typed TensorRT."""
_NAMING = frozenset({"trtexec", "polygraphy", "modelopt", "json"})
"""What these write names nodes of a file, which must have them."""
TARGETS: Mapping[str, Callable[[Subject, Path | None], Export]] = {
    "trtexec": _trtexec,
    "polygraphy": _polygraphy,
    "modelopt": _modelopt,
    _ONNXRUNTIME: _onnxruntime,
    "json": _json,
}

FORMATS = (*TARGETS, TYPED, REPAIRED)


def _check_typed(target: str, hold_float: bool, tensorrt: str | None) -> None:
    """Raises OptionError where nothing can be told of a strongly typed network."""
    if target not in _SHAPED:
        kind = {TYPED: "is so by itself", REPAIRED: "is float32"}.get(target, "says layers' precisions")
        raise OptionError(f"--typed is for {either(sorted(_SHAPED))}: {target} {kind}")
    if hold_float:
        raise OptionError("--hold-float: with --typed the model itself says each layer's type; leave it")
    if tensorrt is not None and release_of(tensorrt).major <= _LAST_WITHOUT_TYPES:
        raise OptionError(f"--typed: TensorRT {tensorrt} has no strongly typed networks, 10.0 and later have; leave it")


def _check_release(target: str, tensorrt: str) -> None:
    """Raises OptionError where that is no TensorRT version, or none that can be told layers' precisions."""
    release = release_of(tensorrt)
    if target in _SHAPED and (release.is_rtx or release.major > _LAST_WEAK):
        name = "TensorRT-RTX" if release.is_rtx else "TensorRT"
        raise OptionError(
            f"{name} {release} has no precision flags and no pins, which {target} would be told; "
            f"use --format {TYPED}: there the model itself says its types"
        )


def _required(out: Path | None, why: str) -> Path:
    if out is None:
        raise OptionError(f"--out is needed: {why}")
    return out


def _checked(out: Path, sources: Iterable[Path]) -> Path:
    """The file to write, in a folder that is there. Raises OptionError where it would take the place of a source."""
    if out.is_dir():
        raise OptionError(f"--out {out}: is a folder; name a file")
    if out.resolve() in {source.resolve() for source in sources}:
        raise OptionError(f"--out {out}: is what the export is made from; name another file")
    with told(f"--out {out}", _ADVICE):
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _written(export: Export, out: Path | None, observer: Observer, subject: Subject) -> Exported:
    """Write the files, all or none; files beside first, so that what names them never stands alone."""
    if out is None:
        assert isinstance(export.content, str)
        return Exported(export.content, (), export.notes)
    content = export.content.encode("utf-8", "surrogateescape") if isinstance(export.content, str) else export.content
    beside = [out.parent / name for name in export.beside]
    with ExitStack() as opened:
        for file in beside:
            opened.enter_context(held_file(file, observer.note, _ADVICE))
        opened.enter_context(told(f"--out {out}", _ADVICE))
        drafts = opened.enter_context(drafted(out.parent, out.name, of=out))
        for name, data in export.beside.items():
            write_whole_bytes(drafts / name, data)
        write_whole_bytes(drafts / out.name, content, 0o755 if export.executable else 0o644)
        if subject.file is not None:
            exported_file(subject.model, drafts)
            beside.append(subject.file)
    return Exported(None, (out, *reversed(beside)), export.notes)
