"""The backends that can be asked for by name: what each is, what it needs, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from precisionlab.errors import OptionError
from precisionlab.system.wording import meant

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
    use without one. `why_not` says why `auto` passes over it on this machine: None where it takes it, "" where there
    is nothing to say. `open` is None where there are no engines: all is emulated. `check` raises EngineError where the
    package is missing, and loads nothing.
    """

    name: str
    title: str
    package: str
    remedy: str
    needs_gpu: bool
    why_not: Callable[[], str | None]
    open: Opener | None
    check: Callable[[], None] = lambda: None


class Choice(NamedTuple):
    """A backend, and in `notes` why `auto` has passed over others that are installed here."""

    name: str
    notes: tuple[str, ...] = ()


def _why_not_tensorrt() -> str | None:
    from precisionlab.backends.tensorrt.obstacle import why_not_used

    return why_not_used()


def _check_tensorrt(package: str) -> None:
    from precisionlab.backends.tensorrt.api import check_installed

    check_installed(package)


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
            remedy='pip install "precisionlab[tensorrt-cu13]"',
            needs_gpu=True,
            why_not=_why_not_tensorrt,
            open=_open_tensorrt,
            check=lambda: _check_tensorrt("tensorrt"),
        ),
        Kind(
            RTX,
            "real engines of typed models; without a GPU they are only compiled",
            package="tensorrt_rtx",
            remedy='pip install wheel setuptools && pip install --no-build-isolation "precisionlab[rtx]"',
            needs_gpu=False,
            why_not=lambda: "",
            open=_open_tensorrt,
            check=lambda: _check_tensorrt("tensorrt_rtx"),
        ),
        Kind(
            EMULATION,
            "all is emulated",
            package="onnxruntime",
            remedy="pip install precisionlab",
            needs_gpu=False,
            why_not=lambda: None,
            open=None,
        ),
    )
}
KINDS: Mapping[str, Kind] = MappingProxyType(_KINDS)
"""Name → backend; `auto` takes the first that it need not pass over here."""


def register(kind: Kind) -> None:
    """Add a backend. It can be asked for by its name from then on. Raises ValueError for a name that is taken."""
    if kind.name in (*_KINDS, AUTO):
        raise ValueError(f"there is a backend {kind.name!r} already")
    _KINDS[kind.name] = kind


def backend_names() -> tuple[str, ...]:
    """What `--backend` takes."""
    return (AUTO, *_KINDS)


def which_backend(name: str) -> str:
    """The name of the backend that `choose_backend` gives."""
    return choose_backend(name).name


def choose_backend(name: str) -> Choice:
    """The backend of this name; for `auto`, TensorRT where it is installed and can be used, else the emulation.

    Raises OptionError for an unknown name.
    """
    if name == AUTO:
        return _preferred()
    if name not in _KINDS:
        names = backend_names()
        raise OptionError(f"unknown backend {name!r}{meant(name, names)}; use one of {', '.join(names)}")
    return Choice(name)


def _preferred() -> Choice:
    notes: list[str] = []
    for kind in _KINDS.values():
        why = kind.why_not()
        if why is None:
            return Choice(kind.name, tuple(notes))
        if why:
            notes.append(f"--backend {AUTO} passes over {kind.name}, which is installed: {why}")
    raise AssertionError("the emulation is always there")
