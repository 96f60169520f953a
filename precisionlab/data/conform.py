"""Arrays as the model takes them, or one sentence that says what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from precisionlab.data.convert import LostValueError, convert, kind
from precisionlab.data.manifest import MANIFEST, InputSpec
from precisionlab.data.sample import Arrays, Remark, some
from precisionlab.errors import DataError
from precisionlab.model import TensorInfo

_NAMELESS = "arr_0"


def match_names(found: Collection[str], inputs: Sequence[TensorInfo], where: str) -> dict[str, str]:
    """Input → the name of its array: the same one; else the only one that differs by its case alone.

    A single array without a name (`arr_0` is what NumPy calls it) is that of a single input. Raises DataError unless
    there is one array for each input, and none besides.
    """
    names = [info.name for info in inputs]
    keys = {name: name for name in names if name in found}
    for name in set(names) - set(keys):
        like = [key for key in found if key.casefold() == name.casefold() and key not in keys.values()]
        if len(like) == 1 and sum(other.casefold() == name.casefold() for other in names) == 1:
            keys[name] = like[0]
    if len(names) == 1 and list(found) == [_NAMELESS]:
        keys = {names[0]: _NAMELESS}
    missing, extra = sorted(set(names) - set(keys)), sorted(set(found) - set(keys.values()))
    if missing or extra:
        lacks = f"lacks {some(missing)}" if missing else ""
        has = f"has {some(extra)}, which the model does not take" if extra else ""
        wrong = " and ".join(filter(None, (lacks, has)))
        raise DataError(f"{where}: {wrong}; the model's inputs are {', '.join(names)}")
    return keys


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


def fit(
    arrays: Arrays, inputs: Sequence[TensorInfo], specs: Mapping[str, InputSpec] | None, where: str
) -> tuple[Arrays, tuple[Remark, ...]]:
    """The sample's arrays in the model's order, checked and converted where that loses nothing; and what was done.

    `specs` is None where no manifest could fix them. Raises DataError.
    """
    keys = match_names(arrays, inputs, where)
    remarks: list[Remark] = []
    fitted = {}
    for info in inputs:
        key = keys[info.name]
        if key not in (info.name, _NAMELESS):
            remarks.append(Remark(info.name, f"called {key!r}, which differs by its case alone, taken for it"))
        place = f"{where}: input {info.name!r}"
        array, done = _converted(arrays[key], info, (specs or {}).get(info.name), place, specs is not None)
        remarks += [Remark(info.name, text) for text in done]
        fitted[info.name] = _checked(array, info, place)
    check_batch({name: array.shape for name, array in fitted.items()}, inputs, where)
    return fitted, tuple(remarks)


def check_batch(shapes: Mapping[str, Sequence[int]], inputs: Sequence[TensorInfo], where: str) -> None:
    """Raises DataError for a batch of none.

    Another dimension may be 0: that of a cache that is still empty, or of a list of boxes that has a first axis of its
    own.
    """
    batches = [(info.name, info.shape[0]) for info in inputs if info.shape and not isinstance(info.shape[0], int)]
    for name, dim in batches:
        if shapes[name][0] == 0 and (len(batches) == 1 or sum(other == dim for _, other in batches) > 1):
            raise DataError(f"{where}: input {name!r} has shape {shape_text(shapes[name])}: a batch of no rows")


def _converted(
    array: NDArray[Any], info: TensorInfo, spec: InputSpec | None, where: str, from_folder: bool
) -> tuple[NDArray[Any], list[str]]:
    """The array in the type that the manifest says, then in the model's; and what a user should know of that."""
    said: list[str] = []
    if not array.dtype.isnative:  # the same values, saved on a machine of the other byte order
        array = array.astype(array.dtype.newbyteorder("="))
    if spec is not None and spec.dtype is not None:
        before = array.dtype
        try:
            array, rounded = convert(array, spec.dtype)
        except LostValueError as error:
            raise DataError(
                f"{where} is {before}, {MANIFEST} makes it {spec.dtype}, {error}; fix one of them"
            ) from None
        if rounded:
            said.append(_rounded(before, array.dtype))
    if info.dtype == ir.DataType.STRING and array.dtype.kind in "UO":
        return array.astype(str), said  # of a fixed length, as .npz has them without pickle
    wanted = array.dtype if info.dtype is None else info.dtype.numpy()
    if array.dtype == wanted:
        return array, said
    try:
        found, rounded = convert(array, wanted)
    except LostValueError as error:
        advice = f"convert it with .astype({str(wanted)!r})"
        if from_folder:
            advice = f"save it as {wanted}, or set inputs.{info.name}.dtype in {MANIFEST}"
        raise DataError(f"{where} is {array.dtype}, the model wants {wanted}, {error}; {advice}") from None
    exactly = f"{array.dtype}, made {wanted} as the model wants it, to the same values"
    return found, [*said, _rounded(array.dtype, wanted) if rounded else exactly]


def _rounded(before: np.dtype[Any], after: np.dtype[Any]) -> str:
    return f"{before}, rounded to the nearest {after}"


def _checked(array: NDArray[Any], info: TensorInfo, where: str) -> NDArray[Any]:
    array = array.reshape(check_shape(array.shape, info, where))
    if is_float(array.dtype) and not (finite := np.isfinite(array)).all():
        count = int(array.size - np.count_nonzero(finite))
        what = "1 value that is NaN or Inf" if count == 1 else f"{count} values that are NaN or Inf"
        raise DataError(f"{where} holds {what}; fix or remove the sample")
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
    return kind(dtype) == "f"


def dims(info: TensorInfo) -> str:
    """The shape that the model declares, as `?×3×224×224`."""
    if info.shape is None:
        return "any shape"
    return "×".join("?" if dim is None else str(dim) for dim in info.shape) or "a scalar"


def shape_text(shape: Sequence[int]) -> str:
    """A shape, as `1×3×224×224`."""
    return "×".join(map(str, shape)) or "scalar"
