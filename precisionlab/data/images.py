"""Images as inputs: their pixels, scaled, centred and laid out as the manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.data.manifest import MANIFEST, InputSpec
from precisionlab.data.picture import opened, upright
from precisionlab.data.sample import Remark
from precisionlab.errors import DataError
from precisionlab.model import TensorInfo

MOST_VALUES = 1 << 27
"""The largest input that an image becomes: 512 MiB of float32, 44 million pixels."""


def read_image(file: Path, info: TensorInfo, spec: InputSpec) -> tuple[NDArray[np.float32], tuple[Remark, ...]]:
    """The pixels as float32 1×C×H×W, or 1×H×W×C where the manifest says so; and what a user should know of them.

    Raises DataError.
    """
    from PIL import Image

    size = spec.size or _wanted_size(info, spec)
    with opened(file) as image:
        _check_input(size or image.size[::-1], spec, info, file)
        picture, said = upright(image, "L" if spec.color == "L" else "RGB")
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    values = _normalised(np.asarray(picture, np.float32), spec, file)
    return values, tuple(Remark(info.name, text) for text in said)


def _check_input(size: tuple[int, int], spec: InputSpec, info: TensorInfo, file: Path) -> None:
    if size[0] * size[1] * (1 if spec.color == "L" else 3) > MOST_VALUES:
        raise DataError(
            f"{file}: would become an input of {size[0]}×{size[1]} pixels, more than {MOST_VALUES >> 18} MiB; "
            f"set inputs.{info.name}.size in {MANIFEST}"
        )


def _normalised(pixels: NDArray[np.float32], spec: InputSpec, file: Path) -> NDArray[np.float32]:
    """`pixels` is H×W×3 in RGB, or H×W."""
    pixels = pixels[..., None] if spec.color == "L" else pixels
    pixels = pixels[..., ::-1] if spec.color == "BGR" else pixels
    channels = pixels.shape[-1]
    if not {len(spec.mean), len(spec.std)} <= {1, channels}:
        raise DataError(f"{file}: mean or std in {MANIFEST} has not one value for each of {channels} channels")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found, and told, with the sample's name
        values: NDArray[Any] = pixels * np.float32(spec.scale)
        values -= np.array(spec.mean, np.float32)
        values /= np.array(spec.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if spec.layout == "NCHW" else values)[None]


def _wanted_size(info: TensorInfo, spec: InputSpec) -> tuple[int, int] | None:
    if info.shape is None or len(info.shape) != 4:
        return None
    height, width = info.shape[2:] if spec.layout == "NCHW" else info.shape[1:3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
