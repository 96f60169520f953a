"""Plugins: TensorRT's own are registered before all else, and libraries are loaded, told apart and refused.

On the double, whose registry knows a plugin only once it is registered; and on the real registry of TensorRT-RTX.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from doubled import arrange
from models import DIGITS, load, proto
from rtx import needs_rtx

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.tensorrt.child import ChildEngines
from precisionlab.backends.tensorrt.jobs import BuildJob
from precisionlab.backends.tensorrt.plugins import Plugins, libraries_of
from precisionlab.backends.tensorrt.store import EngineStore, key_of
from precisionlab.cli import cli
from precisionlab.data import open_dataset
from precisionlab.errors import BuildError, OptionError
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model, load_model
from precisionlab.system.observer import Silent

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler for libraries")

SCATTERED = """(float[1,4] x, float[1,2] u) => (float[1,4] y) {
    s = ScatterElements <axis: int = 1> (x, at, u) y = Relu(s) }"""
AT = {"at": np.array([[1, 3]])}
STRANGE = "(float[1,4] x) => (float[1,4] y) { h = mine.Swirl(x) y = Relu(h) }"
REGISTERS_ITSELF = """#include <stdlib.h>
__attribute__((constructor)) static void start(void) { setenv("DOUBLE_PLUGINS", "Swirl", 1); }"""
WAITS = """#include <stddef.h>
const char *double_plugins = "Swirl"; void *getPluginCreators(int *count) { *count = 0; return NULL; }"""
TAKEN = WAITS.replace("Swirl", "RoiAlign")
NO_PLUGINS = "int nothing;"


@pytest.fixture
def library(tmp_path: Path) -> Callable[[str], Path]:
    """A shared library of this C code."""

    def made(code: str) -> Path:
        assert COMPILER is not None
        path = tmp_path / f"lib{abs(hash(code))}.so"
        source = path.with_suffix(".c")
        source.write_text(code)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(path), str(source)], check=True, timeout=60)
        return path

    return made


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrange(monkeypatch, tmp_path)


def opened(folder: Path, model: Model, plugins: tuple[Plugins, ...] = (), module: str = "tensorrt") -> ChildEngines:
    samples = open_dataset(DIGITS, load_model(DIGITS / "digits.onnx"), 1, seed=0)
    return ChildEngines(module, model, samples, EngineStore(folder), folder / "log", Silent(), plugins)


def strange(folder: Path) -> Model:
    """A model for the parser alone: ONNX Runtime has no such operator."""
    model = load_model(DIGITS / "digits.onnx")
    load(proto("(float[1,4] x) => (float[1,4] y) {y = Relu(x)}"), folder)
    (folder / "strange.onnx").write_bytes(proto(STRANGE, domains=', "mine" : 1').SerializeToString())
    return model


# TensorRT's own


def test_a_model_that_tensorrt_needs_a_plugin_of_its_own_for_is_parsed_built_loaded_and_run(
    double: None, tmp_path: Path
) -> None:
    """The double's parser and runtime refuse ScatterElements where nobody has registered TensorRT's own plugins."""
    model = load(proto(SCATTERED, AT), tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        x, u = np.full((1, 4), number, np.float32), np.full((1, 2), -0.3, np.float32)
        np.savez(data / f"{number}.npz", x=x, u=u)
    result = sweep(
        model.path, data, precisions="fp16", backend="tensorrt", out=tmp_path / "run", threads=1,
        engine=EngineOptions(observe=0),
    )  # fmt: skip
    engine = result.precisions[0].engine
    assert engine is not None
    assert engine.low is not None, engine.notes
    assert engine.low.variant.met
    with opened(tmp_path, model) as engines:
        assert [layer.kind for layer in engines.describe(model.path)] == ["CONSTANT", "PLUGIN_V3", "ACTIVATION"]


def test_the_double_refuses_such_a_model_and_its_engine_where_they_are_not_registered(tmp_path: Path) -> None:
    script = """
import sys
import tensorrt as trt
from tensorrt._plugins import REGISTRY
class Logger(trt.ILogger):
    def log(self, severity, msg):
        if severity.name == "ERROR": print(msg)
logger = Logger()
def parsed():
    network = trt.Builder(logger).create_network()
    return network, trt.OnnxParser(network, logger).parse_from_file(sys.argv[1])
