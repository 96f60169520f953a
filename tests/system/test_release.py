"""A version of TensorRT is read in whatever way packages, modules and distributions write it."""

from __future__ import annotations

import pytest

from precisionlab.errors import OptionError
from precisionlab.system.release import Release, release_of


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("8.6.1", Release(8, 6, 1)),
        ("10.16", Release(10, 16)),
        ("10.16.1.11", Release(10, 16, 1)),
        ("11.4.0.106", Release(11, 4)),
        ("8.6.1.post1", Release(8, 6, 1)),
        ("10.7.0.post1", Release(10, 7)),
        ("10.14.1.48.post1", Release(10, 14, 1)),
        ("9.0.1.post12.dev4", Release(9, 0, 1)),
        ("10.0.0b6", Release(10, 0)),
        ("8.6.1rc1", Release(8, 6, 1)),
        ("8.5.2-1+cuda11.4", Release(8, 5, 2)),
        ("8.6.2.3-1+cuda12.2", Release(8, 6, 2)),
        ("10.3.0.30-1+cuda12.5", Release(10, 3)),
        ("10.16.1.11+cuda13", Release(10, 16, 1)),
        ("8.2.1~rc1-1", Release(8, 2, 1)),
        ("v10.3.0\n", Release(10, 3)),
        ("1.7.1.116", Release(1, 7, 1)),
    ],
)
def test_major_minor_and_patch_are_taken_and_the_rest_is_left(version: str, release: Release) -> None:
    assert release_of(version) == release
    assert release_of(str(release)) == release
    assert release.is_rtx == (release.major == 1)


@pytest.mark.parametrize(
    "version",
    [
        "",
        "8",
        "8601",
        "8.6.100",
        "10.x",
        "10.16.x",
        "8.-6.1",
        "8.6.1 GA",
        "8.6.1foo",
        "-8.6.1",
        "1_0.0",
        "８.6.1",
        "new",
    ],
)
def test_what_is_no_version_is_refused_with_one_that_is(version: str) -> None:
    with pytest.raises(OptionError, match=r"is no TensorRT version; write it as 8\.6\.1 or 10\.16\.1"):
        release_of(version)


def test_releases_are_in_the_order_of_their_numbers() -> None:
    assert release_of("8.6.1") < release_of("10.0.0b6") < release_of("10.9.0.34") < release_of("10.16.1.11")
