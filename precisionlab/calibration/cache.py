"""TensorRT's calibration cache: text, a header and a scale for each tensor.

Format, as TensorRT 8.6–10.x write it: line 1 `TRT-<version digits>-<algorithm>`, then `tensor name: hex digits` a
line, the big-endian bits of a float32: the scale, amax / 127. Names may hold colons and spaces, so a line
is split at its last colon. TensorRT skips a cache whose first line it does not accept, silently, and calibrates anew.

Files in the field have CRLF, blank lines, no line end after the last line, fewer than 8 digits (NVIDIA TAO's exporter
writes `hex()`, without leading zeros) and `TRT-8XXX` for a version: all of that is read. Any float32 is read as well,
NaN and Inf too: what a scale must not be is said by `lint`, for all tensors at once. Writing refuses all of it.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from precisionlab.errors import OptionError, PrecisionLabError
from precisionlab.system.reading import UnreadableError, file_size, read_bytes
from precisionlab.system.release import release_of

ALGORITHM = "EntropyCalibration2"
LARGEST_FILE = 1 << 24
"""16 MiB: a hundred thousand tensors with names of 150 characters; what is larger is no calibration cache."""

_LONGEST_LINE = 1 << 16
_SHOWN = 60  # characters of a bad line that a message quotes
_HEADER = re.compile(r"TRT-([0-9A-Za-z]{1,8})-([0-9A-Za-z]{1,64})")
_DIGITS = re.compile(r"[0-9a-fA-F]{1,8}")
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


class CacheError(PrecisionLabError):
    """A calibration cache, or the fingerprint beside it, cannot be read or written."""


@dataclass(frozen=True)
class CalibrationCache:
    """The content of a cache: the header's version digits and algorithm, and tensor name → scale, in the file's order.

    `sha256` is that of the bytes it was read from; it takes no part in comparisons.
    """

    version: str
    algorithm: str
    scales: Mapping[str, float]
    sha256: str = field(default="", compare=False)

    @property
    def tensorrt(self) -> str:
        """The header's version as people write it: 8601 → 8.6.1; as it stands where it is no number."""
        if not self.version.isdecimal():
            return self.version
        major, rest = divmod(int(self.version), 10000 if len(self.version) > 4 else 1000)
        return f"{major}.{rest // 100}.{rest % 100}"

    def to_bytes(self) -> bytes:
        """The file. What `write_cache` or TensorRT wrote comes back byte for byte after `read_cache`."""
        lines = [f"TRT-{self.version}-{self.algorithm}\n"]
        lines += [f"{name}: {struct.pack('>f', scale).hex()}\n" for name, scale in self.scales.items()]
        return "".join(lines).encode("utf-8")


def version_digits(version: str) -> str:
    """TensorRT's version as the header has it: 8.6.1 → 8601, 10.16.1.11 → 101601, 10.7.0.post1 → 100700.

    NV_TENSORRT_VERSION (NvInferVersion.h) is major · 1000 + minor · 100 + patch up to 8, and
    major · 10000 + minor · 100 + patch from 10. Raises CacheError where it is no version, or one without caches.
    """
    try:
        release = release_of(version)
    except OptionError as error:
        raise CacheError(str(error)) from None
    if not 7 <= release.major <= 10:
        name = "TensorRT-RTX" if release.is_rtx else "TensorRT"
        raise CacheError(f"{name} {version} reads no calibration cache; TensorRT 7.x to 10.x do")
    return str(release.major * (10000 if release.major >= 10 else 1000) + release.minor * 100 + release.patch)


def write_cache(scales: Mapping[str, float], version: str) -> bytes:
    """The EntropyCalibration2 cache of these scales for a TensorRT version, such as "8.6.1".

    Raises CacheError for a name that the format cannot hold, and for a scale that is no positive float32.
    """
    for name, scale in scales.items():
        if not name or any(sign in name for sign in "\n\r\0") or not _is_encodable(name):
            raise CacheError(
                f"tensor name {name[:_SHOWN]!r} cannot stand in a calibration cache; rename it in the model"
            )
        # A float64 may be positive and finite, and yet 0 or infinite as the float32 that stands in the file.
        if not 0 < scale <= _LARGEST_FLOAT32 or as_float32(scale) == 0:
            raise CacheError(
                f"tensor {name!r} has scale {scale!r}, and a calibration cache needs a positive float32; "
                "calibrate it again, or leave the tensor out"
            )
    return CalibrationCache(version_digits(version), ALGORITHM, scales).to_bytes()