print(parsed()[1])
trt.init_libnvinfer_plugins(logger, "")
network, whether = parsed()
builder = trt.Builder(logger)
engine = builder.build_serialized_network(network, builder.create_builder_config())
print(whether, trt.Runtime(logger).deserialize_cuda_engine(engine) is not None)
REGISTRY._initialised = False
print(trt.Runtime(logger).deserialize_cuda_engine(engine))
"""
    model = load(proto(SCATTERED, AT), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, tmp_path)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(model.path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[1:3] == ["False", "True True"]
    assert "ScatterElements" in said[0]
    assert "Cannot find plugin: ScatterElements" in said[3]
    assert said[4] == "None"


# Libraries


@needs_compiler
@pytest.mark.parametrize("code", [REGISTERS_ITSELF, WAITS], ids=["static", "dynamic"])
def test_a_library_is_loaded_before_parsing_whether_it_registers_its_plugins_or_waits_to_be_asked(
    double: None, tmp_path: Path, library: Callable[[str], Path], code: str
) -> None:
    model = strange(tmp_path)
    with (
        opened(tmp_path, model) as engines,
        pytest.raises(BuildError, match=r"\(Swirl\).*load the plugin's library with --plugins"),
    ):
        engines.describe(tmp_path / "strange.onnx")
    with opened(tmp_path, model, libraries_of([str(library(code))])) as engines:
        assert [layer.kind for layer in engines.describe(tmp_path / "strange.onnx")] == ["PLUGIN_V3", "ACTIVATION"]
        assert engines.notes == ()


@needs_compiler
def test_a_library_without_plugins_is_told(double: None, tmp_path: Path, library: Callable[[str], Path]) -> None:
    with opened(tmp_path, strange(tmp_path), libraries_of([str(library(NO_PLUGINS))])) as engines:
        (note,) = engines.notes
    assert "registers no plugin with TensorRT" in note


@needs_compiler
@pytest.mark.parametrize(
    ("code", "words"),
    [(TAKEN, "TensorRT 10.14.1.48.post1 does not take its plugins"), (None, "cannot be loaded (")],
    ids=["names that are taken", "no library"],
)
def test_a_library_that_cannot_be_loaded_is_refused_in_one_sentence(
    double: None, tmp_path: Path, library: Callable[[str], Path], code: str | None, words: str
) -> None:
    path = tmp_path / "text.so" if code is None else library(code)
    if code is None:
        path.write_text("no library")
    command = ["sweep", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--backend", "tensorrt"]
    printed = CliRunner().invoke(
        cli, [*command, "--samples", "4", "--out", str(tmp_path / "o"), "--plugins", str(path)]
    )
    assert printed.exit_code == 2, printed.output
    assert f"--plugins {path}: " in printed.output
    assert words in printed.output
    assert "Traceback" not in printed.output


@pytest.mark.parametrize("name", ["missing.so", "folder", "a\0b"])
def test_a_library_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match=r"--plugins .*: cannot be read \(.*\); name a library of TensorRT plugins"):
        libraries_of([str(tmp_path / name)])


def test_a_library_named_twice_is_one_and_its_content_is_in_the_engines_key(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"one")
    (first,) = libraries_of([str(path), str(tmp_path / "." / "lib.so")])
    path.write_bytes(b"two")
    (second,) = libraries_of([str(path)])
    assert (first.path, second.path) == (path.resolve(), path.resolve())
    job = BuildJob(tmp_path / "m.onnx", tmp_path)
    digests = {
        key_of(
            BuildJob(job.model, job.engine, plugins=plugins),
            "m",
            None,
            module="tensorrt",
            version="10.16",
            device="GPU",
        ).digest
        for plugins in ((), (first.sha256,), (second.sha256,))
    }
    assert len(digests) == 3


@needs_compiler
def test_a_run_says_which_libraries_it_loaded(double: None, tmp_path: Path, library: Callable[[str], Path]) -> None:
    path = library(WAITS)
    result = sweep(
        DIGITS / "digits.onnx", DIGITS, precisions="fp16", backend="tensorrt", out=tmp_path / "run", samples=4,
        threads=1, engine=EngineOptions(observe=0, plugins=(str(path),), builds=1),
    )  # fmt: skip
    facts = (result.folder / "run.json").read_text() if result.folder is not None else ""
    assert f'"plugins": "{path.name} ({libraries_of([str(path)])[0].sha256[:12]})"' in facts


# The real registry


@needs_rtx
@needs_compiler
def test_the_real_registry_of_rtx_counts_and_refuses_as_is_assumed(
    tmp_path: Path, library: Callable[[str], Path]
) -> None:
    model = load_model(DIGITS / "digits.onnx")
    with opened(tmp_path, model, libraries_of([str(library(NO_PLUGINS))]), "tensorrt_rtx") as engines:
        assert len(engines.describe(model.path)) > 10
        assert len(engines.notes) == 1
    with pytest.raises(OptionError, match="does not take its plugins"):  # it has the function, and gives no plugin
        opened(tmp_path, model, libraries_of([str(library(WAITS))]), "tensorrt_rtx")
