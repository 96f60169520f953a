"""What builds a variant and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precisionlab.backends.base import Backend
    from precisionlab.backends.device import Device
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
    from precisionlab.data import Dataset
    from precisionlab.model import Model
    from precisionlab.system.executors import Executor


def emulation(
    model: Model,
    dataset: Dataset,
    threads: int | None,
    memory: int | None = None,
    device: str = "cpu",
    shaped: Model | None = None,
    batch: int = 1,
) -> OnnxRuntimeBackend:
    """The emulation, ready for the model at the shapes of the dataset's first sample.

    `memory` is what this process may take; None: half of the machine's. `device` is `cpu`, `cuda` or `cuda:N`. `shaped`
    is what the model is a repaired one of, at those shapes: then they are not looked for again. `batch` is how many
    samples run together. Raises ModelError where the model does not run, OptionError where the memory is too little for
    it, there is no such device or samples cannot run together, EngineError where a GPU cannot be used.
    """
    from precisionlab.backends.batching import batching_of
    from precisionlab.backends.memory import default_memory
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend

    memory = memory or default_memory()
    first = next(iter(dataset))
    backend = OnnxRuntimeBackend(model, first, threads, memory=memory, device=device_of(device), shaped=shaped)
    if batch > 1:
        backend.run_together(batching_of(backend.model, batch, dataset, backend.runs_on, backend.budget))
    return backend


def device_of(device: str) -> Device:
    """Where `cpu`, `cuda` or `cuda:N` has graphs run. Raises OptionError and EngineError as `emulation`."""
    from precisionlab.backends.device import CPU, parse_device

    number = parse_device(device)
    if number is None:
        return CPU
    from precisionlab.backends.cuda.device import gpu

    return gpu(number)


def shared_out(backend: OnnxRuntimeBackend, dataset: Dataset, executor: Executor | None) -> Backend:
    """The same with its work spread over the executor's workers, to the same bits; itself without one."""
    if executor is None:
        return backend
    from precisionlab.backends.spread import SpreadBackend, source_of

    return SpreadBackend(backend, source_of(backend, dataset), executor)
