"""Which versions of TensorRT the tests go through is found in the package index, and not written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bindings.index import Binding, _why_failed, few, in_range, index, listed
from bindings.setup import unsupported, wrong_machine
from bindings.versions import ROOT

CU12, CU13 = "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"
PIP = f"{CU12} (10.7.0.post1)\nAvailable versions: 10.7.0.post1, 10.7.0, 10.0.0b6\n  INSTALLED: 10.7.0\n"
NONE_FITS = f"ERROR: No matching distribution found for {CU13}\n"


def test_what_pip_lists_is_read() -> None:
    assert listed(PIP) == ("10.7.0.post1", "10.7.0", "10.0.0b6")
    assert listed(NONE_FITS) == ()


@pytest.mark.parametrize("version", ["8.6.1", "8.6.1.post1", "10.0.0b6", "10.14.1.48.post1", "11.4.0.106", "11.9.0"])
def test_every_version_from_8_6_1_on_is_tested(version: str) -> None:
    assert in_range(Binding(CU12, version))


@pytest.mark.parametrize("version", ["8.5.3.1", "8.6.0", "12.0.0", "12.0.0b1"])
def test_what_the_extras_do_not_allow_is_not(version: str) -> None:
    assert not in_range(Binding(CU12, version))


def test_everywhere_the_first_and_the_last_of_each_major_version_are_tested() -> None:
    rows = [(CU12, "10.16.1.11"), (CU13, "10.16.1.11"), (CU12, "10.9.0.34"), (CU12, "10.0.0b6"), (CU12, "10.0.1")]
    rows += [("tensorrt-bindings", "8.6.1"), (CU12, "11.0.0.114"), (CU13, "11.4.0.106"), (CU12, "11.4.0.106")]
    found = few(Binding(*row) for row in rows)
    assert {str(b) for b in found} == {
        "8.6.1",
        "10.0.0b6-cu12",
        "10.16.1.11-cu13",
        "11.0.0.114-cu12",
        "11.4.0.106-cu13",
    }


def test_a_package_without_a_wheel_for_this_python_is_no_failure_and_one_that_cannot_be_asked_for_is() -> None:
    assert _why_failed({CU12: PIP, CU13: NONE_FITS}) is None
    assert "has no TensorRT bindings for this Python" in str(_why_failed({CU13: NONE_FITS}))
    for lost in ("WARNING: Retrying (Retry(total=0)) after …", "Could not fetch URL …", "ERROR: HTTP error 503"):
        assert f"could not be asked for {CU13}" in str(_why_failed({CU12: PIP, CU13: f"{lost}\n{NONE_FITS}"}))
    assert "could not be asked" in str(_why_failed({CU12: "No module named pip"}))


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
def test_the_index_names_versions_of_each_kind_that_is_supported() -> None:
    numbers = {binding.number.major for binding in index().bindings}
    assert {10, 11} <= numbers
    assert list(index().bindings) == sorted(index().bindings, key=lambda binding: (binding.number, binding.package))


@pytest.mark.slow
@pytest.mark.skipif(wrong_machine() is not None, reason=str(wrong_machine()))
def test_where_the_index_cannot_be_reached_the_tests_are_skipped_and_say_so(tmp_path: Path) -> None:
    script = "import json; from bindings.versions import parameters; p = parameters(lambda t: not t.is_rtx); "
    script += "print(json.dumps([[m.name, m.kwargs['reason']] for one in p for m in one.marks]))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
            "XDG_CACHE_HOME": str(tmp_path),
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_NO_INDEX": "",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    ((mark, reason),) = json.loads(done.stdout)
    assert mark == "skip"
    assert "the package index could not be asked for" in reason
