"""What we write is what TensorRT's own calibrator class hands on, byte for byte, in each version that reads caches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bindings.versions import ROOT, TensorRT, parameters

from precisionlab.calibration.cache import read_cache, version_digits, write_cache

DRIVER = ROOT / "tests" / "bindings" / "drive.py"
NAMES = ["image", "a: b", "x:", "(Unnamed Layer* 22) [Constant]_output", "/层/Conv_output_0", " spaces ", "tab\tit"]


def scales() -> dict[str, float]:
    """Names of every kind, and enough of them that the cache is longer than any buffer on the way."""
    values = np.random.default_rng(0).uniform(1e-6, 10, 4000).astype(np.float32).tolist()
    return dict(zip([*NAMES, *(f"/block.{i}/MatMul_output_0" for i in range(3993))], values, strict=True))


@pytest.mark.parametrize("version", parameters(lambda tested: not tested.is_strong))
def test_the_real_calibrator_hands_on_our_cache_and_gives_us_back_its_own(version: TensorRT, tmp_path: Path) -> None:
    content = write_cache(scales(), version.version)
    cache, back, written = (tmp_path / name for name in ("cache", "back", "written"))
    cache.write_bytes(content)
    found = json.loads(version.run(DRIVER, cache, back, written))
    assert found["version"] == version.version
    assert back.read_bytes() == content
    read = read_cache(written.read_bytes(), "written")
    assert dict(read.scales) == scales()
    assert (read.version, read.algorithm) == (version_digits(version.version), "EntropyCalibration2")
    assert found["algorithm"] == found["entropy 2"]
    assert found["without a cache"]  # None out of Python is a null pointer: TensorRT calibrates
    assert found["batch size"] == 7
    assert found["batches"] == [[0x1000, 0x2000], [0x3000, 0x4000]]
    assert found["names"] == ["image", "a: b"]
