"""Opens the TensorRT backend: the process that TensorRT runs in, and the shapes that engines are built for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from precisionlab.backends.converted import SourceRun
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import RTX, TENSORRT
from precisionlab.backends.tensorrt.api import RTX as RTX_MODULE
from precisionlab.backends.tensorrt.api import TENSORRT as TENSORRT_MODULE
from precisionlab.backends.tensorrt.api import Features, check_installed
from precisionlab.backends.tensorrt.backend import TensorRTBackend
from precisionlab.backends.tensorrt.configuration import NO_TYPED
from precisionlab.backends.tensorrt.plugins import libraries_of
from precisionlab.backends.tensorrt.profiles import profiles_for
from precisionlab.backends.tensorrt.settings import EngineSettings
from precisionlab.backends.tensorrt.store import EngineStore
from precisionlab.backends.tensorrt.tuning import check_weakly_typed
from precisionlab.backends.tensorrt.typed import TypedBackend
from precisionlab.backends.tuning import check_formats
from precisionlab.data import Dataset
from precisionlab.errors import EngineError, OptionError
from precisionlab.system.disk import why_not_written
from precisionlab.system.observer import Observer
from precisionlab.system.plainfiles import make_plain_folder

MODULES = {TENSORRT: TENSORRT_MODULE, RTX: RTX_MODULE}
"""Backend → the Python module that it works by."""


@contextmanager
def open_engines(
    backend: str,
    reference: OnnxRuntimeBackend,
    every: Dataset,
    chosen: Dataset,
    options: EngineOptions,
    folder: Path,
    observer: Observer,
) -> Iterator[TensorRTBackend]:
    """The backend `tensorrt` or `tensorrt-rtx`, for as long as the context lasts; engines and logs lie in `folder`.

    Engines are built for the shapes of `every` sample. Where TensorRT calibrates by itself, it does on the `chosen`.
    Without a GPU, TensorRT-RTX compiles for `options.compute`, and `can_run` of the backend is false.

    Raises EngineError where TensorRT or the GPU cannot be used, OptionError for shapes that do not fit the model
    and for libraries of plugins that cannot be loaded.
    """
    from precisionlab.backends.tensorrt.child import ChildEngines

    module = MODULES[backend]
    check_installed(module)  # here, before anything is written
    plugins = libraries_of(options.plugins)
    model = reference.model
    check_formats(options.tuning.formats, [info.name for info in (*model.inputs, *model.outputs)])
    profiles, *more = profiles_for(model, options.shapes, lambda name: every)
    named = None if options.store is None else Path(options.store)
    store = EngineStore(_own_store(folder)) if named is None else EngineStore(named, is_trusted=True)
    log, tuning = folder / "tensorrt.log", options.tuning
    with ChildEngines(module, model, chosen, store, log, observer, plugins, tuning) as engines:
        if options.typed:
            _check_typed(engines.features, module, options)
        if engines.device is None and module != RTX_MODULE:
            raise EngineError(
                f"TensorRT {engines.features.version} can run no engines here: {engines.no_gpu}, "
                "or --backend tensorrt-rtx, which compiles without a GPU"
            )
        settings = EngineSettings(
            folder=store.folder,
            profiles=profiles,
            more_profiles=tuple(more),
            obey=not options.prefer,
            calibrate=options.calibrate,
            workspace=options.workspace,
            observe=options.observe,
            hold_float=options.hold_float,
            compute=options.compute if engines.device is None else None,
            plugins=plugins,
            tuning=tuning,
        )
        opened: TensorRTBackend
        if engines.features.pins and not options.typed:
            check_weakly_typed(tuning, engines.features)
            opened = TensorRTBackend(reference, engines, settings)
        else:
            beside = SourceRun(model, every, reference.threads)
            opened = TypedBackend(reference, engines, settings, backend, beside)
        for note in engines.notes:
            observer.note(note)
        opened.notes.extend(engines.notes)
        yield opened


def _check_typed(features: Features, module: str, options: EngineOptions) -> None:
    """Raises EngineError where there are no such networks here, OptionError for options that they have no use for."""
    if not features.strongly_typed and module != RTX_MODULE:
        raise EngineError(f"TensorRT {features.version} {NO_TYPED}")
    given = {"prefer": options.prefer, "hold-float": options.hold_float, "engine-calibration": options.calibrate}
    if asked := [f"--{name}" for name, is_given in given.items() if is_given]:
        raise OptionError(
            f"{', '.join(asked)}: of no use with --typed, where each layer has the type that the model gives it; leave "
            f"{'it' if len(asked) == 1 else 'them'}"
        )


def _own_store(folder: Path) -> Path:
    """The folder of engines in a run's folder. Raises EngineError where it cannot be made, or is a link."""
    try:
        return make_plain_folder(folder, "engines")
    except OSError as error:
        raise EngineError(why_not_written(folder / "engines", error, "choose another folder with --out")) from None
