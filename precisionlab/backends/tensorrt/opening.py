"""Opens the TensorRT backend: the process that TensorRT runs in, and the shapes that engines are built for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.tensorrt.api import TENSORRT, check_installed
from precisionlab.backends.tensorrt.backend import EngineSettings, TensorRTBackend
from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.backends.tensorrt.profiles import check_profiles, dynamic_inputs, parse_shapes, profiles_of, sizes_of
from precisionlab.data import Dataset, Sample
from precisionlab.errors import EngineError
from precisionlab.model import Model
from precisionlab.observer import Observer
from precisionlab.options import EngineOptions


@contextmanager
def open_tensorrt(
    reference: OnnxRuntimeBackend,
    every: Dataset,
    chosen: Dataset,
    options: EngineOptions,
    folder: Path,
    see: Observer,
) -> Iterator[TensorRTBackend]:
    """The TensorRT backend, for as long as the context lasts; engines and logs lie in `folder`.

    Engines are built for the shapes of `every` sample. Where TensorRT calibrates by itself, it does on the `chosen`.

    Raises EngineError where TensorRT or the GPU cannot be used, OptionError for shapes that do not fit the model.
    """
    from precisionlab.backends.tensorrt.child import ChildEngines

    check_installed(TENSORRT)  # here, before anything is written
    model = reference.model
    profiles = _profiles(model, every, options.shapes)
    store = Path(options.store) if options.store else folder / "engines"
    with ChildEngines(TENSORRT, model, chosen, store, folder / "tensorrt.log", see) as engines:
        if not engines.features.pins:
            raise EngineError(
                f"TensorRT {engines.features.version} has no precision flags and no pins (they went with 11.0); "
                "this backend needs 8.6 to 10.x"
            )
        settings = EngineSettings(
            folder=store,
            profiles=profiles,
            obey=not options.prefer,
            calibrate=options.calibrate,
            workspace=options.workspace,
            observe=options.observe,
        )
        yield TensorRTBackend(reference, engines, settings)


def _profiles(model: Model, samples: Iterable[Sample], shapes: tuple[str, ...]) -> dict[str, Profile]:
    """As given, and else as the samples have them."""
    given = dict(map(parse_shapes, shapes))
    missing = [info.name for info in dynamic_inputs(model) if info.name not in given]
    found = profiles_of(model, (sizes_of(model, sample.inputs) for sample in samples)) if missing else {}
    profiles = {**{name: found[name] for name in missing}, **given}
    check_profiles(model, profiles)
    return profiles
