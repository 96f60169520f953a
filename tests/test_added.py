"""What is added in one file: a precision, on a copy of the package, and a backend, by its registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from models import DIGITS

import precisionlab
from precisionlab.backends import registry
from precisionlab.backends.engine import EngineBackend
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.registry import Kind
from precisionlab.backends.tensorrt.backend import Inside
from precisionlab.backends.tensorrt.jobs import Built, EngineTimes, Latency
from precisionlab.cli import cli
from precisionlab.compare.comparison import Comparison
from precisionlab.precision import Precision

# A precision

MEMBER = '    INT8 = "int8"\n'
FORMAT = """    "e5m2": Format(
        *("FLOAT8E5M2", "E5M2", "FP8"),
        *(57344.0, 2.0**-14, 2.0**-16, 2.0**-2),
        itemsize=1,
        opset=19,
        sqnr_db=6.0,
        colours=("#123456", "#654321"),
        computed_as="fp16",
    ),
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a precision more: two entries in one file."""
    folder = tmp_path_factory.mktemp("extended")
    source = Path(precisionlab.__file__).parent
    # With numba's compiled loops, which hold for a file of the same time and size wherever it lies.
    shutil.copytree(source, folder / "precisionlab", ignore=shutil.ignore_patterns("*.pyc*", "*.tmp.*"))
    file = folder / "precisionlab" / "precision.py"
    text = file.read_text(encoding="utf-8")
    assert text.count(MEMBER) == 1
    table = '    "int8": Format('
    assert text.count(table) == 1
    text = text.replace(MEMBER, f'{MEMBER}    E5M2 = "e5m2"\n').replace(table, FORMAT + table)
    file.write_text(text, encoding="utf-8")
    return folder


def told(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "precisionlab", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def swept(extended: Path, opset_19: Path) -> Path:
    """The run of the bundled model, at an opset that has the type, in the precision more."""
    run = extended / "run"
    data = ("--data", DIGITS, "--samples", "8", "--threads", "1", "--out", run)
    done = told(extended, "sweep", opset_19, "--precisions", "e5m2", "--max-evaluations", "3", *data)
    assert done.returncode in (0, 1), done.stderr
    assert "e5m2" in done.stdout
    return run


@pytest.fixture(scope="module")
def opset_19(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import version_converter

    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    onnx.save_model(version_converter.convert_version(onnx.load_model(DIGITS / "digits.onnx"), 19), path)
    return path


def test_a_precision_that_is_added_is_offered_and_the_others_are_as_they_were(extended: Path) -> None:
    help_text = " ".join(told(extended, "sweep", "--help").stdout.split())
    assert "Low precisions to sweep: fp16, bf16, fp8, int8, e5m2, int4." in help_text
    assert "around quantized ones: fp32, fp16, bf16, e5m2." in help_text
    assert "e5m2" not in CliRunner().invoke(cli, ["sweep", "--help"]).output
    refused = told(extended, "sweep", DIGITS / "digits.onnx", "--data", DIGITS, "--precisions", "e5m2")
    assert refused.returncode == 2
    assert "e5m2 needs opset 19 or newer" in refused.stderr


def test_its_tables_have_its_errors_cost_size_and_tolerance(swept: Path) -> None:
    variants = pd.read_csv(swept / "variants.csv").set_index("variant")
    low = variants.loc["e5m2"]
    assert low["sqnr_db"] < variants.loc["fp32", "sqnr_db"]
    assert low["tolerance"] == "sqnr>=6"
    assert low["cost_us"] < variants.loc["fp32", "cost_us"]
    layers = pd.read_csv(swept / "layers.csv")
    assert set(layers["precision"]) == {"e5m2"}
    assert "e5m2" in set(layers["format"])


def test_its_page_and_plan_show_it(swept: Path) -> None:
    page = (swept / "report.html").read_text(encoding="utf-8")
    assert "--g-e5m2:#123456;" in page
    assert "E5M2 at 57344" in page
    assert json.loads((swept / "plan.json").read_text(encoding="utf-8"))["default"] == "e5m2"


# A backend


class Toy(OnnxRuntimeBackend, EngineBackend):
    """Engines that are the emulation once more."""

    name, figures = "toy", "measured"
    device = "a toy"
    can_run = True
    precisions = frozenset(Precision.low())

    @property
    def identity(self) -> dict[str, str]:
        """Its name, and what it runs on."""
        return {"backend": self.name, "device": self.device}

    def inside(self, plan: Any, table: Any) -> Inside:
        """Nothing that could be told."""
        return Inside(Built(Path("toy"), seconds=0.0, size=0, outcomes=(), layers=(), warnings=()), (), {})

    def judge(self, plan: Any, table: Any, samples: Any, progress: Any, *, known: Any, **more: Any) -> Comparison:
        """As a whole comparison: an engine does not know what the reference has of NaN."""
        return self.compare(plan, table, samples, progress, introduced=False, **more)

    def kernels(self, precision: Precision) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """None."""
        return ()

    def times(self, plan: Any, table: Any, sample: Any) -> EngineTimes:
        """Always the same."""
        return EngineTimes(Latency(1.0, 1.0, 1.0, runs=1), {}, {})


@contextmanager
def opened(name: str, reference: OnnxRuntimeBackend, *_: Any) -> Iterator[EngineBackend]:
    toy = Toy.__new__(Toy)
    toy.__dict__.update(reference.__dict__)
    toy.notes = []
    yield toy


@pytest.fixture
def toy() -> Iterator[None]:
    registry.register(Kind("toy", "nothing is built", "onnxruntime", "pip install it", False, lambda: "", opened))
    yield
    del registry._KINDS["toy"]


def test_a_backend_that_is_registered_is_offered_and_measures(toy: None, tmp_path: Path) -> None:
    assert "toy (nothing is built)" in " ".join(CliRunner().invoke(cli, ["sweep", "--help"]).output.split())
    result = precisionlab.sweep(
        DIGITS / "digits.onnx", DIGITS, precisions="fp16", backend="toy", samples=8, threads=1, out=tmp_path / "run"
    )
    figures = dict(zip(result.variants["variant"], result.variants["figures"], strict=True))
    assert figures["fp16"] == "emulated"
    assert figures["fp16 engine"] == "measured"
    assert result.run["engines"]["backend"] == "toy"
    assert "toy" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_name_that_is_taken_is_refused(toy: None) -> None:
    with pytest.raises(ValueError, match="a backend 'toy' already"):
        registry.register(registry.KINDS["toy"])
