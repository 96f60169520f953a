"""INT8 ranges for a TensorRT that finds them by itself: from a ready cache, or from samples that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precisionlab.backends.tensorrt.jobs import Arrays, Profile, Shape
from precisionlab.errors import BuildError, DataError

if TYPE_CHECKING:
    from precisionlab.model.graph import TensorInfo

Feed = Callable[[Sequence[str]], Sequence[int] | None]
"""Called with the names of the inputs, answers with the addresses of their next sample in GPU memory, in this order, or
with None at the end."""

_AS_THEY_ARE = (np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.bool_))


def make_calibrator(trt: Any, cache: bytes | None, feed: Feed | None) -> Any:
    """A `trt.IInt8EntropyCalibrator2` that answers with `cache`, or where that is None with the samples of `feed`.

    TensorRT takes an exception for the end of the data, so none leaves the calibrator: the first is kept, and
    `raise_kept()` raises it, as often as it is called; do so after every build. `written` is the cache that TensorRT
    made (bytes or None), `batches` how many samples it was given. Raises ValueError where both are None.
    """
    if cache is None and feed is None:
        raise ValueError("a calibrator needs a cache or samples")

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        """TensorRT's calibrator, for one build."""

        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.written: bytes | None = None
            self.batches = 0
            self._kept: BaseException | None = None
            self._ended = False

        def get_batch_size(self) -> int:
            """A sample has its batch in its shape; TensorRT only asks for form's sake."""
            return 1

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            """The addresses of the next sample's inputs, as many as there are names; None at the end."""
            if self._ended:
                return None
            try:
                pointers = self._next(list(names))
            except BaseException as error:
                self._kept = error
                pointers = None
            if pointers is None:
                self._ended = True
            else:
                self.batches += 1
            return pointers

        def read_calibration_cache(self) -> bytes | None:
            """The ready cache; None makes TensorRT calibrate."""
            return cache

        def write_calibration_cache(self, content: Any) -> None:
            """Take the cache that TensorRT made, as a view of memory that is gone after this call."""
            self.written = bytes(content)

        def raise_kept(self) -> None:
            """Raise what went wrong while TensorRT calibrated, if anything did."""
            if self._kept is not None:
                raise self._kept

        def _next(self, names: list[str]) -> list[int] | None:
            if cache is not None or feed is None:
                raise BuildError(_refused(trt, cache or b""))
            found = feed(names)
            if found is None:
                return None
            pointers = [int(pointer) for pointer in found]
            # TensorRT reads one address for each name, whatever the length of the list.
            if len(pointers) != len(names) or not all(pointer > 0 for pointer in pointers):
                raise ValueError(f"a calibration batch has the addresses {pointers} for the inputs {names}")
            return pointers

    return Calibrator()


def check_calibration_inputs(
    sample: str, arrays: Arrays, inputs: Iterable[TensorInfo], profiles: Mapping[str, Profile]
) -> None:
    """Check before the build that TensorRT can calibrate on this sample. Raises DataError that names the input.

    `inputs` are the model's. Each has to be there, as float32 (int32, int64 and bool are taken as they are, where
    that is the model's own type), and with the shape that its profile has as OPT, or the model's own where it is
    fixed: TensorRT calibrates at no other, and does not check.
    """
    for info in inputs:
        where = f"{sample}: input {info.name!r}"
        if info.name not in arrays:
            raise DataError(f"{where} is missing")
        array = arrays[info.name]
        if array.dtype != _wanted_type(info):
            raise DataError(
                f"{where} is {array.dtype}; TensorRT calibrates on {_wanted_type(info)} here, "
                "convert the sample, or give a calibration cache"
            )
        wanted = _wanted_shape(info, profiles)
        if array.shape != wanted:
            other = ", or another OPT" if info.name in profiles else ""
            raise DataError(
                f"{where} has shape {_shape_text(array.shape)}, TensorRT calibrates at {_shape_text(wanted)}; "
                f"give samples of this shape{other}"
            )


def _wanted_type(info: TensorInfo) -> np.dtype[Any]:
    own = None if info.dtype is None else np.dtype(info.dtype.numpy())
    return own if own is not None and own in _AS_THEY_ARE else np.dtype(np.float32)


def _wanted_shape(info: TensorInfo, profiles: Mapping[str, Profile]) -> Shape:
    if info.name in profiles:
        return profiles[info.name].opt
    fixed = tuple(dim for dim in info.shape or () if isinstance(dim, int))
    if info.shape is None or len(fixed) != len(info.shape):
        raise ValueError(f"input {info.name!r} is dynamic, and has no profile")
    return fixed


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) if shape else "()"


def _refused(trt: Any, cache: bytes) -> str:
    first = cache.split(b"\n", 1)[0][:80].decode(errors="replace")
    return (
        f"TensorRT {trt.__version__} does not take the calibration cache, whose first line is {first!r}, and asks for "
        "samples instead; calibrate again with this version, or change that line to the one that it writes"
    )