def read_cache(content: bytes, where: str) -> CalibrationCache:
    """Read a cache of any algorithm. `where` names the file in messages.

    Raises CacheError with the number of the line that is wrong: no header, cut short, no hexadecimal scale, or a
    tensor named twice.
    """
    if len(content) > LARGEST_FILE:
        raise _too_large(where)
    scales: dict[str, float] = {}
    lines = content.split(b"\n")
    version, algorithm = _read_header(lines[0], where)
    for number, raw in enumerate(lines[1:], 2):
        line = _text_of(raw, f"{where}: line {number}")
        if not line.strip():
            continue
        name, scale = _read_line(line, f"{where}: line {number}", last=number == len(lines))
        if name in scales:
            raise CacheError(f"{where}: line {number} names tensor {name!r} a second time; remove one of the two")
        scales[name] = scale
    return CalibrationCache(version, algorithm, scales, hashlib.sha256(content).hexdigest())


def read_cache_file(path: Path) -> CalibrationCache:
    """Read a cache from a file. Raises CacheError as `read_cache` does, and where the file cannot be read."""
    return read_cache(read_limited(path), str(path))


def read_limited(path: Path) -> bytes:
    """A file's bytes, never more of them than a calibration cache has. Raises CacheError."""
    try:
        if file_size(path) > LARGEST_FILE:
            raise _too_large(str(path))
        return read_bytes(path, LARGEST_FILE)
    except UnreadableError as error:
        raise CacheError(f"{path}: {error}") from None


def require_entropy2(cache: CalibrationCache, where: str) -> CalibrationCache:
    """The same cache. Raises CacheError where an IInt8EntropyCalibrator2 would not take it."""
    if cache.algorithm != ALGORITHM:
        raise CacheError(
            f"{where}: line 1 says {cache.algorithm}, and an {ALGORITHM} cache is needed here; TensorRT would skip "
            "this one: calibrate with `precisionlab calibrate`, or with an IInt8EntropyCalibrator2"
        )
    return cache


def as_float32(scale: float) -> float:
    """The scale as the cache holds it, rounded to float32. Raises OverflowError beyond its range."""
    value: float = struct.unpack(">f", struct.pack(">f", scale))[0]
    return value


def is_scale(scale: float) -> bool:
    """Whether int8 can be scaled with it: a positive finite number."""
    return math.isfinite(scale) and scale > 0


def _read_header(raw: bytes, where: str) -> tuple[str, str]:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise CacheError(
            f"{where}: line 1 begins with a byte order mark, with which TensorRT skips the cache; "
            "save the file as UTF-8 without it"
        )
    line = _text_of(raw, f"{where}: line 1")
    header = _HEADER.fullmatch(line)
    if header is None:
        raise CacheError(
            f"{where}: line 1 is {line[:_SHOWN]!r}, expected TRT-<version>-{ALGORITHM}; this is no calibration cache"
        )
    return header[1], header[2]


def _read_line(line: str, where: str, last: bool) -> tuple[str, float]:
    name, colon, rest = line.rpartition(":")
    digits = rest.strip(" \t")
    # A last line without a line end may be whole, with all 8 digits; anything less was cut off.
    if last and not (colon and name and len(digits) == 8):
        raise CacheError(
            f"{where}, the last one, is {line[:_SHOWN]!r}: cut short; copy the file again, or calibrate again"
        )
    if not colon or not name or not _DIGITS.fullmatch(digits):
        raise CacheError(
            f"{where} is {line[:_SHOWN]!r}, expected `tensor name: 8 hex digits`; fix the line, or calibrate again"
        )
    return name, struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]


def _text_of(raw: bytes, where: str) -> str:
    if len(raw) > _LONGEST_LINE:
        raise CacheError(f"{where} has {len(raw)} bytes; this is no calibration cache")
    try:
        return raw.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError:
        raise CacheError(f"{where} is not UTF-8 text; this is no calibration cache") from None


def _too_large(where: str) -> CacheError:
    return CacheError(f"{where}: larger than {LARGEST_FILE >> 20} MiB; this is no calibration cache")


def _is_encodable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
