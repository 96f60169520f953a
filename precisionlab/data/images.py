"""Images, decoded by Pillow and laid out as the manifest says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.data.manifest import MANIFEST, InputSpec
from precisionlab.data.sample import first_line
from precisionlab.errors import DataError
from precisionlab.model import TensorInfo

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
MOST_PIXELS = 2 * 89_478_485
"""Pillow's own limit, beyond which it takes an image for a decompression bomb."""
MOST_VALUES = 1 << 27
"""The largest input that an image becomes: 512 MiB of float32, 44 million pixels."""

# Pillow would look into any file for any format it knows, and hand some to other programs.
_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF")


def read_image(file: Path, info: TensorInfo, spec: InputSpec) -> NDArray[np.float32]:
    """The pixels as float32 1×C×H×W, or 1×H×W×C where the manifest says so. Raises DataError."""
    from PIL import Image

    size = spec.size or _wanted_size(info, spec)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images from half the limit on; a photograph may be that large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                _check(image.size, image.mode, file)
                _check_input(size or image.size[::-1], spec, info, file)
                picture = image.convert("L" if spec.color == "L" else "RGB")
        if size is not None and picture.size != (size[1], size[0]):
            picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, np.float32)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{file}: more than {MOST_PIXELS:,} pixels; scale the image down and save it again") from None
    except Exception as error:  # Pillow raises many kinds for one cause: a damaged file
        raise DataError(f"{file}: not a readable image: {first_line(error)}") from None
    return _normalised(pixels, spec, file)


def _check(size: tuple[int, int], mode: str, file: Path) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise DataError(
            f"{file}: {size[0]}×{size[1]} pixels, more than {MOST_PIXELS:,}; scale the image down and save it again"
        )
    if mode == "F" or mode.startswith("I"):
        # Pillow would clip them to 255: a 16-bit radiograph becomes one white area.
        raise DataError(f"{file}: has more than 8 bits a channel, which is not read from images; save it as .npy")


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
