"""Image files, decoded by Pillow: upright, in RGB or grey, 8 bits a channel; or what keeps them from it."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from precisionlab.errors import DataError
from precisionlab.system.quoting import cause
from precisionlab.system.reading import UnreadableError, file_size

if TYPE_CHECKING:
    from PIL import Image, ImageFile

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
MOST_PIXELS = 2 * 89_478_485
"""Pillow's own limit, beyond which it takes an image for a decompression bomb."""
LARGEST_FILE = 1 << 30
"""Bytes of the largest image file: so many pixels, not compressed, with some room. Some decoders read a file whole."""

# Pillow would look into any file for any format it knows, and hand some to other programs. MPO, which telephones
# write, comes through JPEG's door.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 0x0112, 258, 339  # tags of TIFF; EXIF has them from there
_UNSIGNED = 1

# What Pillow's decoders have been seen to raise for damaged files, beside OSError. Not KeyError or AttributeError:
# those would be faults of ours.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error, OverflowError)


@contextmanager
def opened(file: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file, of which only the header was read. Raises DataError, also for what Pillow raises inside."""
    from PIL import Image

    try:
        if file_size(file) > LARGEST_FILE:
            raise DataError(f"{file}: larger than {LARGEST_FILE >> 20} MiB; scale the image down and save it again")
        with warnings.catch_warnings():
            # Pillow warns of large images from half the limit on, and of odd metadata.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                _check(image, file)
                yield image
    except UnreadableError as error:
        raise DataError(f"{file}: {error}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{file}: more than {MOST_PIXELS:,} pixels; scale the image down and save it again") from None
    except _DAMAGED as error:
        advice = "save it again as PNG, or leave it out with --skip-bad"
        raise DataError(f"{file}: not a readable image; {advice}; {cause('Pillow', error)}") from None


def upright(image: ImageFile.ImageFile, mode: str) -> tuple[Image.Image, tuple[str, ...]]:
    """The first picture of the file in mode RGB or L, turned as its EXIF data says; and what a user should know of it.

    Raises what Pillow raises for a damaged file.
    """
    from PIL import ImageOps

    said = []
    # Pillow turns a TIFF by itself while it reads the pixels, and forgets that it has.
    if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        said.append("turned as the EXIF orientation says, which cv2.imread does too, and Image.open of Pillow does not")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # there the others are previews, and what the telephone measured
        said.append("of several pages or frames; the first is taken")
    picture = ImageOps.exif_transpose(image)
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA")
        if alpha.getchannel("A").getextrema() != (255, 255):
            said.append("partly transparent; the alpha channel is dropped, and the colour beneath it stays")
        picture = alpha
    if picture.mode == "CMYK":
        said.append("in CMYK, turned into RGB without a colour profile")
    return picture.convert(mode), tuple(said)


def _check(image: ImageFile.ImageFile, file: Path) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{file}: {width}×{height} pixels, more than {MOST_PIXELS:,}; scale the image down and save it again"
        )
    if width * height == 0:
        raise DataError(f"{file}: an image of {width}×{height} pixels; remove it")
    if _bits(image) > 8:
        # Pillow would clip grey ones to 255, so that a radiograph becomes one white area, and cut colours to 8 bits.
        raise DataError(f"{file}: has more than 8 bits a channel, which is not read from images; save it as .npy")
    if any(kind != _UNSIGNED for kind in _tag(image, _SAMPLE_FORMAT)):
        raise DataError(f"{file}: has signed values, which is not read from images; save it as .npy")
    if image.mode in ("LAB", "HSV"):
        raise DataError(f"{file}: has its colours as {image.mode}; save it as RGB")


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits of a channel, in the file: the mode tells it of grey alone."""
    if image.mode == "F" or image.mode.startswith("I"):
        return 16
    coding = "".join(str(tile[3]) for tile in image.tile) if image.format == "PNG" else ""
    return 16 if ";16" in coding else max(_tag(image, _BITS_PER_SAMPLE), default=8)


def _tag(image: ImageFile.ImageFile, number: int) -> tuple[int, ...]:
    found = getattr(image, "tag_v2", {}).get(number, ())
    return found if isinstance(found, tuple) else (found,)
