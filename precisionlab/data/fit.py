"""Arrays as the model takes them, or one sentence that says what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from precisionlab.data.manifest import MANIFEST, InputSpec
from precisionlab.data.sample import Arrays, first_line, some
from precisionlab.errors import DataError
from precisionlab.model import TensorInfo


def check_names(found: Collection[str], inputs: Sequence[TensorInfo], where: str) -> None:
    """Raises DataError unless there is one array for each input, and none besides."""
    names = [info.name for info in inputs]
    missing, extra = sorted(set(names) - set(found)), sorted(set(found) - set(names))
    if missing or extra:
        wrong = f"lacks {some(missing)}" if missing else f"has {some(extra)}, which the model does not take"
        raise DataError(f"{where}: {wrong}; the model's inputs are {', '.join(names)}")


def check_shape(shape: Sequence[int], info: TensorInfo, where: str) -> tuple[int, ...]:
    """The shape with its batch dimension. Raises DataError where the input cannot have it."""
    found = tuple(shape)
    if info.shape is None:
        return found
    # A sample without its batch dimension is what people save; add it where that fits.
    if len(found) == len(info.shape) - 1 and not (isinstance(info.shape[0], int) and info.shape[0] != 1):
        found = (1, *found)
    if not fits(found, info):
        raise DataError(f"{where} has shape {shape_text(found)}, the model wants {dims(info)}{_axes_hint(found, info)}")
    return found


def fit(arrays: Arrays, inputs: Sequence[TensorInfo], specs: Mapping[str, InputSpec] | None, where: str) -> Arrays:
    """The sample's arrays in the model's order, checked; `specs` is None where no manifest could mend them."""
    check_names(arrays, inputs, where)
    return {info.name: _fitted(arrays[info.name], info, specs, f"{where}: input {info.name!r}") for info in inputs}


def _fitted(array: NDArray[Any], info: TensorInfo, specs: Mapping[str, InputSpec] | None, where: str) -> NDArray[Any]:
    spec = (specs or {}).get(info.name)
    if spec is not None and spec.dtype is not None:
        try:
            array = array.astype(spec.dtype, copy=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} is {array.dtype} and cannot become {spec.dtype}: {first_line(error)}") from None
    if not array.dtype.isnative:  # the same values, saved on a machine of the other byte order
        array = array.astype(array.dtype.newbyteorder("="))
    wanted = None if info.dtype is None else info.dtype.numpy()
    if info.dtype == ir.DataType.STRING and array.dtype.kind in "UO":
        array = array.astype(str)  # of a fixed length, as .npz has them without pickle
        wanted = array.dtype
    if wanted is not None and array.dtype != wanted:
        mend = f"convert it with .astype({str(wanted)!r})"
        if specs is not None:
            mend = f"save it as {wanted}, or set inputs.{info.name}.dtype in {MANIFEST}"
        raise DataError(f"{where} is {array.dtype}, the model wants {wanted}; {mend}")
    array = array.reshape(check_shape(array.shape, info, where))
    if is_float(array.dtype) and not (finite := np.isfinite(array)).all():
        count = int(array.size - np.count_nonzero(finite))
        what = "1 value that is NaN or Inf" if count == 1 else f"{count} values that are NaN or Inf"
        raise DataError(f"{where} holds {what}; mend or remove the sample")
    return np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension


def fits(shape: Sequence[int], info: TensorInfo) -> bool:
    """Whether the input can have this shape."""
    return info.shape is None or (
        len(shape) == len(info.shape)
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(info.shape, shape, strict=True))
    )


def _axes_hint(shape: Sequence[int], info: TensorInfo) -> str:
    """What to do where only the place of the channel axis is wrong: NHWC data for an NCHW model, or the reverse."""
    if len(shape) < 3:
        return ""
    for source, target, what in ((-1, 1, "channels come last"), (1, -1, "channels come first")):
        axes = list(range(len(shape)))
        axes.insert(target if target >= 0 else len(shape), axes.pop(source))
        if fits([shape[axis] for axis in axes], info):
            return f"; its {what}: transpose it with .transpose({', '.join(map(str, axes))})"
    return ""


def is_float(dtype: DTypeLike) -> bool:
    """Whether values of this type can be NaN: NumPy's own floats, and bfloat16 and its like."""
    found = np.dtype(dtype)
    return found.kind == "f" or (found.kind == "V" and found.name.startswith(("bfloat", "float")))


def dims(info: TensorInfo) -> str:
    """The shape that the model declares, as `?×3×224×224`."""
    if info.shape is None:
        return "any shape"
    return "×".join("?" if dim is None else str(dim) for dim in info.shape) or "a scalar"


def shape_text(shape: Sequence[int]) -> str:
    """A shape, as `1×3×224×224`."""
    return "×".join(map(str, shape)) or "scalar"
