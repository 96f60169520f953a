"""TensorRT's version, in whatever way it is written: major, minor and patch are what counts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from precisionlab.errors import OptionError

_VERSION = re.compile(
    r"v?([0-9]{1,2})\.([0-9]{1,2})(?:\.([0-9]{1,2})(?:\.[0-9]+)*)?"  # behind the patch stands the build: 10.16.1.11
    r"(?:[.-]?(?:a|b|rc|post|dev)[0-9]*)*"  # as packages for Python have it: 10.7.0.post1, 10.0.0b6
    r"(?:[-+~][0-9A-Za-z.+~-]*)?",  # as packages for Debian have it: 8.5.2-1+cuda11.8
)
RTX_MAJOR = 1
"""TensorRT-RTX counts from 1 (its 1.7 came out beside TensorRT 11), TensorRT is at 7 and later."""


@dataclass(frozen=True, order=True)
class Release:
    """Major, minor and patch of a TensorRT or a TensorRT-RTX."""

    major: int
    minor: int
    patch: int = 0

    @property
    def is_rtx(self) -> bool:
        """Whether such a version is one of TensorRT-RTX."""
        return self.major == RTX_MAJOR

    def __str__(self) -> str:
        """`10.14.1`."""
        return f"{self.major}.{self.minor}.{self.patch}"


def release_of(version: str) -> Release:
    """The release that a version names: `10.14.1.48.post1`, `10.0.0b6`, JetPack's `8.5.2-1+cuda11.4`, `10.16`.

    Builds, post-releases, betas and what a distribution adds are left out: calibration caches and what TensorRT can
    do go by the release. Raises OptionError for anything that is no version.
    """
    match = _VERSION.fullmatch(version.strip())
    if match is None:
        raise OptionError(f"{version!r} is no TensorRT version; write it as 8.6.1 or 10.16.1")
    major, minor, patch = (int(part or 0) for part in match.groups())
    return Release(major, minor, patch)
