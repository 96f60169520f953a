"""A repaired model as a file, for any tool: run beside its original before it is handed over."""

from __future__ import annotations

from pathlib import Path

from precisionlab.backends.equivalence import Equivalence, equivalence
from precisionlab.data import Dataset
from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.model.save import save_model
from precisionlab.system.observer import Observer
from precisionlab.system.wording import counted

NEARLY = 1e-5
"""What a repair that rounds elsewhere may differ by in float32, as a share of an output's largest number."""
_SHOWN = 3


def same_in_float32(repaired: Model, samples: Dataset, threads: int, observer: Observer) -> Equivalence:
    """As `beside_original`. Raises ModelError where it is not what the repairs promise."""
    same = beside_original(repaired, samples, threads, observer)
    check_promise(repaired, same)
    return same


def beside_original(repaired: Model, samples: Dataset, threads: int, observer: Observer) -> Equivalence:
    """How a repaired model lies beside its original in float32, on these samples."""
    assert repaired.original is not None
    observer.stage(f"float32 with {repairs_text(repaired)}", len(samples))
    return equivalence(repaired.original.onnx, repaired.onnx, samples, threads, observer.advance)


def is_as_promised(repaired: Model, same: Equivalence) -> bool:
    """Whether the model gives what its repairs promise: on other samples a row may be masked as a whole."""
    return same.largest <= NEARLY and (repaired.is_rounded_by_repairs or same.is_bitwise)


def check_promise(repaired: Model, same: Equivalence) -> None:
    """Raises ModelError where the model does not give what its repairs promise."""
    if not is_as_promised(repaired, same):
        kinds = ", ".join(map(str, repaired.repairs))
        raise ModelError(
            f"{repaired.path}: with {kinds} its float32 outputs differ by {same.largest:.2g} of their largest number, "
            "which such repairs must not do; nothing was written; sweep the model anew, and if that says the same, "
            "please report it"
        )


def write_repaired(repaired: Model, file: Path) -> tuple[Path, ...]:
    """Write the repaired model, in float32, with the original's inputs and outputs; returns the files.

    Constants beyond what one file holds go to `<name>.data` beside it. Raises ModelError where it cannot be written.
    """
    assert repaired.exported is not None
    return save_model(repaired.exported, file, repaired.data_files)


def repairs_text(model: Model) -> str:
    """`1 repair (reduce_mean at /norm/sum)`."""
    named = [str(repair) for repair in model.repairs]
    more = ", …" if len(named) > _SHOWN else ""
    return f"{counted(len(named), 'repair')} ({', '.join(named[:_SHOWN])}{more})"
