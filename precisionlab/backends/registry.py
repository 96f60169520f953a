"""The backends that can be asked for by name: what each is, what it needs, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from precisionlab.errors import OptionError

if TYPE_CHECKING:
    from precisionlab.backends.engine import EngineBackend
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
    from precisionlab.backends.options import EngineOptions
    from precisionlab.data import Dataset
    from precisionlab.system.observer import Observer

EMULATION, TENSORRT, RTX = "onnxruntime", "tensorrt", "tensorrt-rtx"
AUTO = "auto"


class Opener(Protocol):
    """Opens a backend that builds engines, beside the emulation of the same model."""

    def __call__(
        self,
        name: str,
        reference: OnnxRuntimeBackend,
        every: Dataset,
        chosen: Dataset,
        options: EngineOptions,
        folder: Path,
        observer: Observer,
    ) -> AbstractContextManager[EngineBackend]:
        """For as long as the context lasts; engines are for the shapes of `every` sample, and lie in `folder`.

        Raises EngineError where it cannot be used here, OptionError for options that do not fit the model.
        """
        ...


@dataclass(frozen=True)
class Kind:
    """One backend. `title` says in a few words what it does.

    `package` is the Python package that it works by, `remedy` the command that installs it. `needs_gpu`: it is of no
    use without one. `is_preferred` tells whether `auto` takes it on this machine. `open` is None where there are no
    engines: all is emulated.
    """

    name: str
    title: str
    package: str
    remedy: str
    needs_gpu: bool
    is_preferred: Callable[[], bool]
    open: Opener | None


def _tensorrt_is_usable() -> bool:
    from precisionlab.backends.tensorrt.presence import is_usable

    return is_usable()


def _open_tensorrt(*given: Any, **named: Any) -> AbstractContextManager[EngineBackend]:
    from precisionlab.backends.tensorrt.opening import open_engines  # only where it is asked for

    return open_engines(*given, **named)


_KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            TENSORRT,
            "real engines are built and measured",
            package="tensorrt",
            remedy="pip install 'precisionlab[tensorrt]'",
            needs_gpu=True,
            is_preferred=_tensorrt_is_usable,
            open=_open_tensorrt,
        ),
        Kind(
            RTX,
            "real engines of typed models; without a GPU they are only compiled",
            package="tensorrt_rtx",
            remedy="pip install wheel setuptools && pip install --no-build-isolation 'precisionlab[rtx]'",
            needs_gpu=False,
            is_preferred=lambda: False,
            open=_open_tensorrt,
        ),
        Kind(
            EMULATION,
            "all is emulated",
            package="onnxruntime",
            remedy="pip install precisionlab",
            needs_gpu=False,
            is_preferred=lambda: True,
            open=None,
        ),
    )
}
KINDS: Mapping[str, Kind] = MappingProxyType(_KINDS)
"""Name → backend; `auto` takes the first that is preferred here."""


def register(kind: Kind) -> None:
    """Add a backend. It can be asked for by its name from then on. Raises ValueError for a name that is taken."""
    if kind.name in (*_KINDS, AUTO):
        raise ValueError(f"there is a backend {kind.name!r} already")
    _KINDS[kind.name] = kind


def backend_names() -> tuple[str, ...]:
    """What `--backend` takes."""
    return (AUTO, *_KINDS)


def which_backend(name: str) -> str:
    """The backend of this name; for `auto`, TensorRT where it is installed and there is a GPU, else the emulation.

    Raises OptionError for an unknown name.
    """
    if name == AUTO:
        return next(kind.name for kind in _preferred())
    if name not in _KINDS:
        raise OptionError(f"unknown backend {name!r}; use one of {', '.join(backend_names())}")
    return name


def _preferred() -> Iterator[Kind]:
    return (kind for kind in _KINDS.values() if kind.is_preferred())
