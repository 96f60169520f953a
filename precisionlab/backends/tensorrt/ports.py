"""What goes in and out of an engine, in the engine's own types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.tensorrt.buffers import as_dtype, numpy_dtype
from precisionlab.backends.tensorrt.jobs import Arrays, Profile, Shape
from precisionlab.backends.tensorrt.layouts import Layout
from precisionlab.errors import DataError


@dataclass(frozen=True)
class Port:
    """One input or output of an engine, in the type that it has there, which need not be the ONNX model's.

    `shape` has -1 for what is not fixed; `limits` are the shapes that such an input may have, in
    each of the engine's profiles. `on_host` is true where
    TensorRT wants the values in the host's memory (they are a shape). `alias` is the input whose memory an output
    shares. `layout` is None where it is stored row by row.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    on_host: bool
    limits: tuple[Profile, ...] = ()
    alias: str | None = None
    layout: Layout | None = None

    @property
    def is_dynamic(self) -> bool:
        """Whether its shape differs from run to run."""
        return any(dim < 0 for dim in self.shape)


def read_ports(trt: Any, engine: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What an engine takes and gives, each in the engine's order.

    Raises EngineError for a type that NumPy lacks.
    """
    inputs: list[Port] = []
    outputs: list[Port] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(engine.get_tensor_shape(name))
        limits: tuple[Profile, ...] = ()
        if is_input and min(shape, default=0) < 0:
            limits = tuple(_limits(engine, name, number) for number in range(engine.num_optimization_profiles))
        alias = None
        if not is_input and hasattr(engine, "get_aliased_input_tensor"):
            alias = engine.get_aliased_input_tensor(name) or None
        port = Port(
            name=name,
            dtype=numpy_dtype(engine.get_tensor_dtype(name).name, name),
            shape=shape,
            on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
            limits=limits,
            alias=alias,
            layout=_layout(trt, engine, name),
        )
        (inputs if is_input else outputs).append(port)
    return tuple(inputs), tuple(outputs)


def _layout(trt: Any, engine: Any, name: str) -> Layout | None:
    form = engine.get_tensor_format(name)
    if form == trt.TensorFormat.LINEAR:
        return None
    axis = int(engine.get_tensor_vectorized_dim(name))
    return Layout(form.name, axis, 1 if axis < 0 else int(engine.get_tensor_components_per_element(name)))


def check_inputs(inputs: Arrays, ports: tuple[Port, ...]) -> dict[str, NDArray[Any]]:
    """The inputs in the types that the engine takes, contiguous.

    Raises DataError, naming the input, where one is missing or unknown, has a shape that the engine does not take, or
    a type that cannot be turned into the engine's without changing a value.
    """
    known = {port.name for port in ports}
    for name in inputs:
        if name not in known:
            raise DataError(f"the engine has no input {name!r}; it takes {_listed(known)}")
    found = {}
    for port in ports:
        if port.name not in inputs:
            raise DataError(f"input {port.name!r} is missing; the engine takes {_listed(known)}")
        array = as_dtype(np.asarray(inputs[port.name]), port.dtype, f"input {port.name!r}")
        if not _takes(port, array.shape):
            raise DataError(
                f"input {port.name!r} has the shape {_dims(array.shape)}; the engine takes {_wanted(port)}"
                + (": give it other shapes with --shapes, or other samples" if port.limits else "")
            )
        found[port.name] = array
    return found


def profile_for(arrays: Arrays, ports: tuple[Port, ...]) -> int:
    """The first of the engine's profiles that takes all of these inputs together. Raises DataError where none does."""
    dynamic = [port for port in ports if port.limits]
    if not dynamic:
        return 0
    for number in range(len(dynamic[0].limits)):
        if all(_within(port.limits[number], arrays[port.name].shape) for port in dynamic):
            return number
    shapes = ", ".join(f"{port.name!r} {_dims(arrays[port.name].shape)}" for port in dynamic)
    raise DataError(f"no profile of the engine takes these shapes together: {shapes}; give them one with --shapes")


def _limits(engine: Any, name: str, number: int) -> Profile:
    least, usual, most = (tuple(dims) for dims in engine.get_tensor_profile_shape(name, number))
    return Profile(least, usual, most)


def _takes(port: Port, shape: Shape) -> bool:
    if len(shape) != len(port.shape):
        return False
    return any(_within(limits, shape) for limits in port.limits) if port.limits else shape == port.shape


def _within(limits: Profile, shape: Shape) -> bool:
    return all(low <= dim <= high for low, dim, high in zip(limits.min, shape, limits.max, strict=True))


def _wanted(port: Port) -> str:
    if not port.limits:
        return _dims(port.shape)
    return " or ".join(f"{_dims(limits.min)} to {_dims(limits.max)}" for limits in port.limits)


def _nbytes(port: Port, shape: Shape) -> int:
    return math.prod(shape) * port.dtype.itemsize


def _described(port: Port, array: NDArray[Any]) -> str:
    values = f" with the values {array.tolist()}" if port.on_host else ""
    return f"{port.name!r} of {_dims(array.shape)}{values}"


def _dims(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _listed(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
